"""Build a release anew, without any key, and hold it against the one that was signed.

Everything of a release but its signature follows from the sources, the locks, the wheels and the release's own time.
So somebody else, elsewhere, can build it again: where the manifest comes out the same to the byte, the signature fits,
and the archive and its volumes are the very files that were published; where it does not, the first differences are
named.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from appliance.bundle.build import Progress
from appliance.bundle.recipe import Recipe, ReleaseFiles, build_release
from appliance.bundle.refusals import appliance_errors
from appliance.bundle.stage0.manifest import Manifest, read_manifest
from appliance.bundle.stage0.media import MANIFEST, SIGNATURE, Head, choose, open_sources
from appliance.errors import BundleError

NAMED = 20  # differences that are told


@dataclass(frozen=True)
class CopiedSignature:
    """In a signer's place: the signature that a release bears, for the very manifest it was made for."""

    head: Head

    def sign_statement(self, payload: bytes) -> bytes:
        """The signature.

        Raises:
            BundleError: BUNDLE_NOT_REPRODUCED.
        """
        if payload == self.head.files[MANIFEST]:
            return self.head.files[SIGNATURE]
        different = differences(read_manifest(self.head.files[MANIFEST]), read_manifest(payload))
        raise BundleError(
            "BUNDLE_NOT_REPRODUCED",
            f"what was built here differs from the release in {len(different)} places",
            different=different[:NAMED],
        )


def reproduce(
    media: Sequence[Path],
    recipe: Recipe,
    out: Path,
    *,
    progress: Progress = lambda _text, _done, _all: None,
) -> ReleaseFiles:
    """Build a release again from its inputs.

    Args:
        media: the release; nothing of it is trusted, it is only compared with. Profile, version, epoch, time and trust
            metadata are taken from it.
        recipe: the inputs; its authority is not opened.
        out: folder for the files.
        progress: told each step.

    Returns:
        The files, the same to the byte as the published ones.

    Raises:
        BundleError: BUNDLE_NOT_REPRODUCED naming what differs; VendorError and others as `build_release`.
    """
    with appliance_errors(), open_sources(media) as (sources, _):
        head, _, _ = choose(sources, lambda head: head)
        claimed = read_manifest(head.files[MANIFEST])
    created = datetime.strptime(claimed.created, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    same = replace(
        recipe, profile=claimed.profile, version=claimed.version, epoch=claimed.epoch, created=created
    )  # fmt: skip
    return build_release(same, out, signer=CopiedSignature(head), trust=head.trust, progress=progress)


def differences(theirs: Manifest, ours: Manifest) -> list[str]:
    """What differs between two manifests: members first, then what else they say."""
    found = []
    for place in ("trust", "members"):
        before = {member.path: member for member in getattr(theirs, place)}
        after = {member.path: member for member in getattr(ours, place)}
        found += [f"only in the release: {path}" for path in before if path not in after]
        found += [f"only here: {path}" for path in after if path not in before]
        found += [f"another content: {path}" for path in before if path in after and before[path] != after[path]]
    for field in ("name", "version", "epoch", "profile", "target", "created", "state_version", "segment_bytes"):
        if getattr(theirs, field) != getattr(ours, field):
            found.append(f"{field}: {getattr(theirs, field)} in the release, {getattr(ours, field)} here")
    return found or ["the order of the members"]
