"""Time without a network: the floor, the high-water mark, wrong clocks, wiped and foreign states."""

import json
import os
import shutil
from datetime import UTC, datetime, timedelta

import pytest

from appliance.errors import ApplianceError, TrustError
from appliance.trust.authority import Authority
from appliance.trust.report import store_report
from appliance.trust.repository import Repository
from appliance.trust.store import TrustStore, machine_identity
from tests.support import children
from tests.support.media import contents
from tests.support.trust import DevelopmentAuthority

DAY, HOUR = timedelta(days=1), timedelta(hours=1)


@pytest.fixture
def store(zone, tmp_path, now):
    return zone.store(tmp_path / "state", now=now)


def refused(code, call, *args, **kwargs):
    with pytest.raises(TrustError) as caught:
        call(*args, **kwargs)
    assert caught.value.code == code, caught.value
    return caught.value


WRONG = {
    "1970": ("TRUST_CLOCK_BEHIND", datetime(1970, 1, 1, tzinfo=UTC)),
    "the year before": ("TRUST_CLOCK_BEHIND", datetime(2025, 11, 11, tzinfo=UTC)),
    "two days behind": ("TRUST_CLOCK_BEHIND", datetime(2026, 11, 9, tzinfo=UTC)),
    "2050": ("TRUST_CLOCK_AHEAD", datetime(2050, 1, 1, tzinfo=UTC)),
    "2038": ("TRUST_CLOCK_AHEAD", datetime(2038, 1, 20, tzinfo=UTC)),
    "the last year there is": ("TRUST_CLOCK_AHEAD", datetime(9999, 12, 31, tzinfo=UTC)),
}


@pytest.mark.parametrize("clock", WRONG)
def test_a_clock_in(clock, store, zone, tmp_path):
    """Each use of the store says that the clock is wrong, and none of them changes anything."""
    code, wrong = WRONG[clock]
    before = contents(store.directory)
    refused(code, store.checked_time, wrong)
    refused(code, store.material, now=wrong)
    error = refused(code, store.refresh, zone.repository, now=wrong)
    assert error.evidence["clock"] == wrong
    assert {k: v for k, v in contents(store.directory).items() if k != "lock"} == before


@pytest.mark.parametrize("clock", WRONG)
def test_a_fresh_host_whose_clock_is_in(clock, zone, tmp_path):
    code, wrong = WRONG[clock]
    if clock in {"the year before", "two days behind"}:
        wrong = datetime(2026, 10, 1, tzinfo=UTC)  # before the anchor was written
    refused(code, TrustStore.initialise, tmp_path / "state", zone.anchor, zone.repository, now=wrong)
    assert not (tmp_path / "state").exists()


def test_a_clock_a_few_hours_behind_is_lifted_to_the_floor(store, now):
    assert store.checked_time(now - 5 * HOUR) == now
    assert store.checked_time(now + HOUR) == now + HOUR


def test_the_high_water_mark_rises_with_the_clock_and_survives_a_restart(store, now):
    store.checked_time(now + 30 * DAY)
    again = TrustStore.open(store.directory)
    refused("TRUST_CLOCK_BEHIND", again.checked_time, now)
    assert again.floor() == now + 30 * DAY


def test_the_mark_is_kept_in_steps_so_that_a_busy_host_does_not_write_at_every_look(store, now):
    store.checked_time(now)
    before = (store.directory / "clock.json").stat().st_mtime_ns
    for minutes in range(59):
        store.checked_time(now + timedelta(minutes=minutes))
    assert (store.directory / "clock.json").stat().st_mtime_ns == before


def test_a_wrong_clock_does_not_poison_the_mark(store, now):
    refused("TRUST_CLOCK_AHEAD", store.checked_time, now + 3650 * DAY)
    assert store.checked_time(now) == now


def test_a_verified_signature_raises_the_floor(store, now):
    store.witness(now + 20 * DAY)
    refused("TRUST_CLOCK_BEHIND", store.checked_time, now)
    store.witness(now)  # an older one does not lower it
    assert store.floor() == now + 20 * DAY


def test_metadata_that_expired_while_the_host_was_on_are_refused(store, now):
    late = now
    while late < now + 600 * DAY:
        late += 100 * DAY
        store.checked_time(late)
    refused("TRUST_METADATA_EXPIRED", store.material, now=late)


def test_a_host_that_slept_for_two_years_wakes_up_with_new_media(zone, store, tmp_path, now):
    shutil.copytree(zone.path, tmp_path / "ca")
    own = DevelopmentAuthority(tmp_path / "ca")
    later = now + 730 * DAY
    refused("TRUST_CLOCK_AHEAD", store.refresh, zone.repository, now=later)
    Repository(Authority.open(own.path)).publish(now=later)
    store.refresh(own.repository, now=later)
    assert store.material(now=later).policy


