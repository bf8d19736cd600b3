"""Configuration that changes while gateways run: models, keys by reference, groups, router sources, a few settings.

It comes as one document a revision, from PostgreSQL (`live_database`) or signed through the registry (`signed_config`).
Rows are outside input. A row that does not validate is refused alone and reported; what runs keeps the row's last good
form, or goes without it. Gateways apply the difference to what they run, never the whole.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from appliance import documents
from appliance.errors import ApplianceError, DocumentError, RegistryError

Name = Annotated[str, Field(min_length=1, max_length=256)]
Identifier = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
REFERENCE = "os.environ/"
PARAMETERS = frozenset(
    {
        "rpm",
        "tpm",
        "timeout",
        "stream_timeout",
        "max_retries",
        "max_parallel_requests",
        "order",
        "temperature",
        "top_p",
        "max_tokens",
        "max_completion_tokens",
        "seed",
        "stop",
        "drop_params",
        "additional_drop_params",
        "input_cost_per_token",
        "output_cost_per_token",
        "tags",
        "extra_body",
    }
)  # none of LiteLLM's that lead elsewhere, carry a secret or weaken TLS


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
        cost: in any one unit; weighed against quality by the group's `cost_weight`.
        parameters: further `litellm_params`, of those in `PARAMETERS`.
    """

    id: Name
    model_group: Name
    model: Annotated[str, Field(pattern=r"^[a-z0-9_]+/[^\s]+$", max_length=256)]
    api_base: Annotated[str, Field(pattern=r"^https?://[^\s@]+$", max_length=2048)]
    key_reference: Annotated[str, Field(pattern=r"^os\.environ/[A-Z][A-Z0-9_]{0,63}$")] | None = None
    weight: Annotated[int, Field(ge=0, le=1_000_000)] = 1
    cost: Annotated[float, Field(ge=0, le=1e9)] | None = None
    parameters: dict[str, Any] = {}

    @model_validator(mode="after")
    def _known_parameters(self) -> Deployment:
        if unknown := sorted(set(self.parameters) - PARAMETERS):
            raise ValueError(
                f"parameter {unknown[0][:64]} does not belong here; admitted: {', '.join(sorted(PARAMETERS))}"
            )
        if REFERENCE in json.dumps(self.parameters):
            raise ValueError("a parameter refers to a secret; only key_reference may")
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
    """Where a router comes from: a channel, of the gateway's own registry or of another bucket of the same server."""

    name: Identifier
    location: (
        Annotated[str, Field(pattern=r"^s3://[A-Za-z0-9.\-\[\]:]+/[a-z0-9][a-z0-9.-]{2,62}(/[A-Za-z0-9._-]+)*/?$")]
        | None
    ) = None
    channel: Identifier


class Setting(_Row):
    """A setting of `appliance.yaml` by its path, as `routing.deadline_ms`; gateways know which of them may change."""

    name: Annotated[str, Field(pattern=r"^[a-z_]+(\.[a-z_]+)+$", max_length=128)]
    value: bool | int | float | Annotated[str, Field(max_length=1024)]


TABLES: Mapping[str, type[_Row]] = {  # in the order in which rows may refer to others
    "deployment": Deployment,
    "router_source": RouterSource,
    "model_group": Group,
    "application_key": ApplicationKey,
    "setting": Setting,
}
_KEYS = {"deployment": "id"}  # the others have `name`

Rows = Mapping[str, Mapping[str, Any]]  # table -> key -> row


@dataclass(frozen=True)
class Problem:
    """A row that was refused.

    Attributes:
        table, key: which.
        error: why.
    """

    table: str
    key: str
    error: ApplianceError

    @property
    def cause(self) -> str:
        """One sentence."""
        return self.error.cause

    def as_dict(self) -> dict[str, Any]:
        """For status and `--json`."""
        return {"table": self.table, "key": self.key, **self.error.as_dict()["error"]}


@dataclass(frozen=True)
class LiveConfig:
    """A whole, valid configuration.

    Attributes:
        revision: of its source; 0 before the first.
        rows: table -> key -> row.
        problems: rows of this revision that were refused.
    """

    revision: int = 0
    rows: Rows = field(default_factory=lambda: MappingProxyType({table: {} for table in TABLES}))
    problems: tuple[Problem, ...] = ()

    @property
    def document(self) -> dict[str, list[dict[str, Any]]]:
        """The rows as they came: table -> list of rows."""
        return {table: [row.model_dump(mode="json") for row in self.rows[table].values()] for table in TABLES}


