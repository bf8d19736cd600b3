"""Other authorities that this zone believes beside its own: the connected side that signs releases, a sister zone.

A peer is its `trusted_root.json`, accepted once by its digest. It speaks under its own domain alone: its certificates
carry its issuer, and every service behind a signature must be of one domain (`evidence`). What its identities may sign
is this zone's policy.
"""

from __future__ import annotations

from pathlib import Path

from appliance.errors import TrustError
from appliance.files import read_regular, write_atomic
from appliance.trust.authority import Authority
from appliance.trust.names import domain_of, is_domain
from appliance.trust.trusted_root import Anchors, read

_MAX_BYTES = 1024 * 1024


def enrol(authority: Authority, trusted_root: bytes) -> str:
    """Accept a peer, or a peer's newer trusted root.

    Returns:
        The peer's domain.

    Raises:
        TrustError: TRUST_PEER (not of one domain, or of ours), TRUST_ROOT_MALFORMED.
    """
    found = read(trusted_root)
    names = [chain.uri for chain in (*found.authorities, *found.timestampers)]
    names += [log.url for log in (*found.logs.values(), *found.certificate_logs.values())]
    domains = {domain_of(name) for name in names}
    if len(domains) != 1 or not is_domain(domain := next(iter(domains))):
        raise TrustError("TRUST_PEER", "a peer speaks under one domain of its own", domains=sorted(domains)[:5])
    if domain == authority.state.domain:
        raise TrustError("TRUST_PEER", f"{domain} is this authority's own domain", domain=domain)
    others = {each: _peer(_folder(authority) / f"{each}.json") for each in peers(authority) if each != domain}
    for name, known in {"this authority": authority.anchors(), **others}.items():
        if shared := _keys(found) & _keys(known):  # under its own names it would take the other's signatures away
            raise TrustError("TRUST_PEER", f"the peer uses keys of {name}", domain=domain, keys=sorted(shared)[:5])
    _folder(authority).mkdir(exist_ok=True)
    write_atomic(_folder(authority) / f"{domain}.json", trusted_root)
    return domain


def all_anchors(authority: Authority) -> Anchors:
    """The authority's own anchors and those of its peers: what `trusted_root.json` says."""
    known = [authority.anchors(), *(_peer(path) for path in sorted(_folder(authority).glob("*.json")))]
    return Anchors(
        tuple(chain for each in known for chain in each.authorities),
        tuple(chain for each in known for chain in each.timestampers),
        {key: log for each in known for key, log in each.logs.items()},
        {key: log for each in known for key, log in each.certificate_logs.items()},
    )


def peers(authority: Authority) -> list[str]:
    """Domains of the enrolled peers."""
    return sorted(path.stem for path in _folder(authority).glob("*.json"))


def _keys(anchors: Anchors) -> set[str]:
    """Every key that speaks for an authority, by its id."""
    issuing = {chain.issuing_key_id for chain in (*anchors.authorities, *anchors.timestampers)}
    return {key.hex() for key in (*anchors.logs, *anchors.certificate_logs, *issuing)}


def _peer(path: Path) -> Anchors:
    return read(read_regular(path, max_bytes=_MAX_BYTES))


def _folder(authority: Authority) -> Path:
    return authority.path / "peers"