def test_new_media_on_a_host_whose_clock_stopped_tell_that_it_is_behind(zone, store, tmp_path, now):
    shutil.copytree(zone.path, tmp_path / "ca")
    own = DevelopmentAuthority(tmp_path / "ca")
    Repository(Authority.open(own.path)).publish(now=now + 90 * DAY)
    before = contents(store.directory)
    refused("TRUST_CLOCK_BEHIND", store.refresh, own.repository, now=now)
    assert {k: v for k, v in contents(store.directory).items() if k != "lock"} == before


def test_a_wiped_state_is_missing_and_never_silently_made_anew(store, now):
    shutil.rmtree(store.directory)
    refused("TRUST_STATE_MISSING", TrustStore.open, store.directory)


def test_a_wiped_clock_file_still_leaves_the_floor_of_the_metadata(store, birth, now):
    store.checked_time(now + 30 * DAY)
    (store.directory / "clock.json").unlink()
    again = TrustStore.open(store.directory)
    refused("TRUST_CLOCK_BEHIND", again.checked_time, birth - 2 * DAY)


def test_a_clock_file_with_nonsense_is_refused(store, now):
    for nonsense in (b"{}", b"soon", b'{"high_water":"2026-02-31T00:00:00Z","schema_version":1}\n', b"[]"):
        (store.directory / "clock.json").write_bytes(nonsense)
        refused("TRUST_STATE_DAMAGED", store.checked_time, now)


@pytest.mark.parametrize("target", ["generations/x", "generations/7", "generations/\u00b2", "nowhere"])
def test_a_state_whose_link_leads_nowhere_is_damaged(target, store, zone, now):
    (store.directory / "current").unlink()
    (store.directory / "current").symlink_to(target)
    (store.directory / "generations/\u00b2").mkdir()  # a digit, but no number
    refused("TRUST_STATE_DAMAGED", store.refresh, zone.repository, now=now)
    refused("TRUST_STATE_DAMAGED", store.material, now=now)


def test_a_report_on_the_state_warns_of_a_wrong_clock(store, now):
    for code, wrong in WRONG.values():
        assert store_report(store, now=wrong)["warnings"][0].startswith(f"{code}: ")
    assert not store_report(store, now=now)["warnings"]


def test_a_second_anchor_cannot_replace_the_first(store, other_zone, now):
    before = contents(store.directory)
    with pytest.raises(ApplianceError) as caught:
        other_zone.store(store.directory, now=now)
    assert caught.value.code == "TRUST_STATE_EXISTS"
    assert contents(store.directory) == before


def test_a_state_from_another_host_is_refused(zone, tmp_path, now):
    TrustStore.initialise(tmp_path / "a", zone.anchor, zone.repository, now=now, machine="host-a")
    shutil.copytree(tmp_path / "a", tmp_path / "b", symlinks=True)
    refused("TRUST_STATE_FOREIGN", TrustStore.open, tmp_path / "b", machine="host-b")
    TrustStore.open(tmp_path / "b", machine="host-a")


def test_an_altered_anchor_in_the_state_is_found_out(store, other_zone, now):
    (store.directory / "anchor.json").write_bytes(other_zone.anchor)
    refused("TRUST_STATE_DAMAGED", TrustStore.open(store.directory).material, now=now)


def test_a_state_without_its_anchor_is_damaged(store):
    (store.directory / "anchor.json").unlink()
    refused("TRUST_STATE_DAMAGED", TrustStore.open, store.directory)


ANCHORS = {
    "nothing": b"",
    "no JSON": b"anchor",
    "a list": b"[]",
    "too much": b" " * 300_000,
}


@pytest.mark.parametrize("name", ANCHORS)
def test_an_anchor_that_is(name, zone, tmp_path, now):
    refused("TRUST_ANCHOR_MALFORMED", TrustStore.initialise, tmp_path / "s", ANCHORS[name], zone.repository, now=now)


@pytest.mark.parametrize(
    "change", [{"_type": "x"}, {"extra": 1}, {"created": "2026-02-31T00:00:00Z"}, {"created": "soon"}, {"root": 5}]
)
def test_an_anchor_with_a_wrong_field_is_refused(change, zone, tmp_path, now):
    anchor = json.dumps({**json.loads(zone.anchor), **change}).encode()
    refused("TRUST_ANCHOR_MALFORMED", TrustStore.initialise, tmp_path / "s", anchor, zone.repository, now=now)


def test_the_machine_identity_is_stable_and_does_not_give_the_machine_id_away(tmp_path):
    (tmp_path / "etc").mkdir()
    assert machine_identity(tmp_path) is None
    (tmp_path / "etc/machine-id").write_text("3d1219c7c4c5404aaa1f6d2a48adfda4\n")
    first = machine_identity(tmp_path)
    assert first == machine_identity(tmp_path)
    assert "3d1219c7" not in first


