"""What the authority has, until when, and what somebody should do about it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from appliance.errors import TrustError
from appliance.files import read_regular, sha256_hex
from appliance.trust import clock, peers, tls, trusted_root
from appliance.trust.anchor import is_announced
from appliance.trust.authority import Authority
from appliance.trust.log import read_entries
from appliance.trust.profiles import TUF_ROLES
from appliance.trust.repository import TRUSTED_ROOT, Repository
from appliance.trust.store import TrustStore
from appliance.trust.trusted_root import rfc3339


@dataclass(frozen=True)
class Expiry:
    """Something that runs out.

    Attributes:
        what: `signing-1`, `metadata timestamp`, `tls gateway`, ...
        at: when.
        remedy: the command that extends it.
    """

    what: str
    at: datetime
    remedy: str


def expiries(authority: Authority, *, now: datetime) -> list[Expiry]:
    """Everything in use that runs out, soonest first."""
    found = [
        Expiry(each.name, each.end, f"appliance ca rotate {each.service}")
        for each in authority.state.instances
        if each.end > now or each.name == _newest(authority, each.service)
    ]
    repository = Repository(authority)
    apart = len(repository.root_keys_at_hand()) < repository.root().signed.roles["root"].threshold
    extend = {"root": "appliance ca root propose --out FILE"} if apart else {}
    found += [
        Expiry(f"metadata {r}", repository.metadata(r).expires, extend.get(r, "appliance ca renew")) for r in TUF_ROLES
    ]
    newest: dict[str, datetime] = {}
    for certificate in _valid_tls(authority):
        name = tls.common_name(certificate)
        newest[name] = max(certificate.not_valid_after_utc, newest.get(name, certificate.not_valid_after_utc))
    found += [Expiry(f"tls {name}", at, f"appliance ca renew {name} --out DIR") for name, at in newest.items()]
    return sorted(found, key=lambda each: each.at)


def authority_report(authority: Authority, *, now: datetime) -> dict[str, Any]:
    """The authority's status as `--json` prints it."""
    repository = Repository(authority)
    policy = repository.policy()
    warn = authority.state.profiles.warn_before.span
    due = expiries(authority, now=now)
    warnings = [
        f"{each.what} {'expired' if each.at <= now else 'expires'} {rfc3339(each.at)}: {each.remedy}"
        for each in due
        if each.at - now <= warn
    ]
    published = repository.target(TRUSTED_ROOT) == trusted_root.write(peers.all_anchors(authority))
    if not published or not is_announced(authority):
        warnings.append("hosts are not told of every key in force, an act was interrupted: appliance ca renew")
    root = repository.metadata("root")
    offline = [name for role in TUF_ROLES for name in repository.key_names(role) if not authority.keys.has(name)]
    if authority.state.development:
        warnings.append("a development authority: its keys lie unencrypted in one place")
    elif [name for name in repository.key_names("root") if authority.keys.path(name).parent == authority.path / "keys"
          and authority.keys.has(name)]:  # fmt: skip
        warnings.append("root keys lie beside the others: move them to media of their own (docs/key-ceremony.md)")
    return {
        "authority": str(authority.path),
        "development": authority.state.development,
        "issuer": authority.issuer,
        "peers": peers.peers(authority),
        "created": rfc3339(authority.state.created),
        "anchor_sha256": sha256_hex(read_regular(authority.path / "anchor.json", max_bytes=1024 * 1024)),
        "expiries": [{"what": each.what, "at": rfc3339(each.at), "remedy": each.remedy} for each in due],
        "keys_not_here": offline,
        "metadata_versions": {role: repository.version(role) for role in TUF_ROLES},
        "root_threshold": f"{root.roles['root'].threshold} of {len(root.roles['root'].keyids)}",  # type: ignore[attr-defined]
        "roles": {
            name: {"identities": [each.identity for each in role.identities], "kinds": list(role.kinds)}
            for name, role in policy.roles.items()
        },
        "denied": policy.denied.model_dump(mode="json"),
        "log_sizes": {
            each.name: len(read_entries(authority.path / each.service / each.name / "entries"))
            for each in authority.state.instances
            if each.service in {"log", "ct"}
        },
        "tls": [
            {"name": tls.common_name(c), "serial": f"{c.serial_number:x}", "expires": rfc3339(c.not_valid_after_utc)}
            for c in _valid_tls(authority)
        ],
        "warnings": warnings,
    }


def store_report(store: TrustStore, *, now: datetime) -> dict[str, Any]:
    """A host's trust state as `--json` prints it; works when everything has expired or the clock is wrong."""
    state = store.state()
    floor = store.floor()
    return {
        "state": str(store.directory),
        "anchor_created": store.anchor.created,
        "release_identity": store.anchor.release.identity,
        "metadata": {
            role: {"version": state.versions[role], "expires": rfc3339(at)} for role, at in state.expiries.items()
        },
        "issued": rfc3339(state.issued),
        "time_floor": rfc3339(floor),
        "clock": rfc3339(now),
        "warnings": [
            *_wrong_clock(now, floor),
            *(f"{role} metadata expire {rfc3339(at)}" for role, at in state.expiries.items() if (at - now).days < 60),
        ],
    }


def _wrong_clock(now: datetime, floor: datetime) -> list[str]:
    try:
        clock.checked(now, floor)
    except TrustError as error:
        return [f"{error.code}: {error.cause}"]
    return []


def _newest(authority: Authority, service: str) -> str:
    return [each.name for each in authority.state.instances if each.service == service][-1]


def _valid_tls(authority: Authority) -> list[Any]:
    revoked = {each.serial for each in tls.revoked_tls(authority)}
    return [each for each in tls.issued_tls(authority) if f"{each.serial_number:x}" not in revoked]
