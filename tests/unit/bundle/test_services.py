"""The service after a switch: restarted where it runs from this prefix, returned where it does not come up."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.bundle.services import UNIT, restart_gateway, restart_or_return
from appliance.errors import InstallError

PREFIX = Path("/srv/appliance")


class Manager:
    """A service manager that is a script: what it was asked is on the disk."""

    def __init__(self, folder: Path) -> None:
        self.command = folder / "systemctl"
        self.log = folder / "asked"

    def answers(self, *, active: str = "active", prefix: Path = PREFIX, comes_up: str = "true") -> str:
        self.command.write_text(
            f'#!/bin/sh\necho "$@" >> {self.log}\ncase $1 in\nis-active) echo {active} ;;\n'
            f"show) echo 'ExecStart={{ path={prefix}/current/env/bin/appliance ; }}' ;;\n"
            f"restart) echo 'Job failed.' >&2; {comes_up} ;;\nesac\n"
        )
        self.command.chmod(0o755)
        return str(self.command)

    @property
    def restarts(self) -> int:
        return self.log.read_text().splitlines().count(f"restart {UNIT}")


@pytest.fixture
def manager(tmp_path):
    return Manager(tmp_path)


def test_a_running_gateway_of_this_prefix_is_restarted(manager):
    assert restart_gateway(PREFIX, systemctl=manager.answers())
    assert manager.restarts == 1


def test_a_host_without_a_service_manager_or_a_running_gateway_is_left_alone(manager, tmp_path):
    assert not restart_gateway(PREFIX, systemctl=str(tmp_path / "no-systemd-here"))
    assert not restart_gateway(PREFIX, systemctl=manager.answers(active="inactive"))
    assert manager.restarts == 0


def test_the_gateway_of_another_installation_is_left_alone(manager):
    assert not restart_gateway(PREFIX, systemctl=manager.answers(prefix=Path("/srv/appliance-two")))
    assert manager.restarts == 0


def test_a_gateway_that_does_not_come_up_takes_the_host_back_to_the_release_before(manager):
    went_back = []

    def go_back() -> None:
        went_back.append(manager.restarts)
        manager.answers()  # with the old release it comes up

    with pytest.raises(InstallError) as caught:
        restart_or_return(PREFIX, go_back, systemctl=manager.answers(comes_up="false"))
    assert caught.value.code == "INSTALL_SERVICE"
    assert "the release before runs again" in caught.value.cause
    assert "Job failed." in caught.value.evidence["systemctl"]
    assert went_back == [1]
    assert manager.restarts == 2


def test_a_release_before_that_cannot_return_is_said_with_its_reason(manager):
    def refused() -> None:
        raise InstallError("INSTALL_STATE_NEWER", "state and configuration were written by a newer release (layout 2)")

    with pytest.raises(InstallError) as caught:
        restart_or_return(PREFIX, refused, systemctl=manager.answers(comes_up="false"))
    assert caught.value.code == "INSTALL_SERVICE"
    assert "cannot return: INSTALL_STATE_NEWER" in caught.value.cause
    assert manager.restarts == 1


def test_where_neither_comes_up_that_is_said_and_where_there_is_no_other_nothing_is_undone(manager):
    broken = manager.answers(comes_up="false")
    with pytest.raises(InstallError) as caught:
        restart_or_return(PREFIX, lambda: None, systemctl=broken)
    assert "does not come up either" in caught.value.cause
    with pytest.raises(InstallError) as caught:
        restart_or_return(PREFIX, None, systemctl=broken)
    assert caught.value.code == "INSTALL_SERVICE"
