"""Targets and selection: the wheel that runs there, or a reason for every one that does not."""

from __future__ import annotations

import pytest
from packaging.version import Version

from appliance.errors import VendorError
from appliance.vendoring.locks import Pin
from appliance.vendoring.pages import IndexFile
from appliance.vendoring.selection import best, rank, select, wheel_name
from appliance.vendoring.targets import Target

X86 = Target("cp311-manylinux_x86_64", (3, 11), "x86_64", (2, 28))
ARM = Target("cp312-manylinux_aarch64", (3, 12), "aarch64", (2, 28))
A, B = "a" * 64, "b" * 64


def fits(filename: str, target: Target) -> bool:
    name = wheel_name(filename)
    assert name is not None
    return rank(name, target) is not None


@pytest.mark.parametrize(
    ("tag", "x86", "arm"),
    [
        ("py3-none-any", True, True),
        ("py2.py3-none-any", True, True),
        ("cp311-cp311-manylinux_2_28_x86_64", True, False),
        ("cp311-cp311-manylinux_2_29_x86_64", False, False),
        ("cp311-cp311-manylinux2014_x86_64", True, False),
        ("cp311-cp311-manylinux1_x86_64", True, False),
        ("cp39-abi3-manylinux_2_17_aarch64", False, True),
        ("cp312-abi3-manylinux_2_17_x86_64", False, False),
        ("cp312-cp312-manylinux_2_17_aarch64.manylinux2014_aarch64", False, True),
        ("cp311-cp311-musllinux_1_2_x86_64", False, False),
        ("cp311-cp311-linux_x86_64", False, False),
        ("cp311-cp311-win_amd64", False, False),
        ("cp312-cp312t-manylinux_2_17_aarch64", False, False),
    ],
)
def test_a_target_takes_the_wheels_its_oldest_host_can_run(tag: str, x86: bool, arm: bool):
    assert fits(f"foo-1-{tag}.whl", X86) is x86
    assert fits(f"foo-1-{tag}.whl", ARM) is arm


def test_the_most_specific_wheel_with_a_locked_hash_is_chosen():
    pin = Pin("foo", Version("1"), frozenset({A}))
    plain = IndexFile("foo-1-py3-none-any.whl", "u", A)
    native = IndexFile("foo-1-cp311-cp311-manylinux2014_x86_64.whl", "u", A)
    newer = IndexFile("foo-1-cp311-cp311-manylinux_2_28_x86_64.whl", "u", A)
    unlocked = IndexFile("foo-1-2-cp311-cp311-manylinux_2_28_x86_64.whl", "u", B)
    other = IndexFile("foo-2-cp311-cp311-manylinux_2_28_x86_64.whl", "u", A)
    assert best(pin, [plain, native], X86) is native
    assert best(pin, [plain, native, newer, unlocked, other], X86) is newer
    assert best(pin, [plain, native], ARM) is plain
    assert best(pin, [native], ARM) is None
    assert best(pin, [unlocked, other], X86) is None


class _Offers:
    """An index that is a dictionary: `select` asks for nothing else."""

    def __init__(self, offers: dict[str, list[IndexFile]]) -> None:
        self._offers = offers

    def files(self, name: str) -> list[IndexFile]:
        return self._offers.get(name, [])


def test_every_package_without_a_fitting_wheel_is_named_at_once_with_its_reason():
    def pin(name: str) -> Pin:
        return Pin(name, Version("1"), frozenset({A}))

    offers = _Offers(
        {
            "good": [IndexFile("good-1-py3-none-any.whl", "u", A)],
            "source": [IndexFile("source-1.tar.gz", "u", A)],
            "windows": [IndexFile("windows-1-cp311-cp311-win_amd64.whl", "u", A)],
            "modern": [IndexFile("modern-1-cp311-cp311-manylinux_2_34_x86_64.whl", "u", A)],
            "python": [IndexFile("python-1-py3-none-any.whl", "u", A, requires_python=">=3.12")],
            "swapped": [IndexFile("swapped-1-py3-none-any.whl", "u", B)],
            "older": [IndexFile("older-0.9-py3-none-any.whl", "u", A)],
        }
    )
    names = ["good", "source", "windows", "modern", "python", "swapped", "older", "unknown"]
    with pytest.raises(VendorError) as caught:
        select([pin(name) for name in names], X86, offers)  # type: ignore[arg-type]
    assert caught.value.code == "VENDOR_WHEEL_MISSING"
    missing = caught.value.evidence["missing"]
    assert set(missing) == {f"{name}==1" for name in names[1:]}
    assert "source archive" in missing["source==1"]
    assert "win_amd64" in missing["windows==1"]
    assert "glibc 2.28" in missing["modern==1"]
    assert "manylinux_2_34" in missing["modern==1"]
    assert ">=3.12" in missing["python==1"]
    assert "not in the lock" in missing["swapped==1"]
    assert "this version" in missing["older==1"]
    assert "does not know" in missing["unknown==1"]
    assert [chosen.file.filename for chosen in select([pin("good")], X86, offers)] == ["good-1-py3-none-any.whl"]  # type: ignore[arg-type]


def test_packages_that_exist_as_source_only_have_their_own_code():
    offers = _Offers({"foo": [IndexFile("foo-1.tar.gz", "u", A)]})
    with pytest.raises(VendorError) as caught:
        select([Pin("foo", Version("1"), frozenset({A}))], X86, offers)  # type: ignore[arg-type]
    assert caught.value.code == "VENDOR_SDIST_ONLY"


def test_a_series_is_not_refused_for_asking_for_a_patch_release():
    pin = Pin("foo", Version("1"), frozenset({A}))
    assert best(pin, [IndexFile("foo-1-py3-none-any.whl", "u", A, requires_python=">=3.11.4,!=3.11.5")], X86)
    assert not best(pin, [IndexFile("foo-1-py3-none-any.whl", "u", A, requires_python="nonsense")], X86)
