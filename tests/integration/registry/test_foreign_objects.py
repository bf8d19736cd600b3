"""A bucket that somebody else fills, read under whatever keys it has: on real servers, in pages, into outcomes."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from minio import Minio

from appliance.errors import RegistryError
from appliance.registry import s3
from appliance.registry.homes import open_objects
from appliance.registry.settings import S3Settings
from appliance.registry.tls import client_context
from appliance.registry.transport import HttpsPool
from appliance.training.extract.redaction import load_redactor
from appliance.training.extract.reward import Rules
from appliance.training.extract.run import Sources, extract
from appliance.training.outcomes import read_outcomes
from tests.support.s3 import S3Server

KEYS = (
    "My Team/2026-11-30/time-10-00-00_chatcmpl 1.json", " blank", "a+b", "a%20b", "a%2Fb", "q?x=1&y=2#z", "a=b;c,d@e:f",
    "ü/日本/😀", "a//b", "/begins", "ends.", "..a/b..", "x/.hidden", "~tilde", "a\\b", "con", "a\nb", "'q'\"<>&amp;",
    "*[x]{y}|^`", "…", "\x01",
)  # fmt: skip


@pytest.fixture(params=["swift", pytest.param("rgw", marks=pytest.mark.slow)])
def bucket(
    request: pytest.FixtureRequest, tmp_path: Path, bucket_settings: Callable[..., S3Settings]
) -> tuple[S3Settings, Callable[[str, bytes], None]]:
    """Settings of a fresh bucket, and what puts an object there with the stock client, as another program would."""
    server: S3Server = request.getfixturevalue(request.param)
    settings = bucket_settings(server, prefix="")
    pool = HttpsPool(client_context(settings.ca_file), pins=frozenset(), connect_timeout_s=60, read_timeout_s=120)
    client = Minio(server.endpoint, server.access_key, server.secret_key, region=settings.region, http_client=pool)

    def put(key: str, data: bytes) -> None:
        client.put_object(settings.bucket, key, io.BytesIO(data), len(data))

    return settings, put


def test_whatever_key_an_object_has_it_is_listed_and_read(bucket, monkeypatch):
    settings, put = bucket
    for key in KEYS:
        put(key, key.encode())
    objects = open_objects(settings)
    for size in (1000, 4):  # of a page; the last one whole, and not
        monkeypatch.setattr(s3, "PAGE_ENTRIES", size)
        listed = [entry.key for page in objects.pages("") for entry in page]
        assert listed == sorted(KEYS, key=str.encode)
    for key in KEYS:
        blob = objects.get(key, max_bytes=100)
        assert blob is not None
        assert blob.data == key.encode()
    for prefix in ("My T", "My Team/", "ü/日", "a+"):
        assert [entry.key for page in objects.pages(prefix) for entry in page] == [
            key for key in KEYS if key.startswith(prefix)
        ]


@pytest.mark.parametrize("key", ["../x", "a/./b", "..", " ", "a\0b"])
def test_a_key_that_no_request_can_ask_for_is_refused_as_that(bucket, key):
    with pytest.raises(RegistryError) as refused:
        open_objects(bucket[0]).get(key, max_bytes=10)
    assert refused.value.code == "REGISTRY_NAME"


def test_spend_objects_of_any_key_become_outcomes_and_each_counts_once(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(s3, "PAGE_ENTRIES", 4)
    settings, put = bucket
    messages = [{"role": "user", "content": "Why is the sky blue?"}]
    for number, key in enumerate(KEYS):
        payload = {"id": f"chatcmpl-{number}", "model": "m", "startTime": 100.0, "endTime": 101.0, "messages": messages}
        document = json.dumps(payload).encode()
        put(f"logs/{key}", gzip.compress(document) if number % 2 else document)
    put("logs/folder/", b"")
    put("logs/broken object", b"{")
    out = tmp_path / "o.jsonl"
    sources = Sources(objects=(open_objects(settings), "logs/"))
    for _ in range(2):  # the second run finds nothing new
        card = extract(sources, out, redact=load_redactor(None), rules=Rules("success"))
        assert card["read"] == {"spend_objects_not_understood": 1, "spend_objects_read": len(KEYS)}
        assert card["written"] == len(KEYS)
    lineage = {outcome.query_id: outcome.lineage for outcome, _ in read_outcomes(out)}
    assert lineage["chatcmpl-0"] == f"logs/{KEYS[0]}#0"
