"""Media as they come: one archive, or volumes of it in any order on any mount points, read in place.

Every file on the media starts with the same *head* (trust metadata, manifest, signature), so that any volume alone
says what the release is. What follows is either the payload region itself, or one member `volume/003-of-007` holding a
slice of it, or `volume/parity-of-007`, the XOR of all slices. The manifest signs the digest of every segment of the
region: a damaged piece names its volume, and what parity rebuilds counts only if it has the signed digest.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from .manifest import MAX_DOCUMENT_BYTES, check_names, safe_name
from .refusal import Refused
from .ustar import BLOCK, padded, parse_tar_header, span

MANIFEST = "manifest.json"
SIGNATURE = "manifest.sigstore.json"
DELTA = "delta.json"
DELTA_SIGNATURE = "delta.sigstore.json"
MAX_HEAD_FILES = 64
MAX_HEADS_BYTES = 64 * 1024 * 1024  # all different heads of a medium together: each is held before anything is verified
MAX_VOLUMES = 999
_VOLUME = re.compile(r"volume/([0-9]{3}|parity)-of-([0-9]{3})\Z")
_FILE_NAME = re.compile(r".+\.tar(\.v[0-9]{3}|\.parity)?\Z")

Genuine = TypeVar("Genuine")


@dataclass(frozen=True)
class Head:
    """What stands before the payload, as bytes that nothing has verified yet.

    Attributes:
        files: name -> content, in the archive's order.
        size_bytes: its length with headers and padding.
    """

    files: dict[str, bytes]
    size_bytes: int

    @property
    def trust(self) -> dict[str, bytes]:
        """The trust metadata: name below `trust/` -> content."""
        return {name.removeprefix("trust/"): data for name, data in self.files.items() if name.startswith("trust/")}


@dataclass
class Source:
    """One file of the media, held open: what is checked is what is read.

    Attributes:
        path: where it lies.
        descriptor: open for reading.
        head: its head.
        index: number of the slice from 0; None for a whole archive, -1 for parity.
        total: how many slices the release has.
        offset, size_bytes: where the payload or slice lies in the file.
        fault: what the operating system said when the media could not be read.
    """

    path: Path
    descriptor: int
    head: Head
    index: int | None
    total: int
    offset: int
    size_bytes: int
    fault: str = ""

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Fill the buffer from the slice; returns how many bytes the file, or a scratched disc, could give."""
        done = 0
        while done < len(buffer):
            try:
                count = os.preadv(self.descriptor, [buffer[done:]], self.offset + offset + done)
            except OSError as error:
                self.fault = error.strerror or "unreadable"
                break
            if count == 0:
                break
            done += count
        return done


@contextlib.contextmanager
def open_sources(paths: Sequence[str | Path]) -> Iterator[tuple[list[Source], list[str]]]:
    """Open every release file among the paths; a folder stands for the release files in it.

    Returns:
        The files that start like a release, and the paths of those that do not.

    Raises:
        Refused: BUNDLE_NO_MEDIA, and what `read_head` refuses when there is only one file.
    """
    with contextlib.ExitStack() as stack:
        sources: list[Source] = []
        heads: dict[tuple[tuple[str, bytes], ...], Head] = {}
        problems: dict[Path, Refused] = {}
        for path, named in _candidates(paths).items():
            try:
                descriptor = _open_regular(path)
                stack.callback(os.close, descriptor)
                source = _open_source(path, descriptor)
                sources.append(replace(source, head=_only_once(source.head, heads)))
            except OSError as error:
                cause = f"{path.name} cannot be read: {error.strerror}"
                problems[path] = Refused("BUNDLE_UNREADABLE", cause, file=str(path))
            except Refused as refused:
                if refused.code == "BUNDLE_NO_MEDIA" and named:
                    raise
                problems[path] = Refused(refused.code, refused.cause, **{"file": str(path)} | refused.evidence)
        if not sources:
            for problem in problems.values():
                raise problem
            raise Refused("BUNDLE_NO_MEDIA", "no release file there", paths=[str(path) for path in paths])
        yield sources, [str(path) for path in problems]


def choose(
    sources: Sequence[Source], authenticate: Callable[[Head], Genuine]
) -> tuple[Genuine, list[Source], list[str]]:
    """Authenticate the head and keep the files that carry it.

    Where a volume's own head is damaged the heads differ; each different one is tried, and only one may be genuine.

    Returns:
        What `authenticate` made of the head, the files with that head, and the paths set aside.

    Raises:
        Refused: BUNDLE_MIXED_MEDIA where two genuine releases lie side by side; where none is, what it says.
    """
    groups: dict[tuple[tuple[str, bytes], ...], list[Source]] = {}
    for source in sources:
        groups.setdefault(tuple(source.head.files.items()), []).append(source)
    accepted: list[tuple[Genuine, list[Source]]] = []
    failure: Exception | None = None
    for group in sorted(groups.values(), key=len, reverse=True):
        try:
            accepted.append((authenticate(group[0].head), group))
        except Exception as error:  # noqa: BLE001 (whatever the verifier raises is raised again below)
            failure = failure or error
    if not accepted:
        raise failure or Refused("BUNDLE_NO_MEDIA", "no release file there")
    if len(accepted) > 1:
        names = [group[0].path.name for _, group in accepted]
        raise Refused("BUNDLE_MIXED_MEDIA", "files of different releases lie side by side", files=names)
    genuine, chosen = accepted[0]
    return genuine, chosen, [str(source.path) for source in sources if source not in chosen]


