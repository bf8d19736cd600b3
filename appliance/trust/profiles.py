"""The authority's recipes: how long certificates, log keys and metadata hold, and how many must sign.

They are the files of `ca/`; the package carries a copy (`trust/recipes/`, links in a checkout), so that an installed
release can make an authority wherever it stands.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from importlib import resources
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from appliance import documents
from appliance.errors import DocumentError, TrustError
from appliance.files import read_regular
from appliance.trust.names import DOMAIN, MAX_SIGNER_LIFETIME, service_url
from appliance.trust.policy import Identity, Policy

PROFILES_NAME: Final = "profiles.yaml"
POLICY_NAME: Final = "policy.yaml"

CertificateProfile = Literal[
    "root", "signing-authority", "time-stamping", "tls-authority", "signer", "tls-server", "tls-client"
]
MetadataRole = Literal["root", "targets", "snapshot", "timestamp"]
TUF_ROLES: tuple[MetadataRole, ...] = ("root", "targets", "snapshot", "timestamp")
Count = Annotated[int, Field(ge=1, le=20000)]


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Lifetime(_Document):
    """A span in days or minutes, exactly one of them."""

    days: Count | None = None
    minutes: Count | None = None

    @model_validator(mode="after")
    def _one(self) -> Lifetime:
        if (self.days is None) == (self.minutes is None):
            raise ValueError("give days or minutes, one of them")
        return self

    @property
    def span(self) -> timedelta:
        """The lifetime."""
        return timedelta(days=self.days or 0, minutes=self.minutes or 0)


class MetadataProfile(_Document):
    """A TUF role: lifetime of its metadata, number of keys, how many must sign."""

    days: Count
    keys: Annotated[int, Field(ge=1, le=9)]
    threshold: Annotated[int, Field(ge=1, le=9)]

    @model_validator(mode="after")
    def _reachable(self) -> MetadataProfile:
        if self.threshold > self.keys:
            raise ValueError(f"a threshold of {self.threshold} cannot be reached with {self.keys} keys")
        return self


class LogProfiles(_Document):
    """How long the keys of the two logs may be used."""

    transparency: Lifetime
    certificates: Lifetime


class Profiles(_Document):
    """`ca/profiles.yaml`."""

    schema_version: Literal[1]
    certificates: dict[CertificateProfile, Lifetime]
    logs: LogProfiles
    metadata: dict[MetadataRole, MetadataProfile]
    revocation_list: Lifetime
    warn_before: Lifetime

    @model_validator(mode="after")
    def _complete(self) -> Profiles:
        missing = {*CertificateProfile.__args__} - self.certificates.keys() | set(TUF_ROLES) - self.metadata.keys()  # type: ignore[attr-defined]
        if missing:
            raise ValueError(f"missing: {', '.join(sorted(missing))}")
        if self.certificates["signer"].span > MAX_SIGNER_LIFETIME:
            raise ValueError("a signer's certificate holds for a day at most: no verifier accepts a longer one")
        return self


@dataclass(frozen=True)
class Recipes:
    """What an authority is made from: the profiles and the first policy."""

    profiles: Profiles
    policy: Policy


def built_in(name: str) -> bytes:
    """One of the recipes that come with the package: `profiles.yaml` or `policy.yaml`."""
    return resources.files("appliance.trust").joinpath("recipes", name).read_bytes()


def read_recipes(directory: Path | None, *, domain: str = DOMAIN) -> Recipes:
    """Read `profiles.yaml` and `policy.yaml`.

    Args:
        directory: their folder; None takes those that come with the package.
        domain: the authority's; see `read_policy_recipe`.

    Raises:
        TrustError: TRUST_RECIPE.
        FileError: FILE_MISSING and others, see `files.read_regular`.
    """
    return Recipes(
        _read(directory, PROFILES_NAME, Profiles),
        _at_domain(_read(directory, POLICY_NAME, Policy), domain),
    )


def read_policy_recipe(path: Path, *, domain: str = DOMAIN) -> Policy:
    """Read a `policy.yaml`.

    Args:
        path: the file.
        domain: the authority's own domain, which stands in for `appliance.internal` in the recipe's names.

    Raises:
        TrustError: TRUST_RECIPE.
        FileError: FILE_MISSING and others, see `files.read_regular`.
    """
    return _at_domain(_read(path.parent, path.name, Policy), domain)


def _at_domain(policy: Policy, domain: str) -> Policy:
    roles = {
        name: role.model_copy(update={"identities": tuple(_at_home(each, domain) for each in role.identities)})
        for name, role in policy.roles.items()
    }
    return policy.model_copy(update={"roles": roles})


def _at_home(identity: Identity, domain: str) -> Identity:
    if identity.issuer != service_url("ca", DOMAIN):
        return identity
    name = identity.identity.removesuffix(f"@{DOMAIN}")
    moved = identity.identity if name == identity.identity else f"{name}@{domain}"
    return Identity(identity=moved, issuer=service_url("ca", domain))


def _read(directory: Path | None, name: str, model: type[documents.Model]) -> documents.Model:
    path = None if directory is None else directory / name
    data = built_in(name) if path is None else read_regular(path, max_bytes=documents.MAX_BYTES)
    try:
        return documents.validate(model, documents.read_yaml(data, what=name), what=name)
    except DocumentError as error:
        raise TrustError("TRUST_RECIPE", error.cause, path=str(path), **error.evidence) from None
