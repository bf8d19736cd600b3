"""A host follows a channel: what is news, what is refused, and what goes on being served meanwhile.

Whatever fails here, what was served stays served: a dead registry, a refused pointer and a full disk are problems to
report (`Follower.health`), never reasons to stop. Two things do end the serving of a router: the channel withdraws or
revokes it, and the zone's trust denies it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from appliance.artifact import ArtifactFiles
from appliance.errors import ApplianceError, RegistryError, TrustError
from appliance.registry.admitted import verify_admitted
from appliance.registry.cache import Cache
from appliance.registry.channel import ChannelState, Noted, check_fresh, check_successor, noted
from appliance.registry.registry import Registry
from appliance.trust.verification import TrustMaterial, Verdict

CONTACT_EVERY = timedelta(minutes=1)  # how often a sound answer is written down


@dataclass(frozen=True)
class Served:
    """What a channel gives a host to serve.

    Attributes:
        state: the verified pointer.
        artifact: the verified files, or None where the channel is withdrawn: route by weights.
        verdict: who signed the artifact, and when.
    """

    state: ChannelState
    artifact: ArtifactFiles | None
    verdict: Verdict | None


@dataclass(frozen=True)
class Health:
    """How well a host follows a channel.

    Attributes:
        channel: its name.
        epoch: of what is served; 0 where nothing is.
        version: of what is served; None where the channel or the zone's trust took it out of service.
        contact: when the registry last answered soundly, over restarts.
        contact_age_s: seconds since then.
        expires: when the served pointer runs out.
        expired: whether it has.
        problem: why the last poll failed; None where it did not.
    """

    channel: str
    epoch: int
    version: str | None
    contact: datetime | None
    contact_age_s: float | None
    expires: datetime | None
    expired: bool
    problem: ApplianceError | None


class Follower:
    """Follows one channel.

    Args:
        registry: where the channel is.
        cache: this host's.
        channel: its name.
        material: the zone's trust, asked anew for each verification.
        clock: the checked time (UTC).
    """

    def __init__(
        self,
        registry: Registry,
        cache: Cache,
        channel: str,
        *,
        material: Callable[[], TrustMaterial],
        clock: Callable[[], datetime],
    ) -> None:
        self._registry = registry
        self._cache = cache
        self.channel = channel
        self._material = material
        self._clock = clock
        self._seen: ChannelState | Noted | None = None
        self._etag: str | None = None
        self._contact = cache.contact(channel)
        self._problem: ApplianceError | None = None
        self._judged_by: TrustMaterial | None = None
        self.served: Served | None = None

    def boot(self) -> Served | None:
        """Take up what this host served last, without asking the registry; everything is verified again.

        Returns:
            What is served, or None where the cache has nothing sound. The reason then stands in `health`.
        """
        try:
            self._seen = self._remembered()
            kept = self._kept("served")
            if kept is not None:
                self.served = self._within_revocations(kept)
        except ApplianceError as error:
            self._problem = error
        return self.served

    def poll(self) -> Served | None:
        """Ask the registry once.

        Returns:
            What is served from now on, or None where nothing changed.

        Raises:
            ApplianceError: the registry is out of reach, or what it offers is refused. `served` stands as it was,
                unless it is revoked or the zone's trust no longer holds it: look at `served` after an error too.
        """
        try:
            change = self._poll()
        except ApplianceError as error:
            self._problem = error
            raise
        self._problem = None
        return change

    def _poll(self) -> Served | None:
        self._judge_again()
        if self._seen is None:
            self._seen = self._remembered()
        now = self._clock()
        state = self._registry.channel(self.channel, unless=self._etag)
        if state is None:
            self._sound_answer(now)
            if self.served is not None:
                check_fresh(self.served.state, now)
            return None
        check_successor(state, self._seen)
        check_fresh(state, now)
        before = self.served
        if before is not None and _digest(before) in state.pointer.revoked:
            self.served = Served(state, None, None)  # before anything is written: a full disk keeps nothing in service
        if self._seen is None or state.digest != self._seen.digest:
            self._cache.keep_pointer(self.channel, "seen", state.envelope)
        self._seen = state
        self._sound_answer(now)
        if before is not None and state.digest == before.state.digest and _complete(before):
            self._etag = state.etag
            return None
        served = self._obtain(state)
        self._cache.keep_pointer(self.channel, "served", state.envelope)
        self.served = served
        self._etag = state.etag
        with contextlib.suppress(ApplianceError, OSError):  # what cannot be tidied now is no reason to lose the news
            self._cache.collect_unused(now_s=now.timestamp())
        return served

    def _judge_again(self) -> None:
        """Hold what is served against a trust that was refreshed since: a denied signer ends it."""
        if self.served is None or self.served.artifact is None:
            return
        material = self._material()
        if material == self._judged_by:
            return
        try:
            verify_admitted(self.served.artifact, material=material, at=self._clock())
        except (TrustError, RegistryError):
            self.served = Served(self.served.state, None, None)
            self._etag = None
            raise
        self._judged_by = material

    def health(self) -> Health:
        """What an operator wants to see; never raises, whatever the clock says."""
        problem = self._problem
        now: datetime | None = None
        try:
            now = self._clock()
        except ApplianceError as error:
            problem = error
        pointer = self.served.state.pointer if self.served else None
        serves = self.served is not None and self.served.artifact is not None
        return Health(
            channel=self.channel,
            epoch=pointer.epoch if pointer else 0,
            version=pointer.target.version if serves and pointer and pointer.target else None,
            contact=self._contact,
            contact_age_s=max(0.0, (now - self._contact).total_seconds()) if self._contact and now else None,
            expires=pointer.expires_at if pointer else None,
            expired=pointer is not None and now is not None and now >= pointer.expires_at,
            problem=problem,
        )

    def may_serve(self, digest: str) -> bool:
        """Whether the newest pointer that this host has seen neither withdraws the channel nor revokes a digest."""
        pointer = self._seen.pointer if self._seen is not None else None
        return pointer is None or (pointer.target is not None and digest not in pointer.revoked)

    def _remembered(self) -> Noted | None:
        """How far this host has come, by its own notes.

        They count whatever today's trust says of their signers: an officer who left, or metadata that ran out, must
        not make the host forget what it has seen and follow an older pointer.
        """
        kept = (self._cache.pointer(self.channel, role) for role in ("seen", "served"))
        notes = [note for each in kept if each is not None and (note := noted(each, channel=self.channel)) is not None]
        return max(notes, key=lambda note: note.pointer.epoch, default=None)

    def _kept(self, role: str) -> ChannelState | None:
        envelope = self._cache.pointer(self.channel, role)
        return None if envelope is None else self.verified(envelope)

    def verified(self, envelope: bytes) -> ChannelState:
        """Verify a pointer of this channel from elsewhere; see `channel.unseal`."""
        return self._registry.unseal(envelope, channel=self.channel)

    def _within_revocations(self, kept: ChannelState) -> Served:
        """A crash between `seen` and `served` must not bring back what the newer pointer revoked."""
        target = kept.pointer.target
        revoked = self._seen.pointer.revoked if self._seen else ()
        if target is not None and target.digest in revoked:
            return Served(self._kept("seen") or kept, None, None)
        return self._obtain(kept)

    def _obtain(self, state: ChannelState) -> Served:
        target = state.pointer.target
        if target is None or target.digest in state.pointer.revoked:
            return Served(state, None, None)
        artifact = self._cache.artifact(target, self._registry.store)
        material = self._material()
        verdict = verify_admitted(artifact, material=material, at=self._clock())
        self._judged_by = material
        return Served(state, artifact, verdict)

    def _sound_answer(self, now: datetime) -> None:
        if self._contact is None or abs(now - self._contact) >= CONTACT_EVERY:
            self._cache.keep_contact(self.channel, now)
        self._contact = now


def _digest(served: Served) -> str | None:
    target = served.state.pointer.target
    return target.digest if target else None


def _complete(served: Served) -> bool:
    """Whether everything that the pointer offers is served."""
    target = served.state.pointer.target
    return served.artifact is not None or target is None or target.digest in served.state.pointer.revoked
