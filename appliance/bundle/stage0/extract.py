"""Extraction driven by the signed manifest: each byte is hashed and written from the same buffer, in one pass.

Nothing is decided by the archive. The manifest says which members there are, in which order and how long; the archive
either is exactly that, byte for byte, or it is refused. Files are created new (`O_EXCL`, `O_NOFOLLOW`) below an open
folder; what lies there already counts only after it was hashed again.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from .manifest import Member
from .refusal import Refused, space_refusals
from .region import Region
from .ustar import BLOCK, END_BLOCKS, padded, parse_tar_header

Progress = Callable[[int, int], None]  # bytes done, bytes in all
CHUNK_BYTES = 1024 * 1024
# sync_file_range(2), where the C library has it: the disk begins while the next member is read; it promises nothing
_BEGIN_WRITING = getattr(ctypes.CDLL(None), "sync_file_range", None)
_SYNC_FILE_RANGE_WRITE = 2
if _BEGIN_WRITING is not None:
    _BEGIN_WRITING.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


def check_members(region: Region, members: Sequence[Member], *, progress: Progress = lambda _done, _all: None) -> None:
    """Hash every byte of the region against the manifest and write nothing.

    Raises:
        Refused: as `extract_members`, without those of the file system.
    """
    _walk(region, members, None, present={}, progress=progress, checkpoint=lambda _: None)


def extract_members(
    region: Region,
    members: Sequence[Member],
    folder: int,
    *,
    present: dict[str, int] | None = None,
    progress: Progress = lambda _done, _all: None,
    checkpoint: Callable[[str], None] = lambda _: None,
) -> None:
    """Write every member below an open folder.

    Nothing is durable yet when this returns: what lies there after a power cut is hashed before it counts, and
    `settle_environment` writes the file system out before anything points to the release.

    Args:
        region: the archive's payload.
        members: what it must hold, in order.
        folder: descriptor of the folder to fill.
        present: paths that `verified_present` found complete; they are read past.
        checkpoint: called with a name at every point where a kill leaves a different state behind.

    Raises:
        Refused: BUNDLE_MEMBER_DIGEST, BUNDLE_ORDER, BUNDLE_PADDING, BUNDLE_TRUNCATED, INSTALL_NO_SPACE,
            INSTALL_PERMISSION, and what the region refuses.
    """
    with space_refusals("extracting the release"):
        _walk(region, members, folder, present=present or {}, progress=progress, checkpoint=checkpoint)
        checkpoint("extracted")


def verified_present(members: Sequence[Member], folder: int) -> dict[str, int]:
    """The members that lie below the folder already with the right content; anything else in their place is removed."""
    present: dict[str, int] = {}
    for member in members:
        with contextlib.suppress(OSError), _parent(folder, member.path, create=False) as (parent, name):
            if _matches(parent, name, member):
                present[member.path] = member.size_bytes
            else:
                os.unlink(name, dir_fd=parent)
    return present


def link_from(members: Sequence[Member], source: int, folder: int) -> list[Member]:
    """Take members from an installed release by hard link, each hashed before it counts; returns those not to be had.

    Args:
        members: wanted members (by content; the path must be the same).
        source: descriptor of the installed release's payload folder.
        folder: descriptor of the folder to fill.
    """
    lacking = []
    for member in members:
        try:
            with _parent(source, member.path, create=False) as (old, name), _parent(folder, member.path) as (new, _):
                if not _matches(old, name, member):
                    raise FileNotFoundError(member.path)
                with contextlib.suppress(FileExistsError):
                    os.link(name, name, src_dir_fd=old, dst_dir_fd=new, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            lacking.append(member)
    return lacking


def _walk(
    region: Region,
    members: Sequence[Member],
    folder: int | None,
    *,
    present: dict[str, int],
    progress: Progress,
    checkpoint: Callable[[str], None],
) -> None:
    total = region.size_bytes
    offset = 0
    with ThreadPoolExecutor(1) as hashing, ThreadPoolExecutor(1) as writing:
        for member in members:
            block = bytearray(BLOCK)
            region.read_into(offset, memoryview(block))
            if block != member.header:
                _refuse_header(bytes(block), member)
            offset += BLOCK
            if member.path in present:
                offset += padded(member.size_bytes)
                progress(offset, total)
                continue
            with _created(folder, member) as output:
                stream = _Stream(region, member, output, hashing, writing)
                digest = stream.run(offset, lambda done, at=offset: progress(at + done, total))  # type: ignore[misc]
                if digest != member.sha256:
                    raise Refused(
                        "BUNDLE_MEMBER_DIGEST",
                        f"{member.path} is not what the manifest signs",
                        expected=member.sha256,
                        found=digest,
                    )
            offset += padded(member.size_bytes)
            if folder is not None:
                checkpoint("member")
    end = bytearray(len(END_BLOCKS))
    region.read_into(offset, memoryview(end))
    if any(end):
        raise Refused("BUNDLE_TRAILING", "the archive goes on behind its last member")
    progress(total, total)


class _Stream:
    """Hash and write one member's content from the same buffers, while the next buffer is read.

    Each executor has one thread, so hashing and writing keep the order in which the buffers were handed over.
    """

    def __init__(
        self,
        region: Region,
        member: Member,
        output: int | None,
        hashing: ThreadPoolExecutor,
        writing: ThreadPoolExecutor,
    ) -> None:
        self._region, self._member, self._output = region, member, output
        self._hashing, self._writing = hashing, writing

    def run(self, offset: int, progress: Callable[[int], None]) -> str:
        """Read the content from that offset of the region; returns its SHA-256."""
        size, length = self._member.size_bytes, padded(self._member.size_bytes)
        digest = hashlib.sha256()
        chunk = min(max(self._region.step_bytes, CHUNK_BYTES), 4 * CHUNK_BYTES)
        buffers = [bytearray(min(chunk, length)) for _ in range(min(3, -(-length // chunk)))]
        pending: list[list[Future[None]]] = [[] for _ in buffers]
        try:
            for number, start in enumerate(range(0, length, chunk)):
                turn = number % len(buffers)
                _wait(pending[turn])
                view = memoryview(buffers[turn])[: length - start]
                self._region.read_into(offset + start, view)
                content = view[: size - start]
                if any(view[len(content) :]):
                    raise Refused(
                        "BUNDLE_PADDING", f"bytes are hidden behind {self._member.path}", path=self._member.path
                    )
                self._take(digest.update, content, pending[turn], alone=length <= chunk)
                progress(start + len(view))
            for futures in pending:
                _wait(futures)
        finally:
            for futures in pending:  # a buffer must not be freed under a thread that still uses it
                for future in futures:
                    future.exception()
        return digest.hexdigest()

    def _take(
        self, update: Callable[[memoryview], None], content: memoryview, pending: list[Future[None]], *, alone: bool
    ) -> None:
        if alone:  # small files: two threads would cost more than they save
            update(content)
            if self._output is not None:
                _write(self._output, content)
            return
        pending.append(self._hashing.submit(update, content))
        if self._output is not None:
            pending.append(self._writing.submit(_write, self._output, content))


def _wait(futures: list[Future[None]]) -> None:
    for future in futures:
        future.result()
    futures.clear()


def _write(output: int, content: memoryview) -> None:
    while len(content):
        content = content[os.write(output, content) :]


def _refuse_header(block: bytes, member: Member) -> None:
    """Say what stands where a member's header must be."""
    if not any(block):
        raise Refused("BUNDLE_TRUNCATED", f"the archive ends where {member.path} must stand", expected=member.path)
    name, size, _ = parse_tar_header(block)
    raise Refused(
        "BUNDLE_ORDER",
        f"the archive holds {name[:120]!r} ({size} bytes) where the manifest has {member.path!r}",
        expected=member.path,
        expected_bytes=member.size_bytes,
        found=name[:200],
        found_bytes=size,
    )


