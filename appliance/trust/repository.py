"""The authority's side of the trust repository (TUF): what travels on the media and tells hosts what to believe.

Roles as in https://theupdateframework.github.io/specification/latest/: `root` (offline, threshold) names the keys of
all roles; `targets` signs `trusted_root.json`, `policy.json` and the TLS revocation list; `snapshot` and `timestamp`
fix which versions belong together. Consistent snapshots: a repository is never half new.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from securesystemslib.signer import CryptoSigner, SSlibKey
from tuf.api.metadata import (
    Key,
    Metadata,
    MetaFile,
    Root,
    Signed,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.api.serialization.json import JSONSerializer

from appliance.errors import FileError, TrustError
from appliance.files import read_regular, write_atomic
from appliance.trust import trusted_root
from appliance.trust.authority import Authority
from appliance.trust.keys import PrivateKey
from appliance.trust.policy import Policy, read_policy, write_policy
from appliance.trust.profiles import TUF_ROLES, MetadataRole

ISSUED_FIELD: Final = "x-appliance-issued"  # in timestamp.json: when it was signed; raises a host's time floor
TRUSTED_ROOT: Final = "trusted_root.json"
POLICY: Final = "policy.json"
REVOCATIONS: Final = "tls-crl.pem"
_MAX_BYTES: Final = 4 * 1024 * 1024


class Repository:
    """The repository folder of an authority."""

    def __init__(self, authority: Authority) -> None:
        self._authority = authority
        self.path = authority.path / "repository"
        self._metadata = self.path / "metadata"
        self._targets = self.path / "targets"

    def create(self, policy: Policy, *, now: datetime) -> None:
        """Make the keys of every role and the first version of everything."""
        self._metadata.mkdir(parents=True, exist_ok=True)
        self._targets.mkdir(exist_ok=True)
        root = Root(expires=self._expiry("root", now), consistent_snapshot=True)
        for role in TUF_ROLES:
            profile = self._authority.state.profiles.metadata[role]  # type: ignore[index]
            for number in range(1, profile.keys + 1):
                root.add_key(_public(self._key(f"tuf-{role}-{number}")), role)
            root.roles[role].threshold = profile.threshold
        self._write_root(root, signers=self.root_signers(root))
        self.publish({POLICY: write_policy(policy)}, now=now)

    def publish(self, changed: Mapping[str, bytes] | None = None, *, now: datetime) -> None:
        """Sign a new version of targets, snapshot and timestamp.

        Args:
            changed: target name -> bytes; `trusted_root.json` is always written anew, others stay as they are.
            now: the time of signing.
        """
        present = {name: self.target(name) for name in self.target_names()}
        root_document = trusted_root.write(self._authority.anchors())
        contents = {**present, TRUSTED_ROOT: root_document, **(changed or {})}
        targets = Targets(version=self.version("targets") + 1, expires=self._expiry("targets", now))
        for name, data in sorted(contents.items()):
            entry = TargetFile.from_data(name, data, ["sha256"])
            targets.targets[name] = entry
            write_atomic(self._targets / f"{entry.hashes['sha256']}.{name}", data)
        self._write_versioned(targets, "targets")
        self.republish(now=now)
        write_atomic(self._authority.path / "trust_config.json", trusted_root.client_trust_config(root_document))

    def republish(self, *, now: datetime) -> None:
        """Sign a new snapshot and timestamp over the current targets: extends how long media are accepted."""
        snapshot = Snapshot(version=self.version("snapshot") + 1, expires=self._expiry("snapshot", now))
        snapshot.meta["targets.json"] = MetaFile(version=self.version("targets"))
        self._write_versioned(snapshot, "snapshot")
        timestamp = Timestamp(
            version=self.version("timestamp") + 1,
            expires=self._expiry("timestamp", now),
            snapshot_meta=MetaFile(version=snapshot.version),
            unrecognized_fields={ISSUED_FIELD: trusted_root.rfc3339(now)},
        )
        self._write(self._sign(timestamp, "timestamp"), "timestamp.json")

    def root_signers(self, *roots: Root) -> list[str]:
        """The names of the root keys at hand that any of these roots lists."""
        wanted = {key_id for root in roots for key_id in root.roles["root"].keyids}
        return [name for name in self._known_keys("root") if _public(self._key(name)).keyid in wanted]

    def _write_root(self, root: Root, *, signers: Iterable[str]) -> None:
        metadata: Metadata[Root] = Metadata(root)
        for name in signers:
            metadata.sign(CryptoSigner(self._key(name)), append=True)
        previous = self.root() if root.version > 1 else metadata
        for delegator in (previous, metadata):
            verified = delegator.signed.get_verification_result("root", metadata.signed_bytes, metadata.signatures)
            if not verified:
                raise TrustError(
                    "TRUST_THRESHOLD",
                    f"the root needs {delegator.signed.roles['root'].threshold} signatures of its keys, "
                    f"{len(verified.signed)} are here",
                    signed=sorted(verified.signed),
                )
        self._write(metadata, f"{root.version}.root.json")

    def root(self) -> Metadata[Root]:
        """The newest root."""
        metadata: Metadata[Root] = Metadata.from_bytes(self.root_bytes())
        return metadata

    def root_bytes(self) -> bytes:
        """The newest root, as signed."""
        return self._read(f"{self.version('root')}.root.json")

    def metadata(self, role: MetadataRole) -> Signed:
        """The newest metadata of a role."""
        name = "timestamp.json" if role == "timestamp" else f"{self.version(role)}.{role}.json"
        return Metadata.from_bytes(self._read(name)).signed

    def version(self, role: MetadataRole) -> int:
        """The newest version of a role's metadata, 0 where there is none."""
        if role == "timestamp":
            try:
                return int(Metadata.from_bytes(self._read("timestamp.json")).signed.version)
            except TrustError:
                return 0
        numbers = [each.name.split(".")[0] for each in self._metadata.glob(f"*.{role}.json")]
        return max((int(number) for number in numbers if number.isdigit()), default=0)

    def target_names(self) -> list[str]:
        """Names of the current targets."""
        return sorted(self._current_targets())

    def target(self, name: str) -> bytes:
        """A current target's bytes."""
        entry = self._current_targets()[name]
        return read_regular(self._targets / f"{entry.hashes['sha256']}.{name}", max_bytes=_MAX_BYTES)

    def policy(self) -> Policy:
        """The current policy."""
        return read_policy(self.target(POLICY))

    def _current_targets(self) -> dict[str, TargetFile]:
        if not self.version("targets"):
            return {}
        signed = self.metadata("targets")
        return dict(signed.targets) if isinstance(signed, Targets) else {}

    def _write_versioned(self, signed: Signed, role: MetadataRole) -> None:
        self._write(self._sign(signed, role), f"{signed.version}.{role}.json")

    def _sign(self, signed: Any, role: MetadataRole) -> Metadata[Any]:
        """Sign with every key of the role at hand that the current root names; refuse below its threshold."""
        metadata: Metadata[Any] = Metadata(signed)
        root = self.root().signed
        for name in self._known_keys(role):
            if _public(self._key(name)).keyid in root.roles[role].keyids:
                metadata.sign(CryptoSigner(self._key(name)), append=True)
        verified = root.get_verification_result(role, metadata.signed_bytes, metadata.signatures)
        if not verified:
            raise TrustError("TRUST_THRESHOLD", f"too few keys of the role {role} are here", role=role)
        return metadata

    def _known_keys(self, role: str) -> list[str]:
        return [name for n in range(1, 100) if self._authority.keys.has(name := f"tuf-{role}-{n}")]

    def _key(self, name: str) -> PrivateKey:
        ring = self._authority.keys
        return ring.load(name) if ring.has(name) else ring.make(name)

    def _expiry(self, role: MetadataRole, now: datetime) -> datetime:
        days = self._authority.state.profiles.metadata[role].days
        return now.astimezone(UTC).replace(microsecond=0) + timedelta(days=days)

    def _write(self, metadata: Metadata[Any], name: str) -> None:
        write_atomic(self._metadata / name, metadata.to_bytes(JSONSerializer(compact=False)))

    def _read(self, name: str) -> bytes:
        try:
            return read_regular(self._metadata / name, max_bytes=_MAX_BYTES)
        except FileError as error:
            raise TrustError("TRUST_AUTHORITY_DAMAGED", f"the repository has no {name} ({error.cause})") from None


def _public(key: PrivateKey) -> Key:
    return SSlibKey.from_crypto(key.public_key())
