"""What the shipped units promise, asked of systemd itself and of no running manager."""

import re
import subprocess
from pathlib import Path

import pytest

from appliance.cli.main import app
from appliance.cli.manual import man_pages

UNITS = Path(__file__).parents[3] / "bundle" / "systemd"
SERVICES = sorted(UNITS.glob("*.service"))
WORST_EXPOSURE = 1.5  # of 10; measured: 0.9 gateway and sync, 1.0 doctor


@pytest.mark.parametrize("unit", SERVICES, ids=lambda unit: unit.stem)
def test_systemd_rates_the_exposure_of_every_service_as_low(unit):
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", f"--threshold={WORST_EXPOSURE * 10:.0f}", str(unit)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    rated = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert rated
    assert float(rated[1]) <= WORST_EXPOSURE


def test_the_rating_is_not_always_good(tmp_path):
    bare = tmp_path / "bare.service"
    bare.write_text("[Service]\nExecStart=/bin/true\n")
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--threshold=15", str(bare)], capture_output=True, check=False
    )
    assert done.returncode == 1


def test_systemd_understands_every_line_of_the_units():
    units = [*SERVICES, *UNITS.glob("*.timer"), *UNITS.glob("*.socket")]
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *map(str, units)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    complaints = [line for line in done.stderr.splitlines() if "is not executable" not in line and line.strip()]
    assert not complaints


@pytest.mark.parametrize("unit", SERVICES, ids=lambda unit: unit.stem)
def test_every_service_is_bounded_and_runs_as_its_own_user(unit):
    text = unit.read_text()
    for line in ("User=appliance", "ProtectSystem=strict", "MemorySwapMax=0", "LimitCORE=0", "IPAddressDeny=any"):
        assert f"\n{line}\n" in text
    for key in ("MemoryMax", "TasksMax", "LimitNOFILE"):
        assert re.search(rf"^{key}=\d", text, re.MULTILINE), key
    assert re.findall(r"^ReadWritePaths=(.*)$", text, re.MULTILINE) == ["/opt/appliance/state"]


def test_the_gateway_has_more_time_to_stop_than_its_default_drain_takes():
    import yaml

    drain = yaml.safe_load((UNITS.parent / "defaults" / "appliance.yaml").read_text())["drain"]
    stop = re.search(r"^TimeoutStopSec=(\d+)$", (UNITS / "appliance-gateway.service").read_text(), re.MULTILINE)
    assert stop
    assert int(stop[1]) > drain["readiness_s"] + drain["streams_s"]


def test_the_listeners_address_is_the_one_of_the_default_configuration():
    """The gateway refuses a socket that is configured otherwise; `install-units` writes the operator's."""
    import yaml

    listen = yaml.safe_load((UNITS.parent / "defaults" / "appliance.yaml").read_text())["listen"]
    unit = (UNITS / "appliance-gateway.socket").read_text()
    assert f"ListenStream={listen['host']}:{listen['port']}\n" in unit
    assert "IPAddressDeny=any" in unit


def test_every_manual_page_that_a_unit_names_is_carried():
    named = {page for unit in SERVICES for page in re.findall(r"man:(\S+?)\(1\)", unit.read_text())}
    assert named
    assert {f"{page}.1" for page in named} <= set(man_pages(app))