@contextlib.contextmanager
def _created(folder: int | None, member: Member) -> Iterator[int | None]:
    """A new file for the member; without a folder nothing is written."""
    if folder is None:
        yield None
        return
    with _parent(folder, member.path) as (parent, name):
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(name, flags, 0o600, dir_fd=parent)
        try:
            yield descriptor
            os.fchmod(descriptor, 0o755 if member.executable else 0o644)
            if _BEGIN_WRITING is not None:
                _BEGIN_WRITING(descriptor, 0, 0, _SYNC_FILE_RANGE_WRITE)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=parent)
            raise
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def _parent(folder: int, path: str, *, create: bool = True) -> Iterator[tuple[int, str]]:
    """The folder that holds a path, opened part by part without following a link, and the last part's name."""
    *folders, name = path.split("/")
    current = os.dup(folder)
    try:
        for part in folders:
            if create:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o755, dir_fd=current)
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=current)
            os.close(current)
            current = below
        yield current, name
    finally:
        os.close(current)


def _matches(parent: int, name: str, member: Member) -> bool:
    """Whether a file is regular and has the member's length, mode and digest."""
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=parent)
    except FileNotFoundError:
        return False
    with open(descriptor, "rb") as stream:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size != member.size_bytes:
            return False
        if stat.S_IMODE(status.st_mode) != (0o755 if member.executable else 0o644):
            return False
        return hashlib.file_digest(stream, "sha256").hexdigest() == member.sha256


def check_tree(members: Sequence[Member], folder: int) -> None:
    """Hash an extracted payload again, from the disk.

    Raises:
        Refused: INSTALL_STAGED_ALTERED naming the first file that is not what the manifest signs.
    """
    for member in members:
        try:
            with _parent(folder, member.path, create=False) as (parent, name):
                good = _matches(parent, name, member)
        except OSError:
            good = False
        if not good:
            raise Refused(
                "INSTALL_STAGED_ALTERED", f"{member.path} is no longer what the manifest signs", path=member.path
            )
