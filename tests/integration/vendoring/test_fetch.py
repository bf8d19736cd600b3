"""Fetching from a real index on the loopback: every digest ours, resumable, everything missing named at once."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from packaging.version import Version

from appliance.errors import FileError, VendorError
from appliance.files import locked, sha256_hex
from appliance.vendoring.fetch import Wheelhouse, fetch, read_fetched
from appliance.vendoring.index import Index, Sources
from appliance.vendoring.locks import Pin
from appliance.vendoring.targets import Target
from tests.support.vendoring import Offer, PackageIndex, WheelMaker

ROOT = Path(__file__).parents[3]
TARGET = Target("cp311-manylinux_x86_64", (3, 11), "x86_64", (2, 28))


def pin(maker: WheelMaker) -> Pin:
    return Pin(maker.name, Version(maker.version), frozenset({sha256_hex(maker.build())}))


def index_of(*makers: WheelMaker, json_pages: bool = True) -> PackageIndex:
    index = PackageIndex(json_pages=json_pages)
    for maker in makers:
        index.add_wheel(maker)
    return index


def run(url: str, folder: Path, *pins: Pin, others: tuple[Pin, ...] = ()) -> Wheelhouse:
    return fetch(pins, TARGET, folder, open_index=lambda: Index(Sources(indexes=(url,))), others=others)


MAKERS = [WheelMaker(f"pkg{n}", files={f"pkg{n}/data": bytes([n]) * 5000}) for n in range(20)]


@pytest.mark.parametrize("json_pages", [True, False])
def test_exactly_the_locked_wheels_are_fetched(tmp_path: Path, json_pages: bool):
    index = index_of(*MAKERS, WheelMaker("pkg0", "2.0"), WheelMaker("stranger"), json_pages=json_pages)
    with index.serving() as url:
        house = run(url, tmp_path, *map(pin, MAKERS))
    assert {path.name for path in tmp_path.glob("*.whl")} == {maker.filename for maker in MAKERS}
    assert [wheel.filename for wheel in house.wheels] == sorted(maker.filename for maker in MAKERS)
    assert house.downloaded == 20
    told = {wheel.uploaded for wheel in read_fetched(tmp_path)}
    assert told == ({"2026-01-01T00:00:00+00:00"} if json_pages else {None})


def test_a_second_run_asks_nobody_and_a_damaged_wheel_is_fetched_again(tmp_path: Path):
    index = index_of(*MAKERS)
    with index.serving() as url:
        run(url, tmp_path, *map(pin, MAKERS))
        index.requests.clear()
        assert run(url, tmp_path, *map(pin, MAKERS)).downloaded == 0
        assert index.requests == []
        victim = tmp_path / MAKERS[3].filename
        victim.write_bytes(victim.read_bytes()[:-1] + b"\1")
        (tmp_path / MAKERS[4].filename).unlink()
        (tmp_path / MAKERS[5].filename).write_bytes(b"")
        house = run(url, tmp_path, *map(pin, MAKERS))
    assert house.downloaded == 3
    assert victim.read_bytes() == MAKERS[3].build()
    assert len([path for path in index.requests if path.startswith("/files/")]) == 3


def test_wheels_of_an_older_lock_leave_and_those_of_other_profiles_stay(tmp_path: Path):
    old, shared = WheelMaker("pkg0", "0.9"), WheelMaker("shared")
    index = index_of(old, shared, *MAKERS)
    with index.serving() as url:
        run(url, tmp_path, pin(old), pin(shared))
        house = run(url, tmp_path, pin(MAKERS[0]), others=(pin(shared),))
    assert house.removed == (old.filename,)
    assert [wheel.name for wheel in house.wheels] == ["pkg0"]
    assert {wheel.name for wheel in read_fetched(tmp_path)} == {"pkg0", "shared"}


@pytest.mark.parametrize("honest_about_the_hash", [True, False])
def test_a_replaced_file_is_refused_and_nothing_of_it_remains(tmp_path: Path, honest_about_the_hash: bool):
    """An index may admit that the file is another, or keep telling the old digest: both end in a refusal."""
    good, poisoned = WheelMaker("pkg"), WheelMaker("pkg", files={"evil.pth": b"import os\n"})
    index = PackageIndex()
    told = None if honest_about_the_hash else sha256_hex(good.build())
    index.add("pkg", Offer(poisoned.filename, poisoned.build(), sha256=told))
    with index.serving() as url, pytest.raises(VendorError) as caught:
        run(url, tmp_path, pin(good))
    assert caught.value.code == ("VENDOR_WHEEL_MISSING" if honest_about_the_hash else "VENDOR_HASH_MISMATCH")
    assert not list(tmp_path.glob("*.whl"))
    assert not list(tmp_path.glob(".*.part"))


def test_every_missing_wheel_is_named_before_anything_is_downloaded(tmp_path: Path):
    index = index_of(*MAKERS[:2])
    index.add("source", Offer("source-1.0.tar.gz", b"x"))
    index.add_wheel(WheelMaker("arm", tag="cp311-cp311-manylinux_2_17_aarch64"))
    index.add_wheel(WheelMaker("modern", tag="cp311-cp311-manylinux_2_39_x86_64"))
    pins = [
        pin(MAKERS[0]),
        *(Pin(name, Version("1.0"), frozenset({"0" * 64})) for name in ("source", "arm", "modern", "gone")),
    ]
    with index.serving() as url, pytest.raises(VendorError) as caught:
        run(url, tmp_path, *pins)
    assert caught.value.code == "VENDOR_WHEEL_MISSING"
    assert set(caught.value.evidence["missing"]) == {"source==1.0", "arm==1.0", "modern==1.0", "gone==1.0"}
    assert not any(path.startswith("/files/") for path in index.requests)


def test_a_stumbling_index_is_asked_again_and_a_dead_one_named_without_credentials(tmp_path: Path):
    index = index_of(MAKERS[0])
    with index.serving() as url:
        index.failures_left = 2
        assert run(url, tmp_path / "a", pin(MAKERS[0])).downloaded == 1
        dead = url.replace("http://", "http://user:secret@")
    with pytest.raises(VendorError) as caught:
        run(dead, tmp_path / "b", pin(MAKERS[0]))
    assert caught.value.code == "VENDOR_INDEX_UNREACHABLE"
    assert "secret" not in str(caught.value.as_dict())


def test_a_page_that_is_no_index_is_called_so(tmp_path: Path):
    index = PackageIndex()
    index.answer = lambda path, accept: ("application/vnd.pypi.simple.v1+json", b'{"login": 1}')  # type: ignore[method-assign]
    with index.serving() as url, pytest.raises(VendorError) as caught:
        run(url, tmp_path, pin(MAKERS[0]))
    assert caught.value.code == "VENDOR_INDEX_MALFORMED"


def test_a_page_that_does_not_end_is_not_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("appliance.vendoring.index.MAX_PAGE_BYTES", 100_000)
    index = PackageIndex()
    index.answer = lambda path, accept: ("text/html", b"x" * 5_000_000)  # type: ignore[method-assign]
    with index.serving() as url, pytest.raises(VendorError) as caught:
        run(url, tmp_path, pin(MAKERS[0]))
    assert caught.value.code == "VENDOR_INDEX_MALFORMED"


def test_one_refused_wheel_does_not_wait_for_a_hanging_one(tmp_path: Path):
    """The index delivers one wheel with other bytes and lets another hang: the refusal comes at once."""
    good, bad = WheelMaker("hanging"), WheelMaker("swapped")
    index = index_of(good)
    index.add("swapped", Offer(bad.filename, b"other bytes", sha256=sha256_hex(bad.build())))
    answer, over, waited = index.answer, threading.Event(), []

    def hanging(path: str, accept: str) -> tuple[str, bytes] | None:
        if path.endswith(good.filename):
            waited.append(over.wait(200))
        return answer(path, accept)

    index.answer = hanging  # type: ignore[method-assign]
    with index.serving() as url:
        with pytest.raises(VendorError) as caught:
            run(url, tmp_path, pin(good), pin(bad))
        assert False not in waited, "it is refused while the other still hangs"
        over.set()
    assert caught.value.code == "VENDOR_HASH_MISMATCH"


def test_a_folder_without_room_is_refused_before_anything_is_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    index = index_of(*MAKERS[:2])
    monkeypatch.setattr("appliance.files.shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    with index.serving() as url, pytest.raises(FileError) as caught:
        run(url, tmp_path, *map(pin, MAKERS[:2]))
    assert caught.value.code == "FILE_NO_SPACE"
    assert caught.value.evidence["needed_bytes"] == sum(len(maker.build()) for maker in MAKERS[:2])
    assert not any(path.startswith("/files/") for path in index.requests)


def test_two_fetches_into_one_folder_do_not_mix(tmp_path: Path):
    with locked(tmp_path / ".lock"), pytest.raises(FileError) as caught:
        run("http://127.0.0.1:9/simple", tmp_path, pin(MAKERS[0]))
    assert caught.value.code == "FILE_LOCKED"


def test_a_file_index_and_find_links_serve_as_well(tmp_path: Path):
    one, two = MAKERS[:2]
    page = tmp_path / "simple" / one.name
    one.write(tmp_path / "files")
    page.mkdir(parents=True)
    (page / "index.html").write_text(f'<a href="../../files/{one.filename}#sha256={sha256_hex(one.build())}">x</a>')
    two.write(tmp_path / "links")
    sources = Sources(indexes=((tmp_path / "simple").as_uri(),), find_links=(str(tmp_path / "links"),))
    house = fetch([pin(one), pin(two)], TARGET, tmp_path / "out", open_index=lambda: Index(sources))
    assert house.downloaded == 2


def test_pips_own_configuration_decides_where_to_look(tmp_path: Path):
    (tmp_path / "pip.conf").write_text(
        "[global]\nindex-url = https://one.example/simple\nextra-index-url = https://two.example/a\n  https://three.example\n"
        "find-links = /global\n[download]\nindex-url = https://downloads.example/simple\n"
    )
    environment = {"PATH": os.environ["PATH"], "PIP_CONFIG_FILE": str(tmp_path / "pip.conf"), "HOME": str(tmp_path)}
    sources = Sources.from_pip(environment=environment)
    assert sources.indexes == ("https://downloads.example/simple", "https://two.example/a", "https://three.example")
    assert sources.find_links == ("/global",)
    both = Sources.from_pip(
        environment={**environment, "PIP_INDEX_URL": "https://env.example", "PIP_FIND_LINKS": "/env"}
    )
    assert both.indexes[0] == "https://env.example"
    assert both.find_links == ("/env",)
    assert Sources.from_pip(environment={**environment, "PIP_NO_INDEX": "1"}).indexes == ()
    (tmp_path / "pip.conf").write_text("not an ini file")
    with pytest.raises(VendorError) as caught:
        Sources.from_pip(environment=environment)
    assert caught.value.code == "VENDOR_TOOL_FAILED"


@pytest.mark.slow
def test_a_fetch_killed_halfway_goes_on_where_it_stopped(tmp_path: Path):
    """SIGKILL while the second half hangs in the index; the next run downloads only what is missing."""
    index = index_of(*MAKERS)
    answer = index.answer
    killed = threading.Event()
    slow = {maker.filename for maker in MAKERS[15:]}

    def hanging(path: str, accept: str) -> tuple[str, bytes] | None:
        if path.rpartition("/")[2] in slow:
            killed.wait(600)
        return answer(path, accept)

    code = (
        "import sys; from pathlib import Path; from packaging.version import Version\n"
        "from appliance.vendoring.fetch import fetch; from appliance.vendoring.index import Index, Sources\n"
        "from appliance.vendoring.locks import read_lock; from appliance.vendoring.targets import Target\n"
        "t = Target('cp311-manylinux_x86_64', (3, 11), 'x86_64', (2, 28))\n"
        "fetch(read_lock(Path(sys.argv[1])).pins, t, Path(sys.argv[2]), "
        "open_index=lambda: Index(Sources(indexes=(sys.argv[3],))))"
    )
    lock = tmp_path / "x.lock"
    lock.write_text("".join(f"{m.name}=={m.version} --hash=sha256:{sha256_hex(m.build())}\n" for m in MAKERS))
    out = tmp_path / "out"
    with index.serving() as url:
        index.answer = hanging  # type: ignore[method-assign]
        process = subprocess.Popen([sys.executable, "-c", code, str(lock), str(out), url], cwd=ROOT)
        try:
            deadline = time.monotonic() + 600
            while len(list(out.glob("*.whl"))) < 2 and time.monotonic() < deadline:
                time.sleep(0.05)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed.set()
        index.answer = answer  # type: ignore[method-assign]
        arrived = len(list(out.glob("*.whl")))
        assert 2 <= arrived <= 15
        house = run(url, out, *map(pin, MAKERS))
    assert house.downloaded == 20 - arrived
    assert not list(out.glob(".*.part"))
    for maker in MAKERS:
        assert (out / maker.filename).read_bytes() == maker.build()
