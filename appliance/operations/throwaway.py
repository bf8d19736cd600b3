"""An authority for an hour: the roles of a real one, keys in one place, gone with the folder it lies in.

The endurance run and the drill sign, promote, rotate and revoke. A host holds no signing key, and the authority of the
zone is nobody's toy; so they make one of their own.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from appliance.trust.authority import Authority
from appliance.trust.ceremony import create_authority
from appliance.trust.names import DOMAIN, service_url
from appliance.trust.policy import Identity, Policy, Role
from appliance.trust.profiles import CertificateProfile, Lifetime, LogProfiles, MetadataProfile, Profiles, Recipes

OFFICERS = tuple(f"{name}@{DOMAIN}" for name in ("import-officer", "import-officer-2"))
_SPAN = Lifetime(days=30)
_CERTIFICATES: tuple[CertificateProfile, ...] = (
    "root", "signing-authority", "time-stamping", "tls-authority", "tls-server", "tls-client",
)  # fmt: skip
_ROLES = {
    "release-signer": ((f"release-signer@{DOMAIN}",), ("release", "delta", "encoder", "router")),
    "import-officer": (OFFICERS, ("router", "encoder", "channel", "config", "inventory", "admission")),
}


def make_authority(directory: Path, *, now: datetime) -> Authority:
    """Make one in a folder that is empty or not there.

    Raises:
        TrustError: TRUST_AUTHORITY_EXISTS.
    """
    keys = MetadataProfile(days=30, keys=1, threshold=1)
    profiles = Profiles(
        schema_version=1,
        certificates={**dict.fromkeys(_CERTIFICATES, _SPAN), "signer": Lifetime(minutes=10)},
        logs=LogProfiles(transparency=_SPAN, certificates=_SPAN),
        metadata={"root": keys, "targets": keys, "snapshot": keys, "timestamp": keys},
        revocation_list=_SPAN,
        warn_before=Lifetime(days=1),
    )
    issuer = service_url("ca", DOMAIN)
    roles = {
        role: Role(identities=tuple(Identity(identity=each, issuer=issuer) for each in identities), kinds=kinds)
        for role, (identities, kinds) in _ROLES.items()
    }
    recipes = Recipes(profiles, Policy(schema_version=1, roles=roles))
    return create_authority(directory, recipes, development=True, now=now)
