"""`appliance config`: the zone's configuration in PostgreSQL."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from appliance.cli.keyring import DEFAULT_AUTHORITY, AuthorityFolder, KeyPlaces, PassphraseFile, open_role
from appliance.cli.output import Json, refusals, show

if TYPE_CHECKING:
    from appliance.gateway.live_config import Rows
    from appliance.registry.live_database import ConfigDatabase

app = typer.Typer(no_args_is_help=True, help="The zone's configuration in PostgreSQL: tables, check, history, return.")

DatabaseAt = Annotated[
    Path,
    typer.Option("--database", envvar="APPLIANCE_DATABASE", help="YAML with the key `postgres`; see docs/registry.md."),
]


def _database(path: Path) -> ConfigDatabase:
    from appliance.registry.live_database import ConfigDatabase
    from appliance.registry.settings import read_postgres

    return ConfigDatabase(read_postgres(path))


@app.command()
def migrate(database: DatabaseAt, as_json: Json = False) -> None:
    """Make the tables, or bring them to this appliance's form."""
    with refusals(as_json):
        step = _database(database).migrate()
        show({"step": step}, as_json, lambda out: out.print(f"tables are at step {step}"))


@app.command()
def check(
    database: DatabaseAt,
    gateway: Annotated[
        Path | None, typer.Option(help="An appliance.yaml: judge the rows as that gateway does, beside its files.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Read the newest revision as a gateway would; exit 1 if any row is refused."""
    with refusals(as_json):
        from appliance.registry.live import NO_HOST, LiveConfig

        host = NO_HOST if gateway is None else _rows_of(gateway).host
        config = _database(database).read(LiveConfig(), host)
        if gateway is not None and not config.problems:
            _rows_of(gateway).together(config)
        report = {
            "revision": config.revision,
            "rows": {table: sorted(rows) for table, rows in config.rows.items()},
            "problems": [problem.as_dict() for problem in config.problems],
        }

        def text(out: Any) -> None:
            counts = ", ".join(f"{len(rows)} {table}" for table, rows in config.rows.items())
            out.print(f"revision {config.revision}: {counts}", markup=False)
            for problem in config.problems:
                out.print(f"refused {problem.table} {problem.key}: {problem.error}", markup=False)

        show(report, as_json, text)
        if config.problems:
            raise typer.Exit(1)


def _rows_of(path: Path) -> Rows:
    from appliance import settings
    from appliance.errors import ConfigError
    from appliance.gateway import litellm_config
    from appliance.gateway.live_config import Rows

    found = settings.load(path)
    if found.live is None:
        raise ConfigError("CONFIG_INVALID", f"{path} has no section live", path=str(path))
    return Rows(found, litellm_config.read(found))


@app.command()
def history(
    database: DatabaseAt,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many, newest first.")] = 20,
    as_json: Json = False,
) -> None:
    """Who changed the configuration, and when."""
    with refusals(as_json):
        revisions = _database(database).history(limit=limit)

        def text(out: Any) -> None:
            for one in revisions:
                out.print(f"{one.number:6}  {one.at}  {one.author:16} {one.comment}", markup=False)

        show([asdict(one) for one in revisions], as_json, text)


@app.command("return")
def return_(
    revision: Annotated[int, typer.Argument(min=1, help="The revision to return to.")],
    database: DatabaseAt,
    as_json: Json = False,
) -> None:
    """Return to an earlier revision; it becomes a new one, and every gateway follows."""
    with refusals(as_json):
        number = _database(database).restore(revision)
        said = f"revision {number} is revision {revision} again"
        show({"revision": number, "of": revision}, as_json, lambda out: out.print(said))


@app.command()
def publish(
    name: Annotated[str, typer.Argument(help="Name of the configuration, e.g. gateway.")],
    file: Annotated[Path, typer.Argument(help="The YAML document.")],
    *,
    registry: Annotated[str, typer.Option(envvar="APPLIANCE_REGISTRY", help="A directory, or a YAML settings file.")],
    trust: Annotated[Path, typer.Option(envvar="APPLIANCE_TRUST", help="The host's trust state.")],
    authority: AuthorityFolder = DEFAULT_AUTHORITY,
    role: Annotated[str, typer.Option(help="The role that signs.")] = "import-officer",
    identity: Annotated[str | None, typer.Option(help="Who signs, where the role has several identities.")] = None,
    passphrase_file: PassphraseFile = None,
    key: KeyPlaces = None,
    as_json: Json = False,
) -> None:
    """Sign a configuration document and put it into the registry; `appliance sync` brings it to the hosts."""
    with refusals(as_json):
        from appliance import documents
        from appliance.errors import DocumentError
        from appliance.files import read_regular
        from appliance.registry.homes import open_store
        from appliance.registry.signed_config import Configs
        from appliance.registry.trust_source import TrustSource

        document = documents.read_yaml(read_regular(file, max_bytes=documents.MAX_BYTES), what=str(file))
        if not isinstance(document, dict):
            raise DocumentError("DOCUMENT_SCHEMA", f"{file} is not a mapping")
        source = TrustSource(trust)
        store = open_store(registry, revocations=source.revocations)
        configs = Configs(store, material=source.material, clock=source.now)
        signer = open_role(authority, role, passphrase_file, key, identity=identity)
        config = configs.publish(name, document, signer)
        report = {"name": name, "epoch": config.statement.epoch, "digest": config.digest}
        said = f"configuration {name}: epoch {config.statement.epoch}, signed by {config.verdict.identity}"
        show(report, as_json, lambda out: out.print(said, markup=False))
