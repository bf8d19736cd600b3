"""`appliance sync`: a verified copy of channels in a shared volume, which is itself a registry in a directory.

Gateways follow the volume as they would follow the registry and verify everything again, so the volume needs to be
trusted no more than the network. Files come first, the pointer last; each is replaced whole.
"""

from __future__ import annotations

from dataclasses import dataclass

from appliance.artifact import SIGNATURE_NAME
from appliance.errors import ApplianceError, RegistryError
from appliance.files import sha256_hex
from appliance.registry.contract import POINTER_MAX_BYTES, Store, channel_key, file_key
from appliance.registry.follower import Follower, Served


@dataclass(frozen=True)
class Mirrored:
    """What one pass did.

    Attributes:
        channel: its name.
        epoch, version: what the volume now offers.
        written: keys written because they were new, or did not hold what the pointer names.
    """

    channel: str
    epoch: int
    version: str | None
    written: tuple[str, ...]


def mirror(follower: Follower, volume: Store) -> Mirrored:
    """Bring the volume to what the follower serves.

    Args:
        follower: booted, and polled as far as the registry allowed.
        volume: the shared volume.

    Raises:
        RegistryError: REGISTRY_NOTHING where nothing sound is known of the channel; REGISTRY_CHANNEL_ROLLBACK where the
            volume offers a newer pointer, of another sidecar or of this one before its cache was lost; what the
            volume refuses.
    """
    served = follower.served
    if served is None:
        problem = follower.health().problem
        raise RegistryError(
            "REGISTRY_NOTHING",
            f"nothing sound is known of channel {follower.channel}",
            channel=follower.channel,
            because=str(problem) if problem else "the registry was never reached",
        )
    _check_not_older(follower, served, volume)
    written = [key for key, data in _contents(served).items() if _ensure(volume, key, data)]
    pointer = served.state.pointer
    key = channel_key(follower.channel)
    if _ensure(volume, key, served.state.envelope):
        written.append(key)
    return Mirrored(follower.channel, pointer.epoch, pointer.target.version if pointer.target else None, tuple(written))


def _check_not_older(follower: Follower, served: Served, volume: Store) -> None:
    """The volume remembers how far its gateways have come; only a pointer that verifies counts."""
    try:
        blob = volume.get(channel_key(follower.channel), max_bytes=POINTER_MAX_BYTES)
        if blob is None or blob.data == served.state.envelope:
            return
        standing = follower.verified(blob.data).pointer.epoch
    except ApplianceError:
        return  # nothing sound, which is what mirroring mends
    if standing > served.state.pointer.epoch:
        raise RegistryError(
            "REGISTRY_CHANNEL_ROLLBACK",
            f"the volume offers epoch {standing} of channel {follower.channel}, newer than what is known here",
            channel=follower.channel,
            seen_epoch=standing,
            offered_epoch=served.state.pointer.epoch,
        )


def _contents(served: Served) -> dict[str, bytes]:
    target = served.state.pointer.target
    if target is None or served.artifact is None:
        return {}
    files = {**served.artifact.files, SIGNATURE_NAME: served.artifact.require_signature()}
    return {file_key(target.kind, target.name, target.version, name): data for name, data in files.items()}


def _ensure(volume: Store, key: str, data: bytes) -> bool:
    """Write an object unless it stands there sound; tell whether it was written."""
    try:
        blob = volume.get(key, max_bytes=max(len(data), POINTER_MAX_BYTES))
    except RegistryError as error:
        if error.code not in {"REGISTRY_NOT_FOUND", "REGISTRY_TOO_LARGE", "REGISTRY_DENIED"}:
            raise
        blob = None
    if blob is not None and sha256_hex(blob.data) == sha256_hex(data):
        return False
    volume.put(key, data)
    return True
