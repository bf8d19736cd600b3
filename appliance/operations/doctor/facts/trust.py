"""The host's trust state and certificates, read without changing either."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel

from appliance.errors import ApplianceError
from appliance.files import read_regular
from appliance.gateway.calendar import certificate_files
from appliance.operations.doctor.snapshot import Certificate, Channel, Trust
from appliance.settings import Settings
from appliance.trust import trusted_root
from appliance.trust.repository import TRUSTED_ROOT
from appliance.trust.store import TrustStore

if TYPE_CHECKING:
    from cryptography.x509 import Certificate as Certificate509

_MAX_PEM_BYTES = 1024 * 1024


def trust(directory: Path) -> Trust | ApplianceError:
    """Expiry of metadata and keys, and the proven time."""
    try:
        store = TrustStore.open(directory)
        state = store.state()
        anchors = trusted_root.read(state.contents[TRUSTED_ROOT])
        roles = {"root": state.root, "timestamp": state.timestamp, "snapshot": state.snapshot, "targets": state.targets}
        windows = {
            **{f"signing CA {n}": chain.window.end for n, chain in enumerate(anchors.authorities, 1)},
            **{f"time-stamping CA {n}": chain.window.end for n, chain in enumerate(anchors.timestampers, 1)},
            **{f"log {log_id.hex()[:8]}": log.window.end for log_id, log in anchors.logs.items()},
            **{f"CT log {log_id.hex()[:8]}": log.window.end for log_id, log in anchors.certificate_logs.items()},
        }
        return Trust({role: _utc(each.expires) for role, each in roles.items()}, state.versions, windows, store.floor())
    except ApplianceError as error:
        return error


def certificates(settings: Settings | None, sidecar: BaseModel | None = None) -> tuple[Certificate, ...]:
    """The certificates that the configuration names, and the sidecar's settings."""
    if settings is None:
        return ()
    tls = settings.listen.tls
    beside = tls.certificate.with_name("ca.pem") if tls is not None else None
    found = []
    for file in certificate_files(settings, sidecar):
        own = tls is not None and file.path == tls.certificate
        found.append(
            _certificate(file.use, file.path, file.key, beside if own and beside and beside.exists() else None)
        )
    return tuple(found)


def channels(sync_cache: Path, volume: Path, now: datetime) -> tuple[Channel, ...] | ApplianceError:
    """What the sidecar knows of its channels, from its own cache; none where there is no sidecar.

    One that has reached no registry yet has no channel in its cache, and says so in the volume alone.
    """
    from appliance import documents
    from appliance.registry.cache import Cache
    from appliance.registry.channel import Pointer, split
    from appliance.registry.directory import DirectoryStore
    from appliance.registry.sidecar import Sidecar

    if not sync_cache.is_dir():
        return ()
    try:
        cache = Cache(sync_cache)
        found = []
        for name in cache.channels():
            envelope = cache.pointer(name, "served")
            if envelope is None:
                continue
            # verified when it was kept, and again by whoever serves it; here it is only told
            statement = documents.read_json(split(envelope)[0], what="channel statement")
            pointer = documents.validate(Pointer, statement, what="channel statement")
            version = pointer.target.version if pointer.target else None
            expires = datetime.fromisoformat(pointer.expires)
            found.append(Channel(name, version, pointer.epoch, cache.contact(name), _utc(expires)))
        sidecar = Sidecar(DirectoryStore(volume))
        sidecar.look()
        if not found and sidecar.every(now):
            found.append(Channel("all channels", None, 0, None, None))
        return tuple(found)
    except ApplianceError as error:
        return error


def _certificate(use: str, path: Path, key: Path | None, authority: Path | None) -> Certificate:
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    nothing = datetime.fromtimestamp(0, UTC)
    try:
        chain = x509.load_pem_x509_certificates(read_regular(path, max_bytes=_MAX_PEM_BYTES))
    except (ApplianceError, ValueError) as error:
        return Certificate(use, path, "", "", nothing, nothing, f"cannot be read: {error}")
    leaf, problem = chain[0], ""
    try:
        for child, parent in itertools.pairwise(chain):
            child.verify_directly_issued_by(parent)
        if authority is not None:
            roots = x509.load_pem_x509_certificates(read_regular(authority, max_bytes=_MAX_PEM_BYTES))
            if not any(_issued_by(chain[-1], root) for root in roots):
                problem = f"{authority} did not issue it"
        if key is not None:
            private = load_pem_private_key(read_regular(key, max_bytes=_MAX_PEM_BYTES), password=None)
            if private.public_key() != leaf.public_key():
                problem = f"{key} is not its key"
    except ApplianceError as error:
        problem = f"its key cannot be read: {error.cause}"
    except (ValueError, TypeError, InvalidSignature) as error:
        problem = f"its chain is broken: {type(error).__name__} {error}".strip()
    return Certificate(
        use, path, leaf.subject.rfc4514_string(), leaf.issuer.rfc4514_string(),
        leaf.not_valid_before_utc, leaf.not_valid_after_utc, problem,
    )  # fmt: skip


def _issued_by(child: Certificate509, root: Certificate509) -> bool:
    from cryptography.exceptions import InvalidSignature

    if child == root:
        return True
    try:
        child.verify_directly_issued_by(root)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _utc(time: datetime) -> datetime:
    return time if time.tzinfo else time.replace(tzinfo=UTC)
