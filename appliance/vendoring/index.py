"""Package indexes as pip is configured to use them, read without pip: PEP 503 (HTML), PEP 691 (JSON), PEP 700 (times).

The index is not trusted. It only says where a file with a locked hash may be found and when it claims to have been
uploaded; what is downloaded counts only once its SHA-256 stands in the lock.
"""

from __future__ import annotations

import json
import ssl
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import httpx
from packaging.utils import (
    InvalidSdistFilename,
    InvalidWheelFilename,
    canonicalize_name,
    parse_sdist_filename,
    parse_wheel_filename,
)

from appliance.errors import VendorError
from appliance.files import read_regular
from appliance.vendoring.pages import JSON_TYPE, MAX_PAGE_BYTES, IndexFile, parse_page, redacted

ATTEMPTS = 4
_ACCEPT = f"{JSON_TYPE}, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"
# what `pip download` would work with: its files, the environment and its own defaults, in its own order
_ASK_PIP = """
import json
from pip._internal.commands import create_command
options, _ = create_command("download").parse_args(["nothing"])
names = ("index_url", "extra_index_urls", "find_links", "no_index", "cert", "proxy", "timeout")
print(json.dumps({name: getattr(options, name) for name in names}))
"""


@dataclass(frozen=True)
class Sources:
    """Where pip looks for packages.

    Attributes:
        indexes: URLs of simple repositories, `file:` allowed.
        find_links: folders or URLs holding files or pages with links.
        certificates: CA file for TLS, or None for the system's.
        proxy: proxy URL, or None for the environment's.
        timeout_s: of each network operation.
    """

    indexes: tuple[str, ...] = ()
    find_links: tuple[str, ...] = ()
    certificates: str | None = None
    proxy: str | None = None
    timeout_s: float = 60.0

    @classmethod
    def from_pip(cls, *, environment: Mapping[str, str] | None = None) -> Sources:
        """Ask pip for its configuration: files, then environment variables, as its own commands see them.

        Raises:
            VendorError: VENDOR_TOOL_FAILED where pip does not answer.
        """
        command = [sys.executable, "-c", _ASK_PIP]
        result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=60)
        if result.returncode != 0:
            raise VendorError(
                "VENDOR_TOOL_FAILED", "pip does not tell its configuration", tool="pip", says=result.stderr[-500:]
            )
        options = json.loads(result.stdout)
        return cls(
            indexes=() if options["no_index"] else (options["index_url"], *options["extra_index_urls"]),
            find_links=tuple(options["find_links"]),
            certificates=options["cert"],
            proxy=options["proxy"] or None,
            timeout_s=float(options["timeout"]),
        )


@dataclass
class Index:
    """A client for all configured sources; safe for use by several threads.

    Args:
        sources: where to look.
    """

    sources: Sources
    _client: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        cafile = self.sources.certificates
        context = ssl.create_default_context(cafile=cafile if cafile and Path(cafile).exists() else None)
        self._client = httpx.Client(
            verify=context, proxy=self.sources.proxy, timeout=self.sources.timeout_s, follow_redirects=True
        )

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def files(self, name: str) -> list[IndexFile]:
        """Every file that any source offers for a project.

        Raises:
            VendorError: VENDOR_INDEX_UNREACHABLE, VENDOR_INDEX_MALFORMED.
        """
        found: list[IndexFile] = []
        for index in self.sources.indexes:
            found += self._page(f"{index.rstrip('/')}/{canonicalize_name(name)}/")
        for place in self.sources.find_links:
            found += [file for file in self._links(place) if _project(file.filename) == canonicalize_name(name)]
        return found

    @contextmanager
    def open(self, file: IndexFile) -> Iterator[Iterator[bytes]]:
        """Stream a file's bytes in chunks.

        Raises:
            VendorError: VENDOR_INDEX_UNREACHABLE.
        """
        local = _local_path(file.url)
        if local is not None:
            try:
                with local.open("rb") as stream:
                    yield iter(lambda: stream.read(1 << 20), b"")
            except OSError as error:
                raise _unreachable(file.url, str(error.strerror)) from None
            return
        try:
            with self._client.stream("GET", file.url) as response:
                response.raise_for_status()
                yield response.iter_bytes(1 << 20)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise _unreachable(file.url, _reason(error)) from None

    def _page(self, url: str) -> list[IndexFile]:
        local = _local_path(url)
        if local is not None:
            page = local / "index.html"
            if not page.is_file():
                return []
            return parse_page(read_regular(page.resolve(), max_bytes=MAX_PAGE_BYTES), "text/html", url)
        status, content_type, base, content = self._get(url)
        if status == 404:
            return []
        if status != 200:
            raise _unreachable(url, f"HTTP status {status}")
        return parse_page(content, content_type, base)

    def _get(self, url: str) -> tuple[int, str, str, bytes]:
        """Status, content type, final URL and body, asked for again while the server stumbles."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                with self._client.stream("GET", url, headers={"Accept": _ACCEPT}) as response:
                    if attempt == ATTEMPTS or response.status_code not in {429, 500, 502, 503, 504}:
                        kind = response.headers.get("content-type", "")
                        return response.status_code, kind, str(response.url), _body(response)
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                if attempt == ATTEMPTS or isinstance(error, httpx.InvalidURL):
                    raise _unreachable(url, _reason(error)) from None
            time.sleep(0.3 * 2**attempt)
        raise AssertionError("unreachable")

    def _links(self, place: str) -> list[IndexFile]:
        local = _local_path(place) or (Path(place) if "://" not in place else None)
        if local is None:
            return self._page(place)
        if local.is_dir():
            return [IndexFile(path.name, path.resolve().as_uri()) for path in sorted(local.iterdir())]
        if not local.exists():
            return []
        return parse_page(read_regular(local, max_bytes=MAX_PAGE_BYTES), "text/html", local.resolve().as_uri())


def _body(response: httpx.Response) -> bytes:
    content = bytearray()
    for chunk in response.iter_bytes():
        content += chunk
        if len(content) > MAX_PAGE_BYTES:
            url = redacted(str(response.url))
            raise VendorError("VENDOR_INDEX_MALFORMED", "the index answers with an oversized page", url=url)
    return bytes(content)


def _unreachable(url: str, reason: str) -> VendorError:
    return VendorError("VENDOR_INDEX_UNREACHABLE", f"the index does not answer: {reason}", url=redacted(url))


def _reason(error: Exception) -> str:
    if isinstance(error, httpx.HTTPStatusError):
        return f"HTTP status {error.response.status_code}"
    return f"{type(error).__name__} {error}".strip()


def _local_path(url: str) -> Path | None:
    parts = urllib.parse.urlsplit(url)
    return Path(urllib.parse.unquote(parts.path)) if parts.scheme == "file" else None


def _project(filename: str) -> str | None:
    try:
        if filename.endswith(".whl"):
            return str(parse_wheel_filename(filename)[0])
        return str(parse_sdist_filename(filename)[0])
    except (InvalidWheelFilename, InvalidSdistFilename):
        return None
