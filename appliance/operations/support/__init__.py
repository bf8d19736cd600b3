"""The support bundle: built from an allow-list, searched for secrets before it is written.

`shape` is the allow-list, `collect` fills it, `gate` searches the result. Nothing is copied and then cleaned; what the
allow-list does not name never gets in.
"""
