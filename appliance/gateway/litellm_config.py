"""LiteLLM's own configuration as the operator wrote it: read strictly, checked, never rewritten.

What is refused here either needs what a sealed room does not have (a database engine), narrows the candidates after
routing has chosen exactly one (so that a request could find none), or puts a secret into a file that is backed up.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from appliance import documents
from appliance.errors import ConfigError, DocumentError, FileError
from appliance.files import read_regular
from appliance.gateway.decision import Deployment
from appliance.gateway.steering import steering_names
from appliance.settings import Settings

NO_SECRET = frozenset({"", "none", "empty", "dummy", "not-needed", "no-key"})
REFERENCE = "os.environ/"
SECRET = re.compile(
    r"(?:.*_)?(?:api_key|secret|password|passwd|access_key|private_key|authorization)"
    r"|(?:.*_)?(?:access|ad|api|auth|bearer|hf|id|refresh|session)_token|token",
    re.IGNORECASE,
)
PASSWORD_IN_URL = re.compile(r"://[^/@:\s]*:[^/@\s]+@")
AFTER_ROUTING = {
    "enable_pre_call_checks": "it filters after the routing decision",
    "enable_tag_filtering": "it filters after the routing decision",
    "plugins": "deprecated routing plug-ins; use `routing.groups`",
    "routing_strategy": "the appliance routes; leave it out or `simple-shuffle`",
}
FALLBACKS = ("fallbacks", "context_window_fallbacks", "content_policy_fallbacks")
NEEDS_A_DATABASE = ("database_url", "store_model_in_db", "database_connection_pool_limit")


@dataclass(frozen=True)
class LiteLLMConfig:
    """The checked document.

    Attributes:
        document: parsed, unchanged.
        groups: model group -> its deployments.
        weights: group -> deployment id -> weight for round-robin.
    """

    document: Mapping[str, Any]
    groups: Mapping[str, tuple[Deployment, ...]]
    weights: Mapping[str, Mapping[str, int]]


def read(settings: Settings) -> LiteLLMConfig:
    """Read and check the configuration that `settings.litellm` names, and the groups and weights that refer to it.

    Raises:
        ConfigError: CONFIG_MISSING, CONFIG_INVALID, CONFIG_LITELLM, CONFIG_GROUP.
    """
    return check(_document(settings.litellm.inline, settings.litellm.config), settings)


def check(document: Mapping[str, Any], settings: Settings) -> LiteLLMConfig:
    """Check a document, and the groups and weights that refer to it; see `read`."""
    _check_settings(document)
    _check_tracing(document, settings)
    _check_secrets(document, settings.litellm.secrets)
    _check_fields(settings)
    groups: dict[str, list[Deployment]] = {}
    weights: dict[str, dict[str, float]] = {}
    seen: set[str] = set()
    for position, entry in enumerate(document.get("model_list") or []):
        group, deployment, weight = _deployment(entry, position)
        if deployment.id in seen:
            raise ConfigError("CONFIG_GROUP", f"two deployments have the id {deployment.id!r}", id=deployment.id)
        seen.add(deployment.id)
        groups.setdefault(group, []).append(deployment)
        weights.setdefault(group, {})[deployment.id] = weight
    if not groups and settings.live is None:
        raise ConfigError("CONFIG_LITELLM", "model_list has no deployment")
    for name, routed in settings.routing.groups.items():
        if name not in groups:
            raise ConfigError("CONFIG_GROUP", f"no deployment belongs to the group {name!r}", groups=sorted(groups))
        known = {deployment.id for deployment in groups[name]}
        for id_ in (*routed.weights, *routed.costs, *([routed.last_resort] if routed.last_resort else [])):
            if id_ not in known:
                raise ConfigError("CONFIG_GROUP", f"{name}: no deployment {id_!r}", deployments=sorted(known))
        weights[name].update(routed.weights)
    if settings.live is None:  # otherwise groups come and go
        _check_fallbacks(document, {*groups, *seen})
    return LiteLLMConfig(
        document,
        {group: tuple(members) for group, members in groups.items()},
        {group: _whole(members) for group, members in weights.items()},
    )


def _document(inline: dict[str, Any] | None, path: Path | None) -> Mapping[str, Any]:
    if inline is not None:
        return inline
    assert path is not None  # noqa: S101 (the settings model demands one of the two)
    try:
        value = documents.read_yaml(read_regular(path, max_bytes=documents.MAX_BYTES), what=path.name)
    except FileError as error:
        raise ConfigError("CONFIG_MISSING", error.cause, **error.evidence) from None
    except DocumentError as error:
        raise ConfigError("CONFIG_INVALID", error.cause, **error.evidence) from None
    if not isinstance(value, Mapping):
        raise ConfigError("CONFIG_INVALID", f"{path.name}: the document is not a mapping")
    return value


def _check_settings(document: Mapping[str, Any]) -> None:
    general = document.get("general_settings") or {}
    router = document.get("router_settings") or {}
    for key in NEEDS_A_DATABASE:
        if general.get(key):
            raise ConfigError("CONFIG_LITELLM", f"general_settings.{key} needs LiteLLM's database engine", key=key)
    if "include" in document:
        raise ConfigError(
            "CONFIG_LITELLM", "include: one document is checked and served; write it as one", key="include"
        )
    if "master_key" in general:
        raise ConfigError("CONFIG_LITELLM", "the master key belongs into litellm.master_key_file", key="master_key")
    for key, reason in AFTER_ROUTING.items():
        if router.get(key) not in (None, False, [], "simple-shuffle"):
            raise ConfigError("CONFIG_LITELLM", f"router_settings.{key}: {reason}", key=key)


def _check_fields(settings: Settings) -> None:
    if not settings.access.fields:
        return
    steering = sorted(steering_names().intersection(settings.access.fields))
    if steering:
        raise ConfigError("CONFIG_LITELLM", f"access.fields: {steering[0]} steers LiteLLM", fields=steering)


def _check_fallbacks(document: Mapping[str, Any], known: AbstractSet[str]) -> None:
    """A fallback that nobody is would be found out on the night it is needed; `known` may hold patterns (`local/*`)."""
    known |= set((document.get("router_settings") or {}).get("model_group_alias") or {})
    for section in ("litellm_settings", "router_settings"):
        try:
            named = list(_fallbacks(document.get(section) or {}))
        except (AttributeError, TypeError):
            raise ConfigError("CONFIG_LITELLM", f"{section}: fallbacks are a list of {{group: [groups]}}") from None
        for name in named:
            if isinstance(name, str) and not any(fnmatchcase(name, each) for each in known):
                raise ConfigError(
                    "CONFIG_GROUP", f"{section}: a fallback names {name!r}, which is no group", known=sorted(known)
                )


def _fallbacks(settings: Mapping[str, Any]) -> Iterator[Any]:
    """Every name, on either side; LiteLLM also takes a request's fields in place of one."""
    yield from settings.get("default_fallbacks") or []
    for entry in (entry for key in FALLBACKS for entry in settings.get(key) or []):
        yield from (group for group in entry if group != "*")
        yield from (name for others in entry.values() for name in others or [])


