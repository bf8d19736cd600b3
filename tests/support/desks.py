"""Who types a guide's commands, and where: at an authority, on a key holder's own machine, on a host."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from appliance.trust.store import TrustStore
from tests.support.artifacts import router_files, write
from tests.support.guides import Guide

AUTHORITY = Path("ca/authority")


@dataclass(frozen=True)
class Desk:
    """Where somebody types.

    Attributes:
        guide: the page.
        folder: of this person or host.
        exported: variables that are set here.
    """

    guide: Guide
    folder: Path
    exported: Mapping[str, str] = field(default_factory=dict)

    def type(self, begins: str, replace: Mapping[str, object] | None = None, *more: object, **options: Any) -> Any:
        """Type the page's line that begins so; what it reports. For options see `Guide.type`."""
        with contextlib.chdir(self.folder):
            return self.guide.type(begins, replace, *more, environment=self.exported, **options)

    def refused(self, begins: str, replace: Mapping[str, object] | None = None, *more: object) -> str:
        """Type it; the refusal's code."""
        return self.type(begins, replace, *more, expect=1)["error"]["code"]

    def act(self, begins: str, replace: Mapping[str, object] | None = None, *more: object) -> Any:
        """Type what changes this authority: then there is a new anchor, and the report has its SHA-256."""
        before = self.anchor_sha256
        report = self.type(begins, replace, *more)
        assert before != report["anchor_sha256"] == self.anchor_sha256
        return report

    @property
    def anchor_sha256(self) -> str:
        return sha256(self.folder / AUTHORITY / "anchor.json")

    def sign(self, name: str, role: str = "producer", identity: str = "producer") -> Path:
        """A new router, signed."""
        folder = write(router_files(payload=name.encode()), self.folder / name)
        who = ("--identity", f"{identity}@appliance.internal") if role == "producer" else ()
        self.type("appliance artifact sign", {"FOLDER": folder, "producer": role}, *who)
        return folder


@dataclass(frozen=True)
class Host(Desk):
    """A host: the page's PREFIX is its folder."""

    @property
    def store(self) -> TrustStore:
        return TrustStore.open(self.folder / "state/trust")

    def hear(self, authority: Desk) -> Mapping[str, object]:
        """Let media arrive from an authority; what the page's names stand for here."""
        media = self.folder / "media"
        shutil.rmtree(media, ignore_errors=True)
        shutil.copytree(authority.folder / AUTHORITY / "repository", media)
        return {"DIR": media, "PREFIX": self.folder}

    def trust(self, authority: Desk) -> Any:
        """Trust an authority, by the digest of its anchor alone."""
        shutil.copy(authority.folder / AUTHORITY / "anchor.json", self.folder)
        names = self.hear(authority)
        assert self.refused("appliance ca trust", {**names, "HEX": "0" * 64}) == "TRUST_ANCHOR_DIGEST"
        return self.type("appliance ca trust", {**names, "HEX": authority.anchor_sha256})

    def refresh(self, authority: Desk) -> Any:
        return self.type("appliance ca refresh", self.hear(authority))

    def judge(self, artifact: Path, expect: int = 0) -> Any:
        """The verdict on an artifact, or the code by which it is refused."""
        names = {"FOLDER": artifact, "PREFIX": self.folder}
        report = self.type("appliance artifact verify", names, expect=expect)
        return report["error"]["code"] if expect else report["verdict"]

    def audit(self, export: Path, *, kept: bool, expect: int = 0) -> Any:
        """Audit an export; `kept`: against the checkpoint of the audit before."""
        shutil.copy(export, self.folder / "log.json")
        line = "appliance ca log audit log.json --trusted-root PREFIX/state/trust"
        return self.type(line + " --checkpoint seen" * kept, {"PREFIX": self.folder}, expect=expect)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def desk(guide: Guide, folder: Path, **places: str) -> Desk:
    """A folder with a passphrase of its own, and where its keys are."""
    folder.mkdir()
    (folder / "secret").write_text(f"the secret of {folder.name}\n")
    keys = " ".join(f"{name}={place}" for name, place in places.items())
    return Desk(guide, folder, {"APPLIANCE_CA_PASSPHRASE_FILE": str(folder / "secret"), "APPLIANCE_CA_KEYS": keys})
