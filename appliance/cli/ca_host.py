"""`appliance ca`, the side of a host or an auditor: trust an anchor, refresh, audit. No private key is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from appliance.cli.ca_report import new_folder, now, parse_time, rows
from appliance.cli.output import Json, refusals, show
from appliance.errors import TrustError
from appliance.files import read_regular, sha256_hex, write_atomic

_MAX_BYTES = 4 * 1024 * 1024
Media = Annotated[Path, typer.Option("--media", help="Folder of the trust repository (metadata/ and targets/).")]
State = Annotated[Path, typer.Option("--state", help="This host's trust state, PREFIX/state/trust.")]


def trust(
    anchor: Annotated[Path, typer.Argument(help="anchor.json, from the second channel.")],
    media: Media,
    state: State,
    sha256: Annotated[str | None, typer.Option("--sha256", help="The anchor's SHA-256, as told to you.")] = None,
    as_json: Json = False,
) -> None:
    """Make this host trust an anchor: once, at installation."""
    new_folder(state, "--state")
    with refusals(as_json):
        from appliance.trust.report import store_report
        from appliance.trust.store import TrustStore

        data = read_regular(anchor, max_bytes=_MAX_BYTES)
        found = sha256_hex(data)
        if sha256 is not None and found != sha256.lower():
            raise TrustError("TRUST_ANCHOR_DIGEST", "this is not the anchor you were told of", found=found, told=sha256)
        report = store_report(TrustStore.initialise(state, data, media, now=now()), now=now())
        show(report, as_json, lambda console: rows(console, report))


def refresh(media: Media, state: State, as_json: Json = False) -> None:
    """Take over newer trust metadata from media; a refusal leaves the state as it was."""
    with refusals(as_json):
        from appliance.trust.report import store_report
        from appliance.trust.store import TrustStore

        store = TrustStore.open(state)
        store.refresh(media, now=now())
        report = store_report(store, now=now())
        show(report, as_json, lambda console: rows(console, report))


def machine(as_json: Json = False) -> None:
    """This host's identity, which an authorisation names."""
    with refusals(as_json):
        from appliance.trust.store import machine_identity

        report = {"machine": machine_identity()}
        show(report, as_json, lambda console: rows(console, report))


def redeem(
    token: Annotated[Path, typer.Argument(help="What `appliance ca authorise clock` wrote.")],
    time: Annotated[str, typer.Argument(help="The time it names, 2026-11-23T12:00:00Z.")],
    state: State,
    as_json: Json = False,
) -> None:
    """Set this host's time high-water mark back, with an authorisation (a downgrade's is given to `install`)."""
    parse_time(time, "TIME")
    with refusals(as_json):
        from appliance.trust.report import store_report
        from appliance.trust.store import TrustStore

        store = TrustStore.open(state)
        store.redeem(read_regular(token, max_bytes=_MAX_BYTES), action="clock", version=time, now=now())
        report = store_report(store, now=now())
        show(report, as_json, lambda console: rows(console, report))


def audit(
    export: Annotated[Path, typer.Argument(help="What `appliance ca log export` wrote.")],
    trusted_root: Annotated[
        Path, typer.Option("--trusted-root", help="trusted_root.json, or a host's trust state folder.")
    ],
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", help="The checkpoint seen last; replaced when the audit holds.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check an export without the authority: its tree head, and that nothing seen before is gone."""
    with refusals(as_json):
        from appliance.trust import audit as auditor

        exported = read_regular(export, max_bytes=auditor.MAX_EXPORT_BYTES)
        place = trusted_root / "current/targets/trusted_root.json" if trusted_root.is_dir() else trusted_root
        earlier = None
        if checkpoint is not None and checkpoint.exists():
            earlier = auditor.read_kept(checkpoint)
        found = auditor.audit(exported, read_regular(place, max_bytes=_MAX_BYTES), earlier=earlier)
        if checkpoint is not None:
            write_atomic(checkpoint, found.checkpoint.encode())
        report = {
            "log": found.origin,
            "entries": found.size,
            "root": found.root.hex(),
            "contains_earlier": None if earlier is None else True,
            "signers": found.signers,
        }
        show(report, as_json, lambda console: rows(console, report))
