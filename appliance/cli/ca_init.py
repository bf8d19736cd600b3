"""`appliance ca init` and `recipes`: how an authority begins."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from appliance.cli.ca_report import handed_out, new_folder, now, rows
from appliance.cli.keyring import DEFAULT_AUTHORITY, KeyPlaces, PassphraseFile, Passphrases, key_places
from appliance.cli.output import Json, refusals, show
from appliance.errors import FileError
from appliance.files import write_atomic

DOMAIN = "appliance.internal"
RECIPES_HERE = Path("ca")  # where a checkout has its recipes


def init(
    out: Annotated[Path, typer.Option("--out", help="Folder to make; must not hold an authority.")] = DEFAULT_AUTHORITY,
    recipes: Annotated[
        Path | None,
        typer.Option("--recipes", help="Folder with profiles.yaml and policy.yaml. [default: ca, else the built-in]"),
    ] = None,
    development: Annotated[bool, typer.Option("--development", help="Keys unencrypted, all in one place.")] = False,
    domain: Annotated[
        str, typer.Option("--domain", help="Its own domain; in the policy it stands in for appliance.internal.")
    ] = DOMAIN,
    passphrase_file: PassphraseFile = None,
    key: KeyPlaces = None,
    as_json: Json = False,
) -> None:
    """Make an authority: keys, certificates, logs, trust repository, anchor."""
    from appliance.trust.names import is_domain

    if not is_domain(domain):
        raise typer.BadParameter(f"{domain!r} is not a domain such as zone.example", param_hint="--domain")
    new_folder(out, "--out")
    with refusals(as_json):
        from appliance.trust.ceremony import create_authority
        from appliance.trust.keys import no_passphrase
        from appliance.trust.profiles import PROFILES_NAME, read_recipes

        if recipes is None and (RECIPES_HERE / PROFILES_NAME).is_file():
            recipes = RECIPES_HERE
        create_authority(
            out,
            read_recipes(recipes, domain=domain),
            development=development,
            now=now(),
            domain=domain,
            passphrase=no_passphrase if development else Passphrases(passphrase_file, new=True),
            elsewhere=key_places(key, make=True),
        )
        report = {
            "authority": str(out),
            "development": development,
            "recipes": "built-in" if recipes is None else str(recipes),
            **handed_out(out),
            "repository": str(out / "repository"),
            "trust_config": str(out / "trust_config.json"),
        }
        show(report, as_json, lambda console: rows(console, report))


def recipes(
    out: Annotated[Path, typer.Argument(help="Folder to write profiles.yaml and policy.yaml into.")],
    as_json: Json = False,
) -> None:
    """Write the built-in recipes, to be edited and given to `init` or `rotate policy`; replaces no file."""
    with refusals(as_json):
        from appliance.files import translated
        from appliance.trust.profiles import POLICY_NAME, PROFILES_NAME, built_in

        paths = [out / PROFILES_NAME, out / POLICY_NAME]
        for path in paths:
            if path.exists():
                raise FileError("FILE_EXISTS", f"{path} exists already", path=str(path))
        with translated(out):
            out.mkdir(parents=True, exist_ok=True)
        for path in paths:
            write_atomic(path, built_in(path.name))
        report = {"recipes": [str(path) for path in paths]}
        show(report, as_json, lambda console: rows(console, report))
