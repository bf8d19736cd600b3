"""From a folder to a router that may serve: read once, verify those bytes, load them, warm up, replay canaries."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType

from appliance import artifact as artifacts
from appliance.artifact import ArtifactFiles
from appliance.errors import ApplianceError, GatewayError
from appliance.files import locked, sync_directory, translated, write_atomic
from appliance.gateway.active import Origin, Serving, utc_now
from appliance.gateway.decision import Deployment
from appliance.registry.admitted import verify_admitted
from appliance.routers.encoder import Encoder, load_encoder
from appliance.routers.loading import load_router
from appliance.settings import Router, Settings, Trust
from appliance.trust.store import TrustStore
from appliance.trust.verification import TrustMaterial, verify_artifact

log = logging.getLogger("appliance.routers")
Groups = Mapping[str, Sequence[Deployment]]
NO_GROUPS: Groups = MappingProxyType({})
TRIES = 3
WARM_UP = ("What is the capital of France?", "word " * 120)


class Loader:
    """Loads routers by the zone's trust; keeps encoders, because routers share them.

    Args:
        settings: the gateway's configuration.
        groups: group -> its deployments; a router has to know one of those that it routes to.
        now: wall clock, UTC; the trust store bounds it.
    """

    def __init__(
        self,
        settings: Settings,
        groups: Groups = NO_GROUPS,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._settings, self._groups = settings, groups
        self._now = now
        self._encoders: dict[str, tuple[Encoder, TrustMaterial]] = {}

    def exchange(self, settings: Settings, groups: Groups) -> None:
        """Load by another configuration from the next router on."""
        self._settings, self._groups = settings, groups

    def from_directory(
        self, name: str, directory: Path, *, origin: Origin = "directory"
    ) -> tuple[Serving, ArtifactFiles]:
        """Read, verify and load a router's folder.

        Raises:
            ApplianceError: whatever was wrong, with its code.
        """
        return self.from_bytes(name, artifacts.read(directory), origin=origin)

    def from_bytes(self, name: str, candidate: ArtifactFiles, *, origin: Origin) -> tuple[Serving, ArtifactFiles]:
        """Verify, load and try a router from bytes in memory; the very bytes that were verified are parsed.

        Raises:
            ApplianceError: whatever was wrong, with its code.
        """
        serving = self.verified(name, candidate, origin=origin)
        _check_labels(serving, self._settings, self._groups)
        _warm_up(serving)
        _replay(serving, self._settings.routing.routers[name])
        return serving, candidate

    def verified(self, name: str, candidate: ArtifactFiles, *, origin: Origin) -> Serving:
        """Verify and load a router, without asking whether it is fit to serve here.

        Raises:
            ApplianceError: whatever was wrong, with its code.
        """
        material, at = self._material()
        role = self._trust.router_role
        verdict = (
            verify_admitted(candidate, material=material, at=at)
            if role is None
            else verify_artifact(candidate, material=material, at=at, role=role)
        )
        router = load_router(candidate, formats=material.policy.model_formats)
        encoder = self._encoder(router.metadata.encoder_digest, material, at)
        return Serving(name, router, encoder, verdict, origin, utc_now())

    def check_in_time(self, serving: Serving) -> None:
        """Refuse a router that could not decide in time on an idle machine; what serves now is better than that.

        Measured is the processor's time, the least of a few, so that a machine that is busy now refuses nothing.

        Raises:
            GatewayError: GATEWAY_SLOW.
        """
        limit_ms = self._settings.routing.deadline_ms
        fastest_ms = min(_processor_ms(serving) for _ in range(TRIES))
        if fastest_ms > limit_ms:
            raise GatewayError(
                "GATEWAY_SLOW",
                f"a short prompt takes {fastest_ms:.1f} ms of the processor, the deadline is {limit_ms:g} ms",
                router=serving.digest,
                encoder=serving.encoder.digest,
            )

    @property
    def _trust(self) -> Trust:
        trust = self._settings.trust
        assert trust is not None  # noqa: S101 (settings demand it as soon as there is a router)
        return trust

    def _material(self) -> tuple[TrustMaterial, datetime]:
        store = TrustStore.open(self._trust.store)
        now = store.checked_time(self._now())
        return store.material(now=now), now

    def _encoder(self, digest: str, material: TrustMaterial, at: datetime) -> Encoder:
        known, judged_by = self._encoders.get(digest, (None, None))
        if known is not None and judged_by == material:
            return known
        seen: dict[str, str] = {}
        for directory in self._settings.routing.encoders:
            try:
                files = artifacts.read(directory)
            except ApplianceError as error:
                seen[str(directory)] = error.code
                continue
            seen[str(directory)] = files.digest
            if files.digest == digest:
                verify_admitted(files, material=material, at=at)  # anew where the zone's trust has changed
                encoder = known if known is not None else load_encoder(files, threads=1)
                self._encoders[digest] = encoder, material
                return encoder
        raise GatewayError(
            "GATEWAY_ENCODER_MISSING", "no configured encoder has the router's digest", wanted=digest, found=seen
        )


def _check_labels(serving: Serving, settings: Settings, groups: Groups) -> None:
    """Refuse a router that knows no deployment of any group that it is to route.

    Raises:
        GatewayError: GATEWAY_LABELS.
    """
    routed = [
        name
        for name, group in settings.routing.groups.items()
        if serving.name in {group.router, group.candidate.router if group.candidate is not None else None}
    ]
    members = [deployment for name in routed for deployment in groups.get(name, ())]
    targets = serving.router.metadata.labels
    if members and not any({d.id, d.model} & set(targets.values()) for d in members):
        raise GatewayError(
            "GATEWAY_LABELS",
            f"no label of the router stands for a deployment of {', '.join(routed)}",
            labels=dict(list(targets.items())[:20]),
            deployments=[f"{d.id} ({d.model})" for d in members[:20]],
        )


def _warm_up(serving: Serving) -> None:
    for text in WARM_UP:
        serving.router.scores(serving.encoder.prompts([text]))


def _processor_ms(serving: Serving) -> float:
    started = time.thread_time()
    serving.router.scores(serving.encoder.prompts([WARM_UP[0]]))
    return (time.thread_time() - started) * 1000


def _replay(serving: Serving, settings: Router) -> None:
    """Refuse a router that does not choose what recorded prompts demand.

    Raises:
        GatewayError: GATEWAY_CANARY.
    """
    labels = list(serving.router.metadata.labels)
    wrong: list[dict[str, str]] = []
    expected = 0
    for number, canary in enumerate(settings.canaries):
        scores = serving.router.scores(serving.encoder.prompts([canary.prompt]))[0]
        chosen = labels[int(scores.argmax())]
        if canary.label is not None:
            expected += 1
            if canary.label != chosen:
                wrong.append({"canary": str(number), "expected": canary.label, "chosen": chosen})
    if expected and 1 - len(wrong) / expected < settings.canary_agreement:
        raise GatewayError(
            "GATEWAY_CANARY",
            f"{len(wrong)} of {expected} recorded prompts were routed otherwise",
            router=serving.digest,
            wrong=wrong[:10],
        )


class LastGood:
    """The last router that served, on disk, verified again whenever it is read.

    Layout: `<directory>/<digest>/<files>` and `current`, a file with the digest, replaced atomically.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def keep(self, files: ArtifactFiles) -> None:
        """Write a router's bytes and point to them; a kill leaves the old pointer or the new one.

        Raises:
            FileError: FILE_NO_SPACE, FILE_PERMISSION.
        """
        with translated(self._directory):
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o750)
        with locked(self._directory / ".lock"):
            home = self._directory / files.digest
            everything = {**files.files, artifacts.SIGNATURE_NAME: files.require_signature()}
            if self._pointer() == files.digest and _holds(home, everything):
                return
            with translated(home):
                home.mkdir(exist_ok=True, mode=0o750)
                for name, data in everything.items():
                    target = home / name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    write_atomic(target, data, mode=0o640)
                sync_directory(home)
            write_atomic(self._directory / "current", files.digest.encode() + b"\n")
            self._forget_others(files.digest)

    def forget(self) -> None:
        """Point to none; what lies there goes with the next router that is kept."""
        (self._directory / "current").unlink(missing_ok=True)

    def find(self) -> Path | None:
        """The folder of the last good router."""
        digest = self._pointer()
        return None if digest is None else self._directory / digest

    def _pointer(self) -> str | None:
        try:
            digest = (self._directory / "current").read_text("ascii").strip()
        except (OSError, UnicodeDecodeError):
            return None
        return digest if len(digest) == 64 and all(c in "0123456789abcdef" for c in digest) else None

    def _forget_others(self, digest: str) -> None:
        import shutil

        for entry in os.scandir(self._directory):
            if entry.is_dir(follow_symlinks=False) and entry.name != digest:
                shutil.rmtree(entry.path, ignore_errors=True)


def _holds(home: Path, files: Mapping[str, bytes]) -> bool:
    """Whether a folder has these files, by their sizes, under this very signature: a router may be signed anew."""
    try:
        sizes = {name: (home / name).stat().st_size for name in files}
        signature = (home / artifacts.SIGNATURE_NAME).read_bytes()
    except OSError:
        return False
    return signature == files[artifacts.SIGNATURE_NAME] and sizes == {name: len(data) for name, data in files.items()}
