"""The cases of a drill, in an order in which each finds what it needs: do it, then look whether it is done."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from appliance.bundle.releases import installed_releases
from appliance.bundle.stage0.journal import Prefix
from appliance.errors import OperationError
from appliance.operations.drill.desk import Desk
from appliance.operations.drill.ground import NAME, VERSIONS
from appliance.operations.throwaway import OFFICERS


@dataclass(frozen=True)
class Case:
    """One case.

    Attributes:
        name: what happens to an operator.
        runbooks: those it uses.
        do: does it and looks; raises where it does not hold. Returns what was seen.
    """

    name: str
    runbooks: tuple[str, ...]
    do: Callable[[Desk], str]


def expect(holds: object, wanted: str, **seen: Any) -> None:
    """Look.

    Raises:
        OperationError: OPERATION_DRILL_FAILED.
    """
    if not holds:
        raise OperationError("OPERATION_DRILL_FAILED", f"expected: {wanted}", **seen)


def install(desk: Desk) -> str:
    """On a new host; the first attempt is killed."""
    ground = desk.ground
    desk.run("install-from-media", ground.media[0], "--anchor", ground.anchor, killed_after_s=2.5)
    return _active(desk, VERSIONS[0])


def upgrade(desk: Desk) -> str:
    """To the next release; the first attempt is killed."""
    desk.run("install-from-media", desk.ground.media[1], killed_after_s=2.5)
    return _active(desk, VERSIONS[1])


def roll_back(desk: Desk) -> str:
    """To the release before, which is still there."""
    desk.run("roll-back")
    return _active(desk, VERSIONS[0])


def units(desk: Desk) -> str:
    """Into an image's root, as nobody's systemd is touched."""
    image = desk.ground.directory / "image"
    image.mkdir(exist_ok=True)
    desk.run("install-units", "--root", image)
    placed = sorted(path.name for path in (image / "etc/systemd/system").iterdir())
    expect(len(placed) >= 4, "units in the image", placed=placed)
    return f"{len(placed)} units placed"


def promote(desk: Desk) -> str:
    """Two versions arrive; what no officer signed does not."""
    for version in ("1.0.0", "1.1.0"):
        desk.run("promote-model", desk.ground.router(version), version, *_zone(desk))
    desk.refused("promote-model", desk.ground.router("6.6.6", signer=None), "6.6.6", *_zone(desk))
    return f"serves {_served(desk, '1.1.0')}"


def sync(desk: Desk) -> str:
    """The registry's news reaches the volume."""
    desk.run("sync-now", "--registry", desk.ground.registry)
    arrived = list((desk.ground.prefix / "state" / "volume").rglob("router.yaml"))
    expect(arrived, "a router in the volume")
    return f"{len(arrived)} router in the volume"


def withdraw(desk: Desk) -> str:
    """A version misbehaves; it never comes back."""
    desk.run("withdraw-model", NAME, "1.1.0", "--instead", "1.0.0", *_zone(desk))
    served = _served(desk, "1.0.0")
    desk.refused("promote-model", NAME, "1.1.0", *_zone(desk))
    return f"serves {served}; 1.1.0 is refused for ever"


def rotate_tls(desk: Desk) -> str:
    """A first certificate, then its successor."""
    seen = set()
    for _ in range(2):
        desk.run("rotate-tls", "--authority", desk.ground.authority, "--san", "gateway.zone.internal")
        seen.add(_digest(desk.ground.prefix / "etc" / "tls" / "gateway.pem"))
    expect(len(seen) == 2, "another certificate")
    return "two certificates, one after the other"


def renew_trust(desk: Desk) -> str:
    """At the officer's desk, then on the host."""
    before = _versions(desk)
    desk.run("renew-trust", "--authority", desk.ground.authority)
    desk.run("refresh-trust", desk.ground.repository)
    expect(_versions(desk) != before, "newer trust metadata on the host", before=before)
    return "newer metadata on the host"


