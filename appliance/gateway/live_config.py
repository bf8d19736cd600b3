"""Live rows beside the files: what this gateway admits of them, and the one configuration that both make together.

Pure: rows and files in, settings out. The files are the ground that no row may take away or change: a row that takes
one of their names, leads where they do not allow, or asks for a secret they do not give is refused alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

from pydantic import TypeAdapter, ValidationError

from appliance.errors import ApplianceError, ConfigError
from appliance.gateway import egress, litellm_config, lockdown
from appliance.gateway.litellm_config import LiteLLMConfig
from appliance.registry.live import REFERENCE, Deployment, Host, LiveConfig, RouterSource, Setting
from appliance.registry.settings import S3Settings
from appliance.settings import Access, Group, Key, Router, Routing, Settings

CHANGEABLE: Mapping[str, Any] = {  # settings that may change while the gateway runs, and what they may be
    "routing.deadline_ms": Routing.model_fields["deadline_ms"],
    "access.max_body_bytes": Access.model_fields["max_body_bytes"],
}


@dataclass(frozen=True)
class Whole:
    """Files and rows together.

    Attributes:
        settings: with the rows' groups, routers, keys and settings.
        config: with the rows' deployments.
    """

    settings: Settings
    config: LiteLLMConfig


class Rows:
    """Live rows as this gateway sees them.

    Args:
        settings, config: of its files.
    """

    def __init__(self, settings: Settings, config: LiteLLMConfig) -> None:
        assert settings.live is not None  # noqa: S101 (made only where there is such a section)
        self._settings, self._config, self._live = settings, config, settings.live
        self._named = lockdown.destinations(settings, config)

    @property
    def host(self) -> Host:
        """What `registry.live.assemble` asks."""
        ids = {member.id: group for group, members in self._config.groups.items() for member in members}
        return Host(MappingProxyType(ids), frozenset(self._settings.routing.routers), self._judge)

    def together(self, live: LiveConfig) -> Whole:
        """Files and rows as one configuration.

        Raises:
            ConfigError: CONFIG_LIVE where it could not be served.
        """
        entries = [row.litellm() for row in live.rows["deployment"].values()]
        listed = [*(self._config.document.get("model_list") or []), *entries]
        if not listed:
            raise ConfigError("CONFIG_LIVE", "no deployment would be left", revision=live.revision)
        settings = self._settings_with(live)
        try:
            return Whole(settings, litellm_config.check({**self._config.document, "model_list": listed}, settings))
        except ConfigError as error:
            raise ConfigError("CONFIG_LIVE", error.cause, revision=live.revision, found=error.code) from None

    def _settings_with(self, live: LiveConfig) -> Settings:
        files, rows = self._settings, live.rows
        costs = {
            name: {row.id: row.cost for row in rows["deployment"].values() if row.model_group == name and row.cost}
            for name in rows["model_group"]
        }
        groups = {
            name: Group(**row.model_dump(exclude={"name"}), costs=costs[name])
            for name, row in rows["model_group"].items()
        }
        routers = {name: self._router(row) for name, row in rows["router_source"].items()}
        keys = tuple(Key(**row.model_dump()) for row in rows["application_key"].values())
        changed: dict[str, dict[str, Any]] = {"routing": {}, "access": {}}
        for row in rows["setting"].values():
            section, _, name = row.name.partition(".")
            changed[section][name] = row.value
        changed["routing"] |= {
            "groups": {**files.routing.groups, **groups},
            "routers": {**files.routing.routers, **routers},
        }
        changed["access"]["keys"] = (*files.access.keys, *keys)
        return files.model_copy(
            update={
                "routing": files.routing.model_copy(update=changed["routing"]),
                "access": files.access.model_copy(update=changed["access"]),
            }
        )

    def _router(self, row: RouterSource) -> Router:
        registry = self._live.registry
        if row.location is not None and isinstance(registry, S3Settings):
            where = urlsplit(row.location)
            bucket, _, prefix = where.path.lstrip("/").partition("/")
            prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""
            registry = registry.model_copy(update={"bucket": bucket, "prefix": prefix})
        return Router(registry=registry, channel=row.channel, poll_interval_s=self._live.poll_interval_s)

    def _judge(self, table: str, row: Any) -> ApplianceError | None:
        judges: Mapping[str, Callable[[Any], ApplianceError | None]] = {
            "deployment": self._deployment,
            "router_source": self._router_source,
            "model_group": lambda group: _taken(group.name, self._settings.routing.groups),
            "application_key": self._key,
            "setting": _setting,
        }
        return judges[table](row)

    def _deployment(self, row: Deployment) -> ApplianceError | None:
        if row.id in self.host.deployments:
            return _refused(f"the files have a deployment {row.id}")
        if row.key_reference is not None:
            name = row.key_reference.removeprefix(REFERENCE)
            if name not in self._settings.litellm.secrets:
                return _refused(f"this gateway holds no secret {name}", secrets=sorted(self._settings.litellm.secrets))
        leads_to = egress.destinations(row.litellm())
        if not leads_to:
            return _refused(f"{row.api_base} is no address")
        for host, port in sorted(leads_to):
            if (host, port) not in self._named and not any(
                _matches(host, port, pattern) for pattern in self._live.destinations
            ):
                return _refused(f"{host}:{port} is not among live.destinations", allowed=list(self._live.destinations))
        return None

    def _router_source(self, row: RouterSource) -> ApplianceError | None:
        registry = self._live.registry
        if registry is None:
            return _refused("this gateway has no live.registry")
        if not self._settings.routing.encoders:
            return _refused("this gateway has no encoder below routing.encoders")
        if row.location is not None:
            if not isinstance(registry, S3Settings):
                return _refused("this gateway follows a folder; leave location empty")
            if urlsplit(row.location).netloc.lower() != registry.endpoint.lower():
                return _refused(f"its registry is {registry.endpoint}", location=row.location)
        return _taken(row.name, self._settings.routing.routers)

    def _key(self, row: Any) -> ApplianceError | None:
        files = self._settings.access.keys
        if row.name == "master" or row.sha256 in {key.sha256 for key in files}:
            return _refused(f"{row.name} is taken, or its digest is")
        return _taken(row.name, {key.name for key in files})


def _setting(row: Setting) -> ApplianceError | None:
    if row.name not in CHANGEABLE:
        return ConfigError("CONFIG_ROW_START", f"{row.name} cannot change at run time", changeable=sorted(CHANGEABLE))
    field = CHANGEABLE[row.name]
    try:
        TypeAdapter(field.rebuild_annotation()).validate_python(row.value, strict=True)
    except ValidationError as error:
        return ConfigError("CONFIG_ROW_HOST", f"{row.name}: {error.errors()[0]['msg']}")
    return None


def _taken(name: str, names: Any) -> ApplianceError | None:
    return _refused(f"the files have {name} already") if name in names else None


def _refused(cause: str, **evidence: Any) -> ConfigError:
    return ConfigError("CONFIG_ROW_HOST", cause, **evidence)


def _matches(host: str, port: int, pattern: str) -> bool:
    wanted, _, wanted_port = pattern.rpartition(":")
    if int(wanted_port) != port:
        return False
    wanted = wanted.strip("[]").lower()
    return wanted in {"*", host} or (wanted.startswith("*.") and host.endswith(wanted[1:]))
