"""Trust: a private, offline Sigstore with a TUF repository underneath.

`verification` is pure (bytes, time and policy in, a verdict out); `store` keeps what a host trusts; `signing` and
`authority` are the other side, which never runs on a serving host.
"""
