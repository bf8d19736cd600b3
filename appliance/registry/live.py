"""The zone's configuration in PostgreSQL: models, keys by reference, groups, routing rules, where routers come from.

Rows are outside input. A row that does not validate is refused alone and reported; what runs keeps the row's last good
form, or goes without it. What one transaction changed is one revision; gateways apply the difference to what they
run, never the whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from appliance import documents
from appliance.errors import DocumentError, RegistryError
from appliance.registry.postgres import PostgresSettings, connected, parameters

Name = Annotated[str, Field(min_length=1, max_length=256)]
Identifier = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
_SECRETS = ("key", "secret", "token", "password", "credential")


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Deployment(_Row):
    """One upstream.

    Attributes:
        id: names it in telemetry and rules.
        model_group: the model name that applications ask for.
        model: LiteLLM's name, such as `openai/small`.
        api_base: its URL inside the zone.
        key_reference: `os.environ/NAME` of a secret that each gateway holds itself; a key never stands here.
        weight: for round-robin.
        parameters: further `litellm_params`, nothing secret.
    """

    id: Name
    model_group: Name
    model: Name
    api_base: Annotated[str, Field(pattern=r"^https?://[^\s@]+$", max_length=2048)]
    key_reference: Annotated[str, Field(pattern=r"^os\.environ/[A-Z][A-Z0-9_]{0,63}$")] | None = None
    weight: Annotated[int, Field(ge=0, le=1_000_000)] = 1
    parameters: dict[str, Any] = {}

    @model_validator(mode="after")
    def _no_secrets(self) -> Deployment:
        for name in self.parameters:
            if any(word in name.lower() for word in _SECRETS) or name in {"model", "api_base"}:
                raise ValueError(f"parameter {name} does not belong here; keys are given by key_reference")
        return self

    def litellm(self) -> dict[str, Any]:
        """The deployment as LiteLLM takes it."""
        given = {"model": self.model, "api_base": self.api_base, "weight": self.weight, **self.parameters}
        key = {"api_key": self.key_reference} if self.key_reference else {}
        return {"model_name": self.model_group, "litellm_params": {**given, **key}, "model_info": {"id": self.id}}


class Group(_Row):
    """How one model group is routed; fields as `settings.Group`."""

    name: Name
    strategy: Literal["ml", "round-robin"] = "round-robin"
    router: Identifier | None = None
    cost_weight: Annotated[float, Field(ge=0, le=1)] = 0.0
    last_resort: Name | None = None

    @model_validator(mode="after")
    def _router_for_ml(self) -> Group:
        if (self.strategy == "ml") != (self.router is not None):
            raise ValueError("strategy ml needs a router, round-robin takes none")
        return self


class ApplicationKey(_Row):
    """An application's key by its digest, and what it may ask for."""

    name: Identifier
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    groups: tuple[Name, ...] = ()


class RouterSource(_Row):
    """Where a router comes from: a registry's location, which must be the gateway's own, and a channel of it."""

    name: Identifier
    location: Annotated[str, Field(pattern=r"^s3://[A-Za-z0-9.\-\[\]:]+/[a-z0-9][a-z0-9.-]{2,62}(/[A-Za-z0-9._/-]*)?$")]
    channel: Identifier


TABLES: Mapping[str, type[_Row]] = {
    "deployment": Deployment,
    "model_group": Group,
    "application_key": ApplicationKey,
    "router_source": RouterSource,
}
_KEYS = {"deployment": "id"}  # the others have `name`

Rows = Mapping[str, Mapping[str, Any]]  # table -> key -> row


@dataclass(frozen=True)
class Problem:
    """A row that was refused."""

    table: str
    key: str
    cause: str


@dataclass(frozen=True)
class LiveConfig:
    """A whole, valid configuration.

    Attributes:
        revision: of the database; 0 before the first.
        rows: table -> key -> row.
        problems: rows of this revision that were refused.
    """

    revision: int = 0
    rows: Rows = field(default_factory=lambda: MappingProxyType({table: {} for table in TABLES}))
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True)
class Changes:
    """What separates two configurations: apply upserts, then deletions, so that no group is empty in between.

    Attributes:
        upserts: table -> rows that are new or different.
        deletes: table -> keys that are gone.
    """

    upserts: Mapping[str, tuple[Any, ...]]
    deletes: Mapping[str, tuple[str, ...]]

    def __bool__(self) -> bool:
        return any(self.upserts.values()) or any(self.deletes.values())


