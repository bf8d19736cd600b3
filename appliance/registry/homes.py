"""Open what settings name: a registry's home, and a host's cache that fetches from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from appliance.errors import RegistryError
from appliance.registry.cache import Cache, FetchSlot, no_slot
from appliance.registry.contract import Objects, Store, foreign_key
from appliance.registry.directory import DirectoryStore
from appliance.registry.leases import Patience, Slots, fetch_slot
from appliance.registry.settings import DirectorySettings, FetchSlots, S3Settings, read_credentials, read_settings
from appliance.registry.tls import RevocationLists, no_revocations

Location = str | Path | DirectorySettings | S3Settings


def settings_of(location: Location) -> DirectorySettings | S3Settings:
    """What a location says.

    Args:
        location: settings, the path of a directory, or the path of a YAML file with the key `registry`.

    Raises:
        RegistryError: REGISTRY_LOCATION for a path that is neither.
        DocumentError, FileError: the YAML file.
    """
    if isinstance(location, DirectorySettings | S3Settings):
        return location
    path = Path(location)
    if path.is_dir():
        return DirectorySettings(home="directory", path=path)
    if path.is_file():
        return read_settings(path)
    raise RegistryError("REGISTRY_LOCATION", f"{path} is neither a directory nor a settings file", path=str(path))


def open_store(
    location: Location, *, mounted_later: bool = False, revocations: RevocationLists = no_revocations
) -> Store:
    """Open a registry's home.

    Args:
        location: as `settings_of`.
        revocations: TLS certificates that a server must not show.
        mounted_later: a folder that is not there is no refusal: who follows it serves what was kept until it is.

    Raises:
        RegistryError: as `settings_of`, and what opening the home refuses.
    """
    settings = settings_of(location)
    if isinstance(settings, S3Settings):
        from appliance.registry.s3 import S3Store  # the client takes a third of a second to import

        return S3Store(settings, read_credentials(settings.credentials_file), revocations=revocations)
    if not mounted_later and not settings.path.is_dir():
        raise RegistryError("REGISTRY_LOCATION", f"{settings.path} is no directory", path=str(settings.path))
    return DirectoryStore(settings.path)


def open_objects(location: Location) -> Objects:
    """Open a bucket or folder that somebody else fills, to read it under whatever keys it has.

    Args:
        location: as `settings_of`.

    Raises:
        RegistryError: as `open_store`.
    """
    settings = settings_of(location)
    if isinstance(settings, S3Settings):
        from appliance.registry.s3 import S3Store

        return S3Store(settings, read_credentials(settings.credentials_file), keys=foreign_key)
    if not settings.path.is_dir():
        raise RegistryError("REGISTRY_LOCATION", f"{settings.path} is no directory", path=str(settings.path))
    return DirectoryStore(settings.path, keys=foreign_key)


def open_cache(
    directory: Path, location: Location, *, report: Callable[[RegistryError], None] = lambda _error: None
) -> Cache:
    """Open a host's cache; it fetches when the settings' lease service, if they name one, says so.

    Args:
        directory: of the cache.
        location: of the registry that it fetches from.
        report: told of a lease service that is dead; the fetch goes on.
    """
    settings = settings_of(location)
    slots = settings.slots if isinstance(settings, S3Settings) else None
    return Cache(directory, slot=no_slot if slots is None else _slot(slots, report))


def _slot(settings: FetchSlots, report: Callable[[RegistryError], None]) -> FetchSlot:
    patience = Patience(
        wait_s=settings.wait_s, poll_s=settings.poll_s, jitter_s=settings.jitter_s, answer_s=settings.answer_s
    )
    return fetch_slot(_service(settings), patience=patience, report=report)


def _service(settings: FetchSlots) -> Slots:
    if settings.postgres is not None:
        from appliance.registry.leases_postgres import PostgresSlots

        return PostgresSlots(settings.postgres, count=settings.count)
    from appliance.registry.leases_redis import RedisSlots

    assert settings.redis is not None  # noqa: S101 (the settings model demands one of the two)
    return RedisSlots(settings.redis, count=settings.count)
