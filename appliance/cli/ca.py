"""`appliance ca`: the authority, its certificates and its trust metadata."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from appliance.cli import ca_host, ca_init, ca_root
from appliance.cli.ca_report import handed_out, now, parse_time, rows
from appliance.cli.keyring import (
    DEFAULT_AUTHORITY,
    AuthorityFolder,
    KeyPlaces,
    PassphraseFile,
    open_authority,
)
from appliance.cli.output import Json, refusals, show
from appliance.errors import TrustError
from appliance.files import read_regular, sha256_hex, write_atomic

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="The authority: certificates, roles, trust metadata."
)
log = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="The transparency log: export and audit.")
app.add_typer(log, name="log")
log.command("audit")(ca_host.audit)
app.add_typer(ca_root.app, name="root")
_COMMANDS = (ca_init.init, ca_init.recipes, ca_host.trust, ca_host.refresh, ca_host.machine, ca_host.redeem)
for _command in _COMMANDS:
    app.command()(_command)

_MAX_BYTES = 4 * 1024 * 1024


@app.command()
def issue(
    profile: Annotated[str, typer.Argument(help="tls-server or tls-client.")],
    name: Annotated[str, typer.Argument(help="Common name, also the files' name.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for NAME.pem, NAME.key and ca.pem.")],
    san: Annotated[list[str] | None, typer.Option("--san", help="Host name or address; repeat for more.")] = None,
    authority: AuthorityFolder = DEFAULT_AUTHORITY,
    passphrase_file: PassphraseFile = None,
    key: KeyPlaces = None,
    as_json: Json = False,
) -> None:
    """Issue a TLS certificate with a fresh key.

    Signing certificates are not issued here: every signature gets its own, of minutes, when it is made.
    """
    from appliance.files import safe_relative
    from appliance.trust.tls import TLS_PROFILES, issue_tls

    if profile not in TLS_PROFILES:
        raise typer.BadParameter(f"give one of {', '.join(TLS_PROFILES)}", param_hint="PROFILE")
    with refusals(as_json):
        safe_relative(name)
        opened = open_authority(authority, passphrase_file, key)
        _hand_over(issue_tls(opened, profile, name, sans=san or []), out, name, as_json)


@app.command()
def renew(
    name: Annotated[
        str | None, typer.Argument(help="A TLS certificate's name. Without it: the trust metadata.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the renewed TLS certificate.")] = None,
    authority: AuthorityFolder = DEFAULT_AUTHORITY,
    passphrase_file: PassphraseFile = None,
    key: KeyPlaces = None,
    as_json: Json = False,
) -> None:
    """Extend the trust metadata (and the root when it is due), or issue a TLS certificate's successor."""
    if name is not None and out is None:
        raise typer.BadParameter("say where the renewed certificate goes", param_hint="--out")
    with refusals(as_json):
        from appliance.trust import ceremony
        from appliance.trust.report import authority_report
        from appliance.trust.tls import renew_tls

        opened = open_authority(authority, passphrase_file, key)
        if name is not None and out is not None:
            _hand_over(renew_tls(opened, name, at=now()), out, name, as_json)
            return
        renewed = ceremony.renew(opened, now=now())
        warnings = authority_report(opened, now=now())["warnings"]
        report = {"renewed": renewed, **handed_out(authority), "warnings": warnings}
        show(report, as_json, lambda console: rows(console, report))


