"""Compiled modules of an environment: made ahead of the health check by a second process, cleared before it.

    python -I -S bytecode.py WHEELS ENVIRONMENT BYTES_TO_PASS_OVER MODULE...

The health check imports what serving imports, and most of its time went into compiling. This helper takes the sources
from the wheels, in the order in which Python will ask for them, and compiles them on another core, while the
environment is still being made. A byte on its standard input says that it is there: only then anything is written, and
only beside a source that is the very one it compiled. It only reads text: nothing of the release is imported or run
here. What it does not get to, or gets wrong, Python compiles itself.

Standard library alone: it runs under the host's interpreter, whose bytecode the environment's interpreter reads.
"""

from __future__ import annotations

import contextlib
import importlib.util
import marshal
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

# Without a lead the import itself compiles the beginning, and the helper what comes then: compiling takes about 1.4
# times as long as running, so that the import, which does both at first, catches up with the helper only near the end.
LEFT_TO_THE_IMPORT = 6_000_000  # bytes of source
# at the margin, and below it what imports, opens a block, or keeps what is in it for later
_LINES = re.compile(rb"\n(?:[^\s)]|[ \t]+(?=(?:from|import|def|async|class|if) ))[^\n]*")
_IMPORTS = (b"from ", b"import ")
_BLOCKS = (b"try:", b"if ", b"elif ", b"else:", b"except", b"finally:", b"with ", b"class ")
_MAX_SOURCE = 16 * 1024 * 1024


def main(arguments: Sequence[str]) -> int:
    """Compile what importing the named modules will ask for."""
    wheels, environment, left, *modules = arguments
    site = Path(environment) / "lib" / "python{}.{}".format(*sys.version_info) / "site-packages"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # by way of what removes a half-written file
    with contextlib.suppress(OSError, zipfile.BadZipFile):  # a full disk ends the help, not the installation
        _Compiler(site).run(import_order(Wheels(Path(wheels)), modules), int(left))
    return 0


class _Compiler:
    """Compiles as it is told, and writes as soon as there is a place for it.

    Args:
        site: the site-packages that will be there.
    """

    def __init__(self, site: Path) -> None:
        self._site = site
        self._is_there = False
        self._waiting: list[tuple[str, bytes, bytes]] = []

    def run(self, sources: Iterator[tuple[str, bytes]], left: int) -> None:
        """Take the sources in turn; the first `left` bytes are passed over."""
        for name, source in sources:
            if left > 0:
                left -= len(source)
                continue
            if self._may_write(wait=False) and cached(self._site / name).exists():
                continue  # Python was here first
            bytecode = compiled(source, str(self._site / name))
            if bytecode is not None:
                self._waiting.append((name, source, bytecode))
            self._write()
        if self._waiting and self._may_write(wait=True):
            self._write()

    def _write(self) -> None:
        if self._is_there:
            while self._waiting:
                name, source, bytecode = self._waiting.pop()
                write_bytecode(self._site / name, source, bytecode)

    def _may_write(self, *, wait: bool) -> bool:
        """Whether the environment is there, told by a byte; without anybody who could still tell, this ends."""
        if not self._is_there and (wait or select.select([0], [], [], 0)[0]):
            if not os.read(0, 1):
                raise SystemExit(0)
            self._is_there = True
            self._waiting.reverse()
            self._write()
        return self._is_there


class CompilingAhead:
    """Runs the helper from `start`, or else `ready`, until `close`.

    Args:
        release: folder of a release.
        modules: what its health check will import; none, and nothing is done.
        python: the interpreter that the environment is made with.
    """

    def __init__(self, release: Path, modules: Sequence[str], *, python: str) -> None:
        self._release, self._modules, self._python = release, modules, python
        self._helper: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self, *, pass_over_bytes: int = 0) -> None:
        """Begin, once the wheels lie in the payload; so much of what comes first is left to whoever imports."""
        from appliance.bundle.stage0.environment import die_with_parent  # the helper itself has no appliance at hand

        if not self._modules or self._helper is not None:
            return
        command = [
            self._python, "-I", "-S", __file__, str(self._release / "payload" / "wheels"), str(self._release / "env"),
            str(pass_over_bytes), *self._modules,
        ]  # fmt: skip
        silent = subprocess.DEVNULL
        self._helper = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=silent, stderr=silent,
            preexec_fn=die_with_parent,  # noqa: PLW1509 (one system call)
        )  # fmt: skip

    def ready(self) -> None:
        """The environment is there, and no bytecode in it that is not to be believed."""
        self.start(pass_over_bytes=LEFT_TO_THE_IMPORT)
        if self._helper is not None and self._helper.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # it ended by itself: it only helps
                os.write(self._helper.stdin.fileno(), b".")

    def close(self) -> None:
        """End the helper, however far it came."""
        if self._helper is not None:
            self._helper.terminate()
            self._helper.communicate()
            self._helper = None


