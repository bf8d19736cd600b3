"""Install a release: authenticate, ask the host, stage, make the environment, verify, check health, switch, confirm.

Every step is journalled and can be repeated; a kill at any point leaves `current` at the old release or the new one,
and the next run of the same command takes up where this one stood.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from appliance.bundle.authentication import Authenticator, FullVerdict
from appliance.bundle.health import check_health
from appliance.bundle.refusals import appliance_errors
from appliance.bundle.releases import check_state, collect_garbage, installed_releases, state_version, write_marker
from appliance.bundle.stage0.extract import check_members, check_tree
from appliance.bundle.stage0.journal import Prefix, Transaction
from appliance.bundle.stage0.main import release_region
from appliance.bundle.stage0.media import Head, choose, open_sources
from appliance.bundle.stage0.preflight import Finding, preflight_findings, read_host, refuse_unfit
from appliance.bundle.stage0.preparing import Conduct, advance, find_base, prepare, reached
from appliance.errors import ApplianceError, BundleError, InstallError


@dataclass(frozen=True)
class Report:
    """What an installation, or its dry run, came to.

    Attributes:
        verdict: the release and its signer.
        findings: of the preflight.
        outcome: `installed`, `already installed`, `checked` (dry run).
        previous: release that ran before.
        health: findings of the health check.
        removed: old releases cleared away.
        repaired: volumes that were missing or damaged and rebuilt from parity.
    """

    verdict: FullVerdict
    findings: tuple[Finding, ...]
    outcome: str
    previous: str | None = None
    health: tuple[dict[str, Any], ...] = ()
    removed: tuple[str, ...] = ()
    repaired: tuple[str, ...] = ()


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
    inherited_lock: int | None = None,
) -> Report:
    """Install a release below a prefix.

    Args:
        media: the archive, its volumes, or folders that hold them.
        prefix_path: where the appliance lives.
        anchor: the trust anchor's bytes; may be None on a prefix that has a trust state.
        now: the clock.
        conduct: how to speak, and the interpreter for the environment.
        dry_run: check the media and the host, write nothing.
        ports: ports that the gateway will want.
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
        if release.delta is not None and find_base(prefix, release.delta.base) is None:
            raise BundleError(
                "BUNDLE_DELTA_BASE",
                f"this delta builds upon release {release.delta.base[:12]}, which is not installed here",
                installed=[entry.id for entry in installed_releases(prefix)],
            )
        findings = _preflight(prefix, verdict, conduct, now, ports)
        check_state(prefix, manifest)
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
            if prefix.active() == manifest.release_id and prefix.transaction() is None:
                return Report(verdict, findings, "already installed", prefix.active())
            transaction = prepare(prefix, release, region, conduct)
            health, transaction = _admit(prefix, transaction, verdict, authenticator, heads, conduct, now)
            _switch(prefix, transaction, verdict, conduct, now)
            removed = collect_garbage(prefix)
    return Report(verdict, findings, "installed", transaction.previous, tuple(health), tuple(removed), tuple(repaired))


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
    if prefix.active() != manifest.release_id:
        refuse_unfit(findings)
    return tuple(findings)


def _admit(
    prefix: Prefix,
    transaction: Transaction,
    verdict: FullVerdict,
    authenticator: Authenticator,
    heads: dict[str, Head],
    conduct: Conduct,
    now: datetime,
) -> tuple[list[dict[str, Any]], Transaction]:
    """Verify what lies on the disk, take over the trust metadata, check health: only then may anything point here."""
    manifest = verdict.release.manifest
    release_id = manifest.release_id
    if not reached(transaction, "verified"):
        conduct.say("verifying what was staged")
        descriptor = os.open(prefix.payload(release_id), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            check_tree(manifest.members, descriptor)
        finally:
            os.close(descriptor)
        conduct.checkpoint("verified: before the trust state")
        authenticator.commit(heads[manifest.digest], prefix.state / "trust")
        transaction = advance(prefix, transaction, "verified", conduct)
    health: list[dict[str, Any]] = []
    if not reached(transaction, "healthy"):
        conduct.say("checking health")
        python = prefix.environment(release_id) / "bin" / "python"
        try:
            health = check_health(python, prefix.payload(release_id), manifest.profile)
        except ApplianceError:
            prefix.discard(release_id)
            prefix.close()
            raise
        write_marker(prefix, release_id, signer=verdict.verdict.identity, now=now)
        transaction = advance(prefix, transaction, "healthy", conduct)
    return health, transaction


def _switch(prefix: Prefix, transaction: Transaction, verdict: FullVerdict, conduct: Conduct, now: datetime) -> None:
    """Place the configuration if there is none, point `current` here, and go back if the release fails in place."""
    manifest = verdict.release.manifest
    release_id = manifest.release_id
    if not reached(transaction, "activated"):
        _place_configuration(prefix, release_id, conduct)
        if state_version(prefix) < manifest.state_version:
            prefix.write(prefix.state / "version.json", f'{{"state_version": {manifest.state_version}}}\n')
            conduct.checkpoint("state version written")
        conduct.say(f"activating {release_id}")
        conduct.checkpoint("activating: before the switch")
        if prefix.active() != release_id:
            prefix.point_to(release_id, reason="install", now=now)
        transaction = advance(prefix, transaction, "activated", conduct)
    if not reached(transaction, "confirmed"):
        try:
            check_health(prefix.current / "env" / "bin" / "python", prefix.payload(release_id), "in place")
        except InstallError:
            _return(prefix, transaction, now)
            raise
        transaction = advance(prefix, transaction, "confirmed", conduct)
    prefix.close()


def _return(prefix: Prefix, transaction: Transaction, now: datetime) -> None:
    """Back to what ran before."""
    if transaction.previous is not None:
        prefix.point_to(transaction.previous, reason="automatic return", now=now)
    else:
        prefix.point_to_nothing()
    prefix.discard(transaction.release)
    prefix.close()


def _place_configuration(prefix: Prefix, release_id: str, conduct: Conduct) -> None:
    """The default configuration where the operator has none; his own is never touched."""
    target = prefix.configuration / "appliance.yaml"
    source = prefix.payload(release_id) / "config" / "appliance.yaml"
    if not target.exists() and source.is_file():
        prefix.write(target, source.read_text("utf-8").replace("@PREFIX@", str(prefix.root)))
        conduct.say(f"wrote {target}")
        conduct.checkpoint("configuration written")
