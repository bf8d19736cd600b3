"""What every home of a registry keeps, over each of them."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from appliance.errors import RegistryError
from appliance.registry.contract import Store

KEY = "routers/default/1.0.0/router.yaml"


def test_what_was_put_is_got(home: Store) -> None:
    etag = home.put(KEY, b"content")
    blob = home.get(KEY, max_bytes=7)
    assert blob is not None
    assert (blob.data, blob.etag) == (b"content", etag)


def test_an_empty_object_is_an_object(home: Store) -> None:
    home.put(KEY, b"")
    blob = home.get(KEY, max_bytes=0)
    assert blob is not None
    assert blob.data == b""
    into = io.BytesIO()
    home.copy(KEY, into, size_bytes=0)
    assert into.getvalue() == b""


def test_an_unchanged_object_is_not_sent_and_a_changed_one_is(home: Store) -> None:
    etag = home.put(KEY, b"one")
    assert home.get(KEY, max_bytes=100, unless=etag) is None
    home.put(KEY, b"two")
    blob = home.get(KEY, max_bytes=100, unless=etag)
    assert blob is not None
    assert blob.data == b"two"
    assert blob.etag != etag


def test_an_absent_object_is_said_to_be_absent(home: Store) -> None:
    with pytest.raises(RegistryError) as info:
        home.get(KEY, max_bytes=100)
    assert info.value.code == "REGISTRY_NOT_FOUND"
    with pytest.raises(RegistryError) as info:
        home.copy(KEY, io.BytesIO(), size_bytes=3)
    assert info.value.code == "REGISTRY_NOT_FOUND"


def test_an_object_larger_than_allowed_is_refused(home: Store) -> None:
    home.put(KEY, b"content")
    with pytest.raises(RegistryError) as info:
        home.get(KEY, max_bytes=6)
    assert info.value.code == "REGISTRY_TOO_LARGE"


@pytest.mark.parametrize(("size_bytes", "code"), [(6, "REGISTRY_TOO_LARGE"), (8, "REGISTRY_INCOMPLETE")])
def test_a_copy_of_another_length_than_signed_is_refused(home: Store, size_bytes: int, code: str) -> None:
    home.put(KEY, b"content")
    with pytest.raises(RegistryError) as info:
        home.copy(KEY, io.BytesIO(), size_bytes=size_bytes)
    assert info.value.code == code


def test_a_copy_goes_on_where_the_file_ends(home: Store) -> None:
    data = bytes(range(256)) * 4096
    home.put(KEY, data)
    into = io.BytesIO(data[:1000])
    into.seek(0, io.SEEK_END)
    home.copy(KEY, into, size_bytes=len(data))
    assert into.getvalue() == data


def test_only_if_absent_keeps_what_stands(home: Store) -> None:
    home.put(KEY, b"first", only_if_absent=True)
    with pytest.raises(RegistryError) as info:
        home.put(KEY, b"second", only_if_absent=True)
    assert info.value.code == "REGISTRY_EXISTS"
    blob = home.get(KEY, max_bytes=100)
    assert blob is not None
    assert blob.data == b"first"


def test_a_listing_names_size_and_time_of_what_lies_below_a_prefix(home: Store) -> None:
    for key, data in {"routers/b/1/x": b"12", "routers/a/1/y": b"1", "channels/a.json": b""}.items():
        home.put(key, data)
    entries = home.list("routers/")
    assert [(entry.key, entry.size_bytes) for entry in entries] == [("routers/a/1/y", 1), ("routers/b/1/x", 2)]
    assert all(abs(datetime.now(UTC) - entry.modified) < timedelta(minutes=5) for entry in entries)
    assert home.list("encoders/") == []
    assert len(home.list("")) == 3


def test_a_prefix_does_not_reach_into_a_longer_name(home: Store) -> None:
    home.put("routers/a/1/x", b"")
    home.put("routers/a/10/x", b"")
    assert [entry.key for entry in home.list("routers/a/1/")] == ["routers/a/1/x"]


def test_a_deleted_object_is_gone_and_deleting_again_is_no_error(home: Store) -> None:
    home.put(KEY, b"content")
    home.delete(KEY)
    home.delete(KEY)
    assert home.list("") == []


@pytest.mark.parametrize("key", ["../outside", "/etc/passwd", "routers/../../x", "a//b", "routers/a\nb"])
def test_a_key_that_climbs_out_is_refused(home: Store, key: str) -> None:
    for act in (
        lambda: home.put(key, b"x"),
        lambda: home.get(key, max_bytes=10),
        lambda: home.delete(key),
        lambda: home.copy(key, io.BytesIO(), size_bytes=1),
    ):
        with pytest.raises(RegistryError) as info:
            act()
        assert info.value.code == "REGISTRY_NAME"


def test_readers_during_a_replacement_see_the_old_or_the_new(home: Store) -> None:
    versions = [bytes([65 + number]) * 50_000 for number in range(6)]
    home.put("channels/a.json", versions[0])

    def read(_number: int) -> bytes:
        blob = home.get("channels/a.json", max_bytes=50_000)
        assert blob is not None
        return blob.data

    with ThreadPoolExecutor(4) as readers:
        seen = readers.map(read, range(24))
        for version in versions[1:]:
            home.put("channels/a.json", version)
        assert all(data in versions for data in seen)