def assemble(revision: int, document: Any, running: LiveConfig) -> LiveConfig:
    """Build a configuration from a revision's document; refused rows keep the form they run in.

    Args:
        revision: its number.
        document: table -> list of rows, as PostgreSQL gives it.
        running: what runs now.
    """
    problems: list[Problem] = []
    rows: dict[str, dict[str, Any]] = {}
    for table, model in TABLES.items():
        rows[table] = {}
        listed = document.get(table) if isinstance(document, dict) else None
        for raw in listed if isinstance(listed, list) else []:
            key = str(raw.get(_KEYS.get(table, "name"), ""))[:256] if isinstance(raw, dict) else ""
            try:
                rows[table][key] = documents.validate(model, raw, what=f"{table} {key!r}")
            except DocumentError as error:
                problems.append(Problem(table, key, error.cause))
                if (known := running.rows[table].get(key)) is not None:
                    rows[table][key] = known
    problems += _drop_dangling(rows, running)
    return LiveConfig(revision, MappingProxyType(rows), tuple(problems))


def _drop_dangling(rows: dict[str, dict[str, Any]], running: LiveConfig) -> list[Problem]:
    """A group whose router or last resort does not exist keeps its running form, if that one still holds."""
    problems = []
    for name, group in list(rows["model_group"].items()):
        missing = _missing(group, rows)
        if missing:
            problems.append(Problem("model_group", name, f"{missing} does not exist"))
            known = running.rows["model_group"].get(name)
            if known is not None and not _missing(known, rows):
                rows["model_group"][name] = known
            else:
                del rows["model_group"][name]
    return problems


def _missing(group: Group, rows: Mapping[str, Mapping[str, Any]]) -> str:
    if group.router is not None and group.router not in rows["router_source"]:
        return f"router {group.router}"
    if group.last_resort is not None and group.last_resort not in rows["deployment"]:
        return f"deployment {group.last_resort}"
    return ""


def difference(old: LiveConfig, new: LiveConfig) -> Changes:
    """What must be done to come from `old` to `new`."""
    upserts = {t: tuple(r for k, r in new.rows[t].items() if old.rows[t].get(k) != r) for t in TABLES}
    deletes = {t: tuple(k for k in old.rows[t] if k not in new.rows[t]) for t in TABLES}
    return Changes(upserts, deletes)


@dataclass(frozen=True)
class Revision:
    """One entry of the history."""

    number: int
    at: str
    author: str
    comment: str


class ConfigDatabase:
    """The configuration's tables.

    Args:
        settings: where they are.
    """

    def __init__(self, settings: PostgresSettings) -> None:
        self.settings = settings

    def migrate(self) -> str:
        """Bring the tables to this appliance's form; return the step reached.

        Raises:
            RegistryError: REGISTRY_DATABASE, REGISTRY_MIGRATION.
        """
        import psycopg
        import sqlalchemy
        from alembic import command
        from alembic.config import Config
        from alembic.script import ScriptDirectory
        from alembic.util import CommandError

        config = Config()
        config.set_main_option("script_location", "appliance.registry:migrations")
        engine = sqlalchemy.create_engine(
            "postgresql+psycopg://",
            creator=lambda: psycopg.connect(**parameters(self.settings)),
            poolclass=sqlalchemy.NullPool,
        )
        try:
            with engine.begin() as connection:
                connection.execute(sqlalchemy.text("CREATE SCHEMA IF NOT EXISTS appliance"))
            with engine.begin() as connection:
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
        except (psycopg.Error, sqlalchemy.exc.SQLAlchemyError) as error:
            raise RegistryError(
                "REGISTRY_DATABASE", " ".join(str(error).split())[:300], host=self.settings.host
            ) from error
        except CommandError as error:
            raise RegistryError("REGISTRY_MIGRATION", str(error)) from None
        return ScriptDirectory.from_config(config).get_current_head() or ""

    def newest(self) -> int:
        """The newest revision's number; 0 for none."""
        with connected(self.settings) as connection:
            row = connection.execute("SELECT coalesce(max(id), 0) FROM appliance.revision").fetchone()
        return int(row[0]) if row else 0

    def read(self, running: LiveConfig) -> LiveConfig:
        """The newest revision, validated; see `assemble`.

        Raises:
            RegistryError: REGISTRY_DATABASE.
        """
        with connected(self.settings) as connection:
            row = connection.execute("SELECT id, document FROM appliance.revision ORDER BY id DESC LIMIT 1").fetchone()
        return LiveConfig() if row is None else assemble(int(row[0]), row[1], running)

    def history(self, *, limit: int = 50) -> list[Revision]:
        """The newest revisions, newest first."""
        query = "SELECT id, at, author, comment FROM appliance.revision ORDER BY id DESC LIMIT %s"
        with connected(self.settings) as connection:
            rows = connection.execute(query, (limit,)).fetchall()
        return [Revision(int(number), at.isoformat(), author, comment) for number, at, author, comment in rows]

    def restore(self, revision: int) -> int:
        """Return to an earlier revision, as a new one; return its number.

        Raises:
            RegistryError: REGISTRY_REVISION, REGISTRY_DATABASE.
        """
        try:
            with connected(self.settings) as connection:
                connection.execute("SELECT appliance.restore(%s)", (revision,))
        except RegistryError as error:
            if error.evidence.get("sqlstate") == "P0002":
                raise RegistryError("REGISTRY_REVISION", f"no revision {revision}", revision=revision) from None
            raise
        return self.newest()
