"""Whether a staged release works, asked inside its own environment before anything points to it.

    env/bin/python -I -m appliance.bundle.health PAYLOAD

Imports what serving needs, compares every installed distribution with the signed requirements, and encodes one
sentence. Importing also compiles those modules, so that the first start of the gateway does not have to.
"""

from __future__ import annotations

import errno
import gc
import importlib
import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from appliance.bundle.stage0.environment import die_with_parent
from appliance.errors import ApplianceError, InstallError

SENTENCE = "Write a haiku about a lighthouse in the fog."
MODULES = {
    "gateway": (
        "litellm",
        "litellm.proxy.proxy_server",
        "onnxruntime",
        "tokenizers",
        "cryptography",
        "sigstore",
        "minio",
    ),
    "training": ("torch", "sentence_transformers", "sklearn"),
}
MODULES["full"] = MODULES["gateway"] + MODULES["training"]
ROOM_BYTES = 16 * 1024 * 1024  # with less than this left nobody can tell whether bytecode was written whole
# what the host lacks for a moment, and a release cannot help
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_SHORT = frozenset({errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ETXTBSY})
_FROM_OUTSIDE = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT})


def main(arguments: Sequence[str]) -> int:
    """Run the checks and print their findings as JSON."""
    gc.disable()  # a short life of millions of objects that all stay: collecting took a third of the time
    payload, profile = Path(arguments[0]), arguments[1]
    findings = [_finding(check, payload, profile) for check in (_versions, _imports, _encoder)]
    print(json.dumps(findings))
    gc.freeze()  # nor at the end: what is left goes with the process
    return 0 if all(finding["healthy"] for finding in findings) else 1


def _finding(check: Callable[[Path, str], str], payload: Path, profile: str) -> dict[str, Any]:
    name = check.__name__.strip("_")
    try:
        return {"check": name, "healthy": True, "text": check(payload, profile)}
    except Exception as error:  # noqa: BLE001 (whatever breaks is the finding)
        said = (
            f"{error.code}: {error.cause}" if isinstance(error, ApplianceError) else f"{type(error).__name__}: {error}"
        )
        return {"check": name, "healthy": False, "text": said[:500], "code": _blame(error)}


def _blame(error: BaseException) -> str:
    """Whose fault an error is, by itself or what led to it: a full disk's, a short host's, else the release's."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    numbers = {link.errno for link in chain if isinstance(link, OSError)}
    if numbers & _FULL:
        return "INSTALL_NO_SPACE"
    no_thread = any("start new thread" in str(link) for link in chain if isinstance(link, RuntimeError))
    if numbers & _SHORT or no_thread or any(isinstance(link, MemoryError) for link in chain):
        return "INSTALL_UNCHECKED"
    return "INSTALL_UNHEALTHY"


def _versions(payload: Path, _profile: str) -> str:
    wanted = {}
    for line in (payload / "requirements.txt").read_text("utf-8").splitlines():
        name, _, rest = line.partition("==")
        wanted[name] = rest.split(" ", 1)[0]
    present = _installed()
    for name, version in wanted.items():
        if present.get(_normal(name)) == version:
            continue
        found = importlib.metadata.version(name)  # spelt otherwise in its folder's name, or not what was signed
        if found != version:
            raise InstallError("INSTALL_UNHEALTHY", f"{name} is {found}, the release has {version}")
    return f"{len(wanted)} distributions as signed"


def _installed() -> dict[str, str]:
    """Name -> version of every distribution here, told by its folder's name (PyPA, recording installed projects)."""
    folders = Path(sysconfig.get_path("purelib")).glob("*.dist-info")
    pairs = (
        folder.name.removesuffix(".dist-info").split("-", 1) for folder in folders if (folder / "METADATA").is_file()
    )
    return {_normal(name): version for name, version in pairs}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _imports(_payload: Path, profile: str) -> str:
    names = [name for name in MODULES.get(profile, ()) if _is_installed(name)]
    for name in names:
        importlib.import_module(name)
    return f"imported {', '.join(names) or 'the appliance'}"