def rotate_roots(desk: Desk) -> str:
    """The signing authority and the log get new keys; what was signed before still counts."""
    for what in ("signing", "log"):
        desk.run("rotate-signing-roots", what, "--authority", desk.ground.authority)
    desk.run("refresh-trust", desk.ground.repository)
    served = _served(desk, "1.0.0")
    desk.run("promote-model", desk.ground.router("1.2.0"), "1.2.0", *_zone(desk))
    return f"{served}, signed before, still verified; serves {_served(desk, '1.2.0')}, signed after"


def move_registry(desk: Desk) -> str:
    """To another folder; the old one may go."""
    new = desk.ground.directory / "registry-moved"
    desk.run("move-registry", desk.ground.registry, new, killed_after_s=0.8)
    kept = desk.ground.registry.rename(desk.ground.directory / "registry-retired")
    try:
        desk.run("sync-now")
    finally:
        kept.rename(desk.ground.registry)
    return "followed at its new place, with the old one gone"


def admin_key(desk: Desk) -> str:
    """Lost, then replaced."""
    file = desk.ground.prefix / "etc" / "secrets" / "master.key"
    desk.run("new-admin-key")
    first = file.read_text()
    desk.run("new-admin-key")
    expect(file.read_text() != first, "another key")
    expect(file.stat().st_mode & 0o777 == 0o600, "a key that its owner alone reads")
    return "replaced, mode 600"


def failed_disk(desk: Desk) -> str:
    """Back up, lose everything, replace the disk with what the backup holds; the first attempts are killed."""
    ground, archive = desk.ground, desk.ground.directory / "backup.tar"
    desk.run("back-up", archive, killed_after_s=0.3)
    before = _state(ground.prefix)
    shutil.rmtree(ground.prefix)
    rescue = ground.directory / "rescue"
    rescue.mkdir()
    subprocess.run(["tar", "-xf", archive, "-C", rescue, "scripts"], check=True)
    replace(desk, scripts=rescue / "scripts").run(
        "replace-disk", ground.media[0], archive, "--anchor", ground.anchor, killed_after_s=4
    )
    now = _state(ground.prefix)
    lost = sorted(name for name, digest in before.items() if now.get(name) != digest)
    expect(not lost, "every file of the backup", lost=lost[:10])
    _active(desk, VERSIONS[0])
    return f"{len(before)} files of configuration, trust and state are back"


def restore(desk: Desk) -> str:
    """Somebody spoilt the configuration; a spoilt archive is refused."""
    ground, archive = desk.ground, desk.ground.directory / "backup.tar"
    spoilt = ground.directory / "spoilt.tar"
    data = bytearray(archive.read_bytes())
    data[600] ^= 1
    spoilt.write_bytes(data)
    digest = (ground.directory / "backup.tar.sha256").read_text().split()[0]
    spoilt.with_name("spoilt.tar.sha256").write_text(f"{digest}  spoilt.tar\n")
    desk.refused("restore", spoilt)
    config = ground.prefix / "etc" / "appliance.yaml"
    good = config.read_bytes()
    config.write_text("spoilt: true\n")
    desk.run("restore", archive, killed_after_s=0.4)
    expect(config.read_bytes() == good, "the configuration as it was backed up")
    return "the configuration is back; a spoilt archive was refused"


def evacuate(desk: Desk) -> str:
    """An officer's key is in wrong hands: another signs what was checked, the officer is refused for ever; killed."""
    bad, good = OFFICERS
    honest = desk.ground.router("2.0.0", signer=None)
    desk.run("evacuate-signer", bad, "--by", good, "--honest", honest, *_zone(desk), killed_after_s=4)
    said = desk.refused("promote-model", desk.ground.router("6.6.7"), "6.6.7", *_zone(desk))
    expect("TRUST_ROLE" in said, "a refusal of whatever the officer signs", said=said[-300:])
    desk.run("sync-now", "--registry", desk.ground.registry)
    return f"serves {_served(desk, '2.0.0')}, signed by {good}; {bad} is refused"


