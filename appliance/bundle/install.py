"""Install a release: authenticate, ask the host, stage, make the environment, verify, check health, switch, confirm.

Every step is journalled and can be repeated; a kill at any point leaves `current` at the old release or the new one,
and the next run of the same command takes up where this one stood.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from appliance.bundle.authentication import Authenticator, FullVerdict
from appliance.bundle.completing import Completion
from appliance.bundle.downgrade import authorise, is_authorised, is_older, refused_downgrade, settle
from appliance.bundle.refusals import appliance_errors
from appliance.bundle.releases import check_state, collect_garbage
from appliance.bundle.repair import UNFINISHED, Repair, Repairing
from appliance.bundle.stage0.extract import check_members
from appliance.bundle.stage0.journal import Prefix
from appliance.bundle.stage0.main import release_region
from appliance.bundle.stage0.media import Head, choose, open_sources
from appliance.bundle.stage0.preflight import Finding, preflight_findings, read_host, refuse_unfit
from appliance.bundle.stage0.preparing import Conduct, begin_anew, is_settled, prepare, require_base


@dataclass(frozen=True)
class Report:
    """What an installation, or its dry run, came to.

    Attributes:
        verdict: the release and its signer.
        findings: of the preflight.
        outcome: `installed`, `already installed`, `repaired`, `checked` (dry run).
        previous: release that ran before.
        health: findings of the health check.
        removed: old releases cleared away.
        repaired: volumes that were missing or damaged and rebuilt from parity.
        mended: files of the running release that were not as signed, and are now.
    """

    verdict: FullVerdict
    findings: tuple[Finding, ...]
    outcome: str
    previous: str | None = None
    health: tuple[dict[str, Any], ...] = ()
    removed: tuple[str, ...] = ()
    repaired: tuple[str, ...] = ()
    mended: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verified:
    """What `verify_media` found."""

    verdict: FullVerdict
    repaired: tuple[str, ...]


def verify_media(
    media: Sequence[Path],
    anchor: bytes | None,
    *,
    now: datetime,
    state: Path | None = None,
    conduct: Conduct | None = None,
) -> Verified:
    """Check everything on the media and write nothing.

    Raises:
        BundleError, TrustError: what is wrong with it.
    """
    conduct = conduct or Conduct()
    repaired: list[str] = []
    with appliance_errors(), open_sources(media) as (sources, unreadable):
        verdict, chosen, set_aside = choose(sources, Authenticator(anchor, now=now, state=state))
        release = verdict.release
        region = release_region(chosen, release, set_aside + unreadable, repaired.append)
        carried = set(release.carried) if release.carried is not None else None
        members = [m for m in release.manifest.members if carried is None or m.path in carried]
        check_members(region, members, progress=conduct.progress)
    return Verified(verdict, tuple(repaired))


def install(
    media: Sequence[Path],
    prefix_path: Path,
    anchor: bytes | None,
    *,
    now: datetime,
    conduct: Conduct | None = None,
    dry_run: bool = False,
    ports: Sequence[int] = (),
    downgrade: bytes | None = None,
    inherited_lock: int | None = None,
) -> Report:
    """Install a release below a prefix, or put it right where it runs already and its files are not what was signed.

    Args:
        media: the archive, its volumes, or folders that hold them.
        prefix_path: where the appliance lives.
        anchor: the trust anchor's bytes; may be None on a prefix that has a trust state.
        now: the clock.
        conduct: how to speak, and the interpreter for the environment.
        dry_run: check the media and the host, write nothing.
        ports: ports that the gateway will want.
        downgrade: authorisation for a release with a lower epoch than the current one (`appliance ca authorise`);
            it is used up.
        inherited_lock: the lock's descriptor where stage 0 holds it already.

    Returns:
        What was done.

    Raises:
        BundleError, TrustError, InstallError: the first thing that forbids it; the old release goes on.
    """
    conduct = conduct or Conduct(python=sys.executable)
    prefix = Prefix(prefix_path.absolute())
    authenticator = Authenticator(anchor, now=now, state=prefix.state / "trust")
    repaired: list[str] = []

    def report_repair(text: str) -> None:
        repaired.append(text)
        conduct.say(text)

    heads: dict[str, Head] = {}

    def authenticate(head: Head) -> FullVerdict:
        verdict = authenticator(head)
        heads[verdict.release.manifest.digest] = head
        return verdict

    with appliance_errors(), open_sources(media) as (sources, unreadable):
        verdict, chosen, set_aside = choose(sources, authenticate)
        release = verdict.release
        manifest = release.manifest
        conduct.say(f"{manifest.name} {manifest.version}, signed by {verdict.verdict.identity}")
        require_base(prefix, release)
        findings = _preflight(prefix, verdict, conduct, now, ports)
        check_state(prefix, manifest)
        older = not is_settled(prefix, release) and is_older(prefix, manifest)
        unauthorised = older and not is_authorised(prefix, manifest)
        if unauthorised and downgrade is None:
            raise refused_downgrade(prefix, manifest)
        region = release_region(chosen, release, set_aside + unreadable, report_repair)
        if dry_run:
            carried = set(release.carried) if release.carried is not None else None
            check_members(
                region,
                [m for m in manifest.members if carried is None or m.path in carried],
                progress=conduct.progress,
            )
            return Report(verdict, findings, "checked", prefix.active(), repaired=tuple(repaired))
        with prefix.locked(inherited_lock):
            repair = Repair()
            if is_settled(prefix, release):
                repair = Repairing(prefix, verdict, region, conduct, now).run()
                if not repair.anew:
                    outcome = "repaired" if repair.changed else "already installed"
                    return Report(
                        verdict, findings, outcome, None if repair.changed else prefix.active(), repair.health,
                        repaired=tuple(repaired), mended=repair.files,
                    )  # fmt: skip
                conduct.say("its environment does not work: making it anew")
                begin_anew(prefix, release)
            if unauthorised and downgrade is not None:
                authorise(prefix, manifest, downgrade, now)
            transaction = prepare(prefix, release, region, conduct)
            completion = Completion(prefix, verdict, authenticator, heads[manifest.digest], conduct, now)
            health = completion.run(transaction)
            settle(prefix)
            (prefix.release(manifest.release_id) / UNFINISHED).unlink(missing_ok=True)
            removed = collect_garbage(prefix)
    outcome = "repaired" if repair.anew else "installed"
    return Report(
        verdict, findings, outcome, transaction.previous, tuple(health), tuple(removed), tuple(repaired), repair.files
    )


def _preflight(
    prefix: Prefix, verdict: FullVerdict, conduct: Conduct, now: datetime, ports: Sequence[int]
) -> tuple[Finding, ...]:
    manifest = verdict.release.manifest
    payload = prefix.payload(manifest.release_id)
    staged = sum(f.stat().st_size for f in payload.rglob("*") if f.is_file()) if payload.is_dir() else 0
    host = read_host(prefix.root, now=now, python=sys.version_info[:2], ports=ports)
    findings = preflight_findings(manifest, host, prefix.root, staged_bytes=staged)
    for finding in findings:
        if finding.status == "warning":
            conduct.say(f"{finding.check}: {finding.text}. {finding.remedy}")
    if not is_settled(prefix, verdict.release):
        refuse_unfit(findings)
    return tuple(findings)
