"""All contact with LiteLLM. Nothing else in the appliance imports it; `tests/.../test_litellm_contract.py` pins it.

What is relied on (1.106.2): `CONFIG_FILE_PATH` names the configuration; the ASGI application loads it at lifespan
startup; a `CustomLogger` in `litellm.callbacks` has its `async_filter_deployments` awaited after cooldown and team
filters with the healthy deployments of the requested group, and the router uses the one that it returns.
"""

from __future__ import annotations

import gc
import os
import re
import time
from collections.abc import Mapping, MutableMapping, Sequence
from functools import lru_cache
from typing import Any

from appliance.errors import GatewayError
from appliance.gateway import no_database, prices
from appliance.gateway.callback import RoutingCallback
from appliance.settings import Telemetry

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
    "OPENBLAS_NUM_THREADS": "1",  # a pool of its own would not survive the fork, and fights the encoder for cores
    "OMP_NUM_THREADS": "1",
}
# What stays of whoever started the service: where things lie, language, clock, service manager. LiteLLM and its clients
# read some 1,200 other names: proxies in any spelling, `SSL_VERIFY`, `SSLKEYLOGFILE`, `OPENAI_LOG`, keys, addresses.
KEPT = re.compile(
    r"PATH|HOME|USER|LOGNAME|LANG|LANGUAGE|LC_[A-Z]+|TZ|TZDIR|TMPDIR|NOTIFY_SOCKET|WATCHDOG_(?:PID|USEC)"
    r"|ORT_DISABLE_TELEMETRY"
)
MASTER_KEY = "LITELLM_MASTER_KEY"


def prepare_environment(
    environment: MutableMapping[str, str],
    *,
    config_path: str,
    master_key: str,
    secrets: Mapping[str, str],
    telemetry: Telemetry,
) -> None:
    """Leave LiteLLM an environment of ours and nothing else. Call before anything imports it."""
    for name in [name for name in environment if not KEPT.fullmatch(name)]:
        del environment[name]
    environment.update(ENVIRONMENT)
    environment.update(secrets)
    environment["CONFIG_FILE_PATH"] = config_path
    environment[MASTER_KEY] = master_key
    # without an endpoint LiteLLM's exporter writes spans, prompts included, to the console
    traced = telemetry.otlp_endpoint is not None
    environment["LITELLM_OTEL_V2"] = "true" if telemetry.otel_v2 and traced else "false"
    if telemetry.otlp_endpoint is not None:
        environment["OTEL_EXPORTER"] = environment["OTEL_EXPORTER_OTLP_PROTOCOL"] = "http/protobuf"
        environment["OTEL_ENDPOINT"] = environment["OTEL_EXPORTER_OTLP_ENDPOINT"] = telemetry.otlp_endpoint
        environment["OTEL_BSP_SCHEDULE_DELAY"] = "1000"  # milliseconds; a crash loses no more than a second of spans
        for name, path in (
            ("CERTIFICATE", telemetry.ca_file),
            ("CLIENT_CERTIFICATE", telemetry.client_certificate),
            ("CLIENT_KEY", telemetry.client_key),
        ):
            if path is not None:
                environment[f"OTEL_EXPORTER_OTLP_{name}"] = str(path)


def application() -> Any:
    """Import LiteLLM (about 2.5 s) and return its ASGI application; its lifespan reads the configuration.

    What an import makes stays: looking for garbage among it took a quarter of the boot, and would take a share of every
    collection after it and unshare the workers' memory.
    """
    no_database.stand_in()
    collecting = gc.isenabled()
    gc.disable()
    try:
        import litellm
        from litellm.llms.custom_httpx.aiohttp_transport import LiteLLMAiohttpTransport
        from litellm.proxy.proxy_server import app
        from litellm.router import Router

        from appliance.gateway import connections, patience, streams
    finally:
        gc.freeze()
        if collecting:
            gc.enable()
    litellm.telemetry = False
    litellm.suppress_debug_info = True
    app.exception_handlers[Exception] = _not_here
    send = LiteLLMAiohttpTransport._make_aiohttp_request  # noqa: SLF001
    LiteLLMAiohttpTransport._make_aiohttp_request = connections.forgetting(send)  # noqa: SLF001
    LiteLLMAiohttpTransport.handle_async_request = streams.whole(LiteLLMAiohttpTransport.handle_async_request)
    Router._time_to_sleep_before_retry = patience.bounded(Router._time_to_sleep_before_retry)  # noqa: SLF001
    return app


async def _not_here(_: Any, error: Exception) -> Any:
    """What nobody handled is answered at the edge, which knows the request's id."""
    raise error


