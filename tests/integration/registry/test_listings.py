"""Listings of a registry that lies: names that were not asked for, impossible sizes, pages without end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.errors import RegistryError
from appliance.registry import s3
from appliance.registry.s3 import S3Store
from appliance.registry.settings import Credentials, S3Settings
from tests.support.faulty_tls import answer, faulty_server
from tests.support.small_authority import SmallAuthority

ENTRY = "<Contents><Key>{key}</Key><LastModified>2026-11-23T12:00:00.000Z</LastModified><Size>{size}</Size></Contents>"


def page(*entries: tuple[str, object], more: str = "") -> bytes:
    """One page; `more` is the token of the next, which an endless server gives again and again."""
    listed = "".join(ENTRY.format(key=key, size=size) for key, size in entries)
    cut = f"<IsTruncated>true</IsTruncated><NextContinuationToken>{more}</NextContinuationToken>" if more else ""
    return (
        '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<Name>registry</Name>{cut}{listed}</ListBucketResult>"
    ).encode()


@pytest.fixture(scope="module")
def authority() -> SmallAuthority:
    return SmallAuthority()


@pytest.fixture
def listing(tmp_path: Path, authority: SmallAuthority) -> Callable[..., list[str]]:
    def ask(body: bytes, *, pages: bool = False, **more: object) -> list[str]:
        (tmp_path / "ca.pem").write_bytes(authority.pem)
        with faulty_server(authority.issue("127.0.0.1"), answer(body)) as server:
            settings = {
                "home": "s3", "endpoint": server.endpoint, "bucket": "registry", "prefix": "zone/", "attempts": 1,
                "ca_file": tmp_path / "ca.pem", "credentials_file": tmp_path / "unused",
                "connect_timeout_s": 40, "read_timeout_s": 40, "deadline_s": 100, **more,
            }  # fmt: skip
            store = S3Store(S3Settings.model_validate(settings), Credentials(access_key="a", secret_key="s"))
            if pages:
                return [entry.key for page in store.pages("routers/") for entry in page]
            return [entry.key for entry in store.list("routers/")]

    return ask


def test_an_honest_listing_is_read(listing: Callable[..., list[str]]) -> None:
    found = listing(page(("zone/routers/b/1/x", 5), ("zone/routers/a/1/x", 0)))
    assert found == ["routers/a/1/x", "routers/b/1/x"]


@pytest.mark.parametrize(
    "body",
    [
        page(("zone/channels/default.json", 5)),
        page(("other/routers/a/1/x", 5)),
        page(("zone/routers/a/1/x", 5), ("/etc/passwd", 5)),
        page(("zone/routers/a/1/x", -(2**40))),
        page(("zone/routers/a/1/x", "many")),
        b"<ListBucketResult><Contents>",
        b"not XML",
    ],
    ids=["another folder", "another zone", "one among honest ones", "negative size", "no number", "half", "no XML"],
)
def test_a_listing_of_what_was_not_asked_for_is_refused(listing: Callable[..., list[str]], body: bytes) -> None:
    for pages in (False, True):
        with pytest.raises(RegistryError) as info:
            listing(body, pages=pages)
        assert info.value.code == "REGISTRY_ANSWER"


@pytest.mark.parametrize("entries", [(), (("zone/routers/a/1/x", 1),)], ids=["empty pages", "the same page"])
def test_pages_without_end_meet_the_deadline(listing: Callable[..., list[str]], entries: tuple) -> None:
    for pages in (False, True):
        with pytest.raises(RegistryError) as info:
            listing(page(*entries, more="again"), pages=pages, deadline_s=1.0)
        assert info.value.code in {"REGISTRY_DEADLINE", "REGISTRY_ANSWER"}


def test_a_page_that_goes_back_or_comes_again_is_refused(
    listing: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "PAGE_ENTRIES", 2)
    for names in (("a", "b"), ("b", "a"), ("a", "a")):
        with pytest.raises(RegistryError) as info:
            listing(page(*((f"zone/routers/{name}", 1) for name in names)), pages=True)
        assert info.value.code == "REGISTRY_ANSWER"
