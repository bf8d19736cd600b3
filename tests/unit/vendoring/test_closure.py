"""Completeness: each requirement of each wheel, with its extras and markers, is met by the set."""

from __future__ import annotations

from pathlib import Path

import pytest
from packaging.requirements import Requirement

from appliance.errors import VendorError
from appliance.vendoring.closure import check_closure, read_requirements
from appliance.vendoring.targets import Target
from appliance.vendoring.wheel import inspect_wheel
from tests.support.vendoring import WheelMaker

X86 = Target("x86", (3, 11), "x86_64", (2, 28))
ARM = Target("arm", (3, 12), "aarch64", (2, 28))


def check(root: str, *makers: WheelMaker, target: Target = X86) -> tuple[str, ...]:
    wheels = [inspect_wheel(maker.build(), maker.filename) for maker in makers]
    return check_closure([Requirement(root)], wheels, target)


def unmet(root: str, *makers: WheelMaker, target: Target = X86) -> set[str]:
    with pytest.raises(VendorError) as caught:
        check(root, *makers, target=target)
    assert caught.value.code == "VENDOR_DEPENDENCY"
    return set(caught.value.evidence["unmet"])


def test_a_complete_set_passes_and_what_nobody_asks_for_is_named():
    a = WheelMaker("a", requires=("B.b>=1",))
    assert check("a", a, WheelMaker("b-b", requires=("a",)), WheelMaker("c")) == ("c",)


def test_every_unmet_requirement_is_named_at_once():
    a = WheelMaker("a", requires=("b", "c>=2", "d"))
    assert unmet("a", a, WheelMaker("c")) == {"b", "c>=2", "d"}
    assert unmet("a>1", a) == {"a>1"}


def test_extras_count_where_somebody_asks_for_them():
    a = WheelMaker("a", requires=('b; extra == "more"', 'c[deep]; extra == "More_Still"'))
    c = WheelMaker("c", requires=('d; extra == "deep"',))
    assert check("a", a) == ()
    assert unmet("a[more]", a) == {'b; extra == "more"'}
    assert unmet("a[more-still]", a, c) == {'d; extra == "deep"'}
    assert check("a[more-still]", a, c, WheelMaker("d")) == ()


def test_markers_are_those_of_the_target_not_of_this_machine():
    a = WheelMaker(
        "a", requires=('b; platform_machine == "aarch64"', 'c; python_version >= "3.12"', 'w; sys_platform == "win32"')
    )
    assert check("a", a, target=X86) == ()
    assert unmet("a", a, target=ARM) == {'b; platform_machine == "aarch64"', 'c; python_version >= "3.12"'}


def test_a_wheel_for_another_python_is_unmet():
    assert unmet("a", WheelMaker("a", requires_python=">=3.12"), target=X86) == {"a"}
    assert check("a", WheelMaker("a", requires_python=">=3.12"), target=ARM) == ()
    assert unmet("a", WheelMaker("a", requires_python="~~nonsense"), target=X86) == {"a"}


def test_a_requirement_that_cannot_be_read_is_refused():
    with pytest.raises(VendorError) as caught:
        check("a", WheelMaker("a", requires=("b ??",)))
    assert caught.value.code == "VENDOR_METADATA"


def test_the_inputs_are_read_with_what_they_include(tmp_path: Path):
    (tmp_path / "one.in").write_text("# comment\n-c torch.in\na[x]>=1  # why\n")
    (tmp_path / "two.in").write_text("-r one.in\nb\n")
    assert [str(requirement) for requirement in read_requirements(tmp_path / "two.in")] == ["a[x]>=1", "b"]
    (tmp_path / "two.in").write_text("--index-url https://example.org\n")
    with pytest.raises(VendorError) as caught:
        read_requirements(tmp_path / "two.in")
    assert caught.value.code == "VENDOR_LOCK_MALFORMED"
