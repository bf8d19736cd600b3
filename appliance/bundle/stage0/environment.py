"""The release's Python environment, made offline by the uv that the release brought."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

from .journal import remove_tree
from .refusal import Refused, space_refusals

REQUIREMENTS = "requirements.txt"
MAX_UV_BYTES = 256 * 1024 * 1024
START_S = 120.0
FULL_BYTES = 64 * 1024  # with less than this left a disk is full
_LIBRARY = ctypes.CDLL(None, use_errno=True)
_PRCTL = _LIBRARY.prctl  # looked up here: between fork and exec the loader's lock may be held by a thread that is gone
_PR_SET_PDEATHSIG = 1


def make_environment(payload: Path, release: Path, *, python: str = sys.executable) -> None:
    """Create `release/env` from the verified wheels, replacing whatever a killed attempt left.

    uv checks every wheel against the signed `requirements.txt` once more, fetches nothing (`--offline`, `--no-index`)
    and builds nothing. Its cache lies beside the environment, so that files are linked instead of copied. Nothing is
    durable yet when this returns: `settle_environment` sees to that while the next steps run.

    Args:
        payload: the extracted members.
        release: folder of the release.
        python: the interpreter of the host.

    Raises:
        Refused: INSTALL_ENVIRONMENT, INSTALL_NO_SPACE, INSTALL_PERMISSION.
    """
    environment, cache = release / "env", release / ".cache"
    with space_refusals("making the environment"):
        for folder in (environment, cache):
            remove_tree(folder)
        uv = _unpack_uv(payload, release)
        try:
            _run_uv(uv, cache, "venv", "--python", python, "--no-project", "--quiet", str(environment))
            _run_uv(
                uv, cache, "pip", "install", "--python", str(environment / "bin" / "python"),
                "--no-index", "--find-links", str(payload / "wheels"), "--no-build", "--no-deps", "--require-hashes",
                "--link-mode", "hardlink", "--requirement", str(payload / REQUIREMENTS), "--quiet",
            )  # fmt: skip
            (environment / ".lock").unlink(missing_ok=True)  # uv's own, which everybody may write
        finally:
            uv.unlink(missing_ok=True)


def starts(program: Path) -> bool:
    """Whether a program of an environment starts; True also where the host alone kept it from starting."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    try:
        done = subprocess.run(
            [str(program), "--version"], env=environment | {"PYTHONDONTWRITEBYTECODE": "1"}, timeout=START_S,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return True
    except OSError as error:
        return error.errno not in (errno.ENOENT, errno.EACCES, errno.ENOEXEC, errno.ENOTDIR, errno.ELOOP)
    return done.returncode <= 0 or b"MemoryError" in done.stderr  # ended by a signal: by the host's hand, too


def settle_environment(release: Path) -> None:
    """Make a release and its environment durable; slow on a slow disk, so it runs beside the next steps.

    Raises:
        Refused: INSTALL_NO_SPACE.
    """
    with space_refusals("making the release durable"):
        _sync_file_system(release)


def clear_cache(release: Path) -> None:
    """Remove uv's cache, whose files the environment shares."""
    remove_tree(release / ".cache")


def die_with_parent() -> None:
    """In a child, between fork and exec: a killed installer leaves nobody behind who goes on writing (prctl(2))."""
    _PRCTL(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _sync_file_system(folder: Path) -> None:
    """Make thousands of small files durable at once; `os.sync` would wait for every other file system as well."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if _LIBRARY.syncfs(descriptor):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(folder))
    finally:
        os.close(descriptor)


def _unpack_uv(payload: Path, release: Path) -> Path:
    """Take the one executable out of uv's (verified) wheel."""
    wheels = sorted((payload / "wheels").glob("uv-*.whl"))
    if len(wheels) != 1:
        raise Refused(
            "INSTALL_ENVIRONMENT", "the release does not carry exactly one uv", found=[w.name for w in wheels]
        )
    target = release / ".uv"
    target.unlink(missing_ok=True)
    with zipfile.ZipFile(wheels[0]) as archive:
        entries = [entry for entry in archive.infolist() if entry.filename.endswith(".data/scripts/uv")]
        if len(entries) != 1 or entries[0].file_size > MAX_UV_BYTES:
            raise Refused("INSTALL_ENVIRONMENT", "uv's wheel does not hold one uv", wheel=wheels[0].name)
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o700)
        with archive.open(entries[0]) as source, open(descriptor, "wb") as output:
            shutil.copyfileobj(source, output, 1024 * 1024)
    target.chmod(stat.S_IRWXU)
    return target


def _run_uv(uv: Path, cache: Path, *arguments: str) -> None:
    environment = {
        "PATH": os.defpath,
        "HOME": str(cache),
        "LC_ALL": "C.UTF-8",
        "TMPDIR": str(cache.parent),
        "UV_CACHE_DIR": str(cache),
        "UV_OFFLINE": "1",
        "UV_NO_CONFIG": "1",
        "UV_PYTHON_DOWNLOADS": "never",
        "UV_NO_PROGRESS": "1",
    }
    try:
        done = subprocess.run(
            [str(uv), *arguments], env=environment, capture_output=True, text=True, errors="replace", check=False,
            preexec_fn=die_with_parent,
        )  # fmt: skip
    except OSError as error:
        remark = "is the prefix mounted noexec?" if isinstance(error, PermissionError) else str(error)
        raise Refused("INSTALL_ENVIRONMENT", f"uv cannot be run: {remark}", path=str(uv)) from None
    if done.returncode:
        said = " ".join(done.stderr.split())
        space = os.statvfs(cache.parent)  # asked, because a tool may word it in its own way, or not at all
        full = "os error 28" in said or space.f_bavail * space.f_frsize < FULL_BYTES
        raise Refused(
            "INSTALL_NO_SPACE" if full else "INSTALL_ENVIRONMENT", f"uv {arguments[0]} failed", uv=said[-600:]
        )
