"""One look at everything."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from appliance import settings as configuration
from appliance.errors import ApplianceError, OperationError
from appliance.operations import status
from appliance.operations.doctor.facts import host, release, trust
from appliance.operations.doctor.snapshot import Snapshot
from appliance.operations.secret_files import secret_files, sidecar_settings

OUTSIDE = ("192.0.2.1", "2001:db8::1")  # documentation networks (RFC 5737, RFC 3849): only a default route leads there


Facts = TypeVar("Facts")


@dataclass(frozen=True)
class Places:
    """Where an installation has its parts.

    Attributes:
        prefix: root of the installation.
        config: the gateway's appliance.yaml.
    """

    prefix: Path
    config: Path

    @classmethod
    def below(cls, prefix: Path, config: Path | None = None) -> Places:
        """The usual places below a prefix."""
        return cls(prefix, config if config is not None else prefix / "etc" / "appliance.yaml")

    @property
    def state(self) -> Path:
        """Everything that changes."""
        return self.prefix / "state"


def gather(places: Places, *, now: datetime, deep: bool = False, probe: Sequence[str] = ()) -> Snapshot:
    """Gather the facts; changes nothing.

    Args:
        places: of the installation.
        now: the clock.
        deep: hash every installed byte.
        probe: `host:port` to try to reach; without any, the kernel is only asked for a way out and nothing is sent.

    Raises:
        OperationError: OPERATION_NOT_INSTALLED where neither an installation nor a configuration is there.
    """
    if not places.prefix.is_dir() and not places.config.is_file():
        where = places.prefix
        raise OperationError("OPERATION_NOT_INSTALLED", f"nothing is installed at {where}", prefix=where)
    chosen: configuration.Settings | None = None
    gateway: Mapping[str, Any] | ApplianceError
    try:
        chosen = configuration.load(places.config)
        gateway = status.collect(chosen)
    except ApplianceError as error:
        gateway = error
    except OSError as error:
        gateway = OperationError("OPERATION_UNREADABLE", f"{places.config}: {error.strerror}", path=str(places.config))
    store = chosen.trust.store if chosen is not None and chosen.trust is not None else places.state / "trust"
    trusted = _looked(store, lambda: trust.trust(store))
    time = now if isinstance(trusted, ApplianceError) else trusted.judged(now)
    sidecar = sidecar_settings(places.prefix)
    unfinished = _looked(places.state, lambda: release.unfinished(places.prefix))
    state = [path for path in (places.state, chosen.state_dir if chosen else None) if path is not None]
    return Snapshot(
        at=now,
        uid=os.geteuid(),
        trust=trusted,
        volumes=host.volumes([*state, places.prefix, Path("/tmp")], releases=places.prefix),  # noqa: S108 (its space is looked at)
        certificates=_looked(places.config, lambda: trust.certificates(chosen, sidecar)),
        drift=_looked(places.prefix, lambda: release.drift(places.prefix, now=time, deep=deep)),
        modes=host.modes(
            _secrets(chosen, sidecar, places), [*state, store], [*_code(places), *_configuration(chosen, places)]
        ),
        kernel=host.kernel(),
        listeners=host.listeners(),
        egress=host.attempts(probe) or host.routes(OUTSIDE),
        channels=_looked(places.state, lambda: trust.channels(places.state / "sync", places.state / "volume", now)),
        gateway=gateway,
        expected_ports=frozenset({chosen.listen.port} if chosen else ()),
        unfinished=unfinished if isinstance(unfinished, str) else None,
    )


def _looked(path: Path, look: Callable[[], Facts]) -> Facts | ApplianceError:
    """The facts, or the refusal to say that they could not be had: a doctor that breaks off helps nobody."""
    try:
        return look()
    except ApplianceError as error:
        return error
    except OSError as error:
        where = error.filename or path
        return OperationError("OPERATION_UNREADABLE", f"{where}: {error.strerror}", path=str(where), uid=os.geteuid())


def _secrets(chosen: configuration.Settings | None, sidecar: BaseModel | None, places: Places) -> list[Path]:
    found: list[Path] = []
    for folder in ("secrets", "tls"):
        with contextlib.suppress(PermissionError):  # then others cannot read them either
            found += (places.prefix / "etc" / folder).glob("*.key")
    if chosen is not None:
        found += secret_files(chosen, sidecar)
    return sorted({path.absolute() for path in found})


def _configuration(chosen: configuration.Settings | None, places: Places) -> list[Path]:
    """Who may write these decides what the gateway trusts and where prompts go."""
    litellm = chosen.litellm.config if chosen is not None else None
    files = {places.config, *([litellm] if litellm is not None else [])}
    return sorted(files | {path.parent for path in files} - {places.prefix / "etc"})


def _code(places: Places) -> list[Path]:
    active = places.prefix / "current"
    inside = ["env", "env/bin", "payload", "manifest.json"]
    return [places.prefix, places.prefix / "releases", places.prefix / "etc", *(active / each for each in inside)]
