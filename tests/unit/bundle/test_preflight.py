"""Every named check: what a fit host gets, what an unfit one is told, and the command it is told to type."""

from __future__ import annotations

import socket
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from appliance.bundle.refusals import appliance_errors
from appliance.bundle.stage0.preflight import (
    GATEWAY_PORT,
    Host,
    _mounted,
    preflight_findings,
    read_host,
    refuse_unfit,
)
from appliance.bundle.stage0.refusal import Refused
from appliance.errors import InstallError
from tests.support import bundle as support

PREFIX = Path("/opt/appliance")
CPU = frozenset({"ssse3", "sse4_1", "sse4_2", "popcnt", "cx16", "avx2", "fma", "asimd", "asimddp"})


@pytest.fixture
def manifest(tmp_path):
    return support.archive(tmp_path / "media").manifest


@pytest.fixture
def host(manifest) -> Host:
    major, minor = manifest.target["python"].split(".")
    return Host(
        python=(int(major), int(minor)),
        architecture=manifest.target["architecture"],
        glibc=(2, 36),
        cpu_features=CPU,
        free_bytes=10**12,
        free_inodes=10**6,
        file_system="ext4",
        mount_point="/opt",
        noexec=False,
        read_only=False,
        foreign=(),
        exists=True,
        writable=True,
        selinux_enforcing=False,
        ports=(4000,),
        busy_ports=(),
        now=support.CREATED + timedelta(days=3),
    )


def test_a_fit_host_passes_every_check(manifest, host):
    findings = preflight_findings(manifest, host, PREFIX)
    assert {finding.status for finding in findings} == {"ok"}
    names = [finding.check for finding in findings]
    assert names[:6] == ["python", "architecture", "glibc", "cpu", "disk", "inodes"]
    assert names[6:] == ["prefix", "permissions", "mount", "clock", "ports", "selinux"]
    refuse_unfit(findings)


