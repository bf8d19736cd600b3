"""The channels of a registry: read, verified, and moved forward by officers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime, timedelta

from appliance.errors import RegistryError, TrustError
from appliance.registry.channel import (
    DEFAULT_VALIDITY,
    ChannelState,
    Pointer,
    StatementSigner,
    Target,
    check_successor,
    noted,
    seal,
    successor,
    unseal,
)
from appliance.registry.contract import POINTER_MAX_BYTES, Store, channel_key, is_name
from appliance.trust.verification import TrustMaterial, disowned


class Channels:
    """The channels of a registry.

    Args:
        store: its home.
        material: gives the zone's trust; asked anew for each verification, so that a refreshed trust counts at once.
        clock: gives the checked time (UTC).
    """

    def __init__(self, store: Store, *, material: Callable[[], TrustMaterial], clock: Callable[[], datetime]) -> None:
        self.store = store
        self._material = material
        self._clock = clock

    def now(self) -> datetime:
        """The checked time."""
        return self._clock()

    def channel(self, name: str, *, unless: str | None = None) -> ChannelState | None:
        """Read and verify a channel's pointer.

        Args:
            name: the channel.
            unless: an ETag; None is returned where the pointer still has it.

        Raises:
            TrustError, RegistryError, DocumentError: as `channel.unseal`, and what the home refuses.
        """
        blob = self.store.get(channel_key(name), max_bytes=POINTER_MAX_BYTES, unless=unless)
        if blob is None:
            return None
        return unseal(blob.data, channel=name, etag=blob.etag, material=self._material(), at=self._clock())

    def unseal(self, envelope: bytes, *, channel: str) -> ChannelState:
        """Verify a pointer that was kept (the cache's); see `channel.unseal`."""
        return unseal(envelope, channel=channel, etag="", material=self._material(), at=self._clock())

    def renew(self, channel: str, signer: StatementSigner, *, validity: timedelta = DEFAULT_VALIDITY) -> ChannelState:
        """Sign a channel's pointer anew, unchanged but for epoch and expiry.

        Raises:
            RegistryError: REGISTRY_NOT_FOUND, REGISTRY_CHANNEL_RACE.
        """
        return self._advance(channel, signer, target=_same_target, validity=validity)

    def revoke(
        self, channel: str, digests: Iterable[str], signer: StatementSigner, *, validity: timedelta = DEFAULT_VALIDITY
    ) -> ChannelState:
        """Forbid artifacts on a channel for ever; where it points to one of them, it then points to none.

        Raises:
            RegistryError: REGISTRY_NOT_FOUND, REGISTRY_CHANNEL_RACE.
        """
        revoked = tuple(digests)

        def keep_unless_revoked(old: ChannelState | None) -> Target | None:
            target = _same_target(old)
            return None if target is not None and target.digest in revoked else target

        return self._advance(channel, signer, target=keep_unless_revoked, validity=validity, revoke=revoked)

    def _advance(
        self,
        channel: str,
        signer: StatementSigner,
        *,
        target: Callable[[ChannelState | None], Target | None],
        validity: timedelta,
        revoke: Iterable[str] = (),
    ) -> ChannelState:
        known, before, etag = self._standing(channel)
        pointer = successor(
            before, channel=channel, target=target(known), at=self._clock(), validity=validity, revoke=revoke
        )
        envelope = seal(pointer, signer)
        written = unseal(envelope, channel=channel, etag="", material=self._material(), at=self._clock())
        check_successor(written, known)
        if self._etag(channel) != etag:  # homes have no exchange that compares: so look once more, right before
            raise _race(channel)
        self.store.put(channel_key(channel), envelope)
        standing = self.channel(channel)
        if standing is None or standing.digest != written.digest:
            raise _race(channel, ours=written.digest, standing=standing.digest if standing else None)
        return standing

    def check_revoked(self, channel: str, digests: Iterable[str]) -> None:
        """See that a revocation still stands: another officer's pointer, drawn up before it, may have come after it.

        Raises:
            RegistryError: REGISTRY_CHANNEL_RACE.
        """
        state = self.channel(channel)
        if state is None or not set(digests) <= set(state.pointer.revoked):
            raise _race(channel)

    def _standing(self, channel: str) -> tuple[ChannelState | None, Pointer | None, str | None]:
        """The verified pointer, the one to count on from, and the object's tag.

        They differ after a compromise: the pointer that stands was signed by whom the zone no longer believes, and
        the next one must follow it all the same, or the channel could never be promoted again.
        """
        try:
            blob = self.store.get(channel_key(channel), max_bytes=POINTER_MAX_BYTES)
        except RegistryError as error:
            if error.code != "REGISTRY_NOT_FOUND":
                raise
            return None, None, None
        if blob is None:
            return None, None, None
        material = self._material()
        try:
            known = unseal(blob.data, channel=channel, etag=blob.etag, material=material, at=self._clock())
        except TrustError as error:
            before = noted(blob.data, channel=channel) if disowned(error, "channel", material.policy) else None
            if before is None:
                raise
            return None, before.pointer, blob.etag
        return known, known.pointer, blob.etag

    def _etag(self, channel: str) -> str | None:
        try:
            blob = self.store.get(channel_key(channel), max_bytes=POINTER_MAX_BYTES)
        except RegistryError as error:
            if error.code != "REGISTRY_NOT_FOUND":
                raise
            return None
        return None if blob is None else blob.etag

    def current(self, channel: str) -> ChannelState | None:
        """The pointer that stands now, or None where the channel was never promoted."""
        try:
            return self.channel(channel)
        except RegistryError as error:
            if error.code != "REGISTRY_NOT_FOUND":
                raise
            return None

    def channels(self) -> list[str]:
        """The names of all channels; what lies there under a name that none can have is no channel."""
        keys = [entry.key for entry in self.store.list("channels/")]
        names = [key.removeprefix("channels/").removesuffix(".json") for key in keys if key.endswith(".json")]
        return [name for name in names if is_name(name)]


def _same_target(old: ChannelState | None) -> Target | None:
    if old is None:
        raise RegistryError("REGISTRY_NOT_FOUND", "the channel was never promoted")
    return old.pointer.target


def _race(channel: str, **evidence: str | None) -> RegistryError:
    return RegistryError(
        "REGISTRY_CHANNEL_RACE",
        f"another officer changed channel {channel} at the same moment",
        channel=channel,
        **evidence,
    )
