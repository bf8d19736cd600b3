"""The fixed names of the scheme: object identifiers, media types, statement types, roles."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Final

from cryptography.x509 import ObjectIdentifier

DOMAIN: Final = "appliance.internal"  # an authority's, unless it was given its own
ISSUER: Final = "https://ca.appliance.internal"
OPERATOR: Final = "llm-routing-appliance"

# https://github.com/sigstore/fulcio/blob/main/docs/oid-info.md
OIDC_ISSUER_V1: Final = ObjectIdentifier("1.3.6.1.4.1.57264.1.1")  # raw string
OIDC_ISSUER_V2: Final = ObjectIdentifier("1.3.6.1.4.1.57264.1.8")  # DER UTF8String

BUNDLE_MEDIA_TYPE: Final = "application/vnd.dev.sigstore.bundle.v0.3+json"
TRUSTED_ROOT_MEDIA_TYPE: Final = "application/vnd.dev.sigstore.trustedroot+json;version=0.1"
TRUST_CONFIG_MEDIA_TYPE: Final = "application/vnd.dev.sigstore.clienttrustconfig.v0.1+json"
SIGNING_CONFIG_MEDIA_TYPE: Final = "application/vnd.dev.sigstore.signingconfig.v0.2+json"

IN_TOTO_PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
IN_TOTO_STATEMENT: Final = "https://in-toto.io/Statement/v1"
OMS_PREDICATE: Final = "https://model_signing/signature/v1.0"

MAX_SIGNER_LIFETIME: Final = timedelta(days=1)  # of a signing certificate: its minutes are what bounds a stolen key

_LABEL = "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_DOMAIN: Final = re.compile(rf"(?=.{{3,48}}\Z){_LABEL}(\.{_LABEL})+")  # with a key's name it is a common name: 64
_STATEMENT_TYPE: Final = "https://appliance.internal/{kind}/v1"


def statement_type(kind: str) -> str:
    """The `_type` of a statement kind, e.g. `https://appliance.internal/release/v1`."""
    return _STATEMENT_TYPE.format(kind=kind)


def service_url(service: str, domain: str) -> str:
    """The name of an authority's service: `ca` (its issuer), `tsa`, or a log such as `log-1`."""
    return f"https://{service}.{domain}"


def domain_of(url: str) -> str:
    """The authority's domain in a service's name."""
    return url.removeprefix("https://").partition(".")[2]


def is_domain(text: str) -> bool:
    """Whether an authority may have this name: two labels or more, lower case, as in DNS, 48 characters at most."""
    return _DOMAIN.fullmatch(text) is not None


def role_identity(role: str, domain: str = DOMAIN) -> str:
    """The identity (certificate SAN, an e-mail address) that a role has unless the policy names another."""
    return f"{role}@{domain}"
