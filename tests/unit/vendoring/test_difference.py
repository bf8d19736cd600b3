"""The difference to the previous release: what an approver must not miss stands first."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.errors import VendorError
from appliance.vendoring.difference import Difference, compare, read_report, summary, write_report
from appliance.vendoring.wheel import Inspection, inspect_wheel
from tests.support.vendoring import WheelMaker


def look(*makers: WheelMaker) -> list[Inspection]:
    return [inspect_wheel(maker.build(), maker.filename) for maker in makers]


def kinds(differences: list[Difference]) -> list[tuple[str, str]]:
    return [(difference.kind, difference.package) for difference in differences]


def test_the_same_wheels_do_not_differ():
    assert compare(look(WheelMaker("a"), WheelMaker("b")), look(WheelMaker("b"), WheelMaker("a"))) == []


def test_new_removed_changed_and_rebuilt_distributions_are_told_apart():
    before = look(WheelMaker("gone"), WheelMaker("moved", "1.0"), WheelMaker("swapped"))
    after = look(WheelMaker("came"), WheelMaker("moved", "2.0"), WheelMaker("swapped", files={"swapped/x.py": b""}))
    found = compare(before, after)
    assert ("new", "came") in kinds(found)
    assert ("removed", "gone") in kinds(found)
    assert Difference("changed", "moved", "1.0 -> 2.0") in found
    assert ("rebuilt", "swapped") in kinds(found)
    weights = [difference.weighty for difference in found]
    assert weights == sorted(weights, reverse=True)


def test_what_a_package_newly_does_is_named():
    before = look(WheelMaker("a", "1.0"))
    after = look(
        WheelMaker(
            "a",
            "1.1",
            files={"a_init.pth": b"import os\n", "a-1.1.data/data/etc/x": b""},
            entry_points="[console_scripts]\ntool = a:main\n[pytest11]\nplug = a:plug\n",
            requires=("evil>=1", 'quiet; extra == "x"'),
            headers=("License-Expression: GPL-3.0-only",),
        )
    )
    found = compare(before, after)
    assert {kind for kind, _ in kinds(found)} == {
        "changed", "startup", "outside", "program", "plugin", "requires", "licence",
    }  # fmt: skip
    assert Difference("requires", "a", "evil>=1") in found
    assert not any("quiet" in difference.detail for difference in found)
    assert compare(after, after) == []


def test_what_a_new_package_brings_is_named_too():
    found = compare([], look(WheelMaker("a", files={"a.pth": b"import os\n"})))
    assert kinds(found) == [("new", "a"), ("startup", "a")]


def test_a_report_is_reproducible_and_stands_for_its_wheels():
    wheels = look(WheelMaker("a"), WheelMaker("b", files={"b.pth": b"import os\n"}))
    data = write_report(wheels)
    assert data == write_report(reversed(wheels))
    assert compare(read_report(data, what="r"), wheels) == []


@pytest.mark.parametrize(
    "data", [b"", b"{}", b'{"schema_version":2,"wheels":[]}', b'{"schema_version":1,"wheels":[{}]}']
)
def test_another_document_is_no_report(data: bytes):
    with pytest.raises(VendorError) as caught:
        read_report(data, what="r")
    assert caught.value.code == "VENDOR_REPORT"


def test_many_changes_of_one_kind_become_one_line():
    lines = list(summary([Difference("native", "torch", f"lib{n}.so") for n in range(30)]))
    assert len(lines) == 1
    assert "and 27 more" in lines[0]
    assert lines[0].startswith("!")


def test_a_rebuilt_bundled_library_is_not_called_new(tmp_path: Path):
    import importlib.util

    spec = importlib.util.find_spec("markupsafe._speedups")
    assert spec is not None
    assert spec.origin is not None
    library = Path(spec.origin).read_bytes()
    before = look(WheelMaker("a", "1.0", files={"a.libs/libz-0123abcd.so.1": library}))
    after = look(WheelMaker("a", "1.1", files={"a.libs/libz-ffff0000.so.1": library, "a.libs/libnew.so": library}))
    assert [d.detail for d in compare(before, after) if d.kind == "native"] == ["a.libs/libnew.so"]