def _check_tracing(document: Mapping[str, Any], settings: Settings) -> None:
    named = document.get("litellm_settings") or {}
    lists = [named.get(key) or [] for key in ("callbacks", "success_callback", "failure_callback")]
    if settings.telemetry.otlp_endpoint is None and any("otel" in each for each in lists if isinstance(each, list)):
        raise ConfigError(
            "CONFIG_LITELLM", "the callback otel needs telemetry.otlp_endpoint: without it, prompts go to the console"
        )


def _deployment(entry: Any, position: int) -> tuple[str, Deployment, float]:
    try:
        group, parameters = str(entry["model_name"]), entry["litellm_params"]
        model = str(parameters["model"])
        id_ = (entry.get("model_info") or {}).get("id")
    except (KeyError, TypeError, AttributeError):
        raise ConfigError(
            "CONFIG_LITELLM", f"model_list[{position}] needs model_name and litellm_params.model", position=position
        ) from None
    if not isinstance(id_, str) or not id_:
        raise ConfigError("CONFIG_GROUP", f"model_list[{position}] ({group}) has no model_info.id", group=group)
    weight = parameters.get("weight", 1)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight <= 1_000_000:
        raise ConfigError("CONFIG_LITELLM", f"{id_}: weight {weight!r} is not a number from 0 to a million", id=id_)
    return group, Deployment(id_, model), weight


def _check_secrets(document: Any, listed: Collection[str]) -> None:
    """What is secret comes from files; LiteLLM's environment holds those and nothing of whoever started the service."""
    for place, name, value in _texts(document):
        reference = value.removeprefix(REFERENCE)
        if reference != value and reference not in listed:
            raise ConfigError(
                "CONFIG_LITELLM",
                f"{place} names {reference}, which litellm.secrets does not list with a file",
                place=place,
                listed=sorted(listed),
            )
        plain = SECRET.fullmatch(name.replace("-", "_")) and value.lower() not in NO_SECRET
        if reference == value and (plain or PASSWORD_IN_URL.search(value)):
            raise ConfigError(
                "CONFIG_LITELLM",
                f"{place} holds a secret in plain text; name it `os.environ/NAME`, list the file in litellm.secrets, "
                "and an address's host:port in lockdown.allow",
                place=place,
            )


def _texts(value: Any, place: str = "", name: str = "") -> Iterator[tuple[str, str, str]]:
    """Every text: where it stands, the last name on the way there, and itself."""
    if isinstance(value, str):
        yield place, name, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _texts(inner, f"{place}.{key}".lstrip("."), str(key))
    elif isinstance(value, list):
        for position, inner in enumerate(value):
            yield from _texts(inner, f"{place}[{position}]", name)


def _whole(weights: Mapping[str, float]) -> dict[str, int]:
    """Weights as whole numbers, in the same proportion to a thousandth."""
    if all(float(weight).is_integer() for weight in weights.values()):
        return {id_: int(weight) for id_, weight in weights.items()}
    return {id_: round(weight * 1000) for id_, weight in weights.items()}
