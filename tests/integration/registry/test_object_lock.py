"""What Ceph RGW enforces on the server's side, which Swift does not: one winner, retention, object lock."""

from __future__ import annotations

import json
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
from minio.versioningconfig import ENABLED, VersioningConfig

from appliance.errors import RegistryError
from appliance.registry.contract import Store
from appliance.registry.homes import open_store
from appliance.registry.settings import S3Settings, read_credentials
from appliance.registry.tls import client_context
from appliance.registry.transport import HttpsPool
from tests.support.s3 import S3Server

pytestmark = pytest.mark.slow


def administrator(settings: S3Settings) -> Minio:
    """The stock client, for what the registry itself never does."""
    credentials = read_credentials(settings.credentials_file)
    pool = HttpsPool(client_context(settings.ca_file), pins=frozenset(), connect_timeout_s=60, read_timeout_s=120)
    return Minio(
        settings.endpoint, credentials.access_key, credentials.secret_key, region=settings.region, http_client=pool
    )


def test_of_twenty_writers_at_once_one_wins(rgw: S3Server, bucket_settings: Callable[..., S3Settings]) -> None:
    settings = bucket_settings(rgw, attempts=1)
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


POLICIES = Path(__file__).parents[3] / "bundle" / "minio"
MAY = {  # role -> what it may do; everything else is denied
    "gateway": {"get"},
    "sidecar": {"get", "list channels/", "list config/"},
    "officer": {"get", "list channels/", "list config/", "list routers/", "put", "promote"},
    "housekeeper": {"get", "list channels/", "list config/", "list routers/", "delete"},
}
ACTS: dict[str, Callable[[Store], object]] = {
    "get": lambda store: store.get("routers/a/1/x", max_bytes=100),
    "list channels/": lambda store: store.list("channels/"),
    "list config/": lambda store: store.list("config/"),
    "list routers/": lambda store: store.list("routers/"),
    "put": lambda store: store.put("routers/a/2/x", b"new"),
    "promote": lambda store: store.put("channels/a.json", b"pointer"),
    "put elsewhere": lambda store: store.put("elsewhere", b"x"),
    "delete": lambda store: store.delete("routers/a/1/x"),
    "delete channel": lambda store: store.delete("channels/a.json"),
}


def test_every_role_may_do_what_its_policy_says_and_nothing_else(
    rgw: S3Server, bucket_settings: Callable[..., S3Settings], tmp_path: Path
) -> None:
    """The policies of bundle/minio, as one bucket policy: RGW names the account in it, MinIO attaches it to one."""
    settings = bucket_settings(rgw, prefix="")
    owner = open_store(settings)
    assert rgw.add_user is not None
    statements, stores = [], {}
    for role in MAY:
        access, secret = rgw.add_user(f"{role}-{settings.bucket}")
        credentials = tmp_path / f"{role}.yaml"
        credentials.touch(0o600)
        credentials.write_text(f"access_key: {access}\nsecret_key: {secret}\n")
        stores[role] = open_store(settings.model_copy(update={"credentials_file": credentials, "attempts": 1}))
        text = (POLICIES / f"{role}.json").read_text().replace(":::registry", f":::{settings.bucket}")
        whom = {"Principal": {"AWS": [f"arn:aws:iam:::user/{role}-{settings.bucket}"]}}
        statements += [{**statement, **whom} for statement in json.loads(text)["Statement"]]
    policy = json.dumps({"Version": "2012-10-17", "Statement": statements})
    administrator(settings).set_bucket_policy(settings.bucket, policy)
    may: dict[str, set[str]] = {role: set() for role in MAY}
    for role, store in stores.items():
        for name, act in ACTS.items():
            owner.put("routers/a/1/x", b"published")
            try:
                act(store)
            except RegistryError as error:
                assert error.code == "REGISTRY_DENIED", (role, name, error)
            else:
                may[role].add(name)
    assert may == MAY


def test_a_bucket_keeps_every_version_of_a_pointer(rgw: S3Server, bucket_settings: Callable[..., S3Settings]) -> None:
    settings = bucket_settings(rgw)
    client, name = administrator(settings), f"{settings.prefix}channels/a.json"
    client.set_bucket_versioning(settings.bucket, VersioningConfig(ENABLED))
    store = open_store(settings)
    for epoch in (b"1", b"2", b"3"):
        store.put("channels/a.json", epoch)
    kept = list(client.list_objects(settings.bucket, name, include_version=True))
    read = [client.get_object(settings.bucket, name, version_id=one.version_id).read() for one in kept]
    assert sorted(read) == [b"1", b"2", b"3"]
