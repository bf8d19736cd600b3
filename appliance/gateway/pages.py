"""The status page's files, from the package and nowhere else: a closed list, read at the start, behind a strict policy.

The page holds no data; its script asks `/appliance/status` with the key that the operator types in.
"""

from __future__ import annotations

from importlib import resources

ROOT = "/appliance/ui"
_FILES = {
    "": ("index.html", "text/html; charset=utf-8"),
    "/": ("index.html", "text/html; charset=utf-8"),
    "/app.js": ("app.js", "text/javascript; charset=utf-8"),
    "/facts.js": ("facts.js", "text/javascript; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; "
    b"trusted-types 'none'"
)
HEADERS = (
    (b"content-security-policy", POLICY),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
)


def load() -> dict[str, tuple[bytes, bytes]]:
    """Path -> (content type, bytes)."""
    folder = resources.files("appliance.gateway").joinpath("ui")
    return {
        f"{ROOT}{path}": (kind.encode(), folder.joinpath(name).read_bytes()) for path, (name, kind) in _FILES.items()
    }
