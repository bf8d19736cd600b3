"""Locks: only pinned, hashed, named packages stand in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.errors import VendorError
from appliance.vendoring.locks import merged, parse_lock, read_lock
from appliance.vendoring.targets import Targets

ROOT = Path(__file__).parents[3]
A, B = "a" * 64, "b" * 64


def refused(text: str) -> str:
    with pytest.raises(VendorError) as caught:
        parse_lock(text.encode(), name="x.lock")
    return caught.value.code


def test_a_lock_as_pip_tools_writes_it_is_read():
    text = (
        f"# header\nFoo.Bar==1.0 ; python_version < '3.12' \\\n    --hash=sha256:{A} \\\n    --hash=sha256:{B}\n"
        f"    # via -r x.in\ntorch==2.13.0+cpu \\\n    --hash=sha256:{A}\n    # via\n    #   foo\n\n"
        "# WARNING: text\n# torch\n"
    )
    lock = parse_lock(text.encode(), name="x.lock")
    assert [str(pin) for pin in lock.pins] == ["foo-bar==1.0", "torch==2.13.0+cpu"]
    assert lock.pins[0].hashes == {A, B}
    assert lock.pins[0].applies({"python_version": "3.11"})
    assert not lock.pins[0].applies({"python_version": "3.12"})


@pytest.mark.parametrize(
    "text",
    [
        f"--index-url https://example.org/simple\nfoo==1 --hash=sha256:{A}",
        f"--extra-index-url https://example.org\nfoo==1 --hash=sha256:{A}",
        f"foo>=1 --hash=sha256:{A}",
        f"foo --hash=sha256:{A}",
        f"foo @ https://example.org/foo.whl --hash=sha256:{A}",
        f"https://example.org/foo.whl --hash=sha256:{A}",
        f"./foo.whl --hash=sha256:{A}",
        "-e .",
        "-r other.txt",
        f"foo==1.* --hash=sha256:{A}",
        f"foo==1 --hash=sha256:{A}\nFOO==1 --hash=sha256:{A}",
        f"foo==1 ; nonsense --hash=sha256:{A}",
        "",
        "\xff",
    ],
)
def test_anything_but_a_pinned_package_is_refused(text: str):
    assert refused(text) == "VENDOR_LOCK_MALFORMED"


@pytest.mark.parametrize(
    "text",
    [
        "foo==1",
        f"foo==1 --hash=md5:{A}",
        f"foo==1 --hash=sha256:{A[:-1]}",
        f"foo==1 --hash=sha256:{A} --global-option=x",
        f"foo==1 --hash=sha256:{A} --no-deps",
    ],
)
def test_a_package_without_its_hashes_and_nothing_else_is_refused(text: str):
    assert refused(text) == "VENDOR_LOCK_UNHASHED"


@pytest.mark.parametrize("name", ["nvidia-cublas", "cuda-toolkit", "triton", "NVIDIA_cudnn_cu13"])
def test_packages_of_a_cuda_build_are_refused(name: str):
    assert refused(f"{name}==1 --hash=sha256:{A}") == "VENDOR_LOCK_FOREIGN"


def test_two_locks_that_pin_a_package_differently_are_refused():
    one = parse_lock(f"foo==1 --hash=sha256:{A}".encode(), name="one.lock")
    two = parse_lock(f"foo==2 --hash=sha256:{A}".encode(), name="two.lock")
    assert [str(pin) for pin in merged([one, one])] == ["foo==1"]
    with pytest.raises(VendorError) as caught:
        merged([one, two])
    assert caught.value.code == "VENDOR_LOCK_CONFLICT"


def test_the_projects_own_locks_agree_with_each_other_and_hold_the_cpu_build_of_torch():
    requirements = ROOT / "vendor" / "requirements"
    locks = {name: read_lock(requirements / f"{name}.lock") for name in ("gateway", "torch", "training", "dev")}
    assert [str(pin.version) for pin in locks["torch"].pins] == ["2.13.0+cpu"]
    everything = merged(locks.values())
    assert len(everything) > len(locks["gateway"].pins) > 150
    assert {pin.name for pin in locks["gateway"].pins} < {pin.name for pin in locks["training"].pins}
    assert {pin.name for pin in locks["training"].pins} < {pin.name for pin in locks["dev"].pins}


def test_a_profile_or_target_that_does_not_exist_is_refused_with_the_list_of_those_that_do():
    targets = Targets.read(ROOT / "vendor")
    with pytest.raises(VendorError) as caught:
        targets.target("cp39-windows")
    assert caught.value.code == "VENDOR_UNKNOWN_TARGET"
    assert "cp311-manylinux_x86_64" in caught.value.evidence["known"]
    with pytest.raises(VendorError) as caught:
        targets.pins("training", "cp312-manylinux_aarch64")
    assert caught.value.code == "VENDOR_UNKNOWN_PROFILE"
    assert targets.pins("gateway", "cp312-manylinux_aarch64")
