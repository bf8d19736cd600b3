"""Small wheels, honest and poisoned, and a package index on the loopback that serves them."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import struct
import threading
import urllib.parse
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FIXED_TIME = (2020, 1, 1, 0, 0, 0)


def record_line(name: str, content: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    return f"{name},sha256={digest},{len(content)}"


@dataclass
class WheelMaker:
    """A wheel under construction; change any part before `build`.

    Attributes:
        files: content besides the `.dist-info` files.
        requires: Requires-Dist lines.
        metadata, wheel_file, record: replace the generated file where set.
        entry_points: text of entry_points.txt.
        unlisted: members that RECORD shall not name.
    """

    name: str = "honest"
    version: str = "1.0"
    tag: str = "py3-none-any"
    files: dict[str, bytes] = field(default_factory=dict)
    requires: tuple[str, ...] = ()
    headers: tuple[str, ...] = ("License-Expression: MIT",)
    entry_points: str | None = None
    metadata: bytes | None = None
    wheel_file: bytes | None = None
    record: bytes | None = None
    unlisted: frozenset[str] = frozenset()
    requires_python: str | None = None
    compression: int = zipfile.ZIP_DEFLATED

    @property
    def module(self) -> str:
        return self.name.replace("-", "_")

    @property
    def info(self) -> str:
        return f"{self.module}-{self.version}.dist-info"

    @property
    def filename(self) -> str:
        return f"{self.module}-{self.version}-{self.tag}.whl"

    def members(self) -> dict[str, bytes]:
        files = {f"{self.module}/__init__.py": f'__version__ = "{self.version}"\n'.encode(), **self.files}
        headers = [f"Name: {self.name}", f"Version: {self.version}", *self.headers]
        headers += [f"Requires-Dist: {line}" for line in self.requires]
        if self.requires_python:
            headers.append(f"Requires-Python: {self.requires_python}")
        files[f"{self.info}/METADATA"] = (
            self.metadata or ("\n".join(["Metadata-Version: 2.4", *headers]) + "\n\n").encode()
        )
        python, abi, platforms = self.tag.split("-")
        tags = "".join(f"Tag: {p}-{abi}-{platform}\n" for p in python.split(".") for platform in platforms.split("."))
        pure = "true" if abi == "none" else "false"
        files[f"{self.info}/WHEEL"] = (
            self.wheel_file or f"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: {pure}\n{tags}".encode()
        )
        if self.entry_points is not None:
            files[f"{self.info}/entry_points.txt"] = self.entry_points.encode()
        record = "".join(record_line(n, c) + "\n" for n, c in files.items() if n not in self.unlisted)
        files[f"{self.info}/RECORD"] = self.record or f"{record}{self.info}/RECORD,,\n".encode()
        return files

    def build(self) -> bytes:
        return pack(self.members(), compression=self.compression)

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / self.filename
        path.write_bytes(self.build())
        return path


def pack(members: Mapping[str, bytes] | list[tuple[str, bytes]], *, compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A plain ZIP of members, reproducible; a list may hold a name twice."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in members.items() if isinstance(members, Mapping) else members:
            entry = zipfile.ZipInfo(name, FIXED_TIME)
            entry.compress_type = compression
            entry.external_attr = (0o40755 if name.endswith("/") else 0o100644) << 16
            archive.writestr(entry, content)
    return buffer.getvalue()


def safetensors(tensors: dict[str, tuple[str, list[int], bytes]], **changes: object) -> bytes:
    """Weights in the format of safetensors: name -> dtype, shape, bytes; `changes` replace parts of the header."""
    header: dict[str, object] = {}
    body = b""
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps({**header, **changes}).encode()
    return struct.pack("<Q", len(text)) + text + body


def litellm_1_82_8() -> WheelMaker:
    """A wheel shaped like the malicious release: the same name, and a .pth that runs at every interpreter start."""
    payload = b"import os, subprocess, sys; subprocess.Popen([sys.executable, '-c', 'pass'])\n"
    return WheelMaker("litellm", "1.82.8", files={"litellm_init.pth": payload})


@dataclass
class Offer:
    """A file of the index. `uploaded` as PEP 700 writes it."""

    filename: str
    content: bytes
    uploaded: str | None = "2026-01-01T00:00:00Z"
    yanked: bool = False
    sha256: str | None = None  # told instead of the true one
    requires_python: str | None = None

    @property
    def told_sha256(self) -> str:
        return self.sha256 or hashlib.sha256(self.content).hexdigest()


class PackageIndex:
    """PEP 503 and PEP 691 pages over offers; counts what is asked for.

    Args:
        json_pages: whether to speak PEP 691; plain HTML otherwise.
    """

    def __init__(self, *, json_pages: bool = True) -> None:
        self.offers: dict[str, list[Offer]] = {}
        self.json_pages = json_pages
        self.requests: list[str] = []
        self.failures_left = 0

    def add(self, name: str, *offers: Offer) -> None:
        self.offers.setdefault(name, []).extend(offers)

    def add_wheel(self, maker: WheelMaker, **told: object) -> Offer:
        offer = Offer(maker.filename, maker.build(), requires_python=maker.requires_python, **told)  # type: ignore[arg-type]
        self.add(maker.name, offer)
        return offer

    @contextmanager
    def serving(self) -> Iterator[str]:
        """Serve on a free loopback port; yields the index URL."""
        index = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                index.requests.append(self.path)
                if index.failures_left:
                    index.failures_left -= 1
                    self.send_error(503)
                    return
                answer = index.answer(self.path, self.headers.get("Accept", ""))
                if answer is None:
                    self.send_error(404)
                    return
                kind, body = answer
                self.send_response(200)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                return

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_: object) -> None:
                return  # a client that was killed is part of the tests

        server = Server(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/simple"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def answer(self, path: str, accept: str) -> tuple[str, bytes] | None:
        parts = urllib.parse.unquote(path).strip("/").split("/")
        if parts[0] == "files":
            found = [offer for offers in self.offers.values() for offer in offers if offer.filename == parts[-1]]
            return ("application/octet-stream", found[0].content) if found else None
        offers = self.offers.get(parts[-1])
        if parts[0] != "simple" or offers is None:
            return None
        if self.json_pages and "vnd.pypi.simple.v1+json" in accept:
            page = {
                "meta": {"api-version": "1.1"},
                "name": parts[-1],
                "files": [
                    {
                        "filename": offer.filename,
                        "url": f"/files/{offer.filename}",
                        "hashes": {"sha256": offer.told_sha256},
                        "yanked": offer.yanked,
                        "size": len(offer.content),
                        "requires-python": offer.requires_python,
                    }
                    | ({"upload-time": offer.uploaded} if offer.uploaded else {})
                    for offer in offers
                ],
            }
            return "application/vnd.pypi.simple.v1+json", json.dumps(page).encode()
        anchors = "".join(
            f'<a href="/files/{offer.filename}#sha256={offer.told_sha256}"'
            + (' data-yanked=""' if offer.yanked else "")
            + (f' data-requires-python="{html.escape(offer.requires_python)}"' if offer.requires_python else "")
            + f">{offer.filename}</a>\n"
            for offer in offers
        )
        return "text/html", f"<!DOCTYPE html><html><body>{anchors}</body></html>".encode()
