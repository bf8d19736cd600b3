"""The running gateway after a switch: restarted into the new release, or, where it does not come up, back into the old.

The health check before the switch asks whether a release can work here; only the service can show that it does, with
the operator's own configuration. The unit is `Type=notify`: a restart that returns has answered.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from appliance.errors import ApplianceError, InstallError

UNIT = "appliance-gateway.service"
TIMEOUT_S = 300  # above the unit's own limits for stopping and starting


def restart_gateway(prefix: Path, *, systemctl: str | None = None) -> bool:
    """Restart the gateway's unit, where it runs and belongs to this prefix.

    Args:
        prefix: of the installation.
        systemctl: the service manager's command; `SYSTEMCTL` of the environment, or `systemctl`, where None.

    Returns:
        Whether it was restarted; False where there is nothing to restart.

    Raises:
        InstallError: INSTALL_SERVICE where it did not come up.
    """
    command = _command(systemctl)
    if _ask(command, "is-active", UNIT)[1] != "active":
        return False
    if f"{prefix}/current/" not in _ask(command, "show", "--property=ExecStart", UNIT)[1]:
        return False  # another installation's
    status, said = _ask(command, "restart", UNIT)
    if status:
        raise InstallError("INSTALL_SERVICE", f"{UNIT} did not come up with this release", systemctl=said[-400:])
    return True


def restart_or_return(prefix: Path, go_back: Callable[[], object] | None, *, systemctl: str | None = None) -> bool:
    """`restart_gateway`; where the gateway does not come up, go back and start it there.

    Args:
        prefix: of the installation.
        go_back: points to the release before; None where there is none.
        systemctl: see `restart_gateway`.

    Raises:
        InstallError: INSTALL_SERVICE, telling whether the release before runs again.
    """
    try:
        return restart_gateway(prefix, systemctl=systemctl)
    except InstallError as error:
        if go_back is None:
            raise
        try:
            go_back()
        except ApplianceError as refusal:  # e.g. the state is of the new layout already
            cause = f"{error.cause}; the release before cannot return: {refusal.code}, {refusal.cause}"
            raise InstallError(error.code, cause, **error.evidence) from error
        status, _ = _ask(_command(systemctl), "restart", UNIT)
        returned = "the release before runs again" if status == 0 else "the release before does not come up either"
        raise InstallError(error.code, f"{error.cause}; {returned}", **error.evidence) from error


def _command(systemctl: str | None) -> str:
    return systemctl or os.environ.get("SYSTEMCTL") or "systemctl"


def _ask(*command: str) -> tuple[int, str]:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, str(error)
    return done.returncode, (done.stdout + done.stderr).strip()