class Wheels(Mapping[str, bytes]):
    """The Python sources in a folder of wheels, by the path that they will have below site-packages."""

    def __init__(self, folder: Path) -> None:
        self._entries: dict[str, tuple[zipfile.ZipFile, zipfile.ZipInfo]] = {}
        for path in sorted(folder.glob("*.whl")):
            wheel = zipfile.ZipFile(path)
            for entry in wheel.infolist():
                name = re.sub(r"^[^/]+\.data/(?:pure|plat)lib/", "", entry.filename)
                if name.endswith(".py") and entry.file_size <= _MAX_SOURCE:
                    self._entries[name] = (wheel, entry)

    def __getitem__(self, name: str) -> bytes:
        wheel, entry = self._entries[name]
        return wheel.read(entry)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:  # a mapping would read it
        return name in self._entries


def import_order(sources: Mapping[str, bytes], modules: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """Sources in the order in which importing the modules would read them, told from their text.

    Imports within functions do not count: those happen later or never.
    """
    seen: set[str] = set()
    waiting = [iter(modules)]
    while waiting:
        name = next(waiting[-1], None)
        if name is None:
            waiting.pop()
            continue
        parent = name.rpartition(".")[0]
        if parent and parent not in seen:
            waiting.append(iter((parent, name)))  # a package runs before what is in it
            continue
        if name in seen:
            continue
        seen.add(name)
        stem = name.replace(".", "/")
        path = next((path for path in (f"{stem}/__init__.py", f"{stem}.py") if path in sources), None)
        if path is not None:
            source = sources[path]
            yield path, source
            package = name if path.endswith("/__init__.py") else parent
            waiting.append(_imports(source, package))


def _imports(source: bytes, package: str) -> Iterator[str]:
    """Names that a source imports at its top level, and names within them that may be modules."""
    for statement in _statements(source):
        if statement.startswith("import "):
            yield from (part.split(" as ")[0].strip() for part in statement[7:].split(","))
            continue
        origin, _, names = statement[5:].partition(" import ")
        origin = _absolute(origin.strip(), package)
        yield origin
        for part in names.strip().strip("()").split(","):
            name = part.split(" as ")[0].strip()
            if name.isidentifier():
                yield f"{origin}.{name}"


def _statements(source: bytes) -> Iterator[str]:
    """Import statements that run with the module, each as one line without its comments."""
    source = b"\n" + source + b"\n"
    skipped = None  # what is indented deeper than this runs later or never
    for match in _LINES.finditer(source):
        line = match[0].lstrip()
        depth = len(match[0]) - len(line)
        if skipped is not None and depth > skipped:
            continue
        if line.startswith(_IMPORTS):
            yield _whole(source, match)
        else:
            skipped = None if line.startswith(_BLOCKS) and b"TYPE_CHECKING" not in line else depth


def _whole(source: bytes, match: re.Match[bytes]) -> str:
    """A statement as one line: with parentheses it goes on to the one that closes it."""
    text, end = match[0].partition(b"#")[0].strip(), match.end()
    while b"(" in text and b")" not in text and end + 1 < len(source):
        start, end = end + 1, source.index(b"\n", end + 1)
        text += b" " + source[start:end].partition(b"#")[0]
    return text.decode("utf-8", "replace")


def _absolute(origin: str, package: str) -> str:
    dots = len(origin) - len(origin.lstrip("."))
    if not dots:
        return origin
    parts = package.split(".")
    return ".".join([*parts[: len(parts) - dots + 1], *([origin[dots:]] if origin[dots:] else [])])


def compiled(source: bytes, path: str) -> bytes | None:
    """A source's code as `marshal` writes it; None where it is for another Python."""
    try:
        return marshal.dumps(compile(source, path, "exec", dont_inherit=True))
    except (SyntaxError, ValueError):
        return None  # nobody may ever import it


def cached(path: Path) -> Path:
    """Where Python looks for a source's bytecode."""
    return Path(importlib.util.cache_from_source(path))


def write_bytecode(path: Path, source: bytes, code: bytes) -> None:
    """Put bytecode (PEP 552, checked by time and size) beside its source; never a cut one, never another source's.

    Raises:
        OSError: the disk is full, or the environment is gone.
    """
    target = cached(path)
    try:
        with path.open("rb") as stream:
            status, found = os.fstat(stream.fileno()), stream.read(len(source) + 1)
    except FileNotFoundError:
        return
    if found != source or target.exists():
        return
    numbers = (0, int(status.st_mtime) & 0xFFFFFFFF, status.st_size & 0xFFFFFFFF)
    data = importlib.util.MAGIC_NUMBER + b"".join(n.to_bytes(4, "little") for n in numbers) + code
    target.parent.mkdir(exist_ok=True)
    temporary = target.with_name(f"{target.name}.{os.getpid()}")
    try:
        with temporary.open("xb") as stream:
            stream.write(data)
        temporary.rename(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def clear_bytecode(environment: Path) -> None:
    """Remove compiled modules: on a full disk Python 3.11 renames a cut one into place and fails on it ever after."""
    for folder, folders, _files in os.walk(environment):
        if "__pycache__" in folders:
            folders.remove("__pycache__")
            shutil.rmtree(os.path.join(folder, "__pycache__"))  # noqa: PTH118 (tens of thousands of times)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
