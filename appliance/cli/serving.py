"""`appliance artifact promote | revoke | collect`: what channels serve, and what may go."""

from __future__ import annotations

import time
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from appliance.cli.keyring import DEFAULT_AUTHORITY, AuthorityFolder, KeyPlaces, PassphraseFile, open_role
from appliance.cli.output import Json, refusals, show

if TYPE_CHECKING:
    from appliance.artifact import Kind
    from appliance.registry.channel import ChannelState, StatementSigner
    from appliance.registry.registry import Registry
    from appliance.trust.verification import Verdict

SETTLE_S = 1.0  # longer than an officer's command takes from reading a pointer to writing the next

Name = Annotated[str, typer.Argument(help="Name of the router or channel.")]
Version = Annotated[str, typer.Argument(help="Version of the router.")]
RegistryAt = Annotated[
    str, typer.Option("--registry", envvar="APPLIANCE_REGISTRY", help="A directory, or a YAML settings file.")
]
TrustAt = Annotated[Path, typer.Option("--trust", envvar="APPLIANCE_TRUST", help="The host's trust state.")]
Role = Annotated[str, typer.Option("--role", help="The role that signs.")]
Identity = Annotated[str | None, typer.Option("--identity", help="Who signs, where the role has several identities.")]
Channel = Annotated[str | None, typer.Option("--channel", help="The channel; by default the router's name.")]
ValidDays = Annotated[
    int, typer.Option("--valid-days", min=1, max=3650, help="Days until the pointer must be renewed.")
]


def open_registry(location: str, trust: Path) -> Registry:
    """The registry at `location`, with the trust kept at `trust`."""
    from appliance.registry.homes import open_store
    from appliance.registry.registry import Registry
    from appliance.registry.trust_source import TrustSource

    source = TrustSource(trust)
    return Registry(open_store(location, revocations=source.revocations), material=source.material, clock=source.now)


def verdict_dict(verdict: Verdict) -> dict[str, Any]:
    """A verdict as `--json` prints it; the serial in hex, as `ca revoke --serial` takes it."""
    return {
        **asdict(verdict),
        "signed_at": verdict.signed_at.isoformat(),
        "certificate_serial": f"{verdict.certificate_serial:x}",
    }


def channel_dict(state: ChannelState) -> dict[str, Any]:
    """A channel as `--json` prints it."""
    return {
        "channel": state.pointer.name,
        "epoch": state.pointer.epoch,
        "target": state.pointer.target.model_dump(mode="json") if state.pointer.target else None,
        "revoked": list(state.pointer.revoked),
        "promoted": state.pointer.promoted,
        "expires": state.pointer.expires,
        "signed_by": verdict_dict(state.verdict),
    }


def say_channel(state: ChannelState) -> str:
    """A channel as a person reads it."""
    pointer = state.pointer
    target = f"{pointer.target.name} {pointer.target.version}" if pointer.target else "nothing (route by weights)"
    return f"channel {pointer.name}: {target}, epoch {pointer.epoch}, renew before {pointer.expires}"


def promote(
    name: Name,
    *,
    registry: RegistryAt,
    trust: TrustAt,
    version: Annotated[str | None, typer.Argument(help="Version to serve from now on.")] = None,
    channel: Channel = None,
    renew: Annotated[bool, typer.Option("--renew", help="Sign the pointer anew without changing it.")] = False,
    authority: AuthorityFolder = DEFAULT_AUTHORITY,
    role: Role = "import-officer",
    identity: Identity = None,
    passphrase_file: PassphraseFile = None,
    key: KeyPlaces = None,
    valid_days: ValidDays = 90,
    as_json: Json = False,
) -> None:
    """Point a channel to a published version; every follower serves it from its next poll on."""
    if (version is None) != renew:
        raise typer.BadParameter("give a VERSION, or --renew to sign the pointer anew")
    with refusals(as_json):
        home = open_registry(registry, trust)
        signer = open_role(authority, role, passphrase_file, key, identity=identity)
        validity = timedelta(days=valid_days)
        if version is None:
            state = home.renew(channel or name, signer, validity=validity)
        else:
            kind = kind_of(home, name, version)
            state = home.promote(name, version, signer, channel=channel, kind=kind, validity=validity)
        show(channel_dict(state), as_json, lambda console: console.print(say_channel(state), markup=False))


