"""What a zone has installed, signed in the zone, so that the connected side can send only what is missing."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from appliance import documents
from appliance.bundle.build import StatementSigner
from appliance.bundle.releases import Release, installed_releases
from appliance.bundle.stage0.journal import Prefix
from appliance.errors import BundleError, DocumentError, InstallError
from appliance.files import read_regular, write_atomic
from appliance.trust.verification import TrustMaterial, Verdict, verify_statement

INVENTORY_TYPE = "https://appliance.internal/inventory/v1"
SIGNATURE_SUFFIX = ".sigstore.json"
MAX_BYTES = 16 * 1024 * 1024
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
# as in a manifest: the zone's word for a version becomes part of a file's name on the connected side
Word = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$")]
Version = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+){1,3}[a-z0-9.+-]{0,40}$")]


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class InventoryMember(_Document):
    """A file that the zone has."""

    path: Annotated[str, Field(min_length=1, max_length=255)]
    size: Annotated[int, Field(ge=0)]
    sha256: Sha256
    mode: Literal["0644", "0755"]


class Inventory(_Document):
    """The release that runs in a zone, with its files.

    Attributes:
        name, version, epoch, profile: of the release.
        digest: its manifest's SHA-256.
        created: when the inventory was taken, RFC 3339, UTC.
        members: its payload.
    """

    type: Literal["https://appliance.internal/inventory/v1"] = Field(alias="_type")
    schema_version: Literal[1]
    name: Word
    version: Version
    epoch: Annotated[int, Field(ge=0)]
    profile: Word
    digest: Sha256
    created: str
    members: tuple[InventoryMember, ...]


@dataclass(frozen=True)
class SignedInventory:
    """An inventory whose signature was verified."""

    inventory: Inventory
    verdict: Verdict


def take_inventory(prefix: Prefix, *, now: datetime) -> dict[str, Any]:
    """The current release as an inventory statement.

    Raises:
        InstallError: INSTALL_NO_PREVIOUS where nothing runs yet.
    """
    current: Release | None = next((release for release in installed_releases(prefix) if release.current), None)
    if current is None:
        raise InstallError("INSTALL_NO_PREVIOUS", "no release runs here yet", prefix=str(prefix.root))
    manifest = current.manifest
    return {
        "_type": INVENTORY_TYPE,
        "schema_version": 1,
        "name": manifest.name,
        "version": manifest.version,
        "epoch": manifest.epoch,
        "profile": manifest.profile,
        "digest": manifest.digest,
        "created": now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "members": [member.as_dict() for member in manifest.members],
    }


def write_inventory(statement: dict[str, Any], signer: StatementSigner, out: Path) -> None:
    """Write the statement and, beside it, its signature."""
    data = documents.write_json(statement)
    write_atomic(out, data)
    write_atomic(_signature_path(out), signer.sign_statement(data))


def read_inventory(path: Path, *, material: TrustMaterial, at: datetime) -> SignedInventory:
    """Verify and parse an inventory.

    Raises:
        BundleError: BUNDLE_INVENTORY where it is malformed. TrustError: its signature. FileError: a file is missing.
    """
    data = read_regular(path, max_bytes=MAX_BYTES)
    signature = read_regular(_signature_path(path), max_bytes=MAX_BYTES)
    verdict = verify_statement(data, signature, kind="inventory", material=material, at=at)
    try:
        value = documents.read_json(data, what=path.name, max_bytes=MAX_BYTES)
        return SignedInventory(documents.validate(Inventory, value, what=path.name), verdict)
    except DocumentError as error:
        raise BundleError("BUNDLE_INVENTORY", error.cause, **error.evidence) from None


def _signature_path(path: Path) -> Path:
    return path.with_name(path.name + SIGNATURE_SUFFIX)
