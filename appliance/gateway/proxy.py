"""All contact with LiteLLM. Nothing else in the appliance imports it; `tests/.../test_litellm_contract.py` pins it.

What is relied on (1.106.2): `CONFIG_FILE_PATH` names the configuration; the ASGI application loads it at lifespan
startup; a `CustomLogger` in `litellm.callbacks` has its `async_filter_deployments` awaited after cooldown and team
filters with the healthy deployments of the requested group, and the router uses the one that it returns.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

from appliance.gateway import context, telemetry
from appliance.gateway.decider import Decider, Request
from appliance.gateway.decision import Deployment

log = logging.getLogger("appliance.proxy")

ENVIRONMENT = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # without it: three downloads at boot
    "LITELLM_MODE": "PRODUCTION",  # no .env files
    "DISABLE_ADMIN_UI": "True",
    "NO_DOCS": "True",
    "NO_REDOC": "True",
    "NO_OPENAPI": "True",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "AWS_EC2_METADATA_DISABLED": "true",
}
# Read by LiteLLM or its HTTP clients; none may come from whoever started the service.
FORBIDDEN = (
    "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE", "DATABASE_URL", "DIRECT_URL", "WORKER_CONFIG", "LITELLM_CONFIG_BUCKET_NAME",
    "LITELLM_WORKER_STARTUP_HOOKS", "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY", "LITELLM_SALT_KEY",
    "PYTHONSTARTUP", "STORE_MODEL_IN_DB", "LITELLM_LOG", "DEBUG", "DETAILED_DEBUG",
)  # fmt: skip
MASTER_KEY = "LITELLM_MASTER_KEY"


class NotAllowed(Exception):  # noqa: N818 (a verdict, handled where it is raised)
    """The request's key does not reach this group."""


def prepare_environment(
    environment: MutableMapping[str, str], *, config_path: str, master_key: str, secrets: Mapping[str, str]
) -> None:
    """Set what LiteLLM reads at import and boot, remove what it must not read. Call before anything imports it."""
    for name in FORBIDDEN:
        environment.pop(name, None)
        environment.pop(name.lower(), None)
    environment.update(ENVIRONMENT)
    environment.update(secrets)
    environment["CONFIG_FILE_PATH"] = config_path
    environment[MASTER_KEY] = master_key


def application() -> Any:
    """Import LiteLLM (about 2.5 s) and return its ASGI application; its lifespan reads the configuration."""
    import litellm
    from litellm.proxy.proxy_server import app

    litellm.telemetry = False
    litellm.suppress_debug_info = True
    return app


def version() -> str:
    """LiteLLM's version, without importing it."""
    from importlib.metadata import version as installed

    return installed("litellm")


def attach(decider: Decider, groups: Mapping[str, Sequence[Deployment]]) -> None:
    """Register the routing callback. Call after LiteLLM's startup, when its configuration has been read.

    Args:
        decider: chooses.
        groups: group -> all its deployments, for exclusion reasons.
    """
    import litellm

    litellm.logging_callback_manager.add_litellm_callback(_hook_class()(decider, groups))
    os.environ.pop(MASTER_KEY, None)  # kept in LiteLLM's memory; children need not inherit it


def model_list() -> list[dict[str, Any]]:
    """The deployments LiteLLM runs with."""
    from litellm.proxy import proxy_server

    return list(proxy_server.llm_router.model_list) if proxy_server.llm_router else []


def cooldowns(ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Deployments that LiteLLM keeps out for a while: id -> why and until when."""
    from litellm.proxy import proxy_server

    router = proxy_server.llm_router
    if router is None:
        return {}
    return {
        id_: {
            "status_code": value.get("status_code"),
            "since": value.get("timestamp"),
            "for_s": value.get("cooldown_time"),
            "until": (value.get("timestamp") or 0) + (value.get("cooldown_time") or 0),
        }
        for id_, value in router.cooldown_cache.get_active_cooldowns(list(ids), parent_otel_span=None)
    }


def _hook_class() -> Any:
    from litellm.integrations.custom_logger import CustomLogger

    class RoutingHook(CustomLogger):  # type: ignore[misc]
        """LiteLLM asks it for the deployments to choose from; it answers with exactly one."""

        def __init__(self, decider: Decider, groups: Mapping[str, Sequence[Deployment]]) -> None:
            super().__init__()
            self._decider, self._groups = decider, groups

        async def async_filter_deployments(
            self,
            model: str,
            healthy_deployments: list[Any],
            messages: list[Any] | None,
            request_kwargs: dict[str, Any] | None = None,
            parent_otel_span: Any = None,
        ) -> list[Any]:
            """One deployment out of the healthy ones; all of them where even that goes wrong."""
            try:
                return await self._choose(model, healthy_deployments, messages, request_kwargs or {}, parent_otel_span)
            except NotAllowed:
                return []
            except Exception:
                log.exception("routing callback failed")
                return healthy_deployments

        async def _choose(
            self, group: str, healthy: list[Any], messages: list[Any] | None, kwargs: dict[str, Any], span: Any
        ) -> list[Any]:
            request = context.current.get() or context.RequestContext()
            if request.principal is not None and not request.principal.may_use(group):
                raise NotAllowed(group)  # a fallback named in the request must not lead around the key's list
            by_id = {deployment["model_info"]["id"]: deployment for deployment in healthy}
            skipped = request.tried(group) | _skipped_by_litellm(kwargs)
            if not by_id.keys() - skipped:
                skipped = set()
            candidates = [
                Deployment(id_, deployment["litellm_params"]["model"])
                for id_, deployment in by_id.items()
                if id_ not in skipped
            ]
            excluded = {d.id: "not_admitted" for d in self._groups.get(group, ()) if d.id not in by_id}
            excluded.update(dict.fromkeys(skipped & by_id.keys(), "failed_for_this_request"))
            decision = await self._decider.decide(
                group,
                candidates,
                Request(request.id, str(kwargs.get("litellm_call_id", "")), lambda: _prompt(messages, kwargs)),
                excluded=excluded,
            )
            request.decisions.append(decision)
            telemetry.annotate(decision, span)
            return [by_id[decision.selected]] if decision.selected is not None else healthy

    return RoutingHook


def _skipped_by_litellm(kwargs: Mapping[str, Any]) -> set[str]:
    """Deployments that LiteLLM would drop after us for this request."""
    found: set[str] = set()
    for key in ("_excluded_deployment_ids", "_retry_skipped_deployment_ids"):
        value = kwargs.get(key)
        if isinstance(value, list | tuple | set | frozenset):
            found.update(str(id_) for id_ in value)
    return found


def _prompt(messages: list[Any] | None, kwargs: Mapping[str, Any]) -> str:
    from appliance.routers.prompt import prompt_text

    if messages is not None:
        return prompt_text(messages)
    given = kwargs.get("input", kwargs.get("prompt"))
    if isinstance(given, str):
        return prompt_text([{"role": "user", "content": given}])
    if isinstance(given, list) and all(isinstance(item, Mapping) for item in given):
        return prompt_text(given)
    if isinstance(given, list) and all(isinstance(item, str) for item in given):
        return prompt_text([{"role": "user", "content": "\n".join(given)}])
    return ""
