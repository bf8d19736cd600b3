"""`appliance.yaml`: everything an operator can decide, in one validated document.

Relative paths count from the folder of the file. Unknown keys are refused. LiteLLM's own configuration is a file of its
own, or stands unchanged below `litellm.inline`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, model_validator
from pydantic.functional_validators import AfterValidator

from appliance import documents
from appliance.errors import ConfigError, DocumentError, FileError
from appliance.files import read_regular
from appliance.registry.postgres import PostgresSettings
from appliance.registry.settings import RegistrySettings

MAX_BYTES = 1024 * 1024  # bytes of appliance.yaml
M = TypeVar("M", bound=BaseModel)


def _base(info: ValidationInfo) -> Path:
    """The folder of appliance.yaml."""
    return Path((info.context or {}).get("base", Path()))


def _below_base(path: Path, info: ValidationInfo) -> Path:
    return documents.path_below(path, _base(info))


def _model_below_base(model: M, info: ValidationInfo) -> M:
    return documents.paths_below(model, _base(info))


FilePath = Annotated[Path, AfterValidator(_below_base)]
Share = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(min_length=1, max_length=256)]
RouterName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Tls(_Section):
    """Certificates of the listener. Without this section the gateway speaks plain HTTP, on loopback only."""

    certificate: FilePath = Field(description="PEM: the gateway's certificate and its intermediates.")
    key: FilePath = Field(description="PEM: the private key, readable by the appliance's user only.")
    client_ca: FilePath | None = Field(None, description="PEM: where given, clients must show a certificate of it.")


class Listen(_Section):
    """Where the gateway listens."""

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8443, ge=1, le=65535, description="TCP port.")
    tls: Tls | None = Field(None, description="Required unless `host` is a loopback address.")
    workers: int = Field(
        1, ge=1, le=64, description="Processes: one a core under load; each holds its own router (about 350 MB)."
    )
    backlog: int = Field(2048, ge=16, le=65535, description="Connections the kernel may queue.")

    @model_validator(mode="after")
    def _plain_only_on_loopback(self) -> Listen:
        if self.tls is None and self.host not in {"127.0.0.1", "::1", "localhost"}:
            raise ValueError("tls is required unless host is a loopback address")
        return self


class LiteLLM(_Section):
    """LiteLLM's own configuration, referenced or embedded, and the secrets it names as `os.environ/NAME`."""

    config: FilePath | None = Field(None, description="Path of LiteLLM's config.yaml.")
    inline: dict[str, Any] | None = Field(None, description="The same document, embedded.")
    master_key_file: FilePath = Field(description="File with the master key (`sk-`, at least 32 characters).")
    secrets: dict[Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]{0,63}$")], FilePath] = Field(
        default_factory=dict, description="Name -> file; LiteLLM reads them as `os.environ/NAME`."
    )

    @model_validator(mode="after")
    def _one_source(self) -> LiteLLM:
        if (self.config is None) == (self.inline is None):
            raise ValueError("give exactly one of config and inline")
        return self