@app.command()
def revoke(
    serial: Annotated[list[str] | None, typer.Option("--serial", help="A signing certificate's serial, hex.")] = None,
    log_index: Annotated[list[int] | None, typer.Option("--log-index", help="An entry of the log in use.")] = None,
    digest: Annotated[list[str] | None, typer.Option("--digest", help="SHA-256 of a statement or artifact.")] = None,
    tls: Annotated[list[str] | None, typer.Option("--tls", help="A TLS certificate's serial, hex.")] = None,
    role: Annotated[list[str] | None, typer.Option("--role", help="A policy role to take out altogether.")] = None,
    identity: Annotated[
        list[str] | None, typer.Option("--identity", help="An identity to take out of every role.")
    ] = None,
    authority: AuthorityFolder = DEFAULT_AUTHORITY,
    passphrase_file: PassphraseFile = None,
    key: KeyPlaces = None,
    as_json: Json = False,
) -> None:
    """Deny signatures or content, retire roles and identities, revoke TLS certificates."""
    if not any((serial, log_index, digest, tls, role, identity)):
        raise typer.BadParameter("say what to revoke: --serial, --log-index, --digest, --tls, --role or --identity")
    with refusals(as_json):
        from appliance.trust import ceremony

        asked = ceremony.Revocation(
            certificate_serials=tuple(serial or ()),
            log_indices=tuple(log_index or ()),
            digests=tuple(digest or ()),
            tls_serials=tuple(tls or ()),
            roles=tuple(role or ()),
            identities=tuple(identity or ()),
        )
        policy = ceremony.revoke(open_authority(authority, passphrase_file, key), asked, now=now())
        report = {
            "denied": policy.denied.model_dump(mode="json"),
            "roles": sorted(policy.roles),
            **handed_out(authority),
        }
        show(report, as_json, lambda console: rows(console, report))


@app.command()
def rotate(
    what: Annotated[str, typer.Argument(help="signing, tls, tsa, log, ct, root, policy, or a key such as tuf-root-2.")],
    compromised_since: Annotated[
        str | None,
        typer.Option("--compromised-since", help="Refuse what the old key signed since, 2026-11-23T12:00:00Z."),
    ] = None,
    policy: Annotated[Path | None, typer.Option("--policy", help="The new policy.yaml, with `policy`.")] = None,
    authority: AuthorityFolder = DEFAULT_AUTHORITY,
    passphrase_file: PassphraseFile = None,
    key: KeyPlaces = None,
    as_json: Json = False,
) -> None:
    """Replace a key by a new one, or the policy by another."""
    from appliance.trust.ceremony import SERVICES, rotate_key, rotate_service, set_policy
    from appliance.trust.profiles import POLICY_NAME, read_policy_recipe

    if policy is not None and what != "policy":
        raise typer.BadParameter("goes with `policy` alone", param_hint="--policy")
    if compromised_since is not None and what not in SERVICES:
        raise typer.BadParameter(f"goes with {', '.join(SERVICES)} alone", param_hint="--compromised-since")
    if what == "policy" and policy is None:
        policy = ca_init.RECIPES_HERE / POLICY_NAME
        if not policy.is_file():
            raise typer.BadParameter(f"name the new policy; there is no {policy} here", param_hint="--policy")
    with refusals(as_json):
        since = None if compromised_since is None else parse_time(compromised_since, "--compromised-since")
        opened = open_authority(authority, passphrase_file, key, make=True)
        if policy is not None:
            set_policy(opened, read_policy_recipe(policy, domain=opened.state.domain), now=now())
            made: list[str] = []
        elif what in SERVICES:
            made = rotate_service(opened, what, now=now(), compromised_since=since)
        else:
            made = [rotate_key(opened, what, now=now())]
        report = {"rotated": what, "new_keys": made, **handed_out(authority)}
        show(report, as_json, lambda console: rows(console, report))


@app.command()
def enrol(
    trusted_root: Annotated[Path, typer.Argument(help="The peer's trusted_root.json, or its trust_config.json.")],
    sha256: Annotated[str, typer.Option("--sha256", help="The file's SHA-256, as the peer told you.")],
    authority: AuthorityFolder = DEFAULT_AUTHORITY,
    passphrase_file: PassphraseFile = None,
    key: KeyPlaces = None,
    as_json: Json = False,
) -> None:
    """Believe another authority (the connected side, a sister zone) under its own domain."""
    with refusals(as_json):
        from appliance.trust import ceremony
        from appliance.trust.trusted_root import from_trust_config

        data = read_regular(trusted_root, max_bytes=_MAX_BYTES)
        if sha256_hex(data) != sha256.lower():
            raise TrustError("TRUST_PEER", "this is not the file you were told of", found=sha256_hex(data), told=sha256)
        opened = open_authority(authority, passphrase_file, key)
        domain = ceremony.enrol_peer(opened, from_trust_config(data), now=now())
        report = {"peer": domain, **handed_out(authority)}
        show(report, as_json, lambda console: rows(console, report))


