"""`appliance install`, `rollback`, `releases`, `inventory`: what runs on this host, and how it changes."""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from appliance.bundle import releases as installed
from appliance.bundle.refusals import appliance_errors
from appliance.bundle.stage0.main import LOCK_VARIABLE
from appliance.bundle.stage0.preparing import Conduct
from appliance.cli.keyring import KeyPlaces, PassphraseFile, open_role
from appliance.cli.output import Json, refusals, show
from appliance.cli.progress import Rate
from appliance.files import read_regular

MAX_ANCHOR_BYTES = 1024 * 1024
MAX_TOKEN_BYTES = 64 * 1024
SHOWN = 10  # files that were put right
Prefix = Annotated[Path, typer.Option("--prefix", help="Where the appliance lives.", show_default=True)]
Restart = Annotated[
    bool, typer.Option("--restart/--no-restart", help="Restart the gateway's service, where it runs from this prefix.")
]
DEFAULT_PREFIX = Path("/opt/appliance")


def install(
    media: Annotated[list[Path], typer.Argument(help="The archive, its volumes, or folders that hold them.")],
    prefix: Prefix = DEFAULT_PREFIX,
    trust: Annotated[
        Path | None,
        typer.Option("--trust", help="anchor.json from the second channel; needed for the first installation."),
    ] = None,
    port: Annotated[
        list[int] | None,
        typer.Option(
            "--port", help="A port the gateway will use: warn if it is taken. At first, if none is named: 8443."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check media and host; write nothing.")] = False,
    downgrade: Annotated[
        Path | None,
        typer.Option(
            "--allow-downgrade",
            help="Authorisation for an older release: TOKEN from `appliance ca authorise downgrade`.",
        ),
    ] = None,
    restart: Restart = True,
    as_json: Json = False,
) -> None:
    """Install a release from media, atomically: the old release or the new one runs, never neither.

    Where it runs already, every installed file is compared with what was signed, and put right.
    """
    from appliance.bundle import install as installing
    from appliance.bundle.services import restart_or_return

    os.umask(0o022)  # what is installed is run by the service's account, whatever mask the operator works under

    with refusals(as_json):
        say = _quiet if as_json else _say
        held = os.environ.get(LOCK_VARIABLE, "")
        lock = int(held) if held.isdigit() else None
        kept = os.dup(lock) if lock is not None else None  # stage 0 holds it until we end; the way back needs it, too
        report = installing.install(
            media,
            prefix,
            read_regular(trust, max_bytes=MAX_ANCHOR_BYTES) if trust else None,
            now=datetime.now(UTC),
            conduct=Conduct(say=say, progress=Rate(quiet=as_json), python=_base_python()),
            dry_run=dry_run,
            ports=port or (),
            downgrade=read_regular(downgrade, max_bytes=MAX_TOKEN_BYTES) if downgrade else None,
            inherited_lock=lock,
        )
        restarted = False
        changed = report.outcome in ("installed", "repaired")
        if restart and changed:
            before, home = report.previous, installed.require_prefix(prefix)

            def go_back() -> object:
                with appliance_errors():
                    return installed.rollback(home, to=before, now=datetime.now(UTC), inherited_lock=kept)

            restarted = restart_or_return(home.root, go_back if before else None)
        manifest = report.verdict.release.manifest
        value = {
            "outcome": report.outcome,
            "release": manifest.release_id,
            "version": manifest.version,
            "digest": manifest.digest,
            "signer": report.verdict.verdict.identity,
            "signed_at": report.verdict.verdict.signed_at,
            "previous": report.previous,
            "preflight": [vars(finding) for finding in report.findings],
            "health": list(report.health),
            "removed": list(report.removed),
            "repaired": list(report.repaired),
            "mended": list(report.mended),
            "restarted": restarted,
        }

        def text(out: Console) -> None:
            for finding in report.findings if dry_run else ():
                out.print(f"  {finding.check:13} {finding.status:8} {finding.text}", markup=False)
            for entry in report.health:
                out.print(f"  {entry['check']:13} healthy  {entry['text']}", markup=False)
            out.print(f"{report.outcome}: {manifest.release_id} at {prefix}", markup=False)
            if report.mended:
                _print_mended(out, report.mended, prefix)
            if report.outcome == "installed" and report.previous:
                _print_way_back(out, prefix, report.previous)
            if changed:
                _print_next(out, prefix, restarted)

        show(value, as_json, text)


def rollback(
    prefix: Prefix = DEFAULT_PREFIX,
    to: Annotated[
        str | None, typer.Option("--to", help="A release of `appliance releases`; default: the one before.")
    ] = None,
    restart: Restart = True,
    as_json: Json = False,
) -> None:
    """Return to the previous release."""
    from appliance.bundle.services import restart_gateway

    with refusals(as_json), appliance_errors():
        home = installed.require_prefix(prefix)
        release = installed.rollback(home, to=to, now=datetime.now(UTC))
        restarted = restart and restart_gateway(home.root)

        def text(out: Console) -> None:
            out.print(f"current is {release.id} again", markup=False)
            if restarted:
                out.print("the gateway was restarted", markup=False)

        show(release.as_dict() | {"restarted": restarted}, as_json, text)


def releases(
    prefix: Prefix = DEFAULT_PREFIX,
    as_json: Json = False,
) -> None:
    """List the installed releases."""
    with refusals(as_json), appliance_errors():
        home = installed.require_prefix(prefix)
        found = installed.installed_releases(home)
        pending = home.transaction()

        def text(out: Console) -> None:
            for release in found:
                mark = "*" if release.current else " "
                out.print(
                    f"{mark} {release.id:28} {release.manifest.profile:9} installed {release.installed}"
                    f" by {release.signer}",
                    markup=False,
                )
            if pending:
                out.print(
                    f"unfinished: {pending.release} after step {pending.step!r}; repeat the installation", markup=False
                )

        value = {
            "releases": [release.as_dict() for release in found],
            "unfinished": {"release": pending.release, "step": pending.step} if pending else None,
        }
        show(value, as_json, text)


def inventory(
    prefix: Prefix = DEFAULT_PREFIX,
    out: Annotated[Path | None, typer.Option("--out", help="Where to write inventory.json; needs --authority.")] = None,
    authority: Annotated[Path | None, typer.Option("--authority", help="The zone's authority, which signs it.")] = None,
    role: Annotated[str, typer.Option("--role", help="The role that signs.")] = "zone-host",
    passphrase_file: PassphraseFile = None,
    key: KeyPlaces = None,
    as_json: Json = False,
) -> None:
    """Export what is installed, for a delta bundle; signed where it is written to a file."""
    from appliance.bundle.inventory import SIGNATURE_SUFFIX, take_inventory, write_inventory

    with refusals(as_json), appliance_errors():
        if (out is None) != (authority is None):
            raise typer.BadParameter("--out and --authority belong together: an inventory on media is always signed")
        statement = take_inventory(installed.require_prefix(prefix), now=datetime.now(UTC))
        if out is not None and authority is not None:
            write_inventory(statement, open_role(authority, role, passphrase_file, key), out)

        def text(console: Console) -> None:
            console.print(
                f"{statement['name']} {statement['version']} ({statement['profile']}), "
                f"{len(statement['members'])} files",
                markup=False,
            )
            console.print(f"digest {statement['digest']}", markup=False)
            if out is not None:
                console.print(f"wrote {out} and {out}{SIGNATURE_SUFFIX}", markup=False)

        show(statement, as_json, text)


def _print_way_back(out: Console, prefix: Path, previous: str) -> None:
    """How to return to the release before, where it understands the state that is there now."""
    home = installed.require_prefix(prefix)
    before = next((each for each in installed.installed_releases(home) if each.id == previous), None)
    if before is not None and before.manifest.state_version < installed.state_version(home):
        out.print(f"before it ran {previous}, which does not understand this release's state: only a backup leads back")
    else:
        out.print(f"before it ran {previous}; return with: appliance rollback --prefix {prefix}")


def _print_mended(out: Console, mended: tuple[str, ...], prefix: Path) -> None:
    """What was not as signed, and where that is kept."""
    from appliance.bundle.repair import SET_ASIDE

    for name in mended[:SHOWN]:
        out.print(f"  was not as signed: {name}", markup=False)
    if len(mended) > SHOWN:
        out.print(f"  and {len(mended) - SHOWN} more; --json names all", markup=False)
    aside = prefix / "current" / SET_ASIDE
    if aside.is_dir():
        out.print(f"what was found there is kept in {aside}", markup=False)


def _print_next(out: Console, prefix: Path, restarted: bool) -> None:
    """Where the rest of the release lies, and what is still to do."""
    payload = prefix / "current" / "payload"
    if restarted:
        out.print("the gateway was restarted and answers", markup=False)
    if (payload / "scripts").is_dir():
        out.print(f"runbooks: {payload}/scripts (units: install-units), guides: {payload}/docs", markup=False)


def _base_python() -> str:
    """The interpreter below this environment: a release's environment must not hang on another release's."""
    return getattr(sys, "_base_executable", sys.executable)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _quiet(_text: str) -> None:
    pass