def _encoder(payload: Path, _profile: str) -> str:
    if not (payload / "encoder").is_dir():
        return "the release carries no encoder"
    from appliance import artifact
    from appliance.routers.encoder import load_encoder

    encoder = load_encoder(artifact.read(payload / "encoder"))
    vector = encoder.encode([SENTENCE])
    if vector.shape != (1, encoder.dimensions) or not float(abs(vector).sum()) > 0:
        raise InstallError("INSTALL_UNHEALTHY", "the encoder returned no vector", shape=str(vector.shape))
    return f"one sentence became a vector of {encoder.dimensions}"


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module.partition(".")[0]) is not None


def check_health(
    python: Path, payload: Path, profile: str, *, keep_bytecode: bool = False, timeout_s: float = 300.0
) -> list[dict[str, Any]]:
    """Run the checks in a release's own environment.

    Args:
        python: the environment's interpreter.
        payload: the release's members.
        profile: which modules must be importable; an unknown one asks for the appliance alone.
        keep_bytecode: let Python keep what it compiled; only where `clear_bytecode` precedes and space is checked.
        timeout_s: the checks take no longer.

    Returns:
        The findings.

    Raises:
        InstallError: INSTALL_UNHEALTHY naming what failed; INSTALL_NO_SPACE where the disk is full, and
            INSTALL_UNCHECKED where the host could not carry the check out: neither says anything about the release.
    """
    try:
        return _answer(python, payload, profile, keep_bytecode=keep_bytecode, timeout_s=timeout_s)
    except InstallError as error:
        if error.code == "INSTALL_NO_SPACE" or not payload.is_dir() or has_room(payload):
            raise
        evidence = error.evidence | {"path": str(payload)}
        raise InstallError("INSTALL_NO_SPACE", f"the disk is full, and {error.cause}", **evidence) from error


def _answer(
    python: Path, payload: Path, profile: str, *, keep_bytecode: bool, timeout_s: float
) -> list[dict[str, Any]]:
    environment = {
        "PATH": "/usr/bin:/bin",
        "LC_ALL": "C.UTF-8",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "HF_HUB_OFFLINE": "1",
        "HOME": str(payload.parent),
    }
    options = ["-I"] if keep_bytecode else ["-I", "-B"]
    command = [str(python), *options, "-m", "appliance.bundle.health", str(payload), profile]
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, errors="replace", timeout=timeout_s, check=False,
            preexec_fn=die_with_parent,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InstallError(_blame(error), f"the health check could not run: {error}") from None
    if -done.returncode in _FROM_OUTSIDE:
        name = signal.Signals(-done.returncode).name
        raise InstallError("INSTALL_UNCHECKED", f"the health check was ended from outside by {name}")
    try:
        findings: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
        bad = [finding for finding in findings if not finding["healthy"]]
        texts = {str(finding["check"]): finding["text"] for finding in bad}
    except (ValueError, IndexError, KeyError, TypeError):
        said = " ".join(done.stderr.split())[-400:]
        raise InstallError(
            "INSTALL_UNHEALTHY", "the health check broke off", status=done.returncode, said=said
        ) from None
    codes = {finding.get("code") for finding in bad}
    if "INSTALL_NO_SPACE" in codes:
        raise InstallError("INSTALL_NO_SPACE", "the disk ran full during the health check", **texts)
    if codes == {"INSTALL_UNCHECKED"}:
        raise InstallError("INSTALL_UNCHECKED", "the host was short of something during the health check", **texts)
    if bad or done.returncode:
        raise InstallError(
            "INSTALL_UNHEALTHY", "the release does not work on this host", status=done.returncode, **texts
        )
    return findings


def has_room(folder: Path) -> bool:
    """Whether the file system of a folder has enough left for what is written on it to be believed."""
    space = os.statvfs(folder)
    return space.f_bavail * space.f_frsize >= ROOM_BYTES


def require_room(folder: Path) -> None:
    """Refuse to believe bytecode that was written while the disk ran full.

    Raises:
        InstallError: INSTALL_NO_SPACE.
    """
    if not has_room(folder):
        raise InstallError("INSTALL_NO_SPACE", "the disk ran full during the health check", path=str(folder))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