def version() -> str:
    """LiteLLM's version, without importing it."""
    from importlib.metadata import version as installed

    return installed("litellm")


@lru_cache(maxsize=1)
def price_list() -> prices.PriceList:
    """What LiteLLM charges for; call after `application`."""
    import litellm

    return prices.PriceList(litellm.model_cost)


def attach(callback: RoutingCallback) -> None:
    """Register the routing callback. Call after LiteLLM's startup, when its configuration has been read."""
    import litellm

    litellm.logging_callback_manager.add_litellm_callback(_hook_class()(callback))
    gc.freeze()  # what the start has made stays, too
    os.environ.pop(MASTER_KEY, None)  # kept in LiteLLM's memory; children need not inherit it


def model_list() -> list[dict[str, Any]]:
    """The deployments LiteLLM runs with."""
    from litellm.proxy import proxy_server

    return list(proxy_server.llm_router.model_list) if proxy_server.llm_router else []


class RunningDeployments:
    """LiteLLM's router as `live` changes it; call on the event loop's thread."""

    def upsert(self, entry: Mapping[str, Any]) -> None:
        """Add or replace one deployment. LiteLLM resolves references to secrets at boot only, so it is done here.

        Raises:
            GatewayError: GATEWAY_DEPLOYMENT where LiteLLM does not take it; what it had stays.
        """
        import litellm
        from litellm.proxy import proxy_server
        from litellm.types.router import Deployment

        if not getattr(litellm, prices.BLOCKS_UNPRICED):
            entry = prices.marked(entry, price_list())
        given = {name: _resolved(value) for name, value in entry["litellm_params"].items()}
        id_ = entry["model_info"]["id"]
        try:
            proxy_server.llm_router.upsert_deployment(Deployment(**{**entry, "litellm_params": given}))
            standing = proxy_server.llm_router.get_deployment(model_id=id_)
            taken = standing is not None and standing.model_name == entry["model_name"]
            taken = taken and all(standing.litellm_params.get(name) == value for name, value in given.items())
        except Exception as error:  # noqa: BLE001 (its own kinds, and those of its models)
            raise GatewayError("GATEWAY_DEPLOYMENT", f"{id_}: {type(error).__name__}", id=id_) from None
        if not taken:
            raise GatewayError("GATEWAY_DEPLOYMENT", f"{id_}: LiteLLM did not take it", id=id_)

    def delete(self, id_: str) -> None:
        """Remove one deployment; running requests finish."""
        from litellm.proxy import proxy_server

        proxy_server.llm_router.delete_deployment(id=id_)


def _resolved(value: Any) -> Any:
    named = isinstance(value, str) and value.startswith("os.environ/")
    return os.environ[value.removeprefix("os.environ/")] if named else value


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
            "left_s": round((value.get("timestamp") or 0) + (value.get("cooldown_time") or 0) - time.time(), 1),
        }
        for id_, value in router.cooldown_cache.get_active_cooldowns(list(ids), parent_otel_span=None)
    }


def end_cooldown(id_: str) -> None:
    """Let a deployment back that has shown that it answers."""
    from litellm.proxy import proxy_server

    cache = proxy_server.llm_router.cooldown_cache
    cache.cooldown_store.delete_cache(key=cache.get_cooldown_cache_key(id_))


def _hook_class() -> Any:
    from litellm.integrations.custom_logger import CustomLogger

    class RoutingHook(CustomLogger):  # type: ignore[misc]
        """LiteLLM asks it for the deployments to choose from; it answers with exactly one."""

        def __init__(self, callback: RoutingCallback) -> None:
            super().__init__()
            self._callback = callback

        async def async_filter_deployments(
            self,
            model: str,
            healthy_deployments: list[Any],
            messages: list[Any] | None,
            request_kwargs: dict[str, Any] | None = None,
            parent_otel_span: Any = None,
        ) -> list[Any]:
            return await self._callback.filter(
                model, healthy_deployments, messages, request_kwargs or {}, parent_otel_span
            )

        async def async_log_success_event(self, kwargs: dict[str, Any], *_: Any, **__: Any) -> None:
            rested = self._callback.succeeded(kwargs)
            if rested is not None:
                end_cooldown(rested)

        async def async_log_failure_event(self, kwargs: dict[str, Any], *_: Any, **__: Any) -> None:
            self._callback.failed(kwargs)

        async def async_post_call_failure_hook(self, *_: Any, original_exception: Exception, **__: Any) -> None:
            self._callback.gave_up(original_exception)

    return RoutingHook
