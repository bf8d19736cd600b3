"""A registry on a shared volume: whoever else can write to it leads nobody outside, and decides on no sizes."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.errors import RegistryError
from appliance.registry.directory import DirectoryStore

KEY = "routers/default/1.0.0/router.yaml"


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder that looks like a version, and is not of the volume."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "router.yaml").write_bytes(b"somebody else's")
    return folder


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    (tmp_path / "volume").mkdir()
    return DirectoryStore(tmp_path / "volume")


ACTS: dict[str, Callable[[DirectoryStore], object]] = {
    "get": lambda store: store.get(KEY, max_bytes=100),
    "copy": lambda store: store.copy(KEY, io.BytesIO(), size_bytes=15),
    "put": lambda store: store.put(KEY, b"ours"),
    "put once": lambda store: store.put(KEY, b"ours", only_if_absent=True),
    "delete": lambda store: store.delete(KEY),
    "list": lambda store: store.list("routers/default/1.0.0/"),
    "list all": lambda store: store.list(""),
}


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("link", ["routers", "routers/default", "routers/default/1.0.0"])
def test_a_folder_that_is_a_link_is_never_followed(
    act: str, link: str, store: DirectoryStore, outside: Path, tmp_path: Path
) -> None:
    place = tmp_path / "volume" / link
    place.parent.mkdir(parents=True, exist_ok=True)
    inside = outside / Path(KEY).parent.relative_to(link)
    inside.mkdir(parents=True, exist_ok=True)
    (outside / "router.yaml").rename(inside / "router.yaml")
    place.symlink_to(outside)
    if act.startswith(("get", "copy", "put")):
        with pytest.raises(RegistryError) as info:
            ACTS[act](store)
        assert info.value.code in {"REGISTRY_NOT_FOUND", "REGISTRY_DENIED"}
    else:
        assert not ACTS[act](store)
    assert (inside / "router.yaml").read_bytes() == b"somebody else's"
    assert [path.name for path in inside.iterdir()] == ["router.yaml"]


def test_an_honest_volume_is_written_listed_and_emptied(store: DirectoryStore, tmp_path: Path) -> None:
    tag = store.put(KEY, b"ours")
    store.put("channels/default.json", b"{}")
    assert store.get(KEY, max_bytes=4, unless=tag) is None
    for prefix in ("", "routers/", "routers/default/1.0.0/", "routers/def"):
        assert KEY in [entry.key for entry in store.list(prefix)]
    assert store.list("encoders/") == []
    with pytest.raises(RegistryError) as info:
        store.put(KEY, b"other", only_if_absent=True)
    assert info.value.code == "REGISTRY_EXISTS"
    store.delete(KEY)
    store.delete(KEY)
    assert sorted(path.name for path in (tmp_path / "volume").iterdir()) == [".registry.lock", "channels"]


class Companion(io.BytesIO):
    """Where a copy goes, while somebody changes the original after the first bytes."""

    def __init__(self, change: Callable[[], object]) -> None:
        super().__init__()
        self._change = change

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self._change()
        return super().write(data)


def test_a_file_that_grows_while_it_is_copied_gives_what_was_signed_and_no_more(
    store: DirectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("appliance.registry.directory._CHUNK", 1000)
    store.put(KEY, b"x" * 5000)
    path = tmp_path / "volume" / KEY

    def grow() -> None:
        with open(path, "ab") as stream:
            stream.write(b"y" * 1000)

    into = Companion(grow)
    store.copy(KEY, into, size_bytes=5000)
    assert into.getvalue() == b"x" * 5000
    store.put(KEY, b"x" * 5000)
    with pytest.raises(RegistryError) as info:
        store.copy(KEY, Companion(lambda: os.truncate(path, 10)), size_bytes=5000)
    assert info.value.code == "REGISTRY_INCOMPLETE"
