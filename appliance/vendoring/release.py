"""The gate that every release passes: admission and completeness first, then the papers that travel with it."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from appliance.vendoring.admission import admit
from appliance.vendoring.closure import check_closure, roots_of
from appliance.vendoring.evidence import PROVENANCE_NAME, evidence
from appliance.vendoring.fetch import Progress, silent
from appliance.vendoring.locks import Lock, merged
from appliance.vendoring.models import read_models
from appliance.vendoring.policy import Policy
from appliance.vendoring.provenance import Build, provenance
from appliance.vendoring.rules import Notice
from appliance.vendoring.targets import Target
from appliance.vendoring.vex import read_vex, stale
from appliance.vendoring.wheel import Inspection


@dataclass(frozen=True)
class Papers:
    """What admission leaves behind for a release.

    Attributes:
        files: name -> bytes: SBOM, admission report, licences, VEX, provenance; the same for the same release.
        notices: what the release engineer should see before signing.
    """

    files: Mapping[str, bytes]
    notices: tuple[Notice, ...]


def release_papers(
    vendor: Path,
    wheelhouse: Path,
    *,
    locks: Sequence[Lock],
    target: Target,
    build: Build,
    subjects: Mapping[str, str],
    now: datetime,
    own: Sequence[Inspection] = (),
    progress: Progress = silent,
) -> Papers:
    """Admit the wheels of a release and write its papers.

    Args:
        vendor: the folder of policy, inputs, model pins and VEX.
        wheelhouse: the folder that holds the wheels.
        locks: of the release's profile, in the order of installation.
        target: where it shall run.
        build: how it is made; `build.at` is the only time that enters the papers.
        subjects: member of the release -> SHA-256 (hex), for the provenance.
        now: against which the age of releases is measured.
        own: wheels made in the build itself, to be named in the papers like the others.
        progress: told wheels done and in all.

    Raises:
        VendorError: the reason, or VENDOR_NOT_ADMITTED with all of them, where the wheels may not enter;
            VENDOR_DEPENDENCY where the set is not complete; VENDOR_SBOM, VENDOR_VEX.
    """
    pins = [pin for pin in merged(locks) if any(map(pin.applies, target.environments))]
    admission = admit(wheelhouse, Policy.read(vendor), now=now, target=target, pins=pins, progress=progress)
    wheels = admission.require()
    check_closure(roots_of(vendor, locks), wheels, target)
    models = read_models(vendor)
    files = evidence(vendor, (*wheels, *own), models, version=build.version, target=target, at=build.at)
    files[PROVENANCE_NAME] = provenance(build, subjects, wheels=wheels, locks=locks, models=models)
    outdated = stale((document for document, _ in read_vex(vendor).values()), wheels)
    return Papers(files, (*admission.notices, *(Notice("vex", text) for text in outdated)))


def source_revision(folder: Path) -> tuple[str | None, bool]:
    """The commit of a source tree and whether it holds changes that no commit names; (None, True) outside git."""
    try:
        head = _git(folder, "rev-parse", "HEAD").strip()
        return head, bool(_git(folder, "status", "--porcelain", "--untracked-files=no").strip())
    except (OSError, subprocess.CalledProcessError):
        return None, True


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
