"""What a sidecar leaves beside the routers, and what a gateway that sees the volume alone makes of it."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from appliance.registry.directory import DirectoryStore
from appliance.registry.sidecar import KEY, NOTHING_TOLD, Sidecar, Told, heard, leave

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)
GOOD = {"schema_version": 1, "problem": None, "channels": {"default": {"contact": "2026-11-30T11:59:00Z"}}}


@pytest.fixture
def volume(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path)


def seen(volume: DirectoryStore, channel: str = "default", now: datetime = NOW) -> Told | None:
    sidecar = Sidecar(volume)
    sidecar.look()
    return sidecar.of(channel, now)


def test_a_folder_without_a_sidecar_says_nothing(volume: DirectoryStore) -> None:
    assert seen(volume) is None


def test_the_age_is_that_of_the_registrys_last_sound_answer(volume: DirectoryStore) -> None:
    leave(volume, {"default": heard(NOW - timedelta(hours=3), "REGISTRY_UNREACHABLE")})
    assert seen(volume) == Told(3 * 3600.0, "REGISTRY_UNREACHABLE")
    leave(volume, {"default": heard(NOW, None)})
    assert seen(volume) == Told(0.0, None)


def test_a_registry_that_never_answered_is_told_as_that(volume: DirectoryStore) -> None:
    leave(volume, {}, "REGISTRY_UNREACHABLE")
    assert seen(volume) == Told(None, "REGISTRY_UNREACHABLE")


def test_it_is_written_for_news_and_once_a_minute_and_not_at_every_pass(volume: DirectoryStore) -> None:
    assert leave(volume, {"default": heard(NOW, None)})
    assert not leave(volume, {"default": heard(NOW + timedelta(seconds=59), None)})
    assert leave(volume, {"default": heard(NOW + timedelta(seconds=59), "REGISTRY_TIMEOUT")})
    assert leave(volume, {"default": heard(NOW + timedelta(seconds=59), None)})
    assert leave(volume, {"default": heard(NOW + timedelta(minutes=3), None)})


def test_a_breaker_that_opens_hides_no_reason_and_is_no_news(volume: DirectoryStore) -> None:
    leave(volume, {"default": heard(NOW, "REGISTRY_UNREACHABLE")}, "REGISTRY_UNREACHABLE")
    assert not leave(volume, {"default": heard(NOW, "REGISTRY_BREAKER_OPEN")}, "REGISTRY_BREAKER_OPEN")
    assert leave(volume, {"default": heard(NOW, "REGISTRY_TIMEOUT")})
    assert seen(volume) == Told(0.0, "REGISTRY_TIMEOUT")


def test_one_pass_over_a_single_channel_forgets_no_other(volume: DirectoryStore) -> None:
    leave(volume, {"default": heard(NOW, None), "other": heard(NOW, None)})
    leave(volume, {"other": heard(NOW, "REGISTRY_TIMEOUT")})
    assert seen(volume) == Told(0.0, None)
    assert seen(volume, "other") == Told(0.0, "REGISTRY_TIMEOUT")
    assert seen(volume, "a-third") == Told(None, NOTHING_TOLD)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00" * 100,
        b"[]",
        b"{}}",
        b"\xff\xfe",
        json.dumps({**GOOD, "schema_version": 2}).encode(),
        json.dumps({**GOOD, "more": 1}).encode(),
        json.dumps({**GOOD, "problem": "<img src=x onerror=alert(1)>"}).encode(),
        json.dumps({**GOOD, "channels": {"../../etc": {}}}).encode(),
        json.dumps({**GOOD, "channels": {"default": {"contact": "yesterday"}}}).encode(),
        json.dumps({**GOOD, "channels": {"default": {"contact": "2026-13-99T99:99:99Z"}}}).encode(),
        json.dumps({**GOOD, "channels": {"default": {"contact": "9999-12-31T23:59:59Z"}}}).encode(),
        json.dumps({**GOOD, "channels": {"default": {"contact": 1e308}}}).encode(),
        json.dumps({**GOOD, "channels": {f"c{n}": {} for n in range(1025)}}).encode(),
        b'{"schema_version": 1, "channels": {"default": {}, "default": {}}}',
        b"[" * 100_000,
        b" " * 300_000,
    ],
    ids=range(17),
)
def test_a_note_that_cannot_be_believed_is_not_known_and_nothing_else(
    volume: DirectoryStore, tmp_path: Path, data: bytes
) -> None:
    (tmp_path / KEY).write_bytes(data)
    assert seen(volume) == Told(None, NOTHING_TOLD)


def test_no_link_pipe_or_folder_in_its_place_is_followed_or_waited_for(volume: DirectoryStore, tmp_path: Path) -> None:
    path, elsewhere = tmp_path / KEY, tmp_path / "elsewhere"
    elsewhere.write_text(json.dumps(GOOD))
    path.symlink_to(elsewhere)
    assert seen(volume) == Told(None, NOTHING_TOLD)
    path.unlink()
    os.mkfifo(path)
    assert seen(volume) == Told(None, NOTHING_TOLD)
    path.unlink()
    path.mkdir()
    assert seen(volume) == Told(None, NOTHING_TOLD)


def test_what_was_told_grows_old_where_the_note_is_ruined_or_goes(volume: DirectoryStore, tmp_path: Path) -> None:
    leave(volume, {"default": heard(NOW, None)})
    sidecar = Sidecar(volume)
    sidecar.look()
    (tmp_path / KEY).write_bytes(b"rubbish")
    sidecar.look()
    assert sidecar.of("default", NOW + timedelta(hours=1)) == Told(3600.0, NOTHING_TOLD)
    (tmp_path / KEY).unlink()
    sidecar.look()
    assert sidecar.of("default", NOW + timedelta(hours=2)) == Told(7200.0, None)
    leave(volume, {"default": heard(NOW + timedelta(hours=3), None)})
    sidecar.look()
    assert sidecar.of("default", NOW + timedelta(hours=3)) == Told(0.0, None)


def test_a_ruined_note_is_written_anew(volume: DirectoryStore, tmp_path: Path) -> None:
    (tmp_path / KEY).write_bytes(b"rubbish")
    assert leave(volume, {"default": heard(NOW, None)})
    assert seen(volume) == Told(0.0, None)


def test_a_clock_a_little_behind_the_sidecars_makes_no_alarm(volume: DirectoryStore) -> None:
    leave(volume, {"default": heard(NOW + timedelta(minutes=4), None)})
    assert seen(volume) == Told(0.0, None)


def test_a_registry_that_answers_and_has_no_channel_yet_is_no_fault(volume: DirectoryStore) -> None:
    leave(volume, {})
    sidecar = Sidecar(volume)
    sidecar.look()
    assert sidecar.every(NOW) == {}
    leave(volume, {}, "REGISTRY_UNREACHABLE")
    sidecar.look()
    assert sidecar.every(NOW) == {"*": Told(None, "REGISTRY_UNREACHABLE")}
