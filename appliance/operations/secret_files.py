"""Which files hold secrets, by the word of the configuration and of the sidecar's settings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

from appliance.errors import ApplianceError
from appliance.gateway.calendar import certificate_files, sections
from appliance.registry.settings import read_settings
from appliance.settings import Settings

_NAMED = ("credentials_file", "password_file")


def sidecar_settings(prefix: Path) -> BaseModel | None:
    """Of the registry that this host's sidecar follows; what is wrong with them, it says itself."""
    try:
        return read_settings(prefix / "etc" / "registry.yaml")
    except (ApplianceError, OSError):
        return None


def secret_files(chosen: Settings, sidecar: BaseModel | None) -> Iterator[Path]:
    """Keys, passwords and credentials."""
    yield chosen.litellm.master_key_file
    yield from chosen.litellm.secrets.values()
    yield from (file.key for file in certificate_files(chosen, sidecar) if file.key is not None)
    for _, section in (*sections(chosen), *sections(sidecar)):
        yield from (path for name in _NAMED if (path := getattr(section, name, None)) is not None)