@dataclass(frozen=True)
class Host:
    """What the reader of a configuration has of its own, beside which the rows must make sense.

    Attributes:
        deployments: id -> group, of its files.
        routers: names, of its files.
        judge: (table, row) -> why this host refuses it, or None.
    """

    deployments: Mapping[str, str] = field(default_factory=dict)
    routers: frozenset[str] = frozenset()
    judge: Callable[[str, Any], ApplianceError | None] = lambda _table, _row: None


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


NO_HOST = Host()


def assemble(revision: int, document: Any, running: LiveConfig, host: Host = NO_HOST) -> LiveConfig:
    """Build a configuration from a revision's document; refused rows keep the form they run in.

    Args:
        revision: its number.
        document: table -> list of rows.
        running: what runs now.
        host: of the gateway that reads; without one, rows are judged by themselves.
    """
    problems: list[Problem] = []
    rows: dict[str, dict[str, Any]] = {}
    given = document if isinstance(document, dict) else {"": document}
    for name, listed in given.items():
        if name not in TABLES or not isinstance(listed, list):
            what = "is no table of this appliance" if name not in TABLES else "is no list of rows"
            problems.append(Problem(str(name)[:64], "", RegistryError("REGISTRY_ROW", f"{str(name)[:64]!r} {what}")))
    for table, model in TABLES.items():
        rows[table] = {}
        listed = given.get(table)
        for raw in listed if isinstance(listed, list) else []:
            key = str(raw.get(_KEYS.get(table, "name"), ""))[:256] if isinstance(raw, dict) else ""
            row, error = _read(model, raw, f"{table} {key!r}")
            error = error or _refusal(table, row, rows, host)
            if error is not None:
                problems.append(Problem(table, key, error))
                row = running.rows[table].get(key)
                if row is not None and _refusal(table, row, rows, host) is not None:
                    row = None
            if row is not None:
                rows[table][key] = row
    return LiveConfig(revision, MappingProxyType(rows), tuple(problems))


def _read(model: type[_Row], raw: Any, what: str) -> tuple[Any, ApplianceError | None]:
    try:
        _check_keepable(raw, what)
        return documents.validate(model, raw, what=what), None
    except DocumentError as error:
        return None, RegistryError("REGISTRY_ROW", error.cause)


def _check_keepable(raw: Any, what: str) -> None:
    """Refuse a row that could be applied and not be read again: what is kept for the next start holds all of them.

    Raises:
        DocumentError: numbers, depth or names that our own strict reader refuses.
    """
    try:
        kept = documents.write_json({"document": {"table": [raw]}})
    except (TypeError, ValueError, RecursionError):
        raise DocumentError("DOCUMENT_MALFORMED", f"{what}: a number, a name or a depth that JSON has not") from None
    documents.read_json(kept, what=what, max_bytes=max(documents.MAX_BYTES, len(kept)))


def _refusal(table: str, row: Any, rows: Rows, host: Host) -> ApplianceError | None:
    """Why a well-formed row cannot stand beside those that do."""
    missing = _missing(row, rows, host) if table == "model_group" else ""
    if missing:
        return RegistryError("REGISTRY_ROW_DANGLING", f"{missing} does not exist", missing=missing)
    if table == "application_key" and any(
        other.sha256 == row.sha256 and other.name != row.name for other in rows[table].values()
    ):
        return RegistryError("REGISTRY_ROW", "another key has the same digest")
    return host.judge(table, row)


def _missing(group: Group, rows: Rows, host: Host) -> str:
    """What a group names and nobody has."""
    members = {id_ for id_, row in rows["deployment"].items() if row.model_group == group.name}
    members |= {id_ for id_, name in host.deployments.items() if name == group.name}
    if not members and (rows["deployment"] or host.deployments):
        return f"a deployment of {group.name}"
    if group.router is not None and group.router not in rows["router_source"] and group.router not in host.routers:
        return f"router {group.router}"
    if group.last_resort is not None and group.last_resort not in members:
        return f"deployment {group.last_resort} of {group.name}"
    return ""


def difference(old: LiveConfig, new: LiveConfig) -> Changes:
    """What must be done to come from `old` to `new`."""
    upserts = {t: tuple(r for k, r in new.rows[t].items() if old.rows[t].get(k) != r) for t in TABLES}
    deletes = {t: tuple(k for k in old.rows[t] if k not in new.rows[t]) for t in TABLES}
    return Changes(upserts, deletes)
