"""The status page: static files with a strict policy; it reads our reports with the key that a person types in."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Final

PREFIX: Final = "/appliance/ui"
KINDS: Final = {
    "index.html": "text/html; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    "app.js": "text/javascript; charset=utf-8",
    "facts.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
# no inline script or style, no frame, no other host, no markup from strings
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'none'; "
    "base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS: Final = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), microphone=(), geolocation=()"),
    (b"cache-control", b"no-cache"),
)


def page(path: str) -> tuple[bytes, list[tuple[bytes, bytes]]] | None:
    """One file of the page: content and headers, or None where the path is not one of it.

    Args:
        path: of the request; `/appliance/ui` and `/appliance/ui/` are the page itself.
    """
    name = "index.html" if path in {PREFIX, f"{PREFIX}/"} else path.removeprefix(f"{PREFIX}/")
    if name not in KINDS or (name == "index.html" and path.endswith(name)):
        return None
    content = _file(name)
    length = str(len(content)).encode()
    return content, [(b"content-type", KINDS[name].encode()), (b"content-length", length), *HEADERS]


@cache
def _file(name: str) -> bytes:
    return resources.files("appliance.gateway").joinpath("ui", name).read_bytes()