class Key(_Section):
    """An application's key: it sees only its groups."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")] = Field(description="For records and metrics.")
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] = Field(
        description='SHA-256 of the key: `printf %s "$KEY" | sha256sum`; the key itself never stands here.'
    )
    groups: tuple[Name, ...] = Field((), description="Model groups it may ask for.")
    reports: bool = Field(False, description="Whether it may read status, metrics and decisions.")

    @model_validator(mode="after")
    def _not_master(self) -> Key:
        if self.name == "master":
            raise ValueError("the name master is taken")
        return self


class Access(_Section):
    """Who may ask for what, beside the master key."""

    keys: tuple[Key, ...] = Field((), max_length=10_000, description="Keys of applications.")
    max_body_bytes: int = Field(32 * 1024 * 1024, ge=1024, le=1024**3, description="Longest request body.")
    fields: tuple[Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,63}$")], ...] = Field(
        (),
        max_length=64,
        description="Fields of a body beside those of docs/requests.md, with any value, for model servers that take "
        "more, say `vllm_xargs`. What steers LiteLLM is refused at start.",
    )


class Trust(_Section):
    """Whose signatures count."""

    store: FilePath = Field(description="Directory of the host's trust state (`PREFIX/state/trust`).")
    router_role: Name | None = Field(
        None, description="Only routers signed by this role of the zone's policy; without it, any but `producer`."
    )


class Canary(_Section):
    """A recorded prompt with the label a router must choose for it before it may serve."""

    prompt: str = Field(max_length=65536, description="Text of the last human turn.")
    label: Name | None = Field(None, description="Expected label; without it the prompt only has to be scored.")


class Router(_Section):
    """One routing model and how it is kept current."""

    directory: FilePath | None = Field(None, description="Folder of the signed router artifact; watched for changes.")
    registry: Annotated[RegistrySettings, AfterValidator(_model_below_base)] | None = Field(
        None,
        description="Instead of a folder: the registry to follow (`home: directory` or `s3`), see docs/registry.md.",
    )
    channel: RouterName | None = Field(None, description="Of the registry.")
    on_bad_update: Literal["keep-last-good", "static"] = Field(
        "keep-last-good",
        description="When the folder turns bad: go on with the last verified router, or route statically.",
    )
    required: bool = Field(False, description="Refuse to start without it, instead of starting with round-robin.")
    poll_interval_s: float = Field(1.0, ge=0.05, le=3600, description="How often the folder is looked at, seconds.")
    canaries: tuple[Canary, ...] = Field((), max_length=256, description="Replayed before a new version takes over.")
    canary_agreement: Share = Field(1.0, description="Share of the labelled canaries a new version must get right.")

    @model_validator(mode="after")
    def _one_source(self) -> Router:
        if (self.directory is None) == (self.registry is None):
            raise ValueError("give exactly one of directory and registry")
        if (self.registry is None) != (self.channel is None):
            raise ValueError("registry and channel belong together")
        return self


class Candidate(_Section):
    """A router that tries itself in a group: in shadow, for a share, for all; back at once where a bound breaks."""

    router: RouterName = Field(description="Name below `routing.routers`.")
    shadow_decisions: int = Field(200, ge=1, le=10_000_000, description="Decisions watched before it decides any.")
    share: Share = Field(0.0, description="Share of users it decides for after that; 0 stays in shadow.")
    canary_decisions: int = Field(0, ge=0, le=10_000_000, description="So many good ones and it takes over; 0: never.")
    min_decisions: int = Field(50, ge=1, le=10_000_000, description="No bound is judged on fewer.")
    max_failure_share: Share = Field(0.02, description="Share of its decisions that may fail or be late, lately.")
    min_agreement: Share = Field(
        0.0, description="Share of others' decisions it must agree with, in shadow and as a canary."
    )


class Group(_Section):
    """How one model group is routed; groups not named here are routed by weighted round-robin."""

    strategy: Literal["ml", "round-robin"] = Field("ml", description="`ml` needs `router`.")
    router: RouterName | None = Field(None, description="Name below `routing.routers`.")
    weights: dict[Name, Annotated[int, Field(ge=0, le=1_000_000)]] = Field(
        default_factory=dict, description="Deployment id -> weight for round-robin; default LiteLLM's weight, else 1."
    )
    candidate: Candidate | None = Field(None, description="A new router that tries itself here.")
    costs: dict[Name, Annotated[float, Field(ge=0, le=1e9)]] = Field(
        default_factory=dict, description="Deployment id -> cost in any one unit (USD a million tokens, watt hours)."
    )
    cost_weight: Share = Field(
        0.0,
        description="0: quality alone; 1: the dearest must score a whole point better than a free one. "
        "A request may ask for another with the header `x-appliance-cost-weight`.",
    )
    last_resort: Name | None = Field(
        None, description="Deployment id that answers only where no other can, cooling down or not."
    )

    @model_validator(mode="after")
    def _router_for_ml(self) -> Group:
        if (self.strategy == "ml") != (self.router is not None):
            raise ValueError("strategy ml needs a router, round-robin takes none")
        if self.candidate is not None and self.router is None:
            raise ValueError("a candidate needs a router to be compared with")
        return self


class Breaker(_Section):
    """When the ML path is left alone for a while."""

    failures: int = Field(20, ge=1, le=10000, description="So many failures in a row open the breaker.")
    open_s: float = Field(5.0, gt=0, le=3600, description="Seconds until a half-open probe.")
    probes: int = Field(3, ge=1, le=100, description="So many successful probes in a row close it.")


class Upstreams(_Section):
    """When a deployment that fails is left alone; a refused connection is enough at once."""

    failures: int = Field(3, ge=1, le=1000, description="Failures of the server in a row that keep it out.")
    open_s: float = Field(3.0, gt=0, le=3600, description="Seconds until the first probe; doubles up to 30.")
    probes: int = Field(2, ge=1, le=100, description="Good probes that bring it back whole.")


class Routing(_Section):
    """The routing decision: limits, encoders, routers, groups."""

    deadline_ms: float = Field(25.0, ge=1, le=1000, description="Hard limit of one ML decision, then round-robin.")
    queue: int = Field(32, ge=1, le=4096, description="Prompts that may wait for the encoder; more are shed at once.")
    threads: int = Field(1, ge=1, le=32, description="Encoder threads a process.")
    cache_entries: int = Field(4096, ge=0, le=1_000_000, description="Decisions remembered by content digest.")
    breaker: Breaker = Field(default_factory=Breaker)
    upstreams: Upstreams = Field(default_factory=Upstreams)
    encoders: tuple[FilePath, ...] = Field((), description="Folders of signed encoder artifacts.")
    routers: dict[RouterName, Router] = Field(default_factory=dict, description="Name -> routing model.")
    groups: dict[Name, Group] = Field(default_factory=dict, description="Model group -> how it is routed.")

    @model_validator(mode="after")
    def _names_resolve(self) -> Routing:
        for name, group in self.groups.items():
            for router in (group.router, group.candidate.router if group.candidate else None):
                if router is not None and router not in self.routers:
                    raise ValueError(f"group {name} names router {router}, which is not below routers")
        if self.routers and not self.encoders:
            raise ValueError("routers need at least one folder below encoders")
        return self


def _destination(text: str) -> str:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"{text!r} is not host:port")
    return text


class Lockdown(_Section):
    """What a gateway process gives up before it serves."""

    egress: Literal["enforce", "report"] = Field(
        "enforce", description="Refuse connections to destinations that no configuration names, or only count them."
    )
    allow: tuple[Annotated[str, AfterValidator(_destination)], ...] = Field(
        (), description="Further destinations as `host:port`, beside those of LiteLLM's configuration."
    )
    landlock: bool = Field(True, description="Kernel rule: TCP connections to the configured ports only.")
    seccomp: bool = Field(True, description="Kernel rule: no programs run, no sockets but TCP's, no tracing.")


class Telemetry(_Section):
    """Where traces go; LiteLLM exports them when its configuration names the callback `otel`."""

    otlp_endpoint: Annotated[str, Field(pattern=r"^https?://[^\s/]+(/\S*)?$")] | None = Field(
        None, description="Base URL of an OTLP/HTTP receiver inside the zone."
    )
    otel_v2: bool = Field(True, description="LiteLLM's second OpenTelemetry integration; false takes the first.")
    ca_file: FilePath | None = Field(None, description="PEM: the authority of the receiver's certificate.")
    client_certificate: FilePath | None = Field(None, description="PEM: what the gateway shows to the receiver.")
    client_key: FilePath | None = Field(None, description="PEM: its key, readable by the appliance's user only.")

    @model_validator(mode="after")
    def _certificate_and_key(self) -> Telemetry:
        if (self.client_certificate is None) != (self.client_key is None):
            raise ValueError("client_certificate and client_key belong together")
        return self


class Drain(_Section):
    """How a stop goes: readiness falls, after a pause the listener closes, streams finish."""

    readiness_s: float = Field(2.0, ge=0, le=300, description="From readiness falling to the listener closing.")
    streams_s: int = Field(60, ge=0, le=3600, description="Longest wait for running requests; then they are cut.")


def _pattern(text: str) -> str:
    host, _, port = text.rpartition(":")
    if not re.fullmatch(r"(\*|(\*\.)?[A-Za-z0-9.\-\[\]:]+)", host) or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"{text!r} is not host:port, *.domain:port or *:port")
    return text


class Live(_Section):
    """Models, keys, groups and routers that change while the gateway runs, beside those of the files."""

    postgres: Annotated[PostgresSettings, AfterValidator(_model_below_base)] | None = Field(
        None, description="The database that holds them, or"
    )
    config: RouterName | None = Field(None, description="the name of a signed configuration in `live.registry`.")
    registry: Annotated[RegistrySettings, AfterValidator(_model_below_base)] | None = Field(
        None, description="Where signed configurations and the routers of `router_source` come from."
    )
    destinations: tuple[Annotated[str, AfterValidator(_pattern)], ...] = Field(
        (),
        description="Where live deployments may be: `host:port`, `*.domain:port` or `*:port`. The kernel's rules are "
        "made of these ports at start.",
    )
    poll_interval_s: float = Field(2.0, ge=0.05, le=3600, description="Seconds between two looks without a notice.")

    @model_validator(mode="after")
    def _one_source(self) -> Live:
        if (self.postgres is None) == (self.config is None):
            raise ValueError("give exactly one of postgres and config")
        if self.config is not None and self.registry is None:
            raise ValueError("a signed configuration needs live.registry")
        return self


class Settings(_Section):
    """The whole of `appliance.yaml`."""

    schema_version: Literal[1] = Field(description="Version of this format.")
    state_dir: FilePath = Field(description="Everything that changes: sockets, last-known-good routers.")
    listen: Listen = Field(default_factory=Listen)
    litellm: LiteLLM
    access: Access = Field(default_factory=Access)
    trust: Trust | None = Field(None, description="Required as soon as there is a router.")
    routing: Routing = Field(default_factory=Routing)
    live: Live | None = Field(None, description="Configuration that changes while the gateway runs.")
    lockdown: Lockdown = Field(default_factory=Lockdown)
    telemetry: Telemetry = Field(default_factory=Telemetry)
    drain: Drain = Field(default_factory=Drain)

    @model_validator(mode="after")
    def _routers_need_trust(self) -> Settings:
        if self.routing.routers and self.trust is None:
            raise ValueError("routing.routers needs trust.store: nothing unverified is ever loaded")
        if self.live is not None and self.live.registry is not None and self.trust is None:
            raise ValueError("live.registry needs trust.store: nothing unverified is ever loaded")
        return self


def load(path: Path) -> Settings:
    """Read and validate `appliance.yaml`.

    Raises:
        ConfigError: CONFIG_MISSING, CONFIG_INVALID.
    """
    try:
        data = read_regular(path, max_bytes=MAX_BYTES)
        value = documents.read_yaml(data, what=path.name)
        return parse(value, base=path.absolute().parent, what=path.name)
    except FileError as error:
        raise ConfigError("CONFIG_MISSING", error.cause, **error.evidence) from None
    except DocumentError as error:
        raise ConfigError("CONFIG_INVALID", error.cause, **error.evidence) from None


def parse(value: Any, *, base: Path, what: str = "appliance.yaml") -> Settings:
    """Validate a parsed document; relative paths count from `base`.

    Raises:
        ConfigError: CONFIG_INVALID.
    """
    try:
        return documents.validate(Settings, value, what=what, context={"base": base})
    except DocumentError as error:
        raise ConfigError("CONFIG_INVALID", error.cause, **error.evidence) from None
