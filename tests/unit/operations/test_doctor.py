"""Every check, once healthy and once for every way in which it can be ill."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from appliance.errors import GatewayError, TrustError, catalogue
from appliance.operations.doctor import report
from appliance.operations.doctor.checks import CHECKS, examine, service
from appliance.operations.doctor.finding import Severity, critical, fine, unknown, warning, worst
from appliance.operations.doctor.snapshot import (
    Attempt,
    Certificate,
    Channel,
    Drift,
    FileMode,
    Kernel,
    Listener,
    Snapshot,
    Trust,
    Volume,
)
from appliance.registry import faults

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
DAY = timedelta(days=1)
GB = 10**9


def deployments(*out):
    rest = {"small": "cooling down after status 500, 3 s left", "large": "open: unreachable, next try in 2.5 s"}
    members = [{"id": n, "out_on": int(n in out), "rest": rest[n] if n in out else ""} for n in ("small", "large")]
    return {"deployments": members}


def gateway(**changes):
    router = {
        "mode": "ml", "digests": ["ab"], "converged": True, "problem": None,
        "serving": {"artifact": "default 1.0.0", "digest": "ab"},
    }  # fmt: skip
    status = {
        "ready": True,
        "workers": [
            {
                "worker": 0, "version": "0.1.0", "ready": True,
                "ml_path": {
                    "breaker": {"state": "closed", "opened_count": 0, "last_reason": None, "retry_in_s": 0}
                },
            }
        ],
        "routers": {"default": router},
        "groups": {"chat": deployments()},
    }  # fmt: skip
    return {**status, **changes}


HEALTHY = Snapshot(
    at=NOW,
    uid=990,
    trust=Trust(
        {"root": NOW + 400 * DAY, "timestamp": NOW + 60 * DAY},
        {"root": 1, "timestamp": 7},
        {"signing CA 1": NOW + 800 * DAY, "log ab": None},
        NOW - DAY,
    ),
    volumes=(Volume(Path("/opt/appliance/state"), 50 * GB, 100 * GB, 900, 1000),),
    certificates=(Certificate("gateway", Path("gateway.pem"), "CN=gw", "CN=ca", NOW - 30 * DAY, NOW + 60 * DAY),),
    drift=Drift("0.1.0-abc", "release-signer@appliance.internal", 3000, deep=False),
    modes=(
        FileMode(Path("master.key"), "secret", 0o600, 990),
        FileMode(Path("state"), "state", 0o700, 990),
        FileMode(Path("current/env"), "release", 0o755, 0),
    ),
    kernel=Kernel("6.8.0", 4, True, True, True, 0, 1),
    listeners=(
        Listener("127.0.0.1", 5432, "postgres"),
        Listener("10.0.0.5", 8443, "appliance"),
        Listener("0.0.0.0", 22),
    ),
    egress=(Attempt("192.0.2.1", "no route"),),
    channels=(Channel("default", "1.0.0", 4, NOW - timedelta(seconds=20), NOW + 90 * DAY),),
    gateway=gateway(),
    expected_ports=frozenset({8443}),
)


def findings(**changes):
    return examine(replace(HEALTHY, **changes))


def ill(**changes):
    return {(f.check, f.severity.word, f.code) for f in findings(**changes) if f.severity is not Severity.OK}


def test_a_healthy_appliance_has_nothing_to_say_and_every_check_says_so():
    said = findings()
    assert worst(said) is Severity.OK
    assert {f.check for f in said} == {
        "gateway", "routers", "breaker", "deployments", "registry", "trust-metadata", "trust-keys", "clock",
        "certificates", "drift", "installation", "disk", "permissions", "kernel", "ports", "egress",
    }  # fmt: skip
    assert len(CHECKS) == 17


TRUST = HEALTHY.trust
CERTIFICATE = HEALTHY.certificates[0]
VOLUME = HEALTHY.volumes[0]
DRIFT = HEALTHY.drift
CHANNEL = HEALTHY.channels[0]
KERNEL = HEALTHY.kernel


def router(**changes):
    return gateway(routers={"default": {**gateway()["routers"]["default"], **changes}})


def following(age_s):
    status = gateway()
    channel = {"name": "default", "epoch": 3, "version": "1.0.0", "contact_age_s": age_s, "problem": None}
    status["workers"][0]["routers"] = {"default": {"channel": channel}}
    return status


def behind_a_sidecar(age_s, problem=None):
    status = following(age_s)
    status["workers"][0]["routers"]["default"]["channel"] |= {"heard_by": "sidecar", "problem": problem}
    return status


def test_a_registry_behind_a_sidecar_is_told_once_by_whoever_knows_more():
    stale = replace(CHANNEL, contact=NOW - timedelta(hours=1))
    here = findings(gateway=behind_a_sidecar(3600), channels=(stale,))
    assert [f.code for f in here if f.check == "registry"] == ["OPERATION_REGISTRY_AGE"]
    elsewhere = findings(gateway=behind_a_sidecar(3600), channels=())  # the sidecar of another host fills the volume
    assert [f.code for f in elsewhere if f.check == "registry"] == ["OPERATION_REGISTRY_AGE"]


def test_a_sidecar_that_tells_nothing_is_not_called_a_registry_that_was_never_reached():
    found = [f for f in findings(gateway=behind_a_sidecar(None, "REGISTRY_SIDECAR"), channels=()) if f.code]
    assert [f.code for f in found] == ["OPERATION_REGISTRY_AGE"]
    assert "is not known" in found[0].text


def test_a_registry_that_nobody_reaches_is_told_as_that_and_not_as_a_router_that_was_refused():
    assert faults.UNAVAILABLE | {"REGISTRY_BREAKER_OPEN"} == service.OUT_OF_REACH
    status = {
        **following(3600),
        "routers": router(problem={"code": "REGISTRY_UNREACHABLE", "cause": "dead"})["routers"],
    }
    found = [f.code for f in findings(gateway=status) if f.severity is not Severity.OK]
    assert found == ["OPERATION_REGISTRY_AGE"]


def open_breaker():
    status = gateway()
    status["workers"][0]["ml_path"]["breaker"] |= {"state": "open", "last_reason": "deadline"}
    return status


ILLNESSES = {
    "the gateway does not answer": (
        {"gateway": GatewayError("GATEWAY_NOT_RUNNING", "no answer")},
        ("gateway", "critical", "OPERATION_GATEWAY_DOWN"),
    ),
    "a worker is not ready": (
        {"gateway": gateway(ready=False, workers=[{**gateway()["workers"][0], "ready": False}])},
        ("gateway", "warning", "OPERATION_GATEWAY_NOT_READY"),
    ),
    "a router serves nothing": (
        {"gateway": router(serving=None, problem={"code": "TRUST_LOG_PROOF", "cause": "bad"})},
        ("routers", "critical", "OPERATION_ROUTER_STATIC"),
    ),
    "a newer router was refused": (
        {"gateway": router(problem={"code": "GATEWAY_CANARY", "cause": "differs"})},
        ("routers", "warning", "OPERATION_ROUTER_REFUSED"),
    ),
    "workers serve different routers": (
        {"gateway": router(converged=False)},
        ("routers", "warning", "OPERATION_ROUTER_DIFFERS"),
    ),
    "the breaker is open": ({"gateway": open_breaker()}, ("breaker", "warning", "OPERATION_BREAKER_OPEN")),
    "one model server fails": (
        {"gateway": gateway(groups={"chat": deployments("small")})},
        ("deployments", "warning", "OPERATION_COOLDOWN"),
    ),
    "all model servers fail": (
        {"gateway": gateway(groups={"chat": deployments("small", "large")})},
        ("deployments", "critical", "OPERATION_COOLDOWN"),
    ),
    "the registry is silent for an hour": (
        {"channels": (replace(CHANNEL, contact=NOW - timedelta(hours=1)),)},
        ("registry", "warning", "OPERATION_REGISTRY_AGE"),
    ),
    "the registry is silent for days": (
        {"channels": (replace(CHANNEL, contact=NOW - 3 * DAY),)},
        ("registry", "critical", "OPERATION_REGISTRY_AGE"),
    ),
    "the registry was never reached": (
        {"channels": (replace(CHANNEL, contact=None),)},
        ("registry", "critical", "OPERATION_REGISTRY_AGE"),
    ),
    "the gateway's own registry is silent for an hour": (
        {"gateway": following(3600)},
        ("registry", "warning", "OPERATION_REGISTRY_AGE"),
    ),
    "the gateway's own registry was never reached": (
        {"gateway": following(None)},
        ("registry", "critical", "OPERATION_REGISTRY_AGE"),
    ),
    "a pointer ends soon": (
        {"channels": (replace(CHANNEL, expires=NOW + 5 * DAY),)},
        ("registry", "warning", "OPERATION_CHANNEL_EXPIRES"),
    ),
    "trust metadata ends soon": (
        {"trust": replace(TRUST, expires={"timestamp": NOW + 10 * DAY})},
        ("trust-metadata", "warning", "OPERATION_TRUST_EXPIRES"),
    ),
    "trust metadata has ended": (
        {"trust": replace(TRUST, expires={"timestamp": NOW - DAY})},
        ("trust-metadata", "critical", "OPERATION_TRUST_EXPIRED"),
    ),
    "a signing key ends soon": (
        {"trust": replace(TRUST, keys_expire={"log ab": NOW + 10 * DAY})},
        ("trust-keys", "warning", "OPERATION_KEY_EXPIRES"),
    ),
    "the clock stands in 1970": ({"at": datetime(1970, 1, 1, tzinfo=UTC)}, ("clock", "critical", "OPERATION_CLOCK")),
    "the clock is an hour behind a proven time": (
        {"trust": replace(TRUST, floor=NOW + timedelta(hours=1))},
        ("clock", "warning", "OPERATION_CLOCK"),
    ),
    "a certificate ends in days": (
        {"certificates": (replace(CERTIFICATE, not_after=NOW + 10 * DAY),)},
        ("certificates", "warning", "OPERATION_CERTIFICATE_EXPIRES"),
    ),
    "a certificate ends tomorrow": (
        {"certificates": (replace(CERTIFICATE, not_after=NOW + DAY),)},
        ("certificates", "critical", "OPERATION_CERTIFICATE_EXPIRES"),
    ),
    "a certificate has ended": (
        {"certificates": (replace(CERTIFICATE, not_after=NOW - DAY),)},
        ("certificates", "critical", "OPERATION_CERTIFICATE_EXPIRED"),
    ),
    "a certificate is not valid yet": (
        {"certificates": (replace(CERTIFICATE, not_before=NOW + DAY),)},
        ("certificates", "critical", "OPERATION_CERTIFICATE_CHAIN"),
    ),
    "a certificate and its key do not belong together": (
        {"certificates": (replace(CERTIFICATE, problem="key.pem is not its key"),)},
        ("certificates", "critical", "OPERATION_CERTIFICATE_CHAIN"),
    ),
    "an installed file was changed": (
        {"drift": replace(DRIFT, changed=("payload/a",))},
        ("drift", "critical", "OPERATION_DRIFT"),
    ),
    "an installed file is missing": (
        {"drift": replace(DRIFT, missing=("payload/a",))},
        ("drift", "critical", "OPERATION_DRIFT"),
    ),
    "a file stands among ours": (
        {"drift": replace(DRIFT, foreign=("env/evil.pth",))},
        ("drift", "critical", "OPERATION_DRIFT"),
    ),
    "the manifest's signature does not verify": (
        {"drift": replace(DRIFT, signature_problem=TrustError("TRUST_DENIED", "denied"))},
        ("drift", "critical", "OPERATION_DRIFT"),
    ),
    "an installation is half done": (
        {"unfinished": "0.2.0-def"},
        ("installation", "warning", "OPERATION_INSTALL_UNFINISHED"),
    ),
    "the disk gets full": ({"volumes": (replace(VOLUME, free_bytes=GB),)}, ("disk", "warning", "OPERATION_DISK_LOW")),
    "the disk is full": ({"volumes": (replace(VOLUME, free_bytes=10**7),)}, ("disk", "critical", "OPERATION_DISK_LOW")),
    "the inodes run out": ({"volumes": (replace(VOLUME, free_inodes=10),)}, ("disk", "warning", "OPERATION_DISK_LOW")),
    "the state became read-only": (
        {"volumes": (replace(VOLUME, read_only=True),)},
        ("disk", "critical", "OPERATION_DISK_READ_ONLY"),
    ),
    "others can read a secret": (
        {"modes": (FileMode(Path("master.key"), "secret", 0o640, 990),)},
        ("permissions", "critical", "OPERATION_PERMISSIONS"),
    ),
    "others can write the code": (
        {"modes": (FileMode(Path("env"), "release", 0o777, 0),)},
        ("permissions", "warning", "OPERATION_PERMISSIONS"),
    ),
    "a stranger owns the state": (
        {"modes": (FileMode(Path("state"), "state", 0o700, 1234),)},
        ("permissions", "warning", "OPERATION_PERMISSIONS"),
    ),
    "the kernel has no Landlock": (
        {"kernel": replace(KERNEL, landlock_abi=0)},
        ("kernel", "warning", "OPERATION_KERNEL"),
    ),
    "the kernel has no seccomp": (
        {"kernel": replace(KERNEL, seccomp=False)},
        ("kernel", "warning", "OPERATION_KERNEL"),
    ),
    "crashes would be dumped": (
        {"kernel": replace(KERNEL, core_limit_bytes=1 << 40)},
        ("kernel", "warning", "OPERATION_CORE_DUMPS"),
    ),
    "something else listens": (
        {"listeners": (Listener("0.0.0.0", 6379, "redis"),)},
        ("ports", "warning", "OPERATION_LISTENING"),
    ),
    "a packet gets out": (
        {"egress": (Attempt("203.0.113.9:443", "connected"),)},
        ("egress", "critical", "OPERATION_EGRESS"),
    ),
    "a host outside refuses, so it was reached": (
        {"egress": (Attempt("203.0.113.9:443", "ECONNREFUSED"),)},
        ("egress", "critical", "OPERATION_EGRESS"),
    ),
}


@pytest.mark.parametrize("illness", ILLNESSES)
def test_each_illness_is_found_and_nothing_else(illness):
    changes, expected = ILLNESSES[illness]
    found = ill(**changes)
    if illness == "the clock stands in 1970":  # then nobody knows how long ago the registry answered
        found -= {("registry", "warning", "OPERATION_REGISTRY_AGE")}
    assert found == {expected}


SICK = {
    "volumes": (replace(VOLUME, free_bytes=0),),
    "certificates": (replace(CERTIFICATE, not_after=NOW - 2 * DAY),),
    "channels": (replace(CHANNEL, contact=NOW - 3 * DAY, expires=NOW - 2 * DAY),),
    "drift": replace(DRIFT, changed=("payload/scripts/restore",)),
    "listeners": (Listener("0.0.0.0", 4444, "nc"),),
    "gateway": GatewayError("GATEWAY_BOOTING", "its control socket does not answer"),
}
SEEN = {
    ("clock", "OPERATION_CLOCK"), ("disk", "OPERATION_DISK_LOW"), ("certificates", "OPERATION_CERTIFICATE_EXPIRED"),
    ("registry", "OPERATION_REGISTRY_AGE"), ("registry", "OPERATION_CHANNEL_EXPIRES"), ("drift", "OPERATION_DRIFT"),
    ("ports", "OPERATION_LISTENING"), ("gateway", "OPERATION_GATEWAY_DOWN"),
}  # fmt: skip


@pytest.mark.parametrize("at", [datetime(1970, 1, 1, tzinfo=UTC), datetime(2099, 1, 1, tzinfo=UTC)])
def test_when_everything_is_wrong_at_once_nothing_hides_anything_else(at):
    assert {(check, code) for check, _, code in ill(**SICK, at=at)} == SEEN


def test_a_clock_that_cannot_be_right_neither_ends_nor_revives_what_is_judged_by_the_proven_time():
    for at in (datetime(1970, 1, 1, tzinfo=UTC), datetime(2099, 1, 1, tzinfo=UTC)):
        found = {f.check for f in findings(at=at) if f.severity is not Severity.OK}
        assert found == {"clock", "registry"}, at


def test_a_clock_of_1970_is_named_where_the_trust_state_cannot_be_read():
    broken = TrustError("TRUST_STATE_DAMAGED", "a file of the trust state is not what was written")
    found = ill(trust=broken, at=datetime(1970, 1, 1, tzinfo=UTC))
    assert ("clock", "critical", "OPERATION_CLOCK") in found
    assert ("trust-metadata", "unknown", "TRUST_STATE_DAMAGED") in found


def test_only_where_releases_go_there_must_be_room_for_one():
    temporary = Volume(Path("/tmp"), 2 * GB, 3 * GB, releases=False)
    assert not ill(volumes=(VOLUME, temporary))
    assert ill(volumes=(VOLUME, replace(temporary, releases=True))) == {("disk", "warning", "OPERATION_DISK_LOW")}
    assert ill(volumes=(replace(temporary, free_bytes=GB // 3),)) == {("disk", "warning", "OPERATION_DISK_LOW")}


def test_a_manifest_that_does_not_verify_hides_no_changed_file():
    unsigned = TrustError("TRUST_SIGNATURE", "the signature does not fit")
    drifted = replace(DRIFT, changed=("payload/scripts/restore",), signature_problem=unsigned)
    first, second = [f for f in findings(drift=drifted) if f.check == "drift"]
    assert "does not verify" in first.text
    assert second.evidence["changed"] == ["payload/scripts/restore"]
    assert "its manifest says" in second.text


def test_a_gateway_that_reaches_its_registry_is_well():
    assert not ill(gateway=following(2.5))


def test_every_illness_comes_with_evidence_and_a_remedy_to_type():
    for changes, (check, _, code) in ILLNESSES.values():
        (finding,) = [f for f in findings(**changes) if f.check == check and f.code == code]
        assert finding.remedy
        assert finding.evidence
        assert code in catalogue()


def test_facts_that_could_not_be_had_are_unknown_and_not_well():
    lost = TrustError("TRUST_STATE_MISSING", "no state")
    found = ill(trust=lost, drift=lost, channels=lost, certificates=lost)
    assert {severity for _, severity, _ in found} == {"unknown"}
    assert {check for check, _, _ in found} == {"trust-metadata", "drift", "registry", "certificates"}


def test_unknown_outranks_a_warning_but_not_a_known_breakage():
    lost = unknown("a", TrustError("TRUST_STATE_MISSING", "no state"))
    warned = warning("b", "OPERATION_DISK_LOW", "low")
    assert worst([lost, warned]) is Severity.UNKNOWN
    assert worst([lost, warned, critical("c", "OPERATION_DISK_LOW", "full")]) is Severity.CRITICAL


def test_a_model_server_that_is_left_out_is_named_with_what_it_did():
    said = next(f for f in findings(gateway=gateway(groups={"chat": deployments("large")})) if f.check == "deployments")
    assert said.evidence == {"ids": ["large"], "why": ["large: open: unreachable, next try in 2.5 s"]}


def test_a_default_route_alone_is_no_illness_but_is_told():
    (said,) = [f for f in findings(egress=(Attempt("192.0.2.1", "routed"),)) if f.check == "egress"]
    assert said.severity is Severity.OK
    assert "--probe" in said.text


def test_a_certificate_that_no_runbook_renews_says_who_does_and_where_it_belongs():
    ending = replace(CERTIFICATE, use="telemetry client", path=Path("/etc/t.pem"), not_after=NOW + 2 * DAY)
    (said,) = [f for f in findings(certificates=(ending,)) if f.check == "certificates"]
    assert "issuer" in said.remedy
    assert "/etc/t.pem" in said.remedy


@pytest.mark.parametrize("days", [1, 6])
def test_a_short_lived_certificate_is_not_warned_about_all_its_life(days):
    fresh = replace(CERTIFICATE, not_before=NOW - timedelta(hours=1), not_after=NOW + days * DAY)
    assert not ill(certificates=(fresh,))


@pytest.mark.parametrize(
    ("said", "word", "status"),
    [
        ([fine("a", "well")], "OK", 0),
        ([fine("a", "well"), warning("b", "OPERATION_DISK_LOW", "low")], "WARNING", 1),
        ([critical("b", "OPERATION_DISK_LOW", "full")], "CRITICAL", 2),
        ([unknown("a", TrustError("TRUST_STATE_MISSING", "no state"))], "UNKNOWN", 3),
    ],
)
def test_nagios_gets_one_line_and_its_own_exit_status(said, word, status):
    line = report.nagios_line(said)
    assert line.startswith(f"APPLIANCE {word} - ")
    assert line.count("|") == 1
    assert "\n" not in line
    assert report.exit_status(said, nagios=True) == status
    assert report.exit_status(said, nagios=False) == min(status, 1)


def test_a_finding_cannot_break_out_of_the_nagios_line():
    line = report.nagios_line([warning("a", "OPERATION_LISTENING", "evil|ok=0\nAPPLIANCE OK - all well")])
    assert line.count("|") == 1
    assert "\n" not in line


def test_metrics_give_the_worst_of_each_check():
    text = report.prometheus_text(
        [fine("disk", "a"), critical("disk", "OPERATION_DISK_LOW", "b"), fine("clock", "c")], NOW
    )
    assert 'appliance_doctor_severity{check="disk"} 2\n' in text
    assert 'appliance_doctor_severity{check="clock"} 0\n' in text
    assert f"appliance_doctor_last_run_timestamp_seconds {NOW.timestamp():.0f}\n" in text


def test_findings_are_json():
    assert json.loads(json.dumps([f.as_dict() for f in findings()], default=str))
