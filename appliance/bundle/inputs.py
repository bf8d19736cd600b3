"""What goes into a release: every payload file, found, checked and put in its fixed place and order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.version import Version

from appliance import artifact
from appliance.bundle.own_wheel import own_wheel
from appliance.bundle.stage0 import assemble
from appliance.errors import BundleError
from appliance.files import read_tree
from appliance.vendoring.fetch import file_sha256
from appliance.vendoring.locks import Pin
from appliance.vendoring.selection import wheel_name

MAX_EXTRA_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class Payload:
    """One file of the payload-to-be.

    Attributes:
        path: its name in the release.
        content: bytes, or the file that holds them (wheels and weights are not read into memory).
        executable: mode 0755 instead of 0644.
    """

    path: str
    content: bytes | Path
    executable: bool = False

    @property
    def size_bytes(self) -> int:
        """Length of the content."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.stat().st_size

    def chunks(self, chunk_bytes: int = 1024 * 1024) -> Iterator[bytes]:
        """The content, piece by piece."""
        if isinstance(self.content, bytes):
            yield self.content
            return
        with self.content.open("rb") as stream:
            while piece := stream.read(chunk_bytes):
                yield piece

    def sha256(self) -> str:
        """Of the content, lower-case hex."""
        digest = hashlib.sha256()
        for chunk in self.chunks():
            digest.update(chunk)
        return digest.hexdigest()


def select_wheels(pins: Iterable[Pin], wheelhouse: Path) -> tuple[list[Payload], str]:
    """Match every pin with one wheel of the wheelhouse, by content.

    Returns:
        The wheels, and the `requirements.txt` that names each with the digest of the very file that travels.

    Raises:
        BundleError: BUNDLE_INPUT where a wheel is missing, has another digest, or there are two.
    """
    at_hand: dict[tuple[str, Version], list[Path]] = {}
    for path in sorted(wheelhouse.rglob("*.whl")):
        name = wheel_name(path.name)
        if name is not None:
            at_hand.setdefault((name.project, name.version), []).append(path)
    wheels, lines = [], []
    for pin in sorted(pins, key=lambda pin: pin.name):
        found = [(path, file_sha256(path)) for path in at_hand.get((pin.name, pin.version), [])]
        good = [(path, digest) for path, digest in found if digest in pin.hashes]
        if not good:
            raise BundleError(
                "BUNDLE_INPUT",
                f"no wheel of {pin.name} {pin.version} in the wheelhouse has a digest of the lock",
                wheelhouse=str(wheelhouse),
                found=[path.name for path, _ in found],
                remedy="Fetch the wheels with `appliance vendor fetch`, or name their folder with `--wheelhouse`.",
            )
        if len({digest for _, digest in good}) > 1:
            raise BundleError(
                "BUNDLE_INPUT",
                f"{pin.name} {pin.version} has two wheels for one target",
                found=[p.name for p, _ in good],
            )
        path, digest = good[0]
        wheels.append(Payload(f"wheels/{path.name}", path))
        lines.append(f"{pin.name}=={pin.version} --hash=sha256:{digest}\n")
    return wheels, "".join(lines)


def collect(
    *,
    wheels: list[Payload],
    requirements: str,
    locks: list[Path],
    encoder: Path | None,
    router: Path | None,
    configuration: Path | None,
    evidence: list[Path],
    parts: Sequence[Payload],
) -> list[Payload]:
    """The whole payload in its fixed order: requirements, wheels, locks, models, configuration, parts, evidence.

    Raises:
        BundleError: BUNDLE_INPUT. ArtifactError, FileError: a model that is not a whole, signed artifact.
    """
    own_name, own_data = own_wheel()
    own_digest = hashlib.sha256(own_data).hexdigest()
    version = own_name.split("-")[1]
    requirements += f"llm-routing-appliance=={version} --hash=sha256:{own_digest}\n"
    payload = [
        Payload("stage0.py", assemble.assemble().encode(), executable=True),
        Payload("requirements.txt", requirements.encode()),
        *sorted([*wheels, Payload(f"wheels/{own_name}", own_data)], key=lambda file: file.path),
        *(Payload(f"locks/{path.name}", path) for path in sorted(locks)),
    ]
    for kind, folder in (("encoder", encoder), ("router", router)):
        if folder is not None:
            payload += _artifact(kind, folder)
    if configuration is not None:
        files = read_tree(configuration, max_files=64, max_bytes=MAX_EXTRA_BYTES)
        payload += [Payload(f"config/{name}", data) for name, data in sorted(files.items())]
    return payload + [*parts] + [Payload(f"evidence/{path.name}", path) for path in sorted(evidence)]


def _artifact(kind: str, folder: Path) -> list[Payload]:
    found = artifact.read(folder)
    if found.kind != kind:
        raise BundleError("BUNDLE_INPUT", f"{folder} holds a {found.kind}, not a {kind}", folder=str(folder))
    signature = found.require_signature()
    files = {**found.files, artifact.SIGNATURE_NAME: signature}
    return [Payload(f"{kind}/{name}", files[name]) for name in sorted(files)]
