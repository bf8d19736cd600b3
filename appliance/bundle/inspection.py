"""What media say of themselves, read without trust: for a person who wants to know what lies there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from appliance.bundle.refusals import appliance_errors
from appliance.bundle.stage0.manifest import read_delta, read_manifest
from appliance.bundle.stage0.media import DELTA, MANIFEST, choose, open_sources


def inspect_media(media: Sequence[Path]) -> dict[str, Any]:
    """Claims of a release, not one of them verified.

    Raises:
        BundleError: where the files are not a release's.
    """
    with appliance_errors(), open_sources(media) as (sources, unreadable):
        (manifest, head), chosen, set_aside = choose(sources, lambda head: (read_manifest(head.files[MANIFEST]), head))
        delta = read_delta(head.files[DELTA], manifest) if DELTA in head.files else None
        return {
            "name": manifest.name,
            "version": manifest.version,
            "epoch": manifest.epoch,
            "profile": manifest.profile,
            "target": manifest.target,
            "created": manifest.created,
            "digest": manifest.digest,
            "payload": manifest.payload_bytes,
            "installed": manifest.installed_bytes,
            "delta_base": delta.base if delta else None,
            "files": [
                {
                    "path": str(source.path),
                    "volume": "parity" if source.index == -1 else (source.index or 0) + 1,
                    "of": source.total,
                }
                for source in chosen
            ],
            "unusable": set_aside + unreadable,
            "members": [member.as_dict() for member in manifest.members],
        }
