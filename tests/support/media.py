"""Media with a trust repository on it, and the means to re-sign any part of it with any keys."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, MetaFile

from appliance.trust.keys import KeyRing


class Media:
    """A copy of an authority's repository folder, to be tampered with."""

    def __init__(self, authority: Path, folder: Path) -> None:
        shutil.copytree(authority / "repository", folder)
        self.path = folder
        self.keys = KeyRing(authority / "keys")

    def newest(self, role: str) -> Path:
        """The newest metadata file of a role."""
        if role == "timestamp":
            return self.path / "metadata/timestamp.json"
        found = self.path.glob(f"metadata/*.{role}.json")
        return max(found, key=lambda path: int(path.name.split(".")[0]))

    def load(self, role: str) -> Metadata[Any]:
        """The newest metadata of a role."""
        return Metadata.from_bytes(self.newest(role).read_bytes())

    def sign(self, role: str, change: Callable[[Any], Any], *, keys: tuple[str, ...] = (), bump: bool = True) -> None:
        """Change a role's newest metadata and sign it (with the role's own keys unless `keys` names others)."""
        metadata = self.load(role)
        change(metadata.signed)
        if bump:
            metadata.signed.version += 1
        metadata.signatures.clear()
        for name in keys or self.names(role):
            metadata.sign(CryptoSigner(self.keys.load(name)), append=True)
        name = "timestamp.json" if role == "timestamp" else f"{metadata.signed.version}.{role}.json"
        (self.path / "metadata" / name).write_bytes(metadata.to_bytes())

    def names(self, role: str) -> tuple[str, ...]:
        """The key names of a role in the newest root."""
        root = self.load("root").signed
        return tuple(root.keys[each].unrecognized_fields["x-appliance-name"] for each in root.roles[role].keyids)

    def tie(self, **delegated: int) -> None:
        """New snapshot and timestamp over whatever is newest (and a version of delegated roles): consistent again."""
        self.tie_to_targets(self.load("targets").signed.version, **delegated)

    def tie_to_targets(self, version: int, **delegated: int) -> None:
        """New snapshot and timestamp that name a version of the targets."""
        versions = {f"{role}.json": MetaFile(version=number) for role, number in delegated.items()}
        self.sign("snapshot", lambda s: s.meta.update({"targets.json": MetaFile(version=version), **versions}))
        snapshot = self.load("snapshot").signed.version
        self.sign("timestamp", lambda t: setattr(t, "snapshot_meta", MetaFile(version=snapshot)))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, links as their target's name: to see that nothing changed."""
    return {
        str(path.relative_to(folder)): str(path.readlink()).encode() if path.is_symlink() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }
