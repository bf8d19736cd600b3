"""The live configuration as a document that travels like a channel: signed, with a rising epoch, replaced whole.

`appliance sync` brings it to the shared volume beside the routers, and gateways verify it again. The plain YAML that
the sidecar writes next to it is for people and for programs that can only read a file, and as good as the sidecar's
word.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from appliance import documents
from appliance.errors import ApplianceError, RegistryError, TrustError
from appliance.files import sha256_hex
from appliance.registry.cache import Cache
from appliance.registry.channel import StatementSigner, envelope, split
from appliance.registry.contract import POINTER_MAX_BYTES, Store, checked_name
from appliance.registry.live import LiveConfig, assemble
from appliance.trust.verification import TrustMaterial, Verdict, disowned, verify_statement

TYPE = "https://appliance.internal/config/v1"
_PREFIX = "config/"


class ConfigStatement(BaseModel):
    """The statement `config`.

    Attributes:
        name: which configuration.
        epoch: rises with every change.
        issued: when, RFC 3339, UTC.
        document: table -> list of rows, as `live` describes them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    type_: Annotated[Literal["https://appliance.internal/config/v1"], Field(alias="_type")]
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
    epoch: Annotated[int, Field(ge=1, le=2**53)]
    issued: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")]
    document: dict[str, Any]


@dataclass(frozen=True)
class SignedConfig:
    """A verified configuration."""

    statement: ConfigStatement
    verdict: Verdict
    digest: str
    envelope: bytes

    @property
    def plain(self) -> bytes:
        """The document as YAML."""
        return yaml.safe_dump(self.statement.document, sort_keys=False, allow_unicode=True).encode("utf-8")


def config_key(name: str) -> str:
    """`config/<name>.json`."""
    return f"{_PREFIX}{checked_name(name)}.json"


class Configs:
    """The configurations of one registry.

    Args:
        store: its home.
        material: the zone's trust, asked anew for each verification.
        clock: the checked time (UTC).
    """

    def __init__(self, store: Store, *, material: Callable[[], TrustMaterial], clock: Callable[[], datetime]) -> None:
        self._store = store
        self._material = material
        self._clock = clock

    def names(self) -> list[str]:
        """The configurations that are there."""
        keys = [entry.key.removeprefix(_PREFIX) for entry in self._store.list(_PREFIX)]
        return [key.removesuffix(".json") for key in keys if key.endswith(".json")]

    def current(self, name: str) -> SignedConfig | None:
        """The configuration that stands now, verified; None where there is none.

        Raises:
            TrustError, RegistryError, DocumentError: it does not verify; what the home refuses.
        """
        try:
            blob = self._store.get(config_key(name), max_bytes=POINTER_MAX_BYTES)
        except RegistryError as error:
            if error.code != "REGISTRY_NOT_FOUND":
                raise
            return None
        return self.unseal(blob.data, name=name) if blob else None

    def unseal(self, data: bytes, *, name: str) -> SignedConfig:
        """Verify an object; see `current`."""
        statement, bundle = split(data)
        verdict = verify_statement(statement, bundle, kind="config", material=self._material(), at=self._clock())
        value = documents.read_json(statement, what="config statement")
        found = documents.validate(ConfigStatement, value, what="config statement")
        if found.name != name:
            raise RegistryError(
                "REGISTRY_CHANNEL_SWAPPED", f"under {name} lies the configuration {found.name}", found=found.name
            )
        return SignedConfig(found, verdict, sha256_hex(statement), data)

    def publish(self, name: str, document: dict[str, Any], signer: StatementSigner) -> SignedConfig:
        """Sign a configuration and let it stand.

        Raises:
            TrustError: the signer may not.
            RegistryError: REGISTRY_ROW for a row that no gateway would take; REGISTRY_CHANNEL_RACE; what the home
                refuses.
        """
        for problem in assemble(1, document, LiveConfig()).problems:
            if problem.error.code == "REGISTRY_ROW":  # what a row refers to may stand in the gateways' own files
                cause = f"{problem.table} {problem.key}: {problem.cause}"
                raise RegistryError("REGISTRY_ROW", cause, table=problem.table, key=problem.key)
        statement = documents.write_json(
            {
                "_type": TYPE,
                "name": checked_name(name),
                "epoch": self._standing_epoch(name) + 1,
                "issued": self._clock().astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
                "document": document,
            }
        )
        sealed = envelope(statement, signer.sign_statement(statement))
        written = self.unseal(sealed, name=name)
        self._store.put(config_key(name), sealed)
        standing = self.current(name)
        if standing is None or standing.digest != written.digest:
            raise RegistryError(
                "REGISTRY_CHANNEL_RACE", f"another officer changed configuration {name} at the same moment", name=name
            )
        return written

    def _standing_epoch(self, name: str) -> int:
        """The epoch to count on from, 0 where there is none; a signer who was given up since does not end the counting.

        Raises:
            TrustError: what stands there was never a configuration of ours.
        """
        try:
            blob = self._store.get(config_key(name), max_bytes=POINTER_MAX_BYTES)
            return 0 if blob is None else self.unseal(blob.data, name=name).statement.epoch
        except RegistryError as error:
            if error.code != "REGISTRY_NOT_FOUND":
                raise
            return 0
        except TrustError as error:
            before = _noted(blob.data, name) if blob and disowned(error, "config", self._material().policy) else None
            if before is None:
                raise
            return before.epoch

    def follow(self, name: str, cache: Cache) -> SignedConfig:
        """The newest configuration this host may use: the registry's where it is sound and newer, else the kept one.

        Raises:
            RegistryError: REGISTRY_CHANNEL_ROLLBACK, REGISTRY_CHANNEL_FORK; REGISTRY_NOTHING where nothing is known.
            TrustError: the registry's does not verify.
        """
        config = self.accept(name, self.current(name), cache)
        if config is None:
            raise RegistryError("REGISTRY_NOTHING", f"no configuration {name} was ever seen here", name=name)
        return config

    def accept(self, name: str, offered: SignedConfig | None, cache: Cache) -> SignedConfig | None:
        """Hold what is offered against what was seen here before; the newer of the two, None where there is neither.

        Raises:
            RegistryError: REGISTRY_CHANNEL_ROLLBACK, REGISTRY_CHANNEL_FORK.
        """
        kept = cache.pointer(f"config-{name}", "seen")
        if offered is None or offered.envelope == kept:
            return self.unseal(kept, name=name) if kept is not None else None
        seen = None if kept is None else _noted(kept, name)  # it counts, whatever became of its signer
        if seen is not None and offered.digest != seen.digest:
            _check_newer(offered, seen.epoch)
        cache.keep_pointer(f"config-{name}", "seen", offered.envelope)
        return offered


