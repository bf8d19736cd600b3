"""Whatever bytes come from media, registry or worker: a refusal with a code, or an honest reading."""

from __future__ import annotations

import contextlib
import io
import pickle
import zipfile
from typing import Any

import numpy as np
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from appliance.errors import ApplianceError, IntakeError
from appliance.intake import frames, pickles, tensors, torch_archives
from appliance.registry.channel import envelope, split
from appliance.registry.live import LiveConfig, assemble

FUZZ = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
HONEST_PICKLE = pickle.dumps({"a": np.arange(4, dtype=np.float32), "b": [1, "x", None]}, protocol=4)
EVERYTHING = {module: frozenset(names) for module, names in pickles.SKLEARN.items()}


class Inert:
    """Stands in for everything a pickle would import; does nothing whatever is done with it."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        """Take anything."""

    def __call__(self, *_: Any, **__: Any) -> Any:
        return Inert()

    def __setstate__(self, _state: Any) -> None:
        """Take anything."""


class Watching(pickle.Unpickler):
    """The real machine, its imports noted and made harmless."""

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data))
        self.seen: set[tuple[str, str]] = set()

    def find_class(self, module: str, name: str) -> Any:
        self.seen.add((module, name))
        return Inert

    def persistent_load(self, _pid: Any) -> Any:
        self.seen.add(("persistent", "id"))
        return None


@st.composite
def mutated(draw: st.DrawFn, base: bytes) -> bytes:
    """An honest file with a few bytes changed, removed or put in."""
    data = bytearray(base)
    for _ in range(draw(st.integers(1, 4))):
        position = draw(st.integers(0, max(0, len(data) - 1)))
        kind = draw(st.sampled_from("xdi"))
        if kind == "x" and data:
            data[position] = draw(st.integers(0, 255))
        elif kind == "d":
            del data[position : position + draw(st.integers(1, 8))]
        else:
            data[position:position] = draw(st.binary(min_size=1, max_size=12))
    return bytes(data)


OPCODES = st.lists(
    st.one_of(
        st.sampled_from(
            [b"(", b"0", b"1", b"2", b"\x94", b"}", b"]", b")", b"\x85", b"\x86", b"R", b"b", b"t", b"\x93", b"N"]
        ),
        st.sampled_from(
            [b"h\x00", b"h\x01", b"q\x00", b"q\x05", b"\x81", b"\x92", b"s", b"a", b"e", b"u", b"\x90", b"\x8f"]
        ),
        st.sampled_from(
            [b"cposix\nsystem\n", b"cnumpy\ndtype\n", b"\x8c\x05posix", b"\x8c\x06system", b"\x8c\x05numpy"]
        ),
    ),
    max_size=24,
)


@FUZZ
@given(
    st.one_of(
        mutated(HONEST_PICKLE), OPCODES.map(lambda ops: b"\x80\x04" + b"".join(ops) + b"."), st.binary(max_size=200)
    )
)
@example(b"\x80\x04\x8c\x05posix\x94\x8c\x06system\x94\x93.")
def test_the_scan_sees_every_import_that_the_real_machine_makes(data: bytes) -> None:
    try:
        seen = pickles.scan(data, allowed=EVERYTHING, what="fuzz")
    except IntakeError as error:
        assert error.code in {"INTAKE_PICKLE_FORM", "INTAKE_PICKLE_IMPORT"}
        return
    watching = Watching(data)
    with contextlib.suppress(Exception):
        watching.load()
    assert watching.seen <= seen


def archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as out:
        out.writestr("m/data.pkl", pickle.dumps({}, protocol=2))
        out.writestr("m/data/0", b"\0" * 32)
    return buffer.getvalue()


@FUZZ
@given(st.one_of(mutated(archive()), st.binary(max_size=200)))
def test_a_torch_archive_is_read_or_refused(data: bytes) -> None:
    try:
        torch_archives.check(data, what="fuzz")
    except IntakeError as error:
        assert error.code in {"INTAKE_TORCH_FORM", "INTAKE_PICKLE_FORM", "INTAKE_PICKLE_IMPORT"}


def honest_tensors() -> bytes:
    from safetensors import numpy as safetensors_numpy

    return safetensors_numpy.save({"a": np.zeros((2, 3), np.float32), "b": np.zeros(4, np.int64)})


@FUZZ
@given(st.one_of(mutated(honest_tensors()), st.binary(max_size=200)))
def test_a_tensor_file_that_passes_is_one_that_the_library_reads_alike(data: bytes) -> None:
    from safetensors import numpy as safetensors_numpy

    try:
        tensors.check(data, what="fuzz")
    except IntakeError as error:
        assert error.code == "INTAKE_TENSORS_FORM"
        return
    try:
        loaded = safetensors_numpy.load(data)
    except Exception:
        return  # stricter than we are, which is its right
    assert sum(value.nbytes for value in loaded.values()) == len(data) - 8 - int.from_bytes(data[:8], "little")


@FUZZ
@given(st.lists(st.binary(max_size=40), max_size=8))
def test_frames_come_back_as_they_went(parts: list[bytes]) -> None:
    assert frames.unpack(frames.pack(parts)) == parts


@FUZZ
@given(st.binary(max_size=100))
def test_frames_of_a_stranger_are_read_or_refused(data: bytes) -> None:
    try:
        parts = frames.unpack(data)
    except ValueError:
        return
    assert frames.pack(parts) == data


@FUZZ
@given(st.one_of(mutated(envelope(b'{"a":1}', b"{}")), st.binary(max_size=100)))
def test_an_envelope_is_read_or_refused(data: bytes) -> None:
    try:
        split(data)
    except ApplianceError as error:
        assert error.code in {"REGISTRY_CHANNEL_MALFORMED", "DOCUMENT_MALFORMED", "DOCUMENT_DUPLICATE_KEY"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@FUZZ
@given(JSON | st.fixed_dictionaries({"deployment": JSON, "model_group": JSON}))
def test_a_configuration_of_any_shape_is_assembled_without_its_bad_rows(document: Any) -> None:
    config = assemble(1, document, LiveConfig())
    assert set(config.rows) == {"deployment", "model_group", "application_key", "router_source", "setting"}