def _candidates(paths: Sequence[str | Path]) -> dict[Path, bool]:
    """Files to open, and whether each was named itself, not only the folder that it lies in."""
    found: dict[Path, bool] = {}
    for path in map(Path, paths):
        if path.is_dir():
            found.update((each, False) for each in sorted(path.iterdir()) if _looks_like_ours(each))
        elif path.exists():
            found[path] = True
        else:
            raise Refused("BUNDLE_NO_MEDIA", f"{path} does not exist", path=str(path))
    return found


def _looks_like_ours(path: Path) -> bool:
    """By its name, or, where a file system has shortened that (`RELEAS~1.V01`), by its first member's."""
    if _FILE_NAME.match(path.name):
        return True
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            return False
        with path.open("rb") as stream:
            return stream.read(6) == b"trust/"
    except OSError:
        return False


def _open_regular(path: Path) -> int:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise Refused("BUNDLE_NO_MEDIA", f"{path} cannot be opened: {error.strerror}", path=str(path)) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise Refused("BUNDLE_NO_MEDIA", f"{path} is not a regular file", path=str(path))
    return descriptor


def _only_once(head: Head, heads: dict[tuple[tuple[str, bytes], ...], Head]) -> Head:
    """The head itself, or the equal one of an earlier file: volumes by the hundred share one.

    Raises:
        Refused: BUNDLE_LIMIT where the different ones together are more than any medium needs.
    """
    known = heads.setdefault(tuple(head.files.items()), head)
    if sum(each.size_bytes for each in heads.values()) > MAX_HEADS_BYTES:
        heads.pop(tuple(head.files.items()))
        raise Refused("BUNDLE_LIMIT", "the heads of the files are larger than any release's", bytes=head.size_bytes)
    return known


def _open_source(path: Path, descriptor: int) -> Source:
    head = read_head(descriptor)
    size = os.fstat(descriptor).st_size
    rest = size - head.size_bytes
    first = os.pread(descriptor, BLOCK, head.size_bytes)
    if len(first) == BLOCK and any(first) and first[:7] == b"volume/":
        name, slice_bytes, _ = parse_tar_header(first)
        match = _VOLUME.match(name)
        if not match or not 1 <= int(match[2]) <= MAX_VOLUMES:
            raise Refused("BUNDLE_HEADER", "a volume's name is impossible", name=name[:100])
        total = int(match[2])
        number = 0 if match[1] == "parity" else int(match[1])
        if number > total or (number == 0 and match[1] != "parity"):
            raise Refused("BUNDLE_HEADER", "a volume's number is impossible", name=name)
        return Source(path, descriptor, head, number - 1, total, head.size_bytes + BLOCK, slice_bytes)
    return Source(path, descriptor, head, None, 1, head.size_bytes, rest)


def read_head(descriptor: int) -> Head:
    """Read trust metadata, manifest and signature from the start of a file; sizes are bounded before memory is taken.

    Raises:
        Refused: BUNDLE_TRUNCATED, BUNDLE_HEADER, BUNDLE_MEMBER_KIND, BUNDLE_ORDER, BUNDLE_LIMIT, BUNDLE_PADDING,
            BUNDLE_NAME.
    """
    files: dict[str, bytes] = {}
    offset = 0
    left = 2 * MAX_DOCUMENT_BYTES
    while True:
        block = os.pread(descriptor, BLOCK, offset)
        complete = DELTA_SIGNATURE if DELTA in files else SIGNATURE
        if complete in files and (DELTA in files or not block.startswith(DELTA.encode() + b"\0")):
            check_names(list(files))
            return Head(files, offset)
        name, size, executable = parse_tar_header(block)
        if name not in _next_names(files) and not (
            name.startswith("trust/") and safe_name(name) and MANIFEST not in files
        ):
            raise Refused("BUNDLE_ORDER", "a member stands where the head of a release must be", name=name[:120])
        if name in files or executable:
            raise Refused("BUNDLE_ORDER", "a member of the head stands twice or is executable", name=name)
        left -= size
        if size > MAX_DOCUMENT_BYTES or left < 0 or len(files) >= MAX_HEAD_FILES:
            raise Refused("BUNDLE_LIMIT", "the head of the archive is larger than any release's", name=name, bytes=size)
        content = os.pread(descriptor, padded(size), offset + BLOCK)
        if len(content) < padded(size):
            raise Refused("BUNDLE_TRUNCATED", f"the archive ends inside {name}", name=name)
        if any(content[size:]):
            raise Refused("BUNDLE_PADDING", f"bytes are hidden behind {name}", name=name)
        files[name] = content[:size]
        offset += span(size)


def _next_names(files: dict[str, bytes]) -> set[str]:
    for before, after in ((DELTA, DELTA_SIGNATURE), (SIGNATURE, DELTA), (MANIFEST, SIGNATURE)):
        if before in files:
            return {after}
    return {MANIFEST}