class SignedSource:
    """A signed configuration as `live_watch.ConfigWatcher` follows it.

    Args:
        store: the registry's home, or the shared volume.
        configs: over the same store.
        name: which configuration.
        cache: this host's; it remembers the highest epoch.
    """

    def __init__(self, store: Store, configs: Configs, name: str, cache: Cache) -> None:
        self._store, self._configs, self._name, self._cache = store, configs, name, cache
        self._etag: str | None = None
        self._config: SignedConfig | None = None

    @property
    def location(self) -> str:
        """Where it is, for messages."""
        return f"{self._store.location} {config_key(self._name)}"

    @contextmanager
    def session(self) -> Iterator[SignedSource]:
        """There is no connection to keep."""
        yield self

    def newest(self) -> int:
        """The epoch that stands; verified where it is news.

        Raises:
            TrustError, RegistryError, DocumentError: it does not verify, is older than what was seen, or is away.
        """
        try:
            blob = self._store.get(config_key(self._name), max_bytes=POINTER_MAX_BYTES, unless=self._etag)
        except RegistryError as error:
            if error.code != "REGISTRY_NOT_FOUND" or self._config is not None:
                raise  # what was there once and is not is withheld, or its volume is not mounted
            self._config = self._configs.accept(self._name, None, self._cache)
            return self._config.statement.epoch if self._config else 0
        if blob is not None:
            offered = self._configs.unseal(blob.data, name=self._name)
            self._config = self._configs.accept(self._name, offered, self._cache)
            self._etag = blob.etag
        return self._config.statement.epoch if self._config else 0

    def document(self) -> tuple[int, Any]:
        """The epoch and its document."""
        assert self._config is not None  # noqa: S101 (asked after `newest` only)
        return self._config.statement.epoch, self._config.statement.document

    def wait(self, timeout_s: float) -> None:
        """No home sends notices."""
        time.sleep(timeout_s)


@dataclass(frozen=True)
class _Noted:
    epoch: int
    digest: str


def _noted(sealed: bytes, name: str) -> _Noted | None:
    """A configuration's epoch without a look at its signature, as `channel.noted`."""
    try:
        statement = split(sealed)[0]
        value = documents.read_json(statement, what="config statement")
        found = documents.validate(ConfigStatement, value, what="config statement")
    except ApplianceError:
        return None
    return _Noted(found.epoch, sha256_hex(statement)) if found.name == name else None


def _check_newer(offered: SignedConfig, old: int) -> None:
    new = offered.statement.epoch
    if new > old:
        return
    code, what = (
        ("REGISTRY_CHANNEL_FORK", "has two forms of") if new == old else ("REGISTRY_CHANNEL_ROLLBACK", "fell to")
    )
    raise RegistryError(
        code, f"configuration {offered.statement.name} {what} epoch {new}", seen_epoch=old, offered_epoch=new
    )


def _standing(configs: Configs, name: str, volume: Store) -> int:
    """The epoch that the volume offers, 0 where nothing sound stands there."""
    try:
        blob = volume.get(config_key(name), max_bytes=POINTER_MAX_BYTES)
        return configs.unseal(blob.data, name=name).statement.epoch if blob else 0
    except ApplianceError:
        return 0


def mirror_config(configs: Configs, name: str, cache: Cache, volume: Store) -> tuple[SignedConfig, tuple[str, ...]]:
    """Bring one configuration to the shared volume: the signed object, and the plain YAML beside it.

    Returns:
        What the volume now offers, and the keys that were written.

    Raises:
        RegistryError: as `Configs.follow`; REGISTRY_CHANNEL_ROLLBACK where the volume offers a newer one that verifies.
    """
    config = configs.follow(name, cache)
    standing = _standing(configs, name, volume)
    if standing > config.statement.epoch:
        _check_newer(config, standing)
    written = []
    for key, data in {f"{_PREFIX}{name}.yaml": config.plain, config_key(name): config.envelope}.items():
        try:
            blob = volume.get(key, max_bytes=POINTER_MAX_BYTES * 2)
        except ApplianceError:
            blob = None
        if blob is None or blob.data != data:
            volume.put(key, data)
            written.append(key)
    return config, tuple(written)
