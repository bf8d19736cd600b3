"""What ends when: the listener's certificate, trust metadata, signing keys; for the status page and its readers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from appliance.errors import ApplianceError, catalogue
from appliance.files import read_regular
from appliance.settings import Settings
from appliance.trust import expiry, trusted_root
from appliance.trust.expiry import Nearness
from appliance.trust.repository import TRUSTED_ROOT
from appliance.trust.store import TrustStore

GATEWAY = "gateway"  # the use of the listener's certificate
SIDECAR = "sidecar"  # and the beginning of those that the sidecar's settings name
_MAX_PEM_BYTES = 1024 * 1024


@dataclass(frozen=True)
class Entry:
    """Something that ends.

    Attributes:
        what: its name.
        ends: when.
        near: how near that is.
        code: of the catalogue, whose remedy belongs to it.
        begins: when its life began, where that is known.
        remedy: instead of the catalogue's.
    """

    what: str
    ends: datetime
    near: Nearness
    code: str
    begins: datetime | None = None
    remedy: str | None = None

    def as_dict(self) -> dict[str, str]:
        """For JSON; `next` is empty while it is far."""
        remedy = "" if self.near is Nearness.FAR else self.remedy or catalogue()[self.code].remedy
        begins = {} if self.begins is None else {"begins": _text(self.begins)}
        return {"what": self.what, **begins, "ends": _text(self.ends), "near": self.near.value, "next": remedy}


def overview(settings: Settings, now: datetime) -> dict[str, Any]:
    """The decision's budget and the calendar; what cannot be read is named with its code instead of a date.

    Returns:
        `deadline_ms`, `calendar` (each `what`, `ends`, RFC 3339, `near` and `next`), `unread` (each `what`, `code` and
        `next`).
    """
    calendar: list[dict[str, str]] = []
    unread: list[dict[str, str]] = []
    for what, read in (("certificates", _certificates), ("trust", _trust)):
        try:
            calendar += [entry.as_dict() for entry in read(settings, now)]
        except ApplianceError as error:
            unread.append({"what": what, "code": error.code, "next": error.remedy})
        except ValueError:
            code = "OPERATION_CERTIFICATE_CHAIN"
            unread.append({"what": what, "code": code, "next": catalogue()[code].remedy})
    return {"deadline_ms": settings.routing.deadline_ms, "calendar": calendar, "unread": unread}


@dataclass(frozen=True)
class CertificateFile:
    """A certificate that the configuration names.

    Attributes:
        use: what it is for, e.g. `gateway` or `telemetry client`.
        path: of the PEM file.
        key: of its private key, where it has one here.
    """

    use: str
    path: Path
    key: Path | None = None


def renewal(use: str, path: Path) -> str | None:
    """What to do when a certificate ends that `scripts/rotate-tls` does not make."""
    if use == GATEWAY:
        return None
    unit = "appliance-sync" if use.startswith(SIDECAR) else "appliance-gateway"
    return f"Have its issuer renew it, put it at `{path}`, then run `systemctl restart {unit}`."


def certificate_files(settings: Settings, sidecar: BaseModel | None = None) -> list[CertificateFile]:
    """The listener's certificate, and whatever a section names for its own TLS, or the sidecar's; each file once."""
    found: list[CertificateFile] = []
    if (tls := settings.listen.tls) is not None:
        found.append(CertificateFile(GATEWAY, tls.certificate, tls.key))
        if tls.client_ca is not None:
            found.append(CertificateFile("clients' CA", tls.client_ca))
    for name, section in (*sections(settings), *sections(sidecar, SIDECAR)):
        if (own := getattr(section, "client_certificate", None)) is not None:
            found.append(CertificateFile(f"{name} client", own, getattr(section, "client_key", None)))
        if (authority := getattr(section, "ca_file", None)) is not None:
            found.append(CertificateFile(f"{name} CA", authority))
    return list({each.path: each for each in reversed(found)}.values())[::-1]


def sections(value: Any, name: str = "") -> Iterator[tuple[str, BaseModel]]:
    """Every section of a configuration with the words that lead to it."""
    if isinstance(value, BaseModel):
        yield name, value
        items: Iterable[tuple[str, Any]] = value
    elif isinstance(value, dict):
        items = value.items()
    else:
        return
    for key, item in items:
        yield from sections(item, f"{name} {key}".strip())


def _certificates(settings: Settings, now: datetime) -> Iterator[Entry]:
    from cryptography import x509

    for file in certificate_files(settings):
        leaf = x509.load_pem_x509_certificates(read_regular(file.path, max_bytes=_MAX_PEM_BYTES))[0]
        end, begin = leaf.not_valid_after_utc, leaf.not_valid_before_utc
        near = expiry.CERTIFICATE.nearness(end, now=now, begin=begin)
        code = f"OPERATION_CERTIFICATE_{'EXPIRED' if near is Nearness.ENDED else 'EXPIRES'}"
        yield Entry(f"{file.use} certificate", end, near, code, begin, renewal(file.use, file.path))


def _trust(settings: Settings, now: datetime) -> Iterator[Entry]:
    if settings.trust is None:
        return
    state = TrustStore.open(settings.trust.store).state()
    anchors = trusted_root.read(state.contents[TRUSTED_ROOT])
    for role, metadata in (("root", state.root), ("targets", state.targets), ("timestamp", state.timestamp)):
        end = _utc(metadata.expires)
        near = expiry.METADATA.nearness(end, now=now)
        code = f"OPERATION_TRUST_{'EXPIRED' if near is Nearness.ENDED else 'EXPIRES'}"
        yield Entry(f"trust metadata: {role}", end, near, code)
    windows = [
        *((f"signing CA {n}", chain.window.end) for n, chain in enumerate(anchors.authorities, 1)),
        *((f"time-stamping CA {n}", chain.window.end) for n, chain in enumerate(anchors.timestampers, 1)),
        *((f"log {log.url.removeprefix('https://')}", log.window.end) for log in anchors.logs.values()),
    ]
    for name, closes in windows:
        if closes is not None:
            end = _utc(closes)
            yield Entry(name, end, expiry.KEY.nearness(end, now=now), "OPERATION_KEY_EXPIRES")


def _utc(time: datetime) -> datetime:
    return time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)


def _text(time: datetime) -> str:
    return f"{time:%Y-%m-%dT%H:%M:%SZ}"
