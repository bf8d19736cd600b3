"""What goes into the bundle, file by file."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from appliance import __version__
from appliance import settings as configuration
from appliance.bundle.releases import installed_releases
from appliance.bundle.stage0.journal import Prefix
from appliance.errors import ApplianceError, OperationError
from appliance.gateway import litellm_config
from appliance.operations import status
from appliance.operations.doctor.checks import examine
from appliance.operations.doctor.gather import Places, gather
from appliance.operations.doctor.snapshot import Snapshot
from appliance.operations.secret_files import secret_files, sidecar_settings
from appliance.operations.support.shape import Every, code, digest, fact, fit, name, number, phrase, time

LOG_LINES = 2000

_PROBLEM = {"code": code}
_SERVING = {"artifact": name, "strategy": name, "digest": digest, "origin": name, "signed_by": name, "signed_at": time}
_BREAKER = {"state": name, "failures_in_a_row": number, "opened_count": number, "retry_in_s": number}
_DEPLOYMENT = {
    "id": name, "model": name, "weight": number,
    "cooldown": {"status_code": number, "for_s": number, "left_s": number}, "health": _BREAKER, "out_on": number,
}  # fmt: skip
_GROUPS = Every({"routing": name, "router": name, "deployments": [_DEPLOYMENT]})
_WORKER = {
    "worker": number, "pid": number, "version": name, "release": name, "litellm": name, "started_at": time,
    "ready": number, "draining": number,
    "decisions": [{"group": name, "outcome": name, "reason": name, "count": number}],
    "ml_path": {
        "breaker": _BREAKER, "queue_waiting": number, "mean_service_ms": number, "cache_hits": number,
        "cache_misses": number,
    },
}  # fmt: skip
_CHANNEL = {
    "name": name, "epoch": number, "version": name, "heard_by": name, "contact_age_s": number, "expired": number,
    "problem": code,
}  # fmt: skip
_ROUTERS = Every(
    {
        "mode": name,
        "digests": [digest],
        "converged": number,
        "serving": _SERVING,
        "problem": _PROBLEM,
        "last_known_good": _SERVING,
        "channel": _CHANNEL,
        "unfollowed": [_CHANNEL],
    }
)
STATUS = {"ready": number, "converged": number, "workers": [_WORKER], "routers": _ROUTERS, "groups": _GROUPS}
DOCTOR = [{"check": name, "severity": name, "code": code, "evidence": Every(fact)}]
RELEASES = [
    {
        "release": name, "version": name, "epoch": number, "profile": name, "digest": digest, "created": time,
        "installed": time, "signer": name, "current": number,
    }
]  # fmt: skip
CONFIGURATION = {
    "schema_version": number,
    "listen": {"port": number, "workers": number, "backlog": number, "tls": {}},
    "routing": {
        "deadline_ms": number, "queue": number, "threads": number, "cache_entries": number,
        "breaker": {"failures": number, "open_s": number, "probes": number},
        "routers": Every({"on_bad_update": name, "required": number, "poll_interval_s": number, "channel": name,
                          "canary_agreement": number}),
        "groups": Every({"strategy": name, "router": name, "weights": Every(number)}),
    },
    "drain": {"readiness_s": number, "streams_s": number},
}  # fmt: skip
MODELS = [{"group": name, "id": name, "model": name, "weight": number}]
TRUST = {"versions": Every(number), "expires": Every(time), "floor": time}
LOG_LINE = {
    "at": time, "level": name, "logger": name, "message": phrase, "exception": name,
    "code": code, "worker": number, "pid": number, "after_s": number, "router": name,
}  # fmt: skip
VERSIONS = {
    "appliance": name, "python": name, "kernel": name, "architecture": name, "libc": name,
    "packages": Every(name), "collected": time,
}  # fmt: skip


@dataclass(frozen=True)
class Collection:
    """The bundle's files and what was left out of them.

    Attributes:
        files: name -> content.
        left_out: path in a report -> how many values the allow-list did not let pass.
        secret_files: files of this host whose content must not be found in the bundle.
    """

    files: dict[str, bytes]
    left_out: dict[str, int]
    secret_files: tuple[Path, ...]


def collect(places: Places, *, now: datetime, logs: Sequence[Path] = (), journal: bool = True) -> Collection:
    """Gather everything that the allow-list names; changes nothing.

    Args:
        places: of the installation.
        now: the clock.
        logs: log files of the gateway beside the journal.
        journal: whether to ask journalctl.
    """
    left_out: Counter[str] = Counter()
    files: dict[str, bytes] = {}

    def add(file: str, shape: Any, gathered: Callable[[], Any]) -> None:
        try:
            value = fit(_plain(gathered()), shape, left_out, file.removesuffix(".json"))
        except ApplianceError as error:
            value = {"not_collected": error.code}
        except (OSError, ValueError, KeyError, TypeError) as error:  # support needs the rest all the more
            value = {"not_collected": type(error).__name__}
        files[file] = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=True).encode() + b"\n"

    def settings() -> configuration.Settings:
        return configuration.load(places.config)

    @cache
    def snapshot() -> Snapshot:
        return gather(places, now=now)

    def trust_state() -> Any:
        gathered = snapshot().trust
        if isinstance(gathered, ApplianceError):
            raise gathered
        return {
            "versions": gathered.versions,
            "expires": {role: f"{end:%Y-%m-%dT%H:%M:%SZ}" for role, end in gathered.expires.items()},
            "floor": f"{gathered.floor:%Y-%m-%dT%H:%M:%SZ}",
        }

    add("versions.json", VERSIONS, lambda: _versions(now))
    add("status.json", STATUS, lambda: status.collect(settings()))
    add("doctor.json", DOCTOR, lambda: [_told(finding.as_dict()) for finding in examine(snapshot())])
    add("configuration.json", CONFIGURATION, lambda: settings().model_dump(mode="json"))
    add("models.json", MODELS, lambda: _models(litellm_config.read(settings())))
    add("releases.json", RELEASES, lambda: [each.as_dict() for each in installed_releases(Prefix(places.prefix))])
    add("trust.json", TRUST, trust_state)
    lines = [*_journal(journal), *(line for path in logs for line in _tail(path))]
    add("log.json", [LOG_LINE], lambda: [event for line in lines[-LOG_LINES:] if (event := _event(line)) is not None])
    try:
        secret_files = tuple(_secret_files(places))
    except PermissionError as error:  # without them the gate could not know what it looks for
        raise OperationError(
            "OPERATION_UNREADABLE", f"{error.filename}: {error.strerror}", path=error.filename
        ) from None
    return Collection(files, dict(sorted((+left_out).items())), secret_files)


def _versions(now: datetime) -> dict[str, Any]:
    return {
        "appliance": __version__,
        "python": platform.python_version(),
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "libc": " ".join(platform.libc_ver()),
        "packages": {each.name: each.version for each in distributions()},
        "collected": f"{now:%Y-%m-%dT%H:%M:%SZ}",
    }


def _models(config: litellm_config.LiteLLMConfig) -> list[dict[str, Any]]:
    return [
        {"group": group, "id": each.id, "model": each.model, "weight": config.weights[group].get(each.id)}
        for group, members in config.groups.items()
        for each in members
    ]


def _secret_files(places: Places) -> Iterable[Path]:
    yield from (path for path in (places.prefix / "etc").rglob("*") if path.suffix in {".key", ".secret", ".token"})
    yield from (path for path in (places.prefix / "etc" / "secrets").rglob("*") if path.is_file())
    try:
        chosen = configuration.load(places.config)
    except ApplianceError:
        return
    yield from secret_files(chosen, sidecar_settings(places.prefix))


def _journal(wanted: bool) -> list[str]:
    if not wanted:
        return []
    command = ["journalctl", "--unit", "appliance-*", "--lines", str(LOG_LINES), "--output", "cat", "--no-pager"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.decode("utf-8", "replace").splitlines()


def _tail(path: Path, max_bytes: int = 4 * 1024 * 1024) -> list[str]:
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - max_bytes))
            return stream.read().decode("utf-8", "replace").splitlines()[-LOG_LINES:]
    except OSError as error:
        print(f"{path}: {error.strerror}", file=sys.stderr)
        return []


def _event(line: str) -> Mapping[str, Any] | None:
    """A structured line of ours; whatever else stands in a log stays here."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    if not isinstance(event, dict) or not str(event.get("logger", "")).startswith("appliance"):
        return None
    return event


def _told(finding: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in finding.items() if value}


def _plain(value: Any) -> Any:
    """Through JSON and back: what is left is what will be written."""
    return json.loads(json.dumps(value, default=str))
