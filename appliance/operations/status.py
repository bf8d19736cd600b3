"""What the gateway serves: one answer for all its workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from appliance.errors import FileError, GatewayError
from appliance.files import locked
from appliance.gateway import control
from appliance.gateway.condense import condense
from appliance.settings import Settings


def collect(settings: Settings) -> dict[str, Any]:
    """Ask every worker.

    Returns:
        `workers` (each in full) and what they say together, as `gateway.condense`.

    Raises:
        GatewayError: GATEWAY_NOT_RUNNING, GATEWAY_BOOTING.
    """
    run_dir = settings.state_dir / "run"
    try:
        workers = control.ask_all(run_dir, "status")
    except GatewayError:
        if _is_held(run_dir / "lock"):
            raise GatewayError("GATEWAY_BOOTING", "the gateway has started and does not answer yet") from None
        raise
    return {"workers": workers, **condense(workers)}


def _is_held(lock: Path) -> bool:
    """Whether a gateway holds its state directory."""
    if not lock.exists():
        return False
    try:
        with locked(lock, wait=False):
            return False
    except FileError as error:
        return error.code == "FILE_LOCKED"
