"""The authority's side of the trust repository (TUF): what travels on the media and tells hosts what to believe.

Roles as in https://theupdateframework.github.io/specification/latest/: `root` (offline, threshold) names the keys of
all roles; `targets` signs `trusted_root.json`, `policy.json` and the TLS revocation list; `snapshot` and `timestamp`
fix which versions belong together. Consistent snapshots: a repository is never half new.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from appliance.errors import FileError, TrustError
from appliance.files import read_regular, write_atomic
from appliance.trust import trusted_root
from appliance.trust.authority import Authority
from appliance.trust.keys import PublicKey
from appliance.trust.peers import all_anchors
from appliance.trust.policy import Policy, read_policy, write_policy
from appliance.trust.profiles import TUF_ROLES, MetadataRole
from appliance.trust.tuf_api import (
    CryptoSigner,
    JSONSerializer,
    Metadata,
    MetaFile,
    Root,
    Signed,
    Snapshot,
    SSlibKey,
    TargetFile,
    Targets,
    Timestamp,
    refusal,
)

ISSUED_FIELD: Final = "x-appliance-issued"  # in timestamp.json: when it was signed; raises a host's time floor
NAME_FIELD: Final = "x-appliance-name"  # in a root's keys: the key ring's name of the key
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
            profile = self._authority.state.profiles.metadata[role]
            for number in range(1, profile.keys + 1):
                self._add_key(root, role, f"tuf-{role}-{number}")
            root.roles[role].threshold = profile.threshold
        self._sign_and_keep(Metadata(root))
        self.publish({POLICY: write_policy(policy)}, now=now)

    def rotate_key(self, name: str, *, now: datetime) -> str:
        """Replace a role's key by a new one in a new root; the old key need not be here (it may be lost).

        Args:
            name: the key to retire, e.g. `tuf-root-2`.
            now: the time of signing.

        Returns:
            The new key's name.

        Raises:
            TrustError: TRUST_KEY_UNKNOWN, TRUST_THRESHOLD (too few root keys are here), TRUST_KEY_EXISTS.
        """
        self._key_of(name)
        self.check_root_signers()
        drafted = self.next_root({name: None}, now=now)
        if role_of(name) != "root":
            self.check_whole()
            self.check_online_signers(drafted.signed)
        self._sign_and_keep(drafted)
        if role_of(name) != "root":
            self.publish(now=now)
        return self._newest_key(drafted.signed, role_of(name))

    def renew_root(self, *, now: datetime) -> None:
        """Sign a new root with the same keys: extends its life.

        Raises:
            TrustError: TRUST_THRESHOLD.
        """
        self._sign_and_keep(self.next_root({}, now=now))

    def next_root(self, replaced: Mapping[str, PublicKey | None], *, now: datetime) -> Metadata[Root]:
        """Draft the root that follows the newest one, unsigned.

        Args:
            replaced: names of keys to retire -> the successor's public key, whose private half is elsewhere; None
                makes the successor (or finds it) in the key ring. Successors get the role's next number.
            now: its life is counted from here.

        Raises:
            TrustError: TRUST_KEY_UNKNOWN; TRUST_KEY_UNUSABLE for a successor that is a key of the role already.
        """
        root = Root.from_dict(self.root().signed.to_dict())
        for name, public in replaced.items():
            role, key_id = role_of(name), self._key_of(name)
            numbers = [int(each.rsplit("-", 1)[1]) for each in self._names_ever(role) | {*_names(root, role)}]
            root.revoke_key(key_id, role)
            self._add_key(root, role, f"tuf-{role}-{max(numbers) + 1}", public)
        root.version += 1
        root.expires = self._expiry("root", now)
        return Metadata(root)

    def keep_root(self, metadata: Metadata[Root]) -> None:
        """Make a signed root the newest one; the threshold of its predecessor and its own must be met.

        Raises:
            TrustError: TRUST_THRESHOLD.
        """
        previous = self.root() if metadata.signed.version > 1 else metadata
        for delegator in (previous, metadata):
            verified = delegator.signed.get_verification_result("root", metadata.signed_bytes, metadata.signatures)
            if not verified:
                names = sorted(str(key.unrecognized_fields[NAME_FIELD]) for key in verified.signed.values())
                raise TrustError(
                    "TRUST_THRESHOLD",
                    f"root {metadata.signed.version} needs {verified.threshold} signatures of root "
                    f"{delegator.signed.version}'s keys, it has {len(names)}",
                    signed=names,
                    keys=_names(delegator.signed, "root"),
                )
        self._write(metadata, f"{metadata.signed.version}.root.json")

    def check_online_signers(self, root: Root) -> None:
        """Refuse a root before it is kept if the other roles could not sign under it here.

        Raises:
            TrustError: TRUST_THRESHOLD, TRUST_KEY_LOCKED.
        """
        for role in TUF_ROLES[1:]:
            usable = [self._authority.keys.load(name) for name in self._at_hand(root, role)]
            if len(usable) < root.roles[role].threshold:
                raise TrustError("TRUST_THRESHOLD", f"too few keys of the role {role} are here", role=role)

    def check_whole(self) -> None:
        """Refuse to sign on from metadata of which the newest are lost: hosts believe no version that is older.

        Raises:
            TrustError: TRUST_AUTHORITY_DAMAGED.
        """
        timestamp: Any = self.metadata("timestamp")
        snapshot: Any = self.metadata("snapshot")
        if self.version("snapshot") < timestamp.snapshot_meta.version:
            raise TrustError("TRUST_AUTHORITY_DAMAGED", "the newest snapshot is lost", path=str(self.path))
        if self.version("targets") < snapshot.meta["targets.json"].version:
            raise TrustError("TRUST_AUTHORITY_DAMAGED", "the newest targets are lost", path=str(self.path))

    def check_root_signers(self) -> None:
        """Refuse a ceremony before it changes anything if too few root keys are here.

        Raises:
            TrustError: TRUST_THRESHOLD.
        """
        present = self._at_hand(self.root().signed, "root")
        needed = self.root().signed.roles["root"].threshold
        if len(present) < needed:
            raise TrustError(
                "TRUST_THRESHOLD", f"{needed} root keys are needed, {len(present)} are here", present=present
            )

    def publish(self, changed: Mapping[str, bytes] | None = None, *, now: datetime) -> None:
        """Sign a new version of targets, snapshot and timestamp.

        Args:
            changed: target name -> bytes; `trusted_root.json` is always written anew, others stay as they are.
            now: the time of signing.
        """
        self.check_online_signers(self.root().signed)
        present = {name: self.target(name) for name in self.target_names()}
        root_document = trusted_root.write(all_anchors(self._authority))
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
        self._retire()

    def _retire(self) -> None:
        """Move what no client asks for any more to the authority's history: the repository travels, and stays small."""
        current = {f"{entry.hashes['sha256']}.{name}" for name, entry in self._current_targets().items()}
        old = [path for path in self._targets.iterdir() if path.name not in current]
        for role in ("targets", "snapshot"):
            newest = f"{self.version(role)}.{role}.json"
            old += [path for path in self._metadata.glob(f"*.{role}.json") if path.name != newest]
        for path in old:
            history = self._authority.path / "history" / path.parent.name
            history.mkdir(parents=True, exist_ok=True)
            path.replace(history / path.name)

    def _sign_and_keep(self, metadata: Metadata[Root]) -> None:
        """Sign a root with every key at hand that it or its predecessor names, and keep it."""
        previous = self.root().signed if metadata.signed.version > 1 else metadata.signed
        for name in dict.fromkeys([*self._at_hand(previous, "root"), *self._at_hand(metadata.signed, "root")]):
            metadata.sign(CryptoSigner(self._authority.keys.load(name)), append=True)
        self.keep_root(metadata)

    def root(self) -> Metadata[Root]:
        """The newest root."""
        return self._parse(f"{self.version('root')}.root.json")

    def root_bytes(self) -> bytes:
        """The newest root, as signed."""
        return self._read(f"{self.version('root')}.root.json")

    def metadata(self, role: MetadataRole) -> Signed:
        """The newest metadata of a role."""
        name = "timestamp.json" if role == "timestamp" else f"{self.version(role)}.{role}.json"
        signed: Signed = self._parse(name).signed
        return signed

    def issued(self) -> datetime:
        """When the newest timestamp was signed.

        Raises:
            TrustError: TRUST_AUTHORITY_DAMAGED.
        """
        return trusted_root.parse_rfc3339(str(self.metadata("timestamp").unrecognized_fields[ISSUED_FIELD]))

    def version(self, role: MetadataRole) -> int:
        """The newest version of a role's metadata, 0 where there is none."""
        if role == "timestamp":
            if self.version("snapshot") <= 1 and not (self._metadata / "timestamp.json").exists():
                return 0  # later it is lost, and hosts believe none that counts from one again
            return int(self.metadata("timestamp").version)
        numbers = [each.name.split(".")[0] for each in self._metadata.glob(f"*.{role}.json")]
        return max((int(number) for number in numbers if number.isdecimal()), default=0)

    def target_names(self) -> list[str]:
        """Names of the current targets."""
        return sorted(self._current_targets())

    def target(self, name: str) -> bytes:
        """A current target's bytes."""
        entry = self._current_targets().get(name)
        if entry is None:
            raise TrustError("TRUST_AUTHORITY_DAMAGED", f"the repository has no target {name}", path=str(self.path))
        try:
            data = read_regular(self._targets / f"{entry.hashes['sha256']}.{name}", max_bytes=_MAX_BYTES)
            entry.verify_length_and_hashes(data)  # it will be signed again
        except (FileError, refusal.RepositoryError) as error:
            raise TrustError("TRUST_AUTHORITY_DAMAGED", f"target {name}: {error}", path=str(self.path)) from None
        return data

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
        for name in self._at_hand(root, role):
            metadata.sign(CryptoSigner(self._authority.keys.load(name)), append=True)
        if not root.get_verification_result(role, metadata.signed_bytes, metadata.signatures):
            raise TrustError("TRUST_THRESHOLD", f"too few keys of the role {role} are here", role=role)
        return metadata

    def key_names(self, role: MetadataRole) -> list[str]:
        """The names of a role's keys, as the newest root has them."""
        return _names(self.root().signed, role)

    def root_keys_at_hand(self) -> list[str]:
        """The names of the current root keys that can be used here and now."""
        return self._at_hand(self.root().signed, "root")

    def _at_hand(self, root: Root, role: str) -> list[str]:
        return [name for name in _names(root, role) if self._authority.keys.has(name)]

    def _names_ever(self, role: str) -> set[str]:
        versions = range(1, self.version("root") + 1)
        roots = [self._parse(f"{version}.root.json").signed for version in versions]
        return {name for root in roots for name in _names(root, role)}

    def _key_of(self, name: str) -> str:
        """The id of a key that the newest root names.

        Raises:
            TrustError: TRUST_KEY_UNKNOWN.
        """
        named = {str(key.unrecognized_fields[NAME_FIELD]): key_id for key_id, key in self.root().signed.keys.items()}
        if name not in named:
            raise TrustError("TRUST_KEY_UNKNOWN", f"the root names no key {name}", keys=sorted(named))
        return named[name]

    def _newest_key(self, root: Root, role: str) -> str:
        return max(_names(root, role), key=lambda name: int(name.rsplit("-", 1)[1]))

    def _add_key(self, root: Root, role: str, name: str, public: PublicKey | None = None) -> None:
        ring = self._authority.keys
        if public is None:
            public = (ring.load(name) if ring.has(name) else ring.make(name)).public_key()
        key = SSlibKey.from_crypto(public)
        key.unrecognized_fields[NAME_FIELD] = name
        if key.keyid in root.roles[role].keyids:
            known = root.keys[key.keyid].unrecognized_fields[NAME_FIELD]
            raise TrustError("TRUST_KEY_UNUSABLE", f"key {name} is {known} once more: the role would have one less")
        root.add_key(key, role)

    def _expiry(self, role: MetadataRole, now: datetime) -> datetime:
        days = self._authority.state.profiles.metadata[role].days
        return now.astimezone(UTC).replace(microsecond=0) + timedelta(days=days)

    def _write(self, metadata: Metadata[Any], name: str) -> None:
        write_atomic(self._metadata / name, metadata.to_bytes(JSONSerializer(compact=False)))

    def _parse(self, name: str) -> Metadata[Any]:
        try:
            return Metadata.from_bytes(self._read(name))
        except refusal.RepositoryError as error:
            raise TrustError("TRUST_AUTHORITY_DAMAGED", f"{name}: {error}", path=str(self.path)) from None

    def _read(self, name: str) -> bytes:
        try:
            return read_regular(self._metadata / name, max_bytes=_MAX_BYTES)
        except FileError as error:
            raise TrustError("TRUST_AUTHORITY_DAMAGED", f"the repository has no {name} ({error.cause})") from None


def _names(root: Root, role: str) -> list[str]:
    return [str(root.keys[key_id].unrecognized_fields[NAME_FIELD]) for key_id in root.roles[role].keyids]


def role_of(name: str) -> str:
    """The metadata role of a key, by its name: `tuf-root-2` is of `root`."""
    return name.split("-")[1] if name.count("-") == 2 else name