def train(desk: Desk) -> str:
    """The training zone has new traces, killed on the way; what taught nothing earns no place."""
    ground, state = desk.ground, desk.ground.prefix / "state" / "training"
    given = ("--encoder", ground.encoder, "--strategy", "knn")
    desk.run("train-router", NAME, "--sources", ground.traces("traces", teaching=True), *given, killed_after_s=2)
    packaged = list(state.glob(f"{NAME}/*/packaged/router.yaml"))
    expect(len(packaged) == 1, "one packaged router", packaged=[str(path) for path in packaged])
    noise = ground.traces("noise", teaching=False)
    said = desk.refused("train-router", "noise", "--sources", noise, *given)
    expect("TRAINING_GATE" in said, "a gate that refuses what noise taught", said=said[-300:])
    expect(not list(state.glob("noise/*/packaged")), "nothing packaged of it")
    return "a router of its traces is packaged for the producer to sign; one of noise was refused"


def support(desk: Desk) -> str:
    """What support needs, and no secret in it."""
    out = desk.ground.directory / "support.tar"
    desk.run("collect-support", out)
    key = (desk.ground.prefix / "etc" / "secrets" / "master.key").read_text().strip()
    expect(key.encode() not in out.read_bytes(), "no master key in the bundle")
    return f"{out.stat().st_size} bytes, without the master key"


CASES = (
    Case("install on a new host", ("install-from-media",), install),
    Case("upgrade", ("install-from-media",), upgrade),
    Case("roll back", ("roll-back",), roll_back),
    Case("units into an image", ("install-units",), units),
    Case("import and promote a model", ("promote-model",), promote),
    Case("fetch the registry's news", ("sync-now",), sync),
    Case("withdraw a model", ("withdraw-model",), withdraw),
    Case("rotate TLS certificates", ("rotate-tls",), rotate_tls),
    Case("renew trust before it ends", ("renew-trust", "refresh-trust"), renew_trust),
    Case("rotate the signing roots", ("rotate-signing-roots", "refresh-trust"), rotate_roots),
    Case("move the registry", ("move-registry", "sync-now"), move_registry),
    Case("regain a lost admin key", ("new-admin-key",), admin_key),
    Case("replace a failed disk", ("back-up", "replace-disk"), failed_disk),
    Case("restore a backup", ("restore",), restore),
    Case("evacuate a compromised signer", ("evacuate-signer", "promote-model", "refresh-trust"), evacuate),
    Case("train a router on new traces", ("train-router",), train),
    Case("collect a support bundle", ("collect-support",), support),
)


def _zone(desk: Desk) -> tuple[str | Path, ...]:
    return "--registry", desk.ground.registry, "--authority", desk.ground.authority


def _active(desk: Desk, version: str) -> str:
    prefix = Prefix(desk.ground.prefix)
    found = [release.id for release in installed_releases(prefix) if release.current]
    expect(found and found[0].startswith(f"{version}-"), f"release {version}", current=found)
    expect(prefix.transaction() is None, "no unfinished installation")
    return f"{found[0]} is current"


def _served(desk: Desk, version: str) -> str:
    place = ("--registry", desk.ground.registry, "--trust", desk.ground.trust)
    found = desk.ask("artifact", "show", NAME, *place)["target"]["version"]
    expect(found == version, f"version {version} to be served", served=found)
    return str(found)


def _versions(desk: Desk) -> dict[str, Any]:
    report = desk.ask("ca", "status", "--state", desk.ground.trust)
    return {name: value for name, value in report.items() if name != "clock"}


def _state(prefix: Path) -> dict[str, str]:
    """Digest of every file that a backup must bring back: caches, locks and the installer's journal make themselves."""
    made_anew = {"install", "locks", "partial", "run"}
    return {
        str(path.relative_to(prefix)): _digest(path)
        for part in ("etc", "state")
        for path in sorted((prefix / part).rglob("*"))
        if path.is_file() and not made_anew & set(path.relative_to(prefix).parts) and not path.name.endswith("lock")
    }


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
