"""Small releases for tests: archives with a stand-in signature for the reader, genuine ones for the installer."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from appliance.bundle.build import Built, Identity, build, read_trust
from appliance.bundle.inputs import Payload
from appliance.bundle.own_wheel import own_wheel
from appliance.bundle.stage0.extract import extract_members
from appliance.bundle.stage0.main import release_region
from appliance.bundle.stage0.manifest import Manifest, read_manifest
from appliance.bundle.stage0.media import MANIFEST, SIGNATURE, Head, choose, open_sources
from appliance.bundle.stage0.preparing import Authenticated
from tests.support.trust import DevelopmentAuthority

CREATED = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)
SEGMENT_BYTES = 4096
TRUST = {"anchor.json": b"{}", "metadata/root.json": b"stand-in"}


class StandInSigner:
    """For tests of the reader alone: what signs is tested on the trust floor."""

    def sign_statement(self, payload: bytes) -> bytes:
        return b'{"digest":"%s"}' % hashlib.sha256(payload).hexdigest().encode()


def identity(version: str = "1.0.0", *, epoch: int = 1, state_version: int = 1, profile: str = "gateway") -> Identity:
    """A release of this host's kind."""
    import platform
    import sys

    target = {
        "python": f"{sys.version_info[0]}.{sys.version_info[1]}",
        "architecture": platform.machine(),
        "glibc": "2.17",
    }
    return Identity("appliance", version, epoch, profile, target, CREATED, state_version)


def files(count: int = 5, size: int = 3000) -> list[Payload]:
    """Payload files with content that tells them apart."""
    return [
        Payload(f"data/file-{n}.bin", bytes([65 + n % 26]) * (size * n + 7), executable=n == 1) for n in range(count)
    ]


def archive(out: Path, payload: Sequence[Payload] | None = None, *, version: str = "1.0.0") -> Built:
    """An archive with a stand-in signature."""
    payload = files() if payload is None else list(payload)
    return build(identity(version), payload, TRUST, StandInSigner(), out, segment_bytes=SEGMENT_BYTES)


def stand_in_authenticate(head: Head) -> Authenticated:
    """Accept a head whose stand-in signature fits its manifest."""
    from appliance.bundle.stage0.main import check_head
    from appliance.bundle.stage0.refusal import Refused

    data = head.files[MANIFEST]
    if head.files[SIGNATURE] != StandInSigner().sign_statement(data):
        raise Refused("BUNDLE_SIGNATURE", "the stand-in signature does not fit")
    release = Authenticated(read_manifest(data), data, head.files[SIGNATURE])
    check_head(head, release)
    return release


def unpack(media: Sequence[Path | str], target: Path) -> tuple[Manifest, list[str]]:
    """Read media whole through the strict reader; returns the manifest and what was repaired."""
    import os

    repaired: list[str] = []
    with open_sources(media) as (sources, unreadable):
        release, chosen, set_aside = choose(sources, stand_in_authenticate)
        region = release_region(chosen, release, set_aside + unreadable, repaired.append)
        target.mkdir(parents=True, exist_ok=True)
        folder = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
        try:
            extract_members(region, release.manifest.members, folder)
        finally:
            os.close(folder)
    return release.manifest, repaired


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@functools.cache
def repacked_wheel(name: str) -> tuple[str, bytes]:
    """A wheel of a distribution as it is installed here: tests need real wheels and no index."""
    distribution = importlib.metadata.distribution(name)
    version = distribution.version
    info = f"{name.replace('-', '_')}-{version}"
    wheel_text = distribution.read_text("WHEEL") or ""
    tags = [line.split(": ")[1].split("-") for line in wheel_text.splitlines() if line.startswith("Tag: ")]
    tag = "-".join(".".join(dict.fromkeys(parts)) for parts in zip(*tags, strict=True))
    buffer = io.BytesIO()
    record = []
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as wheel:
        for file in sorted(distribution.files or [], key=str):
            path = str(file)
            if path.endswith((".pyc", "RECORD", "INSTALLER", "REQUESTED", "direct_url.json")):
                continue
            data = Path(str(file.locate())).read_bytes()
            if path.startswith("../"):
                path = f"{info}.data/scripts/{Path(path).name}"
            entry = zipfile.ZipInfo(path, (1980, 1, 1, 0, 0, 0))
            entry.external_attr = 0o100755 << 16 if ".data/scripts/" in path else 0o100644 << 16
            wheel.writestr(entry, data)
            record.append(f"{path},,\n")
        wheel.writestr(f"{info}.dist-info/RECORD", "".join(record) + f"{info}.dist-info/RECORD,,\n")
    return f"{info}-{tag}.whl", buffer.getvalue()


@dataclass(frozen=True)
class SmallRelease:
    """A genuine, installable release of three wheels (the appliance's, PyYAML, uv), signed by an authority."""

    built: Built
    anchor: bytes

    @property
    def media(self) -> Path:
        return self.built.path


_own_wheel = functools.cache(own_wheel)  # once: a source edited meanwhile must not make two releases differ by it
_INSTALLER_NEEDS = (
    "typer",
    "rich",
    "pydantic",
    "cryptography",
    "sigstore",
    "tuf",
    "rfc3161-client",
    "packaging",
    "rfc8785",
)


def closure(*names: str) -> set[str]:
    """Distributions installed here that these need, and they themselves."""
    found: set[str] = set()
    waiting = [canonicalize_name(name) for name in names]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        for text in importlib.metadata.requires(name) or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(canonicalize_name(requirement.name))
    return found


def small_payload(*, note: str = "", extra: Sequence[Payload] = (), whole: bool = False) -> list[Payload]:
    """The payload of a `SmallRelease`.

    Args:
        note: makes one release differ from another.
        extra: further files.
        whole: with everything that the `install` command itself needs, for stage 0's hand-over.
    """
    names = closure("pyyaml", *(_INSTALLER_NEEDS if whole else ())) | {"uv"}
    wheels = [*map(repacked_wheel, sorted(names)), _own_wheel()]
    lines = []
    for filename, data in wheels:
        name, version = filename.split("-")[:2]
        if name == "uv":
            continue  # it makes the environment and is not needed in it
        lines.append(f"{name.replace('_', '-')}=={version} --hash=sha256:{hashlib.sha256(data).hexdigest()}\n")
    return [
        Payload("requirements.txt", "".join(lines).encode()),
        *(Payload(f"wheels/{filename}", data) for filename, data in sorted(wheels)),
        Payload("config/appliance.yaml", b"schema_version: 1\n"),
        Payload("evidence/note.txt", note.encode() or b"first"),
        *extra,
    ]


def small_release(
    out: Path,
    authority: DevelopmentAuthority,
    version: str = "1.0.0",
    *,
    epoch: int = 1,
    state_version: int = 1,
    payload: Sequence[Payload] | None = None,
    role: str = "release-signer",
    profile: str = "small",
) -> SmallRelease:
    """Build and sign a small genuine release."""
    built = build(
        identity(version, epoch=epoch, state_version=state_version, profile=profile),
        small_payload(note=version) if payload is None else payload,
        read_trust(authority.path / "anchor.json", authority.repository),
        authority.signer(role),
        out,
        segment_bytes=65536,
    )
    return SmallRelease(built, authority.anchor)
