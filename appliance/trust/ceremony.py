"""The acts of the authority: creation, rotation, renewal, revocation.

Each act is one function that first checks that it can be carried out, and ends by signing new trust metadata and a new
anchor. `docs/key-ceremony.md` puts them in order for people.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from appliance import documents
from appliance.errors import DocumentError, TrustError
from appliance.files import locked, translated, write_atomic
from appliance.trust import peers, tls
from appliance.trust.anchor import RELEASE_ROLE, is_announced, write_anchor
from appliance.trust.authority import Authority, Service
from appliance.trust.keys import Passphrase, PrivateKey, PublicKey, no_passphrase
from appliance.trust.names import DOMAIN
from appliance.trust.policy import Denied, LogIndex, Policy, write_policy
from appliance.trust.profiles import Recipes
from appliance.trust.proposal import Proposal, combine
from appliance.trust.repository import POLICY, REVOCATIONS, Repository, role_of

Item = TypeVar("Item")
Rest = ParamSpec("Rest")
Result = TypeVar("Result")
_LOCK = "lock"  # in the authority's folder

SERVICES: tuple[Service, ...] = ("root", "signing", "tls", "tsa", "log", "ct")
_SECOND = timedelta(seconds=1)  # both ends of a window count, so an empty one ends a second before its start
_UNDER_ROOT: tuple[Service, ...] = ("signing", "tls", "tsa")


def _one_at_a_time(
    act: Callable[Concatenate[Authority, Rest], Result],
) -> Callable[Concatenate[Authority, Rest], Result]:
    """Let no act begin before another has ended: of two revocations at once, one would be lost."""

    @functools.wraps(act)
    def alone(authority: Authority, /, *args: Rest.args, **kwargs: Rest.kwargs) -> Result:
        with locked(authority.path / _LOCK):
            authority.reload()
            authority.check_clock(kwargs["now"])  # type: ignore[arg-type]  # every act has it
            return act(authority, *args, **kwargs)

    return alone


@dataclass(frozen=True)
class Revocation:
    """What the zone shall refuse from now on.

    Attributes:
        certificate_serials: of signing certificates, hex.
        log_indices: entries of the current transparency log.
        digests: SHA-256 of statements or artifact digests.
        tls_serials: of TLS certificates, hex.
        roles: policy roles to take out altogether.
        identities: identities to take out of every role.
    """

    certificate_serials: tuple[str, ...] = ()
    log_indices: tuple[int, ...] = ()
    digests: tuple[str, ...] = ()
    tls_serials: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()
    identities: tuple[str, ...] = ()


def create_authority(
    path: Path,
    recipes: Recipes,
    *,
    development: bool,
    now: datetime,
    domain: str = DOMAIN,
    passphrase: Passphrase = no_passphrase,
    elsewhere: Mapping[str, Path | PrivateKey] | None = None,
) -> Authority:
    """Make an authority with its trust repository and anchor: all of it, or nothing (but for keys made elsewhere).

    Raises:
        TrustError: TRUST_AUTHORITY_EXISTS.
    """
    if path.is_symlink() or (path.exists() and (not path.is_dir() or any(path.iterdir()))):
        raise TrustError("TRUST_AUTHORITY_EXISTS", f"{path} is not an empty folder", path=str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.new")
    shutil.rmtree(draft, ignore_errors=True)
    try:
        authority = Authority.create(
            draft, recipes, development=development, now=now, domain=domain, passphrase=passphrase, elsewhere=elsewhere
        )
        Repository(authority).create(recipes.policy, now=now)
        _announce(authority, now)
        (draft / _LOCK).touch(mode=0o600)
        with translated(path):
            draft.rename(path)  # over an empty folder too
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return Authority.open(path, passphrase=passphrase, elsewhere=elsewhere)


@_one_at_a_time
def rotate_service(
    authority: Authority, service: Service, *, now: datetime, compromised_since: datetime | None = None
) -> list[str]:
    """Make the next generation of a service's key and end the window of the present one.

    Args:
        authority: the authority.
        service: `signing`, `tls`, `tsa`, `log`, `ct`, or `root` (with everything under it).
        now: when the new key begins.
        compromised_since: signatures from that second on are refused; from all of the key's life, where it is not
            later than the key's birth. None ends the old key's window now.

    Returns:
        The names of the new keys.

    Raises:
        TrustError: TRUST_CLOCK_BEHIND, TRUST_AUTHORITY_EXPIRED, TRUST_THRESHOLD, TRUST_KEY_MISSING, TRUST_KEY_LOCKED.
    """
    _check_order(authority, now)
    now = now.astimezone(UTC).replace(microsecond=0)
    end = now if compromised_since is None else min(compromised_since, now) - _SECOND
    services = (service, *_UNDER_ROOT) if service == "root" else (service,)
    _check_keys(authority, "root" if service in _UNDER_ROOT else None, now)
    _check_publishable(authority, now, retired=services)
    old = {each.name for each in authority.state.instances if each.service in services}
    added = [authority.add_instance(each, now=now).name for each in services]
    instances = [
        each.model_copy(update={"end": max(each.start - _SECOND, min(each.end, end))}) if each.name in old else each
        for each in authority.state.instances
    ]
    authority.update(instances=tuple(instances))
    _publish(authority, {}, now)
    return added


@_one_at_a_time
def rotate_key(authority: Authority, name: str, *, now: datetime) -> str:
    """Replace a key of the trust repository (lost, stolen, its holder gone) by a new one.

    Raises:
        TrustError: TRUST_KEY_UNKNOWN, TRUST_THRESHOLD.
    """
    successor = Repository(authority).rotate_key(name, now=now)
    _announce(authority, now)
    return successor


@_one_at_a_time
def propose_root(authority: Authority, replaced: Mapping[str, PublicKey | None], *, now: datetime) -> Proposal:
    """Draft the next root for holders who sign elsewhere; no private root key is needed here.

    Args:
        authority: the authority.
        replaced: see `Repository.next_root`; of nothing, the root's life is extended.
        now: its life is counted from here.

    Raises:
        TrustError: TRUST_KEY_UNKNOWN; TRUST_PROPOSAL for a root key's successor without a public key.
    """
    held_here = sorted(name for name, public in replaced.items() if public is None and role_of(name) == "root")
    if held_here:
        raise TrustError("TRUST_PROPOSAL", f"the successor of {held_here[0]} is its holder's: give its public key")
    repository = Repository(authority)
    return Proposal(repository.root(), repository.next_root(replaced, now=now))


@_one_at_a_time
def accept_root(authority: Authority, proposals: Sequence[Proposal], *, now: datetime) -> Proposal:
    """Put the holders' signatures together and make the draft the root in force; or finish that, interrupted before.

    Args:
        authority: the authority.
        proposals: one signed by all, or a copy from each holder.
        now: for the metadata that are signed under the new root.

    Returns:
        The proposal with every signature.

    Raises:
        TrustError: TRUST_PROPOSAL (several drafts, or not of the root in force), TRUST_THRESHOLD.
    """
    repository, combined = Repository(authority), combine(proposals)
    present = repository.root()
    interrupted = combined.proposed.signed_bytes == present.signed_bytes and not is_announced(authority)
    if combined.previous.signed_bytes != present.signed_bytes and not interrupted:
        version = present.signed.version
        raise TrustError("TRUST_PROPOSAL", f"the draft does not follow this authority's root {version}", root=version)
    repository.check_whole()
    repository.check_online_signers(combined.proposed.signed)
    revocations = tls.revocation_list(authority, now=now)  # the last that could be refused
    if not interrupted:
        repository.keep_root(combined.proposed)
    repository.publish({REVOCATIONS: revocations}, now=now)
    _announce(authority, now)
    return combined


@_one_at_a_time
def enrol_peer(authority: Authority, trusted_root: bytes, *, now: datetime) -> str:
    """Believe another authority under its own domain; what its identities may sign, the policy says.

    Raises:
        TrustError: TRUST_PEER, TRUST_ROOT_MALFORMED.
    """
    _check_publishable(authority, now)
    domain = peers.enrol(authority, trusted_root)
    _publish(authority, {}, now)
    return domain


@_one_at_a_time
def renew(authority: Authority, *, now: datetime) -> list[str]:
    """Extend what runs out: trust metadata and TLS revocation list always, the TUF root when its time comes.

    A root that is due while its key holders are elsewhere does not keep the rest from being renewed; it waits for
    `propose_root`, and the report warns until then.

    Returns:
        What was renewed.

    Raises:
        TrustError: TRUST_THRESHOLD where the root has expired and too few of its keys are here.
    """
    repository, renewed = Repository(authority), ["targets", "snapshot", "timestamp", "tls-crl"]
    _check_publishable(authority, now)
    root = repository.root().signed
    here = len(repository.root_keys_at_hand()) >= root.roles["root"].threshold
    if root.expires <= now or (here and root.expires - now <= authority.state.profiles.warn_before.span):
        repository.renew_root(now=now)
        renewed.insert(0, "root")
    _publish(authority, {}, now)
    return renewed


@_one_at_a_time
def revoke(authority: Authority, revocation: Revocation, *, now: datetime) -> Policy:
    """Deny signatures, retire roles, revoke TLS certificates; all in one new version of the trust metadata.

    Raises:
        TrustError: TRUST_ROLE_UNKNOWN, TRUST_TLS_UNKNOWN, TRUST_REVOCATION.
    """
    policy = Repository(authority).policy()
    unknown = set(revocation.roles) - policy.roles.keys()
    if unknown:
        raise TrustError("TRUST_ROLE_UNKNOWN", f"the policy has no role {min(unknown)!r}", roles=sorted(policy.roles))
    known = {each.identity for role in policy.roles.values() for each in role.identities}
    if set(revocation.identities) - known:
        raise TrustError("TRUST_REVOCATION", "the policy names no such identity", identities=sorted(known))
    denied = _denied(authority, policy.denied, revocation, now)
    roles = {
        name: role.model_copy(
            update={"identities": tuple(i for i in role.identities if i.identity not in revocation.identities)}
        )
        for name, role in policy.roles.items()
        if name not in revocation.roles
    }
    changed = policy.model_copy(update={"denied": denied, "roles": roles})
    _check_release_signer(authority, changed)
    _check_publishable(authority, now)
    tls.revoke_tls(authority, [_serial(each) for each in revocation.tls_serials], now=now)
    _publish(authority, {POLICY: write_policy(changed)}, now)
    return changed


def _denied(authority: Authority, present: Denied, revocation: Revocation, now: datetime) -> Denied:
    """The deny-list with what a revocation adds."""
    log = authority.log("log", at=now)
    size = len(log.entries())
    beyond = [index for index in revocation.log_indices if not 0 <= index < size]
    if beyond:
        raise TrustError("TRUST_REVOCATION", f"the log in use has {size} entries, none of index {beyond[0]}", size=size)
    key = next(key_id for key_id, each in authority.anchors().logs.items() if each.url == log.origin).hex()
    added = {
        "certificate_serials": _joined(
            present.certificate_serials, [_serial(each) for each in revocation.certificate_serials]
        ),
        "log_indices": _joined(present.log_indices, [LogIndex(log=key, index=each) for each in revocation.log_indices]),
        "digests": _joined(present.digests, [digest.lower() for digest in revocation.digests]),
    }
    try:
        return documents.validate(Denied, added, what="revocation")
    except DocumentError as error:
        raise TrustError("TRUST_REVOCATION", error.cause) from None


def _serial(text: str) -> str:
    """A serial number as the deny-list has it, from how tools print it: `0A:BC`, `0x0abc`, `ABC`."""
    digits = text.strip().lower().removeprefix("0x").replace(":", "")
    return digits.lstrip("0") or digits[:1]  # of nothing nothing, which no list takes


@_one_at_a_time
def set_policy(authority: Authority, policy: Policy, *, now: datetime) -> None:
    """Publish another policy.

    Raises:
        TrustError: TRUST_REVOCATION where it would forget what was denied before, or name no release signer;
            TRUST_PEER where the release signer's authority is not enrolled.
    """
    present = Repository(authority).policy().denied
    for name in ("certificate_serials", "log_indices", "digests"):
        if not set(getattr(present, name)) <= set(getattr(policy.denied, name)):
            raise TrustError("TRUST_REVOCATION", f"the new policy forgets denied {name}", field=name)
    _check_release_signer(authority, policy)
    _publish(authority, {POLICY: write_policy(policy)}, now)


def _check_release_signer(authority: Authority, policy: Policy) -> None:
    """The anchor names one, with the chain that vouches for it: without, no anchor could be handed out again."""
    role = policy.roles.get(RELEASE_ROLE)
    if role is None or not role.identities:
        raise TrustError(
            "TRUST_REVOCATION", "nobody could sign releases any more: name a successor first (rotate policy)"
        )
    issuer = role.identities[0].issuer
    known = {chain.uri for chain in peers.all_anchors(authority).authorities}
    if issuer not in known:
        raise TrustError(
            "TRUST_PEER", f"releases would be signed under {issuer}, which is not enrolled here", known=known
        )


def _publish(authority: Authority, changed: Mapping[str, bytes], now: datetime) -> None:
    revocations = tls.revocation_list(authority, now=now)
    Repository(authority).publish({**changed, REVOCATIONS: revocations}, now=now)
    _announce(authority, now)


def _announce(authority: Authority, now: datetime) -> None:
    write_atomic(authority.path / "anchor.json", write_anchor(authority, now=now))


def _check_keys(authority: Authority, service: Service | None, now: datetime) -> None:
    """Refuse before anything changes if the issuing key is not here."""
    if service is not None:
        authority.keys.load(authority.current(service, now).name)


def _check_publishable(authority: Authority, now: datetime, *, retired: Sequence[Service] = ()) -> None:
    """Refuse before anything changes if the metadata or the revocation list, with which acts end, cannot be signed.

    A retired TLS authority's key need not be here: it may be lost.
    """
    repository = Repository(authority)
    repository.check_whole()
    repository.check_online_signers(repository.root().signed)
    if "tls" not in retired:
        tls.revocation_list(authority, now=now)


def _check_order(authority: Authority, now: datetime) -> None:
    """Refuse to end a key's window before what it has signed: `renew` forgets a time that a wrong clock has written."""
    last = Repository(authority).issued()
    if now < last:
        raise TrustError(
            "TRUST_CLOCK_BEHIND",
            f"this host's clock says {now:%Y-%m-%d %H:%M}, but it signed trust metadata at {last:%Y-%m-%d %H:%M} "
            "(if the clock is right now: `appliance ca renew` first)",
            clock=now,
            at_least=last,
        )


def _joined(present: tuple[Item, ...], added: list[Item]) -> tuple[Item, ...]:
    return (*present, *(each for each in dict.fromkeys(added) if each not in present))
