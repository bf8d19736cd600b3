"""What Ceph RGW enforces on the server's side, which Swift does not: one winner, retention, object lock."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from minio import Minio
from minio.commonconfig import COMPLIANCE
from minio.error import S3Error
from minio.objectlockconfig import DAYS, ObjectLockConfig
from minio.retention import Retention

from appliance.errors import RegistryError
from appliance.registry.homes import open_store
from appliance.registry.settings import S3Settings, read_credentials
from appliance.registry.tls import client_context
from appliance.registry.transport import HttpsPool
from tests.support.s3 import S3Server

pytestmark = pytest.mark.slow


def administrator(settings: S3Settings) -> Minio:
    """The stock client, for what the registry itself never does."""
    credentials = read_credentials(settings.credentials_file)
    pool = HttpsPool(client_context(settings.ca_file), pins=frozenset(), connect_timeout_s=5, read_timeout_s=30)
    return Minio(
        settings.endpoint, credentials.access_key, credentials.secret_key, region=settings.region, http_client=pool
    )


def test_of_twenty_writers_at_once_one_wins(rgw: S3Server, bucket_settings: Callable[..., S3Settings]) -> None:
    settings = bucket_settings(rgw, attempts=1, deadline_s=60, read_timeout_s=30)
    stores = [open_store(settings) for _ in range(20)]

    def write(number: int) -> str:
        try:
            stores[number].put("routers/a/1/x", b"%d" % number, only_if_absent=True)
        except RegistryError as error:
            return error.code
        return "won"

    with ThreadPoolExecutor(20) as writers:
        outcomes = list(writers.map(write, range(20)))
    assert outcomes.count("won") == 1
    assert set(outcomes) <= {"won", "REGISTRY_EXISTS", "REGISTRY_BUSY"}
    blob = stores[0].get("routers/a/1/x", max_bytes=10)
    assert blob is not None
    assert blob.data == b"%d" % outcomes.index("won")


def test_a_locked_version_can_be_neither_removed_nor_unlocked(
    rgw: S3Server, bucket_settings: Callable[..., S3Settings]
) -> None:
    settings = bucket_settings(rgw, object_lock=True)
    client, name = administrator(settings), f"{settings.prefix}routers/a/1/x"
    client.set_object_lock_config(settings.bucket, ObjectLockConfig(COMPLIANCE, 1, DAYS))
    store = open_store(settings)
    store.put("routers/a/1/x", b"published")
    [version] = [one.version_id for one in client.list_objects(settings.bucket, name, include_version=True)]
    with pytest.raises(S3Error) as info:
        client.remove_object(settings.bucket, name, version_id=version)
    assert info.value.code == "AccessDenied"
    soon = Retention(COMPLIANCE, datetime.now(UTC) + timedelta(seconds=5))
    with pytest.raises(S3Error):
        client.set_object_retention(settings.bucket, name, soon, version_id=version)
    store.delete("routers/a/1/x")  # hides it behind a marker
    with pytest.raises(RegistryError) as hidden:
        store.get("routers/a/1/x", max_bytes=10)
    assert hidden.value.code == "REGISTRY_NOT_FOUND"
    kept = client.get_object(settings.bucket, name, version_id=version)
    assert kept.read() == b"published", "the bytes are still there for whoever restores them"


def test_wrong_credentials_are_denied(
    rgw: S3Server, swift: S3Server, bucket_settings: Callable[..., S3Settings], tmp_path: Path
) -> None:
    for server in (rgw, swift):
        settings = bucket_settings(server)
        settings.credentials_file.write_text(f"access_key: {server.access_key}\nsecret_key: wrong\n")
        store = open_store(settings)
        for act in (lambda: store.get("a", max_bytes=1), lambda: store.put("a", b""), lambda: store.list("")):  # noqa: B023
            with pytest.raises(RegistryError) as info:
                act()
            assert info.value.code == "REGISTRY_DENIED"


def test_an_absent_bucket_is_named(swift: S3Server, bucket_settings: Callable[..., S3Settings]) -> None:
    store = open_store(bucket_settings(swift).model_copy(update={"bucket": "no-such-bucket"}))
    with pytest.raises(RegistryError) as info:
        store.list("")
    assert info.value.code == "REGISTRY_NO_BUCKET"
