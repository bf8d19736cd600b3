"""What the workers of a host keep together: one record, whole at any moment, and never a reason to stop."""

import dataclasses
import json
import multiprocessing
import os
import subprocess

import pytest

from appliance.gateway.active import Slot
from appliance.gateway.rollout import Rollout
from appliance.gateway.shared import SIZE, Record
from appliance.settings import Candidate
from tests.unit.gateway.test_decider import serving


def count(path, times: int) -> None:
    record = Record(path)
    for _ in range(times):
        with record.change() as value:
            value["n"] = value.get("n", 0) + 1


def test_what_several_processes_change_at_once_is_counted_once_each(tmp_path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=count, args=(tmp_path / "record.json", 500)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    with Record(tmp_path / "record.json").change() as value:
        assert value == {"n": 2000}
    assert (tmp_path / "record.json").stat().st_size == SIZE


@pytest.mark.parametrize("content", [b"", b"{", b"\xff" * 40, b"[]", b"{}" + b"x" * 5000])
def test_a_damaged_record_begins_anew(content, tmp_path):
    path = tmp_path / "record.json"
    path.write_bytes(content)
    with Record(path).change() as value:
        assert value == {}
        value["n"] = 1
    with Record(path).change() as value:
        assert value == {"n": 1}


def test_a_link_in_the_place_of_the_file_is_not_followed(tmp_path):
    (tmp_path / "target").write_text("precious")
    (tmp_path / "record.json").symlink_to(tmp_path / "target")
    count(tmp_path / "record.json", 3)
    assert (tmp_path / "target").read_text() == "precious"


def test_on_a_full_disk_a_worker_goes_on_by_itself(tmp_path):
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(tmp_path)], check=True)
    try:
        (tmp_path / "filler").write_bytes(b"0" * (os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_bsize))
        record = Record(tmp_path / "record.json")
        for wanted in range(3):
            with record.change() as value:
                assert value.get("n", 0) == wanted
                value["n"] = wanted + 1
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def candidate(path, **bounds) -> Rollout:
    """One worker's view."""
    slot = Slot("next")
    slot.swap(dataclasses.replace(serving(digest="a" * 64), name="next"))
    chosen = Candidate(router="next", **{"shadow_decisions": 10, "min_decisions": 5, "share": 0.5, **bounds})
    return Rollout(chosen, slot, Record(path))


def test_workers_count_together_and_change_the_stage_together(tmp_path):
    here, there = candidate(tmp_path / "r"), candidate(tmp_path / "r")
    for _ in range(5):
        here.observed(ok=True, agreed=True)
        there.observed(ok=True, agreed=True)
    assert (here.stage, there.stage) == ("canary", "canary")
    for _ in range(5):
        here.decided(ok=False)
    assert there.describe()["stage"] == "returned"
    assert there.describe() == here.describe()


def test_a_candidate_that_was_sent_back_stays_so_after_a_restart_until_there_is_a_new_version(tmp_path):
    first = candidate(tmp_path / "r")
    for _ in range(5):
        first.observed(ok=False)
    again = candidate(tmp_path / "r")
    assert again.stage == "returned"
    assert not again.decides("user")
    again.slot.swap(dataclasses.replace(serving(digest="b" * 64), name="next"))
    assert again.stage == "shadow"


def test_what_an_older_version_of_the_appliance_left_still_counts(tmp_path):
    left = {"digest": "a" * 64, "stage": "returned", "reason": "r", "seen": 9, "failed": 9, "agreed": 0, "compared": 0}
    (tmp_path / "r").write_text(json.dumps(left))
    assert candidate(tmp_path / "r").stage == "returned"


@pytest.mark.parametrize(
    "kept", [{"stage": "full"}, {"digest": "a" * 64, "stage": "emperor"}, {"digest": 5}, {"seen": "many"}]
)
def test_a_record_of_another_make_is_not_believed(kept, tmp_path):
    whole = {"digest": "a" * 64, "stage": "full", "reason": None, "seen": 1, "failed": 0, "agreed": 1, "compared": 1}
    (tmp_path / "r").write_text(json.dumps(whole))
    assert candidate(tmp_path / "r").stage == "full"
    changed = {**whole, **kept} if len(kept) == 1 and "stage" not in kept else kept
    (tmp_path / "r").write_text(json.dumps(changed).ljust(SIZE))
    assert candidate(tmp_path / "r").stage == "shadow"
