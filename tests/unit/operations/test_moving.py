"""A registry that moves: contents first, pointers last, nothing older over anything newer."""

import base64
import json

import pytest

from appliance.errors import OperationError
from appliance.operations.moving import copy_registry
from appliance.registry.directory import DirectoryStore


def pointer(epoch: int) -> bytes:
    statement = base64.b64encode(json.dumps({"epoch": epoch}).encode()).decode()
    return json.dumps({"statement": statement, "bundle": statement}).encode()


@pytest.fixture
def homes(tmp_path):
    made = []
    for name in ("from", "to"):
        (tmp_path / name).mkdir()
        made.append(DirectoryStore(tmp_path / name))
    source = made[0]
    source.put("routers/default/1.0.0/router.yaml", b"name: default")
    source.put("routers/default/1.0.0/weights.safetensors", bytes(100_000))
    source.put("channels/default.json", pointer(3))
    return made


def everything(store) -> dict[str, bytes]:
    return {entry.key: store.get(entry.key, max_bytes=10**6).data for entry in store.list("")}


def test_everything_arrives_and_pointers_come_last(homes):
    source, target = homes
    said = []
    moved = copy_registry(source, target, say=said.append)
    assert everything(target) == everything(source)
    assert (moved.objects, moved.written) == (3, 3)
    assert said[-1].startswith("channels/default.json")


def test_a_copy_that_was_killed_is_taken_up_where_it_stood(homes):
    source, target = homes
    target.put("routers/default/1.0.0/router.yaml", b"name: default")
    target.put("routers/default/1.0.0/weights.safetensors", bytes(50_000))  # half of it
    assert copy_registry(source, target).written == 2
    assert copy_registry(source, target).written == 0
    assert everything(target) == everything(source)


def test_a_pointer_that_is_newer_at_the_target_is_not_turned_back(homes):
    source, target = homes
    copy_registry(source, target)
    target.put("channels/default.json", pointer(4))
    with pytest.raises(OperationError) as refused:
        copy_registry(source, target)
    assert refused.value.code == "OPERATION_REGISTRY_DIFFERS"
    assert target.get("channels/default.json", max_bytes=10**6).data == pointer(4)


def test_what_was_promoted_meanwhile_is_brought_over_by_repeating(homes):
    source, target = homes
    copy_registry(source, target)
    source.put("channels/default.json", pointer(5))
    assert copy_registry(source, target).written == 1
    assert target.get("channels/default.json", max_bytes=10**6).data == pointer(5)


def test_objects_of_somebody_else_at_the_target_are_a_refusal(homes):
    source, target = homes
    target.put("routers/other/1.0.0/router.yaml", b"name: other")
    with pytest.raises(OperationError) as refused:
        copy_registry(source, target)
    assert refused.value.code == "OPERATION_REGISTRY_DIFFERS"
    assert refused.value.evidence["foreign"] == ["routers/other/1.0.0/router.yaml"]


def test_a_place_that_is_no_registry_is_not_moved(tmp_path, homes):
    (tmp_path / "nothing").mkdir()
    with pytest.raises(OperationError) as refused:
        copy_registry(DirectoryStore(tmp_path / "nothing"), homes[1])
    assert refused.value.code == "OPERATION_REGISTRY_DIFFERS"


def test_a_target_that_keeps_something_else_is_seen(homes, monkeypatch):
    """A home that answers a write with success and keeps other bytes."""
    source, target = homes
    put = target.put
    monkeypatch.setattr(target, "put", lambda key, data, **_: put(key, data[:-1] + b"x"))
    with pytest.raises(OperationError) as refused:
        copy_registry(source, target)
    assert refused.value.code == "OPERATION_REGISTRY_DIFFERS"