@pytest.mark.slow
def test_a_killed_refresh_leaves_the_old_state_or_the_new_one(zone, store, tmp_path, now):
    """The process dies at every fsync in turn; whatever it leaves opens and verifies, and the next refresh heals it."""
    shutil.copytree(zone.path, tmp_path / "ca")
    own = DevelopmentAuthority(tmp_path / "ca")
    deaths, finished = 0, False
    while not finished:
        Repository(Authority.open(own.path)).publish(now=now)
        expected = Repository(Authority.open(own.path)).version("timestamp")
        child = os.fork()
        if child == 0:
            left = deaths
            real = os.fsync

            def dying(descriptor, real=real):
                nonlocal left
                if left == 0:
                    os._exit(9)
                left -= 1
                real(descriptor)

            os.fsync = dying
            TrustStore.open(store.directory).refresh(own.repository, now=now)
            os._exit(0)
        finished = os.waitpid(child, 0)[1] == 0
        deaths += 1
        survivor = TrustStore.open(store.directory)
        survivor.material(now=now)
        assert survivor.state().versions["timestamp"] in range(expected - deaths, expected + 1)
    assert deaths > 5
    assert survivor.state().versions["timestamp"] == expected


@pytest.mark.parametrize("limit_bytes", [0, 300, 1500, 5000])
def test_a_full_disk_during_a_refresh_is_said_and_leaves_the_old_state(limit_bytes, zone, store, tmp_path, now):
    """The operating system lets no file grow beyond the limit, as a full disk would."""
    import resource

    shutil.copytree(zone.path, tmp_path / "ca")
    own = DevelopmentAuthority(tmp_path / "ca")
    Repository(Authority.open(own.path)).publish(now=now)
    (store.directory / "lock").touch()
    before = contents(store.directory)
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
        try:
            TrustStore.open(store.directory).refresh(own.repository, now=now)
        except ApplianceError as error:
            os._exit(7 if error.code == "FILE_NO_SPACE" else 8)
        except BaseException:
            os._exit(9)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == 0:
        assert limit_bytes == 5000  # then everything fitted
    else:
        assert status == 7
        assert contents(store.directory) == before
    TrustStore.open(store.directory).material(now=now)


def test_wherever_a_disk_fills_up_a_refresh_says_so_and_the_old_state_stays(zone, tmp_path, now):
    """A file system of a few pages in the child: each page less stops the refresh at another place."""
    shutil.copytree(zone.path, tmp_path / "ca")
    own, disk = DevelopmentAuthority(tmp_path / "ca"), tmp_path / "disk"
    disk.mkdir()

    def refresh_on_a_full_disk():
        children.on_small_disk(disk, 512 * 1024)
        store = own.store(disk / "state", now=now)
        (store.directory / "lock").touch()
        Repository(Authority.open(own.path)).publish(now=now)
        before, refused, pages = contents(store.directory), 0, 0
        while True:
            free = os.statvfs(disk)
            (disk / "filler").write_bytes(bytes(free.f_bavail * free.f_frsize - pages * 4096))
            try:
                store.refresh(own.repository, now=now)
            except ApplianceError as error:
                assert error.code == "FILE_NO_SPACE"
            else:
                break
            assert contents(store.directory) == before
            (disk / "filler").unlink()
            refused, pages = refused + 1, pages + 1
        assert refused > 5
        assert store.state().versions["timestamp"] == 2

    assert children.run(refresh_on_a_full_disk) == "done"


def test_fifty_readers_during_refreshes_always_see_a_whole_state(zone, store, tmp_path, now):
    from concurrent.futures import ThreadPoolExecutor

    shutil.copytree(zone.path, tmp_path / "ca")
    own = DevelopmentAuthority(tmp_path / "ca")
    repository = Repository(Authority.open(own.path))

    def look(_):
        return TrustStore.open(store.directory).material(now=now).policy.schema_version

    with ThreadPoolExecutor(8) as pool:
        seen = [pool.submit(look, n) for n in range(50)]
        for _ in range(3):
            repository.republish(now=now)
            store.refresh(own.repository, now=now)
        assert {each.result() for each in seen} == {1}


def test_what_root_took_over_belongs_to_the_service_as_the_state_does(zone, store, tmp_path, now):
    if os.geteuid() != 0:
        pytest.skip("gives files away, which only root may")
    shutil.copytree(zone.path, tmp_path / "ca")
    own = DevelopmentAuthority(tmp_path / "ca")
    repository = Repository(Authority.open(own.path))
    service = 65534
    for path in [store.directory, *store.directory.rglob("*")]:
        os.chown(path, service, service, follow_symlinks=False)

    for _ in range(2):  # an upgrade by root
        repository.republish(now=now)
        store.refresh(own.repository, now=now)
    kept = store.directory / "generations"
    assert {path.lstat().st_uid for path in [*kept.iterdir(), *kept.rglob("*")]} == {service}


def test_a_state_that_only_its_owner_may_write_can_be_read_by_the_gateway(store, now, monkeypatch):
    """The mark cannot be kept then; reading must work all the same."""
    from appliance.errors import FileError
    from appliance.trust import store as module

    def read_only(path, data, *, mode=0o644):
        raise FileError("FILE_PERMISSION", "read-only", path=str(path))

    monkeypatch.setattr(module, "write_atomic", read_only)
    assert store.material(now=now + 2 * HOUR).policy
