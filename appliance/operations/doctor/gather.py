"""One look at everything."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from appliance import settings as configuration
from appliance.errors import ApplianceError, OperationError
from appliance.operations import status
from appliance.operations.doctor.facts import host, release, trust
from appliance.operations.doctor.snapshot import Snapshot

OUTSIDE = ("192.0.2.1", "2001:db8::1")  # documentation networks (RFC 5737, RFC 3849): only a default route leads there


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
    store = chosen.trust.store if chosen is not None and chosen.trust is not None else places.state / "trust"
    state = [path for path in (places.state, chosen.state_dir if chosen else None) if path is not None]
    return Snapshot(
        at=now,
        uid=os.geteuid(),
        trust=trust.trust(store),
        volumes=host.volumes([*state, places.prefix, Path("/tmp")]),  # noqa: S108 (its space is looked at)
        certificates=trust.certificates(chosen),
        drift=release.drift(places.prefix, now=now, deep=deep),
        modes=host.modes(_secrets(chosen, places), [*state, store], _code(places)),
        kernel=host.kernel(),
        listeners=host.listeners(),
        egress=host.attempts(probe) or host.routes(OUTSIDE),
        channels=trust.channels(places.state / "sync"),
        gateway=gateway,
        expected_ports=frozenset({chosen.listen.port} if chosen else ()),
        unfinished=release.unfinished(places.prefix),
    )


def _secrets(chosen: configuration.Settings | None, places: Places) -> list[Path]:
    found = [path for folder in ("secrets", "tls") for path in (places.prefix / "etc" / folder).glob("*.key")]
    if chosen is not None:
        found += [chosen.litellm.master_key_file, *chosen.litellm.secrets.values()]
        if chosen.listen.tls is not None:
            found.append(chosen.listen.tls.key)
    return sorted({path.absolute() for path in found})


def _code(places: Places) -> list[Path]:
    active = places.prefix / "current"
    inside = ["env", "env/bin", "payload", "manifest.json"]
    return [places.prefix, places.prefix / "releases", places.prefix / "etc", *(active / each for each in inside)]
