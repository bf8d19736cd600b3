"""What ends when: the listener's certificate, trust metadata, signing keys; for the status page and its readers."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from appliance.errors import ApplianceError
from appliance.files import read_regular
from appliance.settings import Settings
from appliance.trust import trusted_root
from appliance.trust.repository import TRUSTED_ROOT
from appliance.trust.store import TrustStore

_MAX_PEM_BYTES = 1024 * 1024


def overview(settings: Settings) -> dict[str, Any]:
    """The decision's budget and the calendar; what cannot be read is named with its code instead of a date.

    Returns:
        `deadline_ms`, `calendar` (each `what` and `ends`, RFC 3339), `unread` (each `what` and `code`).
    """
    calendar: list[dict[str, str]] = []
    unread: list[dict[str, str]] = []
    for what, read in (("certificates", _certificates), ("trust", _trust)):
        try:
            calendar += [{"what": name, "ends": _text(end)} for name, end in read(settings)]
        except ApplianceError as error:
            unread.append({"what": what, "code": error.code})
        except ValueError:
            unread.append({"what": what, "code": "OPERATION_CERTIFICATE_CHAIN"})
    return {"deadline_ms": settings.routing.deadline_ms, "calendar": calendar, "unread": unread}


def _certificates(settings: Settings) -> list[tuple[str, datetime]]:
    from cryptography import x509

    if settings.listen.tls is None:
        return []
    named = [("gateway certificate", settings.listen.tls.certificate)]
    if settings.listen.tls.client_ca is not None:
        named.append(("client CA", settings.listen.tls.client_ca))
    return [
        (name, x509.load_pem_x509_certificates(read_regular(path, max_bytes=_MAX_PEM_BYTES))[0].not_valid_after_utc)
        for name, path in named
    ]


def _trust(settings: Settings) -> list[tuple[str, datetime]]:
    if settings.trust is None:
        return []
    state = TrustStore.open(settings.trust.store).state()
    anchors = trusted_root.read(state.contents[TRUSTED_ROOT])
    ends = [
        ("trust metadata: root", state.root.expires),
        ("trust metadata: targets", state.targets.expires),
        ("trust metadata: timestamp", state.timestamp.expires),
        *((f"signing CA {n}", chain.window.end) for n, chain in enumerate(anchors.authorities, 1)),
        *((f"time-stamping CA {n}", chain.window.end) for n, chain in enumerate(anchors.timestampers, 1)),
        *((f"log {log.url.removeprefix('https://')}", log.window.end) for log in anchors.logs.values()),
    ]
    return [(name, end) for name, end in ends if end is not None]


def _text(time: datetime) -> str:
    return f"{time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC):%Y-%m-%dT%H:%M:%SZ}"
