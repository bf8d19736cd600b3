"""Pages of a package index: PEP 503 (HTML), PEP 691 (JSON) with the upload times of PEP 700, read without trust."""

from __future__ import annotations

import re
import urllib.parse
from dataclasses import dataclass
from datetime import UTC, datetime
from html.parser import HTMLParser
from typing import Any

from appliance import documents
from appliance.errors import DocumentError, VendorError

MAX_PAGE_BYTES = 64 * 1024 * 1024  # bytes of one project's page
_PLAIN = re.compile(r"https?://[A-Za-z0-9.:@%_~-]+/[!-~]*\Z")  # an absolute URL that no parser stumbles over
JSON_TYPE = "application/vnd.pypi.simple.v1+json"


@dataclass(frozen=True)
class IndexFile:
    """A file as an index offers it.

    Attributes:
        filename: as the index spells it.
        url: where it lies; may hold credentials, never print it.
        sha256: hex, or None where the index does not tell.
        requires_python: PEP 440 specifier or None.
        uploaded: PEP 700 upload time, or None where the index does not tell.
        yanked: whether its publisher has withdrawn it.
        size_bytes: or None.
    """

    filename: str
    url: str
    sha256: str | None = None
    requires_python: str | None = None
    uploaded: datetime | None = None
    yanked: bool = False
    size_bytes: int | None = None


def parse_page(data: bytes, content_type: str, base: str) -> list[IndexFile]:
    """Read one project's page, PEP 691 or PEP 503 by its content type.

    Args:
        data: the page.
        content_type: as the server tells it.
        base: URL against which its links are resolved.

    Raises:
        VendorError: VENDOR_INDEX_MALFORMED.
    """
    try:
        files = _json(data, base) if content_type.startswith(JSON_TYPE) else _html(data, base)
    except (DocumentError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise VendorError("VENDOR_INDEX_MALFORMED", f"not an index page: {error}", url=redacted(base)) from None
    # a page from the network has no business with files of this host
    local = base.startswith("file:")
    return [file for file in files if local or file.url.startswith(("http://", "https://"))]


def redacted(url: str) -> str:
    """A URL without credentials and query, fit for messages."""
    parts = urllib.parse.urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urllib.parse.urlunsplit((parts.scheme, host, parts.path, "", ""))


def _json(data: bytes, base: str) -> list[IndexFile]:
    page: Any = documents.read_json(data, what="index page", max_bytes=MAX_PAGE_BYTES)
    return [
        IndexFile(
            filename=_text(entry["filename"]),
            url=_absolute(base, _text(entry["url"])),
            sha256=_optional(entry["hashes"].get("sha256")),
            requires_python=_optional(entry.get("requires-python")),
            uploaded=_time(_optional(entry.get("upload-time"))),
            yanked=entry.get("yanked", False) is not False,
            size_bytes=_size(entry.get("size")),
        )
        for entry in page["files"]
    ]


def _absolute(base: str, url: str) -> str:
    # joining costs more than all the rest of a page of ten thousand files; most indexes write whole URLs
    return url if _PLAIN.match(url) else urllib.parse.urljoin(base, url)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not text")
    return value


def _optional(value: Any) -> str | None:
    return None if value is None else _text(value)


def _size(value: Any) -> int | None:
    if value is not None and (type(value) is not int or value < 0):
        raise TypeError(f"{value!r} is not a size")
    return value


def _time(text: str | None) -> datetime | None:
    if not text:
        return None
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


class _Anchors(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[dict[str, str | None], str]] = []
        self._open: dict[str, str | None] | None = None
        self._text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self._open, self._text = dict(attrs), ""

    def handle_data(self, data: str) -> None:
        self._text += data

    def handle_endtag(self, tag: str) -> None:
        if tag == "a" and self._open is not None:
            self.found.append((self._open, self._text.strip()))
            self._open = None


def _html(data: bytes, base: str) -> list[IndexFile]:
    parser = _Anchors()
    parser.feed(data.decode("utf-8", "replace"))
    files = []
    for attributes, _ in parser.found:
        href = attributes.get("href")
        if not href:
            continue
        url = urllib.parse.urljoin(base, href)
        parts = urllib.parse.urlsplit(url)
        algorithm, _, digest = parts.fragment.partition("=")
        files.append(
            IndexFile(
                filename=urllib.parse.unquote(parts.path.rpartition("/")[2]),
                url=urllib.parse.urldefrag(url).url,
                sha256=digest if algorithm == "sha256" else None,
                requires_python=attributes.get("data-requires-python"),
                yanked="data-yanked" in attributes,
            )
        )
    return files
