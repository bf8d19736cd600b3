"""What a gateway has checked and taken before its workers begin; between `boot`, which makes it, and `worker`."""

from __future__ import annotations

from dataclasses import dataclass

from appliance.gateway import litellm_config, lockdown
from appliance.gateway.turns import Turns
from appliance.registry.live import LiveConfig
from appliance.settings import Settings


@dataclass(frozen=True)
class Prepared:
    """What all workers of a gateway share.

    Attributes:
        settings, config, master_key: as checked: of the files.
        live: what the live configuration was at boot; empty where there is none.
        locks: taken already.
        turns: at accepting connections; None where there is one worker.
    """

    settings: Settings
    config: litellm_config.LiteLLMConfig
    master_key: str
    live: LiveConfig
    locks: lockdown.Lockdown
    turns: Turns | None = None
