"""Deployments that cost nothing, told to LiteLLM as such.

LiteLLM looks twice into every answer that cost nothing for the price that somebody may have forgotten: a fifth of the
processor time of a request. A deployment of an own machine has no price, and LiteLLM's remedy is to say so: every rate
0 (its `zero_cost_diagnostic.py`). What it bills stays what it was: nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

FREE = dict.fromkeys(
    (
        "input_cost_per_token",
        "output_cost_per_token",
        "cache_creation_input_token_cost",  # without the two, LiteLLM warns of every deployment at boot
        "cache_read_input_token_cost",
    ),
    0.0,
)
BLOCKS_UNPRICED = "block_requests_for_models_without_pricing"  # LiteLLM's setting; to it, 0 is a price


class PriceList:
    """What LiteLLM's price list charges for.

    Args:
        model_cost: LiteLLM's: name -> prices, limits and `litellm_provider`.
    """

    def __init__(self, model_cost: Mapping[str, Mapping[str, Any]]) -> None:
        self._providers: dict[str, set[str]] = {}
        for name, entry in model_cost.items():
            if any(_is_price(value) for value in _rates(entry)):
                self._providers.setdefault(_last_part(name), set()).add(str(entry.get("litellm_provider") or ""))

    def charges_for(self, model: str, provider: str | None) -> bool:
        """Whether a model, or another form of its name, may have a price with a provider; rather yes than no."""
        if "*" in model or model.startswith("ft:"):
            return True
        provider = provider or model.partition("/")[0]
        known = self._providers.get(_last_part(model), ())
        return bool(known) if "/" not in model else any(not one or provider in one or one in provider for one in known)


def marked(entry: Mapping[str, Any], prices: PriceList) -> dict[str, Any]:
    """A deployment of LiteLLM's model list; as free, where neither it nor the price list names a price."""
    parameters, info = entry.get("litellm_params") or {}, entry.get("model_info") or {}
    named = [*_rates(parameters), *_rates(info), info.get("base_model"), parameters.get("base_model")]
    if any(value is not None for value in named):
        return dict(entry)
    if prices.charges_for(str(parameters.get("model", "")), parameters.get("custom_llm_provider")):
        return dict(entry)
    return {**entry, "model_info": {**info, **FREE}}


def all_marked(document: Mapping[str, Any], prices: PriceList) -> dict[str, Any]:
    """LiteLLM's configuration with every free deployment `marked`; as it was where it refuses what has no price."""
    if (document.get("litellm_settings") or {}).get(BLOCKS_UNPRICED):
        return dict(document)
    return {**document, "model_list": [marked(entry, prices) for entry in document.get("model_list") or []]}


def _rates(entry: Mapping[str, Any]) -> Iterator[Any]:
    """By LiteLLM's own criterion of a name."""
    return (value for name, value in entry.items() if "cost" in name or "pricing" in name)


def _is_price(value: Any) -> bool:
    return bool(value) and isinstance(value, int | float | Mapping | list)


def _last_part(name: str) -> str:
    return name.rpartition("/")[2].lower()
