"""Looking into a wheel: what contradicts itself is refused, what would act on the host is reported."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from appliance.errors import VendorError
from appliance.vendoring.native import read_native
from appliance.vendoring.wheel import Inspection, inspect_wheel
from tests.support.vendoring import WheelMaker, litellm_1_82_8, pack, record_line


def inspect(maker: WheelMaker) -> Inspection:
    return inspect_wheel(maker.build(), maker.filename)


def refused(maker: WheelMaker, *, filename: str | None = None) -> VendorError:
    with pytest.raises(VendorError) as caught:
        inspect_wheel(maker.build(), filename or maker.filename)
    return caught.value


def a_real_library() -> bytes:
    """A compiled extension of an installed package."""
    spec = importlib.util.find_spec("markupsafe._speedups")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).read_bytes()


def test_an_honest_wheel_is_described():
    maker = WheelMaker(
        "Foo-Bar",
        "1.0",
        files={"Foo_Bar/mod.py": b"x = 1\n", "Foo_Bar-1.0.data/scripts/tool": b"#!python\n"},
        requires=("numpy>=1",),
        headers=("Summary: Größe", "License-Expression: MIT", "Classifier: License :: OSI Approved"),
        entry_points="[console_scripts]\nfoo = foo_bar.mod:main\n[pytest11]\nfoo = foo_bar.mod [extra]\n",
        requires_python=">=3.9",
    )
    report = inspect(maker)
    assert (report.name, report.version, report.summary) == ("foo-bar", "1.0", "Größe")
    assert report.requires == ("numpy>=1",)
    assert report.requires_python == ">=3.9"
    assert report.licence.expression == "MIT"
    assert report.programs == {"foo": "foo_bar.mod:main", "tool": "Foo_Bar-1.0.data/scripts/tool"}
    assert report.plugins == {"pytest11: foo": "foo_bar.mod [extra]"}
    assert report.startup == ()
    assert report == inspect(maker)
    assert Inspection.model_validate(report.model_dump(mode="json")).sha256 == report.sha256


def test_content_that_record_does_not_name_is_refused():
    error = refused(WheelMaker(files={"honest/evil.py": b"x"}, unlisted=frozenset({"honest/evil.py"})))
    assert error.code == "VENDOR_RECORD"
    assert error.evidence["files"] == {"honest/evil.py": "in the archive, not listed"}


def test_content_that_record_names_but_is_missing_is_refused():
    maker = WheelMaker()
    members = maker.members()
    members["honest-1.0.dist-info/RECORD"] += (record_line("honest/gone.py", b"x") + "\n").encode()
    with pytest.raises(VendorError) as caught:
        inspect_wheel(pack(members), maker.filename)
    assert caught.value.code == "VENDOR_RECORD"
    assert caught.value.evidence["files"] == {"honest/gone.py": "listed, not in the archive"}


def test_content_altered_after_the_build_is_refused():
    maker = WheelMaker(files={"honest/code.py": b"x = 1\n"})
    members = {**maker.members(), "honest/code.py": b"x = 2\n"}
    with pytest.raises(VendorError) as caught:
        inspect_wheel(pack(members), maker.filename)
    assert caught.value.code == "VENDOR_RECORD"
    assert "digest" in caught.value.evidence["files"]["honest/code.py"]


@pytest.mark.parametrize(
    "line",
    [
        "honest/__init__.py,,",
        "honest/__init__.py,md5=xxxx,20",
        "honest/__init__.py,sha256=,20",
        "honest/__init__.py,sha256=!!,20",
        "honest/__init__.py,sha256=AAAA,20",
        "honest/__init__.py,sha256=AAAA,",
        "honest/__init__.py,sha256=AAAA",
        "honest/__init__.py,sha256=AAAA,20,more",
        '"honest/__init__.py,sha256=AAAA,20',
    ],
)
def test_a_record_that_does_not_pin_a_file_is_refused(line: str):
    maker = WheelMaker()
    members = maker.members()
    record = [text for text in members[f"{maker.info}/RECORD"].decode().splitlines() if "__init__" not in text]
    members[f"{maker.info}/RECORD"] = "\n".join([line, *record, ""]).encode()
    with pytest.raises(VendorError) as caught:
        inspect_wheel(pack(members), maker.filename)
    assert caught.value.code == "VENDOR_RECORD"


def test_a_record_that_names_a_file_twice_is_refused():
    maker = WheelMaker()
    members = maker.members()
    members[f"{maker.info}/RECORD"] += members[f"{maker.info}/RECORD"]
    with pytest.raises(VendorError) as caught:
        inspect_wheel(pack(members), maker.filename)
    assert caught.value.code == "VENDOR_RECORD"


@pytest.mark.parametrize(
    "filename",
    [
        "other-1.0-py3-none-any.whl",
        "honest-1.1-py3-none-any.whl",
        "honest-1.0-py3-none-manylinux_2_17_x86_64.whl",
        "honest-1.0-py2.py3-none-any.whl",
        "honest-1.0.tar.gz",
        "honest.whl",
    ],
)
def test_a_file_name_that_the_content_contradicts_is_refused(filename: str):
    assert refused(WheelMaker(), filename=filename).code == "VENDOR_METADATA"


@pytest.mark.parametrize(
    "change",
    [
        {"metadata": b"Metadata-Version: 2.4\nName: other\nVersion: 1.0\n\n"},
        {"metadata": b"Metadata-Version: 2.4\nName: honest\nVersion: 2.0\n\n"},
        {"metadata": b"Metadata-Version: 2.4\nName: honest\nName: other\nVersion: 1.0\n\n"},
        {"metadata": b"Metadata-Version: 2.4\nVersion: 1.0\n\n"},
        {"metadata": b"Name: honest\nVersion: 1.0\nSummary: \xff\n\n"},
        {"wheel_file": b"Wheel-Version: 2.0\nTag: py3-none-any\n"},
        {"wheel_file": b"Wheel-Version: 1.0\n"},
        {"files": {"other-1.0.dist-info/METADATA": b""}},
        {"files": {"other-1.0.data/scripts/x": b""}},
        {"files": {"honest-1.0.data/nowhere/x": b""}},
        {"files": {"honest-1.0.data": b""}},
        {"entry_points": "[console_scripts]\nfoo = a:b\nfoo = c:d\n"},
        {"entry_points": "no section"},
    ],
)
def test_metadata_that_contradict_themselves_are_refused(change: dict[str, object]):
    assert refused(WheelMaker(**change)).code == "VENDOR_METADATA"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "line",
    [
        "../../../etc/cron.d/x = a:b",
        "a/b = a:b",
        "foo = a:b; import os",
        "foo = os:system('x')",
        "foo =",
        "-rf = a:b",
        ".bashrc = a:b",
    ],
)
def test_a_command_that_could_write_elsewhere_or_carry_code_is_refused(line: str):
    assert refused(WheelMaker(entry_points=f"[console_scripts]\n{line}\n")).code == "VENDOR_ENTRY_POINT"


def test_a_wheel_shaped_like_litellm_1_82_8_is_reported_to_run_at_start():
    report = inspect(litellm_1_82_8())
    assert [(file.path, file.executes) for file in report.startup] == [("litellm_init.pth", True)]


@pytest.mark.parametrize(
    ("path", "content", "executes"),
    [
        ("evil.pth", b"import os\n", True),
        ("EVIL.PTH", b"import\tos\n", True),
        ("paths.pth", b"./elsewhere\n", False),
        ("paths.pth", b"\xef\xbb\xbfimport os\n", True),
        ("paths.pth", b"# comment\x0bimport os", True),
        ("honest-1.0.data/purelib/evil.pth", b"import os\n", True),
        ("honest-1.0.data/platlib/evil.pth", b"import os\n", True),
        ("honest-1.0.data/data/lib/python3.11/site-packages/evil.pth", b"import os\n", True),
        ("sitecustomize.py", b"", True),
        ("usercustomize/__init__.py", b"", True),
        ("sitecustomize.cpython-311-x86_64-linux-gnu.so", b"", True),
        ("honest-1.0.data/purelib/sitecustomize.py", b"", True),
        ("SiteCustomize.py", b"", True),
        ("apport_python_hook.py", b"", True),
        ("honest-1.0.data/platlib/apport_python_hook/__init__.py", b"", True),
        ("_virtualenv.py", b"", True),
    ],
)
def test_whatever_runs_at_interpreter_start_is_found_wherever_it_hides(path: str, content: bytes, executes: bool):
    report = inspect(WheelMaker(files={path: content}))
    assert [(file.path, file.executes) for file in report.startup] == [(path, executes)]


def test_files_that_python_does_not_read_at_start_are_not_called_so():
    names = ("honest/model.pth", "honest/sitecustomize.py", "sitecustomizer.py", "honest/site.py")
    assert inspect(WheelMaker(files=dict.fromkeys(names, b"import os\n"))).startup == ()


def test_data_outside_the_package_bytecode_and_pickles_are_reported():
    report = inspect(
        WheelMaker(
            files={
                "honest-1.0.data/data/etc/x.conf": b"",
                "honest-1.0.data/headers/x.h": b"",
                "honest/__pycache__/a.cpython-311.pyc": b"",
                "honest/model.pkl": b"",
            }
        )
    )
    assert report.outside == ("[data]/etc/x.conf", "[headers]/x.h")
    assert report.bytecode == ("honest/__pycache__/a.cpython-311.pyc",)
    assert report.pickles == ("honest/model.pkl",)


def test_a_native_library_is_found_by_its_content_not_by_its_name():
    library = a_real_library()
    report = inspect(
        WheelMaker(tag="cp311-cp311-manylinux_2_17_x86_64", files={"honest/data.txt": library, "honest/fake.so": b"no"})
    )
    (native,) = report.native
    assert native.path == "honest/data.txt"
    assert native.machine == "x86_64"
    assert native.glibc_pair >= (2, 2)
    assert "libc.so.6" in native.needs
    assert not native.executable_stack


def test_the_highest_glibc_symbol_counts():
    library = a_real_library()
    known = read_native("x.so", library, wheel="x.whl").glibc
    assert known is not None
    newer = library.replace(f"GLIBC_{known}\0".encode(), b"GLIBC_2.99\0"[: len(known) + 7].ljust(len(known) + 7, b"9"))
    assert read_native("x.so", newer, wheel="x.whl").glibc_pair > (2, 36)


@pytest.mark.parametrize("keep", [4, 20, 63, 64, 200])
def test_a_damaged_native_library_is_refused(keep: int):
    maker = WheelMaker(files={"honest/x.so": a_real_library()[:keep]})
    assert refused(maker).code == "VENDOR_NATIVE"


def test_an_environment_without_the_elf_reader_is_told_where_vendoring_belongs(monkeypatch: pytest.MonkeyPatch):
    for module in [name for name in sys.modules if name.split(".")[0] == "elftools"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "elftools", None)
    error = refused(WheelMaker(files={"honest/x.so": a_real_library()}))
    assert error.code == "VENDOR_TOOL_FAILED"
    assert "training.lock" in error.remedy


def test_a_summary_that_fills_a_screen_is_cut():
    assert len(inspect(WheelMaker(headers=("Summary: " + "x" * 10_000,))).summary) == 500
