"""Fetch exactly what a lock names: every byte hashed here, nothing left half written, nothing fetched twice."""

from __future__ import annotations

import contextlib
import hashlib
import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from appliance import documents
from appliance.errors import VendorError
from appliance.files import locked, read_regular, require_room, sync_directory, translated, write_atomic
from appliance.vendoring.index import Index
from appliance.vendoring.locks import Pin
from appliance.vendoring.pages import redacted
from appliance.vendoring.selection import Selected, rank, select, wheel_name
from appliance.vendoring.targets import Target

RECORD_NAME = "fetched.json"  # beside the wheels: what the index said of each; the wheels themselves decide
DOWNLOADS_AT_ONCE = 8
MAX_WHEEL_BYTES = 2 * 1024**3  # bytes

Progress = Callable[[str, int | None, int | None], None]


def silent(text: str, done: int | None = None, total: int | None = None) -> None:
    """Report nothing."""


class FetchedWheel(BaseModel):
    """What is known of a wheel from the index, kept beside it.

    Attributes:
        name, version, filename: of the wheel.
        sha256: of its bytes, hex.
        size_bytes: of the file.
        uploaded: RFC 3339 time at which the index says it was uploaded, or None.
        yanked: whether its publisher has withdrawn it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    version: str
    filename: str
    sha256: str
    size_bytes: int
    uploaded: str | None = None
    yanked: bool = False


class _Fetched(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = 1
    target: str
    wheels: list[FetchedWheel]


@dataclass(frozen=True)
class Wheelhouse:
    """A folder that holds one verified wheel per pin.

    Attributes:
        directory: the folder.
        wheels: of the pins, sorted by file name.
        downloaded: how many of them were not there before.
        removed: names of files that no longer belong and were deleted.
    """

    directory: Path
    wheels: tuple[FetchedWheel, ...]
    downloaded: int
    removed: tuple[str, ...]

    @property
    def size_bytes(self) -> int:
        """All wheels together."""
        return sum(wheel.size_bytes for wheel in self.wheels)


def fetch(
    pins: Iterable[Pin],
    target: Target,
    directory: Path,
    *,
    open_index: Callable[[], Index],
    others: Iterable[Pin] = (),
    progress: Progress = silent,
) -> Wheelhouse:
    """Bring a folder to hold one verified wheel per pin.

    What is there with a locked hash is kept, so that an interrupted fetch goes on where it stopped and a complete one
    asks no index at all.

    Args:
        pins: what the target needs.
        target: where it shall run.
        directory: made where it is missing; wheels in it that belong to no pin are deleted.
        open_index: called only where something is missing.
        others: pins of other profiles that share the folder; their wheels stay, but are not fetched.
        progress: told bytes done and in all.

    Raises:
        VendorError: VENDOR_WHEEL_MISSING, VENDOR_SDIST_ONLY, VENDOR_HASH_MISMATCH, VENDOR_INDEX_UNREACHABLE.
        FileError: FILE_NO_SPACE and others of the file system; FILE_LOCKED where another fetch is at work.
    """
    wanted = list(pins)
    with translated(directory):
        directory.mkdir(parents=True, exist_ok=True)
    with locked(directory / ".lock", wait=False):
        known = {wheel.filename: wheel for wheel in read_fetched(directory)}
        present = _present(directory, wanted, target, known)
        missing = [pin for pin in wanted if pin.name not in present]
        if missing:
            with open_index() as index:
                progress(f"asking the index for {len(missing)} of {len(wanted)} wheels", None, None)
                selected = select(missing, target, index)
                for wheel in _download(selected, directory, index, progress):
                    present[wheel.name] = wheel
        wheels = _by_filename(present)
        shared = _present(directory, [pin for pin in others if pin.name not in present], target, known)
        everything = _by_filename(shared | present)
        removed = _remove_strangers(directory, {wheel.filename for wheel in everything})
        if missing or removed or not (directory / RECORD_NAME).exists():
            document = _Fetched(target=target.name, wheels=list(everything))
            write_atomic(directory / RECORD_NAME, documents.write_json(document.model_dump()))
    return Wheelhouse(directory, wheels, len(missing), removed)


def read_fetched(directory: Path) -> list[FetchedWheel]:
    """What `fetched.json` of a folder says; empty where there is none.

    Raises:
        DocumentError: the file is malformed.
    """
    path = directory / RECORD_NAME
    if not path.exists():
        return []
    value = documents.read_json(read_regular(path, max_bytes=documents.MAX_BYTES), what=RECORD_NAME)
    return documents.validate(_Fetched, value, what=RECORD_NAME).wheels


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a regular file, without following a link."""
    with translated(path):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with open(descriptor, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()


def _present(
    directory: Path, pins: list[Pin], target: Target, known: dict[str, FetchedWheel]
) -> dict[str, FetchedWheel]:
    by_name = {pin.name: pin for pin in pins}
    ranked: dict[str, tuple[int, str, Path]] = {}
    for path in directory.glob("*.whl"):
        name = wheel_name(path.name)
        pin = by_name.get(name.project) if name else None
        if name is None or pin is None or name.version != pin.version or path.is_symlink():
            continue
        place = rank(name, target)
        if place is not None:
            ranked[pin.name] = min(ranked.get(pin.name, (place, path.name, path)), (place, path.name, path))
    found: dict[str, FetchedWheel] = {}
    with ThreadPoolExecutor() as pool:
        digests = pool.map(lambda item: file_sha256(item[2]), ranked.values())
        for (name_, (_, _, path)), digest in zip(ranked.items(), digests, strict=True):
            pin = by_name[name_]
            if digest not in pin.hashes:
                continue
            told = known.get(path.name)
            found[name_] = FetchedWheel(
                name=name_,
                version=str(pin.version),
                filename=path.name,
                sha256=digest,
                size_bytes=path.stat().st_size,
                uploaded=told.uploaded if told and told.sha256 == digest else None,
                yanked=bool(told and told.sha256 == digest and told.yanked),
            )
    return found


def _download(selected: list[Selected], directory: Path, index: Index, progress: Progress) -> list[FetchedWheel]:
    total = sum(item.file.size_bytes or 0 for item in selected)
    remedy = "Free space there, or choose another folder with `--out DIR`; what is there is kept."
    require_room(directory, total, what=f"{len(selected)} wheels", remedy=remedy)
    done = 0
    wheels: list[FetchedWheel] = []
    # the largest first: the last download to finish should be a small one
    ordered = sorted(selected, key=lambda item: -(item.file.size_bytes or MAX_WHEEL_BYTES))
    for wheel in _in_parallel([partial(_download_one, item, directory, index) for item in ordered]):
        wheels.append(wheel)
        done += wheel.size_bytes
        progress(f"fetched {len(wheels)} of {len(selected)} wheels", min(done, total), total)
    sync_directory(directory)
    return wheels


def _in_parallel(tasks: list[Callable[[], FetchedWheel]]) -> Iterator[FetchedWheel]:
    """Results as they come; the first failure is raised at once, without waiting for a server that hangs.

    Daemon threads, because those of an executor are joined at exit: a refusal, or Ctrl-C, would wait for the slowest.
    """
    waiting: queue.SimpleQueue[Callable[[], FetchedWheel]] = queue.SimpleQueue()
    results: queue.SimpleQueue[FetchedWheel | BaseException] = queue.SimpleQueue()
    for task in tasks:
        waiting.put(task)

    def work() -> None:
        try:
            while True:
                results.put(waiting.get_nowait()())
        except queue.Empty:
            return
        except BaseException as error:  # noqa: BLE001 (handed to the thread that waits)
            results.put(error)

    for _ in range(min(DOWNLOADS_AT_ONCE, len(tasks))):
        threading.Thread(target=work, daemon=True, name="fetch").start()
    try:
        for _ in tasks:
            result = results.get()
            if isinstance(result, BaseException):
                raise result
            yield result
    finally:
        with contextlib.suppress(queue.Empty):  # what has not begun never will
            while True:
                waiting.get_nowait()


def _download_one(item: Selected, directory: Path, index: Index) -> FetchedWheel:
    pin, file = item.pin, item.file
    if Path(file.filename).name != file.filename:
        raise VendorError("VENDOR_INDEX_MALFORMED", "the index offers a path for a name", filename=file.filename)
    part = directory / f".{file.filename}.{os.getpid()}.part"
    digest, size = hashlib.sha256(), 0
    try:
        with translated(part):
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
            with open(descriptor, "wb") as stream, index.open(file) as chunks:
                for chunk in chunks:
                    digest.update(chunk)
                    size += len(chunk)
                    if size > MAX_WHEEL_BYTES:
                        raise VendorError("VENDOR_HASH_MISMATCH", f"{file.filename} does not end", bytes=size)
                    stream.write(chunk)
                stream.flush()
                os.fsync(stream.fileno())
            if digest.hexdigest() not in pin.hashes:
                raise VendorError(
                    "VENDOR_HASH_MISMATCH",
                    f"{file.filename} is not what the lock names",
                    package=str(pin),
                    sha256=digest.hexdigest(),
                    url=redacted(file.url),
                )
            part.rename(directory / file.filename)
    finally:
        part.unlink(missing_ok=True)
    return FetchedWheel(
        name=pin.name,
        version=str(pin.version),
        filename=file.filename,
        sha256=digest.hexdigest(),
        size_bytes=size,
        uploaded=file.uploaded.isoformat() if file.uploaded else None,
        yanked=file.yanked,
    )


def _by_filename(wheels: dict[str, FetchedWheel]) -> tuple[FetchedWheel, ...]:
    return tuple(sorted(wheels.values(), key=lambda wheel: wheel.filename))


def _remove_strangers(directory: Path, keep: set[str]) -> tuple[str, ...]:
    strangers = [
        path for path in sorted(directory.iterdir()) if path.name not in keep and path.suffix in {".whl", ".part"}
    ]
    for path in strangers:
        path.unlink()
    return tuple(path.name for path in strangers)
