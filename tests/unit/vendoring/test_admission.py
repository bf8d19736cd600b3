"""Admission: the policy judges what was found, every reason has its code, and honest wheels pass."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from appliance.errors import DocumentError, VendorError
from appliance.files import sha256_hex
from appliance.vendoring.admission import Admission, admit, judge
from appliance.vendoring.audit import audit
from appliance.vendoring.fetch import FetchedWheel
from appliance.vendoring.locks import Pin
from appliance.vendoring.native import url_hosts
from appliance.vendoring.policy import Policy
from appliance.vendoring.rules import Circumstances
from appliance.vendoring.targets import Target
from appliance.vendoring.wheel import Inspection, inspect_wheel
from tests.support.vendoring import WheelMaker, litellm_1_82_8

ROOT = Path(__file__).parents[3]
NOW = datetime(2026, 11, 23, tzinfo=UTC)
TARGET = Target("cp311-manylinux_x86_64", (3, 11), "x86_64", (2, 28))
REASON = "a reason long enough"


def policy(**rules: Any) -> Policy:
    return Policy.model_validate({"schema_version": 1, "ripening": {"minimum_days": 7}, **rules})


def look(maker: WheelMaker) -> Inspection:
    return inspect_wheel(maker.build(), maker.filename)


def codes(
    *wheels: Inspection,
    rules: Policy | None = None,
    target: Target | None = TARGET,
    told: dict[str, FetchedWheel] | None = None,
) -> list[str]:
    verdict = judge(wheels, Circumstances(rules or policy(), NOW, target, told or {}))
    return [refusal.code for refusal in verdict.refusals]


def told(wheel: Inspection, uploaded: str | None, *, yanked: bool = False) -> dict[str, FetchedWheel]:
    entry = FetchedWheel(
        name=wheel.name,
        version=wheel.version,
        filename=wheel.filename,
        sha256=wheel.sha256,
        size_bytes=wheel.size_bytes,
        uploaded=uploaded,
        yanked=yanked,
    )
    return {wheel.sha256: entry}


def test_an_honest_wheel_is_admitted():
    wheel = look(WheelMaker())
    assert codes(wheel, told=told(wheel, "2026-01-01T00:00:00Z")) == []


def test_the_shape_of_litellm_1_82_8_is_refused_under_any_name_and_version():
    poisoned = look(litellm_1_82_8())
    renamed = look(replace(litellm_1_82_8(), name="helpful", version="9.9"))
    assert codes(renamed) == ["VENDOR_STARTUP_FILE"]
    assert codes(poisoned) == ["VENDOR_STARTUP_FILE"]
    ours = Policy.read(ROOT / "vendor")
    assert sorted(set(codes(poisoned, rules=ours))) == ["VENDOR_STARTUP_FILE", "VENDOR_VULNERABLE"]


def test_a_startup_file_is_allowed_by_its_content_only():
    content = b"import harmless\n"
    rule = {"package": "honest", "path": "x.pth", "sha256": sha256_hex(content), "reason": REASON}
    allowed = policy(startup=[rule])
    assert codes(look(WheelMaker(files={"x.pth": content})), rules=allowed) == []
    assert codes(look(WheelMaker(files={"x.pth": content + b"#"})), rules=allowed) == ["VENDOR_STARTUP_FILE"]
    assert codes(look(WheelMaker(files={"y.pth": content})), rules=allowed) == ["VENDOR_STARTUP_FILE"]
    assert codes(look(WheelMaker("other", files={"x.pth": content})), rules=allowed) == ["VENDOR_STARTUP_FILE"]


def test_known_holes_are_refused_below_the_floor_and_not_above():
    floor = policy(refused_versions=[{"package": "Lite_LLM", "versions": "<1.84.0", "reason": REASON}])
    for version, refused in (("1.83.9", True), ("1.84.0rc1", True), ("1.84.0", False), ("2.0", False)):
        assert bool(codes(look(WheelMaker("lite-llm", version)), rules=floor)) is refused, version
    whole = policy(refused_packages={"ctx": REASON})
    assert codes(look(WheelMaker("ctx")), rules=whole) == ["VENDOR_VULNERABLE"]


def test_our_own_policy_refuses_the_malicious_releases_and_everything_below_the_fix():
    ours = Policy.read(ROOT / "vendor")
    for version in ("1.82.7", "1.82.8", "1.83.7"):
        assert "VENDOR_VULNERABLE" in codes(look(WheelMaker("litellm", version)), rules=ours)
    assert codes(look(WheelMaker("litellm", "1.106.2")), rules=ours) == []


def test_a_release_must_ripen_unless_a_reason_stands_in_the_policy():
    wheel = look(WheelMaker())
    assert codes(wheel, told=told(wheel, "2026-11-20T00:00:00Z")) == ["VENDOR_TOO_YOUNG"]
    assert codes(wheel, told=told(wheel, "2026-11-16T00:00:00+00:00")) == []
    assert codes(wheel, told=told(wheel, "2031-01-01T00:00:00Z")) == ["VENDOR_TOO_YOUNG"]
    past = Circumstances(policy(), datetime(1970, 1, 1, tzinfo=UTC), None, told(wheel, "2026-11-20T00:00:00Z"))
    assert "this host's clock says 1970-01-01" in judge([wheel], past).refusals[0].cause
    urgent = policy(ripening={"minimum_days": 7, "exempt": {"honest==1.0": REASON}})
    assert codes(wheel, rules=urgent, told=told(wheel, "2026-11-20T00:00:00Z")) == []
    newer = look(WheelMaker(version="1.0.1"))
    young = told(newer, "2026-11-20T00:00:00Z")
    assert codes(newer, rules=urgent, told=young) == ["VENDOR_TOO_YOUNG"], "a reason is for one version"


def test_an_unknown_age_is_reported_or_refused_as_the_policy_says():
    wheel = look(WheelMaker())
    verdict = judge([wheel], Circumstances(policy(), NOW, None, {}))
    assert not verdict.refusals
    assert "no index tells" in verdict.notices[0].text
    strict = policy(ripening={"minimum_days": 7, "unknown": "refuse"})
    assert codes(wheel, rules=strict) == ["VENDOR_AGE_UNKNOWN"]
    assert codes(wheel, rules=strict, told=told(wheel, None)) == ["VENDOR_AGE_UNKNOWN"]


def test_a_withdrawn_release_is_refused_unless_a_reason_stands_in_the_policy():
    wheel = look(WheelMaker())
    withdrawn = told(wheel, "2026-01-01T00:00:00Z", yanked=True)
    assert codes(wheel, told=withdrawn) == ["VENDOR_YANKED"]
    assert codes(wheel, told=withdrawn, rules=policy(yanked={"honest": REASON})) == []


def test_files_outside_the_package_need_a_reason():
    wheel = look(WheelMaker(files={"honest-1.0.data/data/share/man/x.1": b""}))
    assert codes(wheel) == ["VENDOR_INSTALLS_OUTSIDE"]
    pages = policy(outside=[{"package": "honest", "prefix": "[data]/share/man/", "reason": REASON}])
    assert codes(wheel, rules=pages) == []
    more = look(WheelMaker(files={"honest-1.0.data/data/share/man/x.1": b"", "honest-1.0.data/data/etc/x": b""}))
    assert codes(more, rules=pages) == ["VENDOR_INSTALLS_OUTSIDE"]


def test_compiled_python_needs_a_reason():
    wheel = look(WheelMaker(files={"honest/__pycache__/a.cpython-311.pyc": b""}))
    assert codes(wheel) == ["VENDOR_BYTECODE"]
    assert codes(wheel, rules=policy(bytecode={"honest": REASON})) == []


@pytest.mark.parametrize(
    "header",
    ["License-Expression: AGPL-3.0-only", "License: GNU AGPL", "Classifier: License :: OSI Approved :: AGPLv3"],
)
def test_a_licence_the_owners_do_not_take_is_refused(header: str):
    wheel = look(WheelMaker(headers=(header,)))
    rules: dict[str, Any] = {"refused_licences": ["AGPL"]}
    assert codes(wheel, rules=policy(**rules)) == ["VENDOR_LICENCE"]
    assert codes(wheel, rules=policy(**rules, licence_exceptions={"honest": REASON})) == []
    assert codes(look(WheelMaker()), rules=policy(**rules)) == []


def library() -> bytes:
    spec = importlib.util.find_spec("markupsafe._speedups")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).read_bytes()


def test_a_library_for_another_machine_or_a_newer_glibc_is_refused_whatever_the_tag_promises():
    native = look(WheelMaker(tag="cp311-cp311-manylinux_2_17_x86_64", files={"honest/x.so": library()}))
    assert codes(native) == []
    known = f"GLIBC_{native.native[0].glibc}".encode()
    newer = library().replace(known + b"\0", b"GLIBC_2.99"[: len(known)].ljust(len(known), b"9") + b"\0")
    promising = look(WheelMaker(tag="cp311-cp311-manylinux_2_17_x86_64", files={"honest/x.so": newer}))
    assert codes(promising) == ["VENDOR_GLIBC"]
    assert codes(promising, target=None) == []
    arm = Target("arm", (3, 11), "aarch64", (2, 28))
    assert codes(native, target=arm) == ["VENDOR_TAG", "VENDOR_NATIVE"]
    disguised = look(WheelMaker(files={"honest/x.so": library()}))
    assert codes(disguised, target=arm) == ["VENDOR_NATIVE"]
    assert codes(look(WheelMaker(tag="cp312-cp312-manylinux_2_17_x86_64"))) == ["VENDOR_TAG"]


def test_a_native_library_that_knows_a_telemetry_host_is_refused_until_somebody_says_what_silences_it():
    """As onnxruntime 1.32 does, from threads that no guard within Python sees."""
    talking = library() + b"\0see https://docs.example.org/x\0https://mobile.events.data.example.com/1.0\0"
    wheel = look(WheelMaker(tag="cp311-cp311-manylinux_2_17_x86_64", files={"honest/x.so": talking}))
    assert set(wheel.native[0].hosts) == {"docs.example.org", "mobile.events.data.example.com"}
    assert codes(wheel) == []
    watching = {"telemetry_words": ["events"]}
    assert codes(wheel, rules=policy(**watching)) == ["VENDOR_PHONES_HOME"]
    known = {"package": "honest", "host": "mobile.events.data.example.com", "reason": REASON}
    assert codes(wheel, rules=policy(**watching, endpoints=[known])) == []
    assert codes(wheel, rules=policy(**watching, endpoints=[{**known, "package": "other"}])) == ["VENDOR_PHONES_HOME"]


@pytest.mark.parametrize(
    ("content", "hosts"),
    [
        (b"http://a.example.com", ("a.example.com",)),
        (b"HTTPS://A.Example.com:8443/x https://a.example.com\0", ("a.example.com",)),
        (b"ftp://a.example.com xhttp:// https://localhost/ https://10.0.0.1/ https://-", ()),
        (b"https://user@a.example.com https://%s.example.com ://://", ()),
        (b"https://" + b"a" * 70 + b".com", ()),
        (b"", ()),
    ],
)
def test_hosts_are_read_out_of_binaries(content: bytes, hosts: tuple[str, ...]):
    assert url_hosts(content) == hosts


def test_two_wheels_that_install_different_content_at_one_path_are_refused():
    one = look(WheelMaker("one", files={"shared/x.py": b"1"}))
    same = look(WheelMaker("same", files={"shared/x.py": b"1"}))
    other = look(WheelMaker("other", files={"shared/x.py": b"2"}))
    shouting = look(WheelMaker("shouting", files={"Shared/X.py": b"2"}))
    assert codes(one, same) == []
    assert codes(one, other) == ["VENDOR_COLLISION"]
    assert codes(one, shouting) == ["VENDOR_COLLISION"]
    assert codes(
        look(WheelMaker("a", entry_points="[console_scripts]\ntool = a:main\n")),
        look(WheelMaker("b", entry_points="[console_scripts]\ntool = b:main\n")),
    ) == ["VENDOR_COLLISION"]


def test_one_refusal_speaks_for_itself_and_several_are_named_together(tmp_path: Path):
    WheelMaker().write(tmp_path)
    assert len(admit(tmp_path, policy(), now=NOW).require()) == 1
    replace(litellm_1_82_8(), name="evil").write(tmp_path)
    with pytest.raises(VendorError) as caught:
        admit(tmp_path, policy(), now=NOW).require()
    assert caught.value.code == "VENDOR_STARTUP_FILE"
    (tmp_path / "broken-1.0-py3-none-any.whl").write_bytes(b"not a zip")
    with pytest.raises(VendorError) as caught:
        admit(tmp_path, policy(), now=NOW).require()
    assert caught.value.code == "VENDOR_NOT_ADMITTED"
    assert len(caught.value.evidence["refusals"]) == 2


def test_an_empty_folder_is_not_admitted(tmp_path: Path):
    with pytest.raises(VendorError) as caught:
        admit(tmp_path, policy(), now=NOW)
    assert caught.value.code == "VENDOR_EMPTY"


def test_a_link_in_the_folder_is_not_followed(tmp_path: Path):
    real = WheelMaker().write(tmp_path / "elsewhere")
    (tmp_path / real.name).symlink_to(real)
    assert [refusal.code for refusal in admit(tmp_path, policy(), now=NOW).refusals] == ["VENDOR_ARCHIVE"]


def locked(*makers: WheelMaker) -> list[Pin]:
    return [Pin(m.name, Version(m.version), frozenset({sha256_hex(m.build())})) for m in makers]


def test_only_locked_wheels_count_and_each_must_be_there_with_its_hash(tmp_path: Path):
    one, two = WheelMaker("one"), WheelMaker("two")
    one.write(tmp_path)
    litellm_1_82_8().write(tmp_path)  # belongs to nobody

    def verdict(*pins: Pin) -> Admission:
        return admit(tmp_path, policy(), now=NOW, pins=pins)

    assert [wheel.name for wheel in verdict(*locked(one)).require()] == ["one"]
    (missing,) = verdict(*locked(one, two)).refusals
    assert missing.code == "VENDOR_WHEEL_MISSING"
    assert missing.evidence["missing"] == ["two==1.0"]
    two.files["two/changed.py"] = b""
    pins = locked(one, WheelMaker("two"))
    two.write(tmp_path)
    assert [refusal.code for refusal in verdict(*pins).refusals] == ["VENDOR_HASH_MISMATCH"]


def test_a_policy_with_an_unknown_key_or_a_rule_without_a_reason_is_refused(tmp_path: Path):
    good = "schema_version: 1\nripening: {minimum_days: 3}\n"
    for text in (
        good + "outsied: []\n",
        good + "refused_versions: [{package: x, versions: '<1'}]\n",
        good + "refused_versions: [{package: x, versions: 'below 1', reason: because it is}]\n",
        good + "outside: [{package: x, prefix: '/', reason: because it is}]\n",
        good + "yanked: {x: why}\n",
        "schema_version: 1\n",
    ):
        (tmp_path / "policy.yaml").write_text(text)
        with pytest.raises(DocumentError) as caught:
            Policy.read(tmp_path)
        assert caught.value.code == "DOCUMENT_SCHEMA", text
    (tmp_path / "policy.yaml").write_text(good)
    assert Policy.read(tmp_path).ripening.minimum_days == 3


def test_an_audit_of_a_profile_finds_what_is_missing_for_the_oldest_patch_release(tmp_path: Path):
    """As happened with redis: it needs async-timeout on Python 3.11.0 to 3.11.2 only."""
    wheels, vendor = tmp_path / "wheels", tmp_path / "vendor"
    asks = WheelMaker(
        "asks", requires=('helper>=2; python_full_version < "3.11.3"', 'windows; sys_platform == "win32"')
    )
    helper = WheelMaker("helper", "2.0")
    (vendor / "requirements").mkdir(parents=True)
    (vendor / "requirements" / "gateway.in").write_text("asks  # the root\n")
    (vendor / "policy.yaml").write_text("schema_version: 1\nripening: {minimum_days: 0}\n")
    (vendor / "targets.yaml").write_text(
        "schema_version: 1\ntargets:\n  t: {python: '3.11', architecture: x86_64, glibc: '2.28', profiles: "
        "{gateway: [gateway.lock]}}\n"
    )

    def lock(*makers: WheelMaker) -> None:
        text = "".join(f"{m.name}=={m.version} --hash=sha256:{sha256_hex(m.build())}\n" for m in makers)
        (vendor / "requirements" / "gateway.lock").write_text(text)
        for maker in makers:
            maker.write(wheels)

    lock(asks)
    found = audit(wheels, vendor, profile="gateway", target="t", now=NOW).admission.refusals
    assert [refusal.code for refusal in found] == ["VENDOR_DEPENDENCY"]
    assert 'helper>=2; python_full_version < "3.11.3"' in found[0].evidence["unmet"]
    lock(asks, helper)
    assert not audit(wheels, vendor, profile="gateway", target="t", now=NOW).admission.refusals
    stray = WheelMaker("stray")
    lock(asks, helper, stray)
    assert audit(wheels, vendor, profile="gateway", target="t", now=NOW).unneeded == ("stray",)
