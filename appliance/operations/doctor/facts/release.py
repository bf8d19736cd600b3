"""The installed release against its signed manifest: payload by the manifest, environment by the verified wheels."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import re
import zipfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from appliance.bundle.releases import Release, installed_releases
from appliance.bundle.stage0.journal import Prefix
from appliance.bundle.stage0.media import MANIFEST, SIGNATURE
from appliance.errors import ApplianceError, OperationError
from appliance.files import read_regular
from appliance.operations.doctor.snapshot import Drift
from appliance.trust.store import TrustStore
from appliance.trust.verification import verify_statement

SMALL_BYTES = 256 * 1024  # hashed also in the quick comparison
_ENVIRONMENT_FILES = {"_virtualenv.py", "_virtualenv.pth"}  # the environment maker's own
_MAX_DOCUMENT = 64 * 1024 * 1024
_INSTALLER_FILES = ("INSTALLER", "REQUESTED", "RECORD", "direct_url.json", "uv_cache.json")
_CHUNK = 1024 * 1024


def drift(prefix: Path, *, now: datetime, deep: bool) -> Drift | ApplianceError | None:
    """Compare the active release; None where none is installed below the prefix.

    Args:
        prefix: of the installation.
        now: for the signature's verification.
        deep: hash every byte (about a second a gigabyte) instead of names, sizes and small files.
    """
    home = Prefix(prefix)
    active = home.active()
    if active is None:
        return None
    try:
        release = next((r for r in installed_releases(home) if r.id == active), None)
        if release is None:
            return OperationError("OPERATION_DRIFT", f"{home.current} points to {active}, which is no whole release")
        return _compare(home, release, now=now, deep=deep)
    except ApplianceError as error:
        return error
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        return OperationError("OPERATION_DRIFT", f"release {active} cannot be read: {error}", release=active)


def unfinished(prefix: Path) -> str | None:
    """The release whose installation was begun and not finished."""
    pending = Prefix(prefix).transaction()
    return pending.release if pending else None


def _compare(home: Prefix, release: Release, *, now: datetime, deep: bool) -> Drift:
    folder, payload = home.release(release.id), home.payload(release.id)
    problem: ApplianceError | None = None
    try:
        store = TrustStore.open(home.state / "trust")
        manifest_bytes = read_regular(folder / MANIFEST, max_bytes=_MAX_DOCUMENT)
        signature = read_regular(folder / SIGNATURE, max_bytes=_MAX_DOCUMENT)
        verify_statement(manifest_bytes, signature, kind="release", material=store.material(now=now), at=now)
    except ApplianceError as error:
        problem = error
    changed: list[str] = []
    missing: list[str] = []
    members = {member.path: member for member in release.manifest.members}
    for member in members.values():
        _judge(
            payload / member.path,
            f"payload/{member.path}",
            member.size_bytes,
            member.sha256,
            changed,
            missing,
            deep=deep,
        )
    foreign = [f"payload/{name}" for name in _files(payload) if name not in members]
    compared = len(members)
    for name, differs in _environment(home.environment(release.id), payload, deep=deep):
        compared += 1
        {"changed": changed, "missing": missing, "foreign": foreign}.get(differs, []).append(f"env/{name}")
    return Drift(
        release.id, release.signer, compared, deep, tuple(sorted(changed)), tuple(sorted(missing)),
        tuple(sorted(foreign)), problem,
    )  # fmt: skip


def _environment(environment: Path, payload: Path, *, deep: bool) -> Iterator[tuple[str, str]]:
    """Every file of site-packages: its name and `same`, `changed`, `missing` or `foreign`."""
    site = next(environment.glob("lib/python*/site-packages"), None)
    if site is None:
        yield "lib", "missing"
        return
    installed = _required(payload)
    expected: dict[str, tuple[int, str]] = {}
    for wheel in sorted((payload / "wheels").glob("*.whl")):
        if _normal(wheel.name.split("-", 1)[0]) in installed:
            expected.update(_recorded(wheel))
    for name, (size, digest) in expected.items():
        changed: list[str] = []
        missing: list[str] = []
        _judge(site / name, name, size, digest, changed, missing, deep=deep)
        yield name, "changed" if changed else "missing" if missing else "same"
    for name in _files(site):
        made_here = name.endswith((".pyc", *_INSTALLER_FILES)) or name in _ENVIRONMENT_FILES
        if name not in expected and not made_here:
            yield name, "foreign"


def _required(payload: Path) -> frozenset[str]:
    """The distributions that the signed requirements put into the environment (not uv, which makes it)."""
    path = payload / "requirements.txt"
    lines = path.read_text("utf-8").splitlines() if path.is_file() else []
    return frozenset(_normal(line.split("==", 1)[0]) for line in lines if "==" in line)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _recorded(wheel: Path) -> dict[str, tuple[int, str]]:
    """RECORD of a wheel (its own digest stands in the manifest): name -> size, SHA-256 hex."""
    found = {}
    with zipfile.ZipFile(wheel) as archive:
        record = next(name for name in archive.namelist() if name.endswith(".dist-info/RECORD"))
        for name, given, *_ in csv.reader(io.TextIOWrapper(archive.open(record), "utf-8")):
            if ".data/" in name or name.endswith(_INSTALLER_FILES):
                continue
            algorithm, _, encoded = given.partition("=")
            if algorithm == "sha256":
                digest = base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)).hex()
            else:  # no digest, or another algorithm's: the wheel itself has the content
                digest = hashlib.sha256(archive.read(name)).hexdigest()
            found[name] = (archive.getinfo(name).file_size, digest)
    return found


def _judge(
    path: Path, name: str, size: int, digest: str, changed: list[str], missing: list[str], *, deep: bool
) -> None:
    if path.is_symlink() or not path.is_file():
        missing.append(name)
    elif path.stat().st_size != size or ((deep or size <= SMALL_BYTES) and _sha256(path) != digest):
        changed.append(name)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _files(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*"):
        if not path.is_dir() or path.is_symlink():
            yield path.relative_to(folder).as_posix()