@app.command()
def status(
    authority: AuthorityFolder = DEFAULT_AUTHORITY,
    state: Annotated[Path | None, typer.Option("--state", help="A host's trust state instead of an authority.")] = None,
    passphrase_file: PassphraseFile = None,
    key: KeyPlaces = None,
    as_json: Json = False,
) -> None:
    """What exists, until when, who may sign what; what to do soon."""
    with refusals(as_json):
        from appliance.trust.report import authority_report, store_report
        from appliance.trust.store import TrustStore

        if state is not None:
            report = store_report(TrustStore.open(state), now=now())
        else:
            report = authority_report(open_authority(authority, passphrase_file, key), now=now())
        show(report, as_json, lambda console: rows(console, report))


@app.command()
def authorise(
    action: Annotated[str, typer.Argument(help="downgrade or clock.")],
    version: Annotated[str, typer.Argument(help="The release version; for clock the time, 2026-11-23T12:00:00Z.")],
    machine: Annotated[str, typer.Option("--machine", help="What `appliance ca machine` prints on the host.")],
    out: Annotated[Path, typer.Option("--out", help="File to write.")],
    days: Annotated[int, typer.Option("--days", min=1, max=30, help="How long it holds.")] = 7,
    partial: Annotated[
        bool, typer.Option("--partial", help="Too few root keys will do: their holders add theirs by `ca root sign`.")
    ] = False,
    authority: AuthorityFolder = DEFAULT_AUTHORITY,
    passphrase_file: PassphraseFile = None,
    key: KeyPlaces = None,
    as_json: Json = False,
) -> None:
    """Sign, with enough root keys, one act that one host would refuse: an older release, an earlier time."""
    from appliance.trust.authorisation import ACTIONS, write_token

    if action not in ACTIONS:
        raise typer.BadParameter(f"give one of {', '.join(ACTIONS)}", param_hint="ACTION")
    if action == "clock":
        parse_time(version, "VERSION")
    with refusals(as_json):
        opened = open_authority(authority, passphrase_file, key)
        lifetime = timedelta(days=days)
        token = write_token(
            opened, action, machine=machine, version=version, now=now(), lifetime=lifetime, partial=partial
        )
        write_atomic(out, token)
        report = {"token": str(out), "action": action, "version": version, "machine": machine, "days": days}
        show(report, as_json, lambda console: rows(console, report))


@log.command("export")
def log_export(
    out: Annotated[Path, typer.Argument(help="File to write.")],
    which: Annotated[
        str, typer.Option("--log", help="log (transparency), ct (certificates), or a retired one such as log-1.")
    ] = "log",
    since: Annotated[
        Path | None,
        typer.Option("--since", help="An auditor's checkpoint: write only the proof that the log still contains it."),
    ] = None,
    authority: AuthorityFolder = DEFAULT_AUTHORITY,
    passphrase_file: PassphraseFile = None,
    key: KeyPlaces = None,
    as_json: Json = False,
) -> None:
    """Write every entry and the signed tree head, or a consistency proof alone, for an auditor."""
    with refusals(as_json):
        from appliance.trust import audit

        opened = open_authority(authority, passphrase_file, key)
        if since is None:
            data = audit.export(opened, which, at=now())
        else:
            data = audit.prove(opened, which, audit.read_kept(since), at=now())
        write_atomic(out, data)
        report = {"export": str(out), "bytes": len(data), "sha256": sha256_hex(data)}
        show(report, as_json, lambda console: rows(console, report))


def _hand_over(identity: Any, out: Path, name: str, as_json: bool) -> None:
    identity.write(out, name)
    report = {
        "certificate": str(out / f"{name}.pem"),
        "key": str(out / f"{name}.key"),
        "ca": str(out / "ca.pem"),
        "serial": f"{identity.certificate.serial_number:x}",
        "expires": identity.certificate.not_valid_after_utc.isoformat(),
    }
    show(report, as_json, lambda console: rows(console, report))
