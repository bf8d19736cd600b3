"""A gateway keeps up with its live configuration, whatever the source holds and the disk refuses."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import ApplianceError, ConfigError, FileError, RegistryError
from appliance.registry import live_watch
from appliance.registry.live import Changes, LiveConfig, assemble
from appliance.registry.live_watch import ConfigWatcher

GOOD = {"id": "small", "model_group": "chat", "model": "openai/small", "api_base": "https://127.0.0.1:1"}
TOO_DEEP: Any = []
for _ in range(30):
    TOO_DEEP = [TOO_DEEP]


class Source:
    """A source in memory, which is its own session."""

    location = "memory"

    def __init__(self, revision: int, *rows: dict[str, Any]) -> None:
        self.revision, self.rows = revision, list(rows)
        self.failure: Exception | None = None

    @contextmanager
    def session(self) -> Iterator[Source]:
        yield self

    def newest(self) -> int:
        if self.failure is not None:
            raise self.failure
        return self.revision

    def document(self) -> tuple[int, Any]:
        return self.revision, {"deployment": self.rows}

    def wait(self, timeout_s: float) -> None:
        raise AssertionError(timeout_s)


class Memory:
    """An applier that remembers, and refuses what it was told to refuse."""

    def __init__(self, *refused: int) -> None:
        self.applied: list[int] = []
        self.refused = refused

    def apply(self, _changes: Changes, config: LiveConfig) -> LiveConfig:
        if config.revision in self.refused:
            raise ConfigError("CONFIG_LIVE", "no deployment would be left")
        self.applied.append(config.revision)
        return config


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def watch(tmp_path: Path, said: list[str]) -> Callable[..., ConfigWatcher]:
    def make(source: Source, applier: Memory | None = None) -> ConfigWatcher:
        return ConfigWatcher(source, applier or Memory(), kept=tmp_path / "kept.json", report=said.append, poll_s=0.01)

    return make


def rounds(watcher: ConfigWatcher, source: Source, steps: list[Callable[[], None]]) -> None:
    """Follow until the steps, one at each look, are used up."""
    stop, left = threading.Event(), iter(steps)
    asked = source.newest

    def newest() -> int:
        step = next(left, None)
        if step is None:
            stop.set()
            return source.revision
        step()
        return asked()

    source.newest = newest  # type: ignore[method-assign]
    source.wait = lambda _seconds: None  # type: ignore[method-assign]
    following = threading.Thread(target=watcher.run, args=(stop,), daemon=True)
    following.start()
    following.join(30)
    assert not following.is_alive()
    assert next(left, None) is None, "the thread ended before it was told to"


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("inf"), 10**21, 10**5000, TOO_DEEP, {1: "a", "b": 2}],
    ids=["nan", "inf", "digits", "more digits", "deep", "names"],
)
def test_a_value_that_could_not_be_read_again_is_refused_with_its_row_alone(value: Any) -> None:
    bad = {**GOOD, "id": "bad", "parameters": {"extra_body": value}}
    found = assemble(1, {"deployment": [GOOD, bad]}, LiveConfig())
    assert [(one.key, one.error.code) for one in found.problems] == [("bad", "REGISTRY_ROW")]
    assert list(found.rows["deployment"]) == ["small"]


def test_a_value_of_an_honest_size_is_taken_and_read_again(watch: Callable[..., ConfigWatcher]) -> None:
    source = Source(1, {**GOOD, "parameters": {"seed": 2**53, "extra_body": {"a": [[[1.5]]]}}})
    watch(source).refresh()
    source.failure = RegistryError("REGISTRY_DATABASE", "away")
    assert list(watch(source).boot().rows["deployment"]) == ["small"]


def test_an_error_that_nobody_foresaw_is_a_problem_and_not_the_end_of_following(
    watch: Callable[..., ConfigWatcher], said: list[str]
) -> None:
    source = Source(1, GOOD)
    watcher = watch(source)

    def break_() -> None:
        source.failure = UnicodeError("what a driver may raise")

    def mend() -> None:
        source.failure, source.revision = None, 2

    rounds(watcher, source, [break_, mend])
    assert watcher.running.revision == 2
    assert watcher.problem is None
    assert [line.partition(":")[0] for line in said] == ["CONFIG_LIVE"]


def test_what_was_kept_and_no_longer_fits_the_files_does_not_keep_the_newest_from_being_served(
    watch: Callable[..., ConfigWatcher],
) -> None:
    source = Source(1, GOOD)
    watch(source).refresh()
    source.revision, source.rows = 2, [{**GOOD, "id": "other"}]
    assert list(watch(source, Memory(1)).boot().rows["deployment"]) == ["other"]


def test_a_revision_that_cannot_be_applied_is_said_once(watch: Callable[..., ConfigWatcher], said: list[str]) -> None:
    source = Source(1, GOOD)
    rounds(watch(source, Memory(1)), source, [lambda: None] * 5)
    assert len(said) == 1, said


def test_a_source_that_goes_away_twice_is_said_twice(watch: Callable[..., ConfigWatcher], said: list[str]) -> None:
    source = Source(1, GOOD)

    def away() -> None:
        source.failure = RegistryError("REGISTRY_DATABASE", "away")

    def back() -> None:
        source.failure = None

    rounds(watch(source), source, [back, away, away, back, away, away, back])
    assert len(said) == 2, said


def test_a_full_disk_is_said_once_and_what_runs_is_kept_as_soon_as_there_is_room(
    watch: Callable[..., ConfigWatcher], said: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source, applier = Source(1, GOOD), Memory()
    watcher = watch(source, applier)
    write, problems = live_watch.write_atomic, list[ApplianceError | None]()

    def full(*_arguments: Any, **_options: Any) -> None:
        raise FileError("FILE_NO_SPACE", "no space left on device")

    monkeypatch.setattr(live_watch, "write_atomic", full)
    rounds(watcher, source, [lambda: None, lambda: problems.append(watcher.problem), lambda: None])
    assert applier.applied == [1], "a full disk keeps no configuration from being applied"
    assert problems[0] is not None
    assert problems[0].code == "FILE_NO_SPACE"
    assert len(said) == 1, said
    monkeypatch.setattr(live_watch, "write_atomic", write)
    watcher.refresh()
    assert watcher.problem is None
    assert (tmp_path / "kept.json").exists()


def test_a_full_disk_does_not_keep_a_gateway_from_booting_with_what_was_kept(
    watch: Callable[..., ConfigWatcher], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Source(1, GOOD)
    watch(source).refresh()
    source.failure = RegistryError("REGISTRY_DATABASE", "away")

    def full(*_arguments: Any, **_options: Any) -> None:
        raise FileError("FILE_NO_SPACE", "no space left on device")

    monkeypatch.setattr(live_watch, "write_atomic", full)
    assert list(watch(source).boot().rows["deployment"]) == ["small"]