UNFIT = {
    "python": ({"python": (3, 9)}, "INSTALL_PYTHON", "python3."),
    "architecture": ({"architecture": "riscv64"}, "INSTALL_ARCHITECTURE", "release"),
    "glibc": ({"glibc": (2, 12)}, "INSTALL_GLIBC", "ldd --version"),
    "musl": ({"glibc": None}, "INSTALL_GLIBC", "ldd --version"),
    "cpu": ({"cpu_features": frozenset({"sse2"})}, "INSTALL_CPU", "processor"),
    "disk": ({"free_bytes": 10}, "INSTALL_NO_SPACE", "df -h"),
    "inodes": ({"free_inodes": 1}, "INSTALL_NO_SPACE", "df -i"),
    "prefix on vfat": ({"file_system": "vfat"}, "INSTALL_PREFIX", "ext4"),
    "prefix in use": ({"foreign": ("bin", "home")}, "INSTALL_PREFIX", "empty folder"),
    "permissions": ({"writable": False}, "INSTALL_PERMISSION", "ls -ld /opt/appliance"),
    "permissions above": ({"writable": False, "exists": False}, "INSTALL_PERMISSION", "sudo install -d -o $USER"),
    "read-only": ({"read_only": True, "writable": False}, "INSTALL_PERMISSION", "mount -o remount,rw /opt"),
    "mount": ({"noexec": True}, "INSTALL_NOEXEC", "mount -o remount,exec /opt"),
    "clock": ({"now": datetime(1970, 1, 2, tzinfo=UTC)}, "INSTALL_CLOCK", "date -u -s"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_an_unfit_host_is_refused_with_the_check_s_code_and_remedy(manifest, host, name):
    change, code, remedy = UNFIT[name]
    findings = preflight_findings(manifest, replace(host, **change), PREFIX)
    bad = [finding for finding in findings if finding.status == "refused"]
    assert [finding.code for finding in bad] == [code]
    assert remedy in bad[0].remedy
    with pytest.raises(Refused) as caught:
        refuse_unfit(findings)
    assert caught.value.code == code
    with pytest.raises(InstallError) as told, appliance_errors():
        refuse_unfit(findings)
    assert remedy in told.value.remedy


WARNED = {
    "cpu": ({"cpu_features": CPU - {"avx2", "asimddp"}}, "CPU model"),
    "cpu unknown": ({"cpu_features": frozenset()}, "lscpu"),
    "clock": ({"now": datetime(2050, 1, 2, tzinfo=UTC)}, "date -u -s"),
    "ports": ({"busy_ports": (4000,)}, "ss -ltnp"),
    "selinux": ({"selinux_enforcing": True}, "restorecon"),
}


@pytest.mark.parametrize("name", WARNED)
def test_what_only_hampers_is_a_warning_with_a_remedy(manifest, host, name):
    change, remedy = WARNED[name]
    findings = preflight_findings(manifest, replace(host, **change), PREFIX)
    warned = [finding for finding in findings if finding.status == "warning"]
    assert len(warned) == 1
    finding = warned[0]
    assert remedy.lower() in f"{finding.text} {finding.remedy}".lower()
    refuse_unfit(findings)


def test_all_that_is_wrong_is_said_at_once(manifest, host):
    with pytest.raises(Refused) as caught:
        refuse_unfit(preflight_findings(manifest, replace(host, noexec=True, free_bytes=0, glibc=(2, 5)), PREFIX))
    assert caught.value.code == "INSTALL_GLIBC"
    assert set(caught.value.evidence) == {"disk", "mount"}


def test_what_a_killed_run_has_staged_is_not_asked_for_again(manifest, host):
    tight = replace(host, free_bytes=100)
    assert any(f.status == "refused" for f in preflight_findings(manifest, tight, PREFIX))
    staged = manifest.payload_bytes
    assert not any(f.status == "refused" for f in preflight_findings(manifest, tight, PREFIX, staged_bytes=staged))


@pytest.mark.parametrize(
    ("entries", "foreign"),
    [
        ([], ()),
        (["bin", "etc", "usr"], ("bin", "usr")),
        (["etc", "lost+found", ".bashrc"], ()),
        (["bin", "state/install"], ()),
    ],
)
def test_a_folder_that_belongs_to_something_else_is_no_prefix_and_an_installation_always_is(tmp_path, entries, foreign):
    for entry in entries:
        (tmp_path / entry).mkdir(parents=True)
    assert read_host(tmp_path, now=datetime.now(UTC), python=(3, 11)).foreign == foreign


def test_the_root_of_the_system_is_no_prefix():
    assert read_host(Path("/"), now=datetime.now(UTC), python=(3, 11)).foreign


def test_the_file_system_is_that_of_the_nearest_mount_and_of_the_last_one_there(tmp_path):
    table = tmp_path / "mountinfo"
    table.write_text(
        "22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw\n"
        f"30 22 8:1 / {tmp_path}/usb\\040stick rw - ext4 /dev/sdb1 rw\n"
        f"31 22 8:1 / {tmp_path}/usb\\040stick rw,nosuid shared:5 master:2 - vfat /dev/sdb1 rw\n"
        f"32 22 8:2 / {tmp_path}/usb rw - xfs /dev/sdc1 rw\n"
        "a line of another kind\n"
    )
    assert _mounted(tmp_path / "usb stick" / "below", table) == (f"{tmp_path}/usb stick", "vfat")
    assert _mounted(tmp_path / "usb", table) == (f"{tmp_path}/usb", "xfs")
    assert _mounted(tmp_path, table) == ("/", "ext4")
    assert _mounted(tmp_path, tmp_path / "missing") == ("", "")
    assert _mounted(Path("/dev/shm")) == ("/dev/shm", "tmpfs")


def test_this_host_is_read_as_it_is(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        host = read_host(tmp_path / "not" / "yet", now=datetime.now(UTC), python=(3, 11), ports=[port])
    assert host.busy_ports == (port,)
    assert host.writable
    assert not host.noexec
    assert host.free_bytes > 0
    assert host.glibc is not None
    assert host.glibc >= (2, 17)
    assert not (tmp_path / "not").exists()


def test_where_no_port_is_named_a_first_installation_asks_about_the_gateway_s_and_a_later_one_about_none(tmp_path):
    defaults = yaml.safe_load((Path(__file__).parents[3] / "bundle" / "defaults" / "appliance.yaml").read_text())
    assert defaults["listen"]["port"] == GATEWAY_PORT
    read = lambda: read_host(tmp_path, now=datetime.now(UTC), python=(3, 11)).ports  # noqa: E731
    assert read() == (GATEWAY_PORT,)
    (tmp_path / "current").symlink_to("releases/1.0.0")
    assert read() == ()
