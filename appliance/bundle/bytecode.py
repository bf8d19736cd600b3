"""Compiled modules of an environment: made ahead of the health check by a second process, cleared before it.

    python -I -S bytecode.py SITE_PACKAGES BYTES_TO_PASS_OVER MODULE...

The health check imports what serving imports, and most of its time went into compiling. This helper walks the sources
in the order in which Python will ask for them and compiles them on another core. It only reads text: nothing of the
release is imported or run here. What it does not get to, or gets wrong, Python compiles itself.

Standard library alone: it runs under the host's interpreter, whose bytecode the environment's interpreter reads.
"""

from __future__ import annotations

import contextlib
import importlib.util
import marshal
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

# The import itself compiles the beginning, and the helper what comes then: compiling takes about 1.4 times as long as
# running, so that the import, which does both at first, catches up with the helper only near the end.
LEFT_TO_THE_IMPORT = 6_000_000  # bytes of source
# at the margin, and below it what imports, opens a block, or keeps what is in it for later
_LINES = re.compile(rb"\n(?:[^\s)]|[ \t]+(?=(?:from|import|def|async|class|if) ))[^\n]*")
_IMPORTS = (b"from ", b"import ")
_BLOCKS = (b"try:", b"if ", b"elif ", b"else:", b"except", b"finally:", b"with ", b"class ")


def main(arguments: Sequence[str]) -> int:
    """Compile what importing the named modules will ask for."""
    site = Path(arguments[0])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # by way of what removes a half-written file
    with contextlib.suppress(OSError):  # a full disk ends the help, not the installation
        left = int(arguments[1])
        for path in import_order(site, arguments[2:]):
            if left > 0:
                left -= path.stat().st_size
            else:
                compile_one(path)
    return 0


@contextlib.contextmanager
def compiling_ahead(
    environment: Path, modules: Sequence[str], *, python: str, pass_over_bytes: int = LEFT_TO_THE_IMPORT
) -> Iterator[None]:
    """Run the helper meanwhile, as long as the block takes and no longer.

    Args:
        environment: a release's.
        modules: what its health check will import.
        python: the interpreter that the environment was made with.
        pass_over_bytes: so much of what comes first is left to whoever imports.
    """
    from appliance.bundle.stage0.environment import die_with_parent  # the helper itself has no appliance at hand

    sites = sorted(environment.glob("lib/python*/site-packages"))
    if not modules or len(sites) != 1:
        yield
        return
    command = [python, "-I", "-S", __file__, str(sites[0]), str(pass_over_bytes), *modules]
    silent = subprocess.DEVNULL
    helper = subprocess.Popen(command, stdin=silent, stdout=silent, stderr=silent, preexec_fn=die_with_parent)  # noqa: PLW1509 (one system call)
    try:
        yield
    finally:
        helper.terminate()
        helper.wait()


def import_order(site: Path, modules: Sequence[str]) -> Iterator[Path]:
    """Sources below a folder in the order in which importing the modules would read them, told from their text.

    Imports within functions do not count: those happen later or never.
    """
    files = {os.path.join(folder, name) for folder, _, names in os.walk(site) for name in names if name[-3:] == ".py"}  # noqa: PTH118
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
        stem = f"{site}/{name.replace('.', '/')}"
        path = next((path for path in (f"{stem}/__init__.py", f"{stem}.py") if path in files), None)
        if path is not None:
            yield Path(path)
            package = name if path.endswith("/__init__.py") else parent
            waiting.append(_imports(Path(path).read_bytes(), package))


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


def compile_one(path: Path) -> None:
    """Put a module's bytecode (PEP 552, checked by time and size) where Python looks for it; never a cut one.

    Raises:
        OSError: the disk is full, or the environment is gone.
    """
    target = Path(importlib.util.cache_from_source(path))
    if target.exists():
        return
    try:
        status = path.stat()
        code = compile(path.read_bytes(), str(path), "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return  # for another Python; nobody may ever import it
    numbers = (0, int(status.st_mtime) & 0xFFFFFFFF, status.st_size & 0xFFFFFFFF)
    data = importlib.util.MAGIC_NUMBER + b"".join(n.to_bytes(4, "little") for n in numbers) + marshal.dumps(code)
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
