"""Packing makes description and files agree; the journal shows any change; a missing wall stops everything."""

from __future__ import annotations

import resource
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from appliance.artifact import read, router_metadata
from appliance.errors import ApplianceError, FileError, IntakeError
from appliance.intake.journal import GENESIS, Journal
from appliance.intake.packing import pack
from tests.support.artifacts import router_files, write

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


def test_packing_describes_the_files_that_are_there(tmp_path: Path) -> None:
    files = router_files()
    files["index.safetensors"] = b"edited by hand"
    folder = write(files, tmp_path / "router")
    (folder / "artifact.sigstore.json").write_bytes(b"of an older form")
    packed = pack(folder, tmp_path / "packed", version="2.0.0")
    assert packed.signature is None
    assert router_metadata(read(tmp_path / "packed")).version == "2.0.0"
    assert yaml.safe_load((tmp_path / "packed" / "router.yaml").read_bytes())["name"] == "default"


def test_packing_never_overwrites(tmp_path: Path) -> None:
    folder = write(router_files(), tmp_path / "router")
    with pytest.raises(IntakeError) as info:
        pack(folder, folder)
    assert info.value.code == "INTAKE_PACK"


def test_packing_refuses_a_name_that_the_registry_would_not_keep(tmp_path: Path) -> None:
    folder = write(router_files(), tmp_path / "router")
    with pytest.raises(ApplianceError) as info:
        pack(folder, tmp_path / "packed", name="../evil")
    assert info.value.code == "ARTIFACT_METADATA"
    assert not (tmp_path / "packed").exists()


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    """Four lines about two cases."""
    book = Journal(tmp_path / "journal.jsonl")
    for number, event in enumerate(("received", "examined", "approved", "admitted")):
        book.append(event, "0123456789abcdef", {"step": number}, at=NOW)  # type: ignore[arg-type]
    return book


def test_an_untouched_journal_verifies_and_remembers_every_head(journal: Journal, tmp_path: Path) -> None:
    checked = journal.verify()
    assert [line.number for line in checked.lines] == [1, 2, 3, 4]
    assert checked.head in journal.heads()
    assert GENESIS in journal.heads()
    assert Journal(tmp_path / "none.jsonl").verify().head == GENESIS


def lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


TAMPERINGS = {
    "a value changed": lambda raw: [raw[0], raw[1].replace(b'"step":1', b'"step":9'), *raw[2:]],
    "a line removed": lambda raw: [raw[0], *raw[2:]],
    "the first line removed": lambda raw: raw[1:],
    "a line twice": lambda raw: [raw[0], raw[0], *raw[1:]],
    "two lines exchanged": lambda raw: [raw[0], raw[2], raw[1], raw[3]],
    "a space added": lambda raw: [raw[0].replace(b":", b": ", 1), *raw[1:]],
    "the end cut within a line": lambda raw: [*raw[:3], raw[3][:-5]],
    "an unknown event": lambda raw: [*raw[:3], raw[3].replace(b"admitted", b"forgotten")],
    "binary": lambda raw: [*raw, b"\xff\n"],
}


@pytest.mark.parametrize("name", TAMPERINGS)
def test_a_tampered_journal_is_seen_and_not_written_on(journal: Journal, tmp_path: Path, name: str) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b"".join(TAMPERINGS[name](lines(path))))
    for act in (journal.verify, lambda: journal.append("received", "0123456789abcdef", {}, at=NOW)):
        with pytest.raises(IntakeError) as info:
            act()
        assert info.value.code == "INTAKE_JOURNAL_BROKEN"


def test_lines_cut_off_the_end_are_told_by_a_noted_head(journal: Journal, tmp_path: Path) -> None:
    noted = journal.verify().head
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b"".join(lines(path)[:-1]))
    assert len(journal.verify().lines) == 3, "the chain alone cannot tell"
    assert noted not in journal.heads()


@pytest.mark.parametrize("length", [300, 30_000])
def test_a_disk_that_fills_up_within_a_line_leaves_it_sound(journal: Journal, tmp_path: Path, length: int) -> None:
    full = (tmp_path / "journal.jsonl").stat().st_size + length // 2
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (full, before[1]))
    try:
        with pytest.raises(FileError) as info:
            journal.append("received", "0123456789abcdef", {"text": "x" * length}, at=NOW)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert info.value.code == "FILE_NO_SPACE"
    assert len(journal.verify().lines) == 4
    journal.append("received", "0123456789abcdef", {"text": "x" * length}, at=NOW)  # the twin: room again


def test_what_no_encoding_has_is_written_down_as_an_escape(journal: Journal) -> None:
    journal.append("refused", "0123456789abcdef", {"file": "\udcff.json", "\udcfe": ["\ud800"]}, at=NOW)
    assert journal.verify().lines[-1].details == {"file": "\\udcff.json", "\\udcfe": ["\\ud800"]}


def test_without_a_system_call_filter_nothing_is_loaded() -> None:
    code = (
        "import sys; sys.modules['pyseccomp'] = None\n"
        "from appliance.errors import IntakeError\n"
        "from appliance.intake.confine import confine\n"
        "try: confine(memory_bytes=2**30, cpu_seconds=5)\n"
        "except IntakeError as error: print(error.code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "INTAKE_SANDBOX"


CONFINED = """
import sys, os, socket
from appliance.intake.confine import confine
import numpy as np
confine(memory_bytes=2**28, cpu_seconds=2)
{act}
print("went through")
"""


@pytest.mark.parametrize(
    "act",
    [
        "open('/etc/passwd')",
        "open('/tmp/appliance-confined', 'w')",
        "os.listdir('/')",
        "socket.socket()",
        "os.execv('/bin/true', ['true'])",
        "os.fork()",
        "assert os.system('true') == 0",
        "os.kill(os.getppid(), 0)",
        "np.ones(2**30)",
        "__import__('mmap').mmap(-1, 4096, prot=7)",
        "os.write(9, b'x')",
        "[None for _ in iter(int, 1)]",
    ],
)
def test_a_confined_process_can_do_nothing_but_compute(act: str) -> None:
    done = subprocess.run([sys.executable, "-c", CONFINED.format(act=act)], capture_output=True, text=True, check=False)
    assert done.returncode != 0, done.stdout
    assert "went through" not in done.stdout


def test_a_confined_process_computes() -> None:
    act = "assert (np.ones((50, 50)) @ np.ones((50, 50))).sum() == 125000"
    done = subprocess.run([sys.executable, "-c", CONFINED.format(act=act)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "went through"), done.stderr