def revoke(
    name: Name,
    version: Version,
    *,
    registry: RegistryAt,
    trust: TrustAt,
    authority: AuthorityFolder = DEFAULT_AUTHORITY,
    role: Role = "import-officer",
    identity: Identity = None,
    passphrase_file: PassphraseFile = None,
    key: KeyPlaces = None,
    channel: Annotated[list[str] | None, typer.Option("--channel", help="Only on these channels.")] = None,
    as_json: Json = False,
) -> None:
    """Forbid a version on every channel, for ever; a channel that serves it falls back to weights."""
    with refusals(as_json):
        home = open_registry(registry, trust)
        digest = home.digest_of(name, version, kind=kind_of(home, name, version))
        signer = open_role(authority, role, passphrase_file, key, identity=identity)
        states = _revoke_on(channel or home.channels(), digest, home, signer)
        show(
            {"digest": digest, "channels": [channel_dict(state) for state in states]},
            as_json,
            lambda console: console.print("\n".join(say_channel(state) for state in states), markup=False),
        )


def _revoke_on(channels: list[str], digest: str, home: Registry, signer: StatementSigner) -> list[ChannelState]:
    """Revoke on every channel: one that cannot be changed must not spare the others.

    Another officer's pointer that was drawn up before ours may still come after it, so all are looked at once more.
    """
    from appliance.errors import ApplianceError

    states: dict[str, ChannelState] = {}
    failed: dict[str, ApplianceError] = {}
    for one in channels:
        try:
            states[one] = home.revoke(one, [digest], signer)
        except ApplianceError as problem:
            failed[one] = problem
    time.sleep(SETTLE_S if states else 0.0)
    for one in states:
        try:
            home.check_revoked(one, [digest])
        except ApplianceError as problem:
            failed[one] = problem
    for name, error in failed.items():
        done = {"not_revoked_on": sorted(failed), "revoked_on": sorted(states.keys() - failed.keys())}
        raise type(error)(error.code, f"channel {name}: {error.cause}", **{**error.evidence, **done})
    return list(states.values())


def collect(
    registry: RegistryAt,
    trust: TrustAt,
    keep: Annotated[
        int, typer.Option(min=1, help="Newest versions of each router to keep beside the served ones.")
    ] = 5,
    delete: Annotated[bool, typer.Option("--delete", help="Delete; without it the versions are only listed.")] = False,
    as_json: Json = False,
) -> None:
    """List, or delete, versions that no channel serves and that are not among the newest."""
    with refusals(as_json):
        from appliance.registry import garbage

        home = open_registry(registry, trust)
        now = home.now()
        if delete:
            done = garbage.collect(home, keep=keep, now=now)
        else:
            done = [garbage.Collected(one, "not asked to") for one in garbage.collectable(home, keep=keep, now=now)]
        report = [{**asdict(one.version), "kept_because": one.kept_because} for one in done]

        def text(console: Any) -> None:
            for one in done:
                what = f"kept: {one.kept_because}" if one.kept_because else "deleted"
                console.print(f"{one.version.name} {one.version.version}: {what}", markup=False)
            if not done:
                console.print("nothing to collect")

        show(report, as_json, text)


def kind_of(home: Registry, name: str, version: str) -> Kind:
    """Whether a name and version are an encoder's; what is neither is looked for, and missed, among the routers."""
    encoders = {(one.name, one.version) for one in home.versions("encoder")}
    return "encoder" if (name, version) in encoders else "router"
