"""`appliance ca`: the authority, its certificates and its trust metadata."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from appliance.cli.output import Json, refusals, show
from appliance.files import sha256_hex

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="The authority: certificates, roles, trust metadata."
)

AuthorityFolder = Annotated[Path, typer.Option("--authority", help="The authority's folder.")]
DEFAULT_AUTHORITY = Path("ca/authority")


@app.command()
def init(
    out: Annotated[Path, typer.Option("--out", help="Folder to make; must not hold an authority.")] = DEFAULT_AUTHORITY,
    recipes: Annotated[Path, typer.Option("--recipes", help="Folder with profiles.yaml and policy.yaml.")] = Path("ca"),
    development: Annotated[bool, typer.Option("--development", help="Keys unencrypted, all in one place.")] = False,
    as_json: Json = False,
) -> None:
    """Make an authority: keys, certificates, logs, trust repository, anchor."""
    with refusals(as_json):
        from appliance.trust.ceremony import create_authority
        from appliance.trust.profiles import read_recipes

        create_authority(out, read_recipes(recipes), development=development, now=datetime.now(UTC))
        report = {
            "authority": str(out),
            "development": development,
            "anchor": str(out / "anchor.json"),
            "anchor_sha256": sha256_hex((out / "anchor.json").read_bytes()),
            "repository": str(out / "repository"),
            "trust_config": str(out / "trust_config.json"),
        }
        show(report, as_json, lambda console: _print_init(console, report))


def _print_init(console: Any, report: dict[str, Any]) -> None:
    console.print(f"authority made in {report['authority']}", markup=False)
    console.print(f"anchor   {report['anchor']}", markup=False)
    console.print(f"sha256   {report['anchor_sha256']}   (tell the zone by a second channel)", markup=False)


@app.command()
def issue(  # noqa: PLR0917 (typer names the options)
    profile: Annotated[str, typer.Argument(help="tls-server or tls-client.")],
    name: Annotated[str, typer.Argument(help="Common name, also the files' name.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for NAME.pem, NAME.key and ca.pem.")],
    san: Annotated[list[str] | None, typer.Option("--san", help="Host name or address; repeat for more.")] = None,
    authority: AuthorityFolder = DEFAULT_AUTHORITY,
    as_json: Json = False,
) -> None:
    """Issue a TLS certificate with a fresh key."""
    if profile not in {"tls-server", "tls-client"}:
        raise typer.BadParameter("give tls-server or tls-client", param_hint="PROFILE")
    with refusals(as_json):
        from appliance.trust.tls import issue_tls

        identity = issue_tls(authority, profile, name, sans=san or [])  # type: ignore[arg-type]
        identity.write(out, name)
        report = {
            "certificate": str(out / f"{name}.pem"),
            "key": str(out / f"{name}.key"),
            "ca": str(out / "ca.pem"),
            "serial": f"{identity.certificate.serial_number:x}",
            "expires": identity.certificate.not_valid_after_utc.isoformat(),
        }
        show(report, as_json, lambda console: _print_rows(console, report))


def _print_rows(console: Any, report: dict[str, Any]) -> None:
    for name, value in report.items():
        console.print(f"{name:12} {value}", markup=False)
