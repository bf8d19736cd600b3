"""Secrets come from files that only the appliance's user can read."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Literal

from appliance.errors import ConfigError, FileError
from appliance.files import read_regular

MAX_BYTES = 8192  # bytes of one secret
MIN_KEY_CHARACTERS = 32
MIN_DISTINCT_CHARACTERS = 12


def read_secret(path: Path, *, code: Literal["CONFIG_SECRET", "CONFIG_MASTER_KEY"] = "CONFIG_SECRET") -> str:
    """The one line of a secret's file.

    Raises:
        ConfigError: CONFIG_MISSING; `code` where others can read it, or it is empty or not one line of text.
    """
    try:
        data = read_regular(path, max_bytes=MAX_BYTES)
        mode = stat.S_IMODE(path.lstat().st_mode)
    except FileError as error:
        raise ConfigError("CONFIG_MISSING", error.cause, **error.evidence) from None
    if mode & 0o077:
        raise ConfigError(code, f"{path} is readable by others", path=str(path), mode=oct(mode))
    try:
        secret = data.decode("ascii").strip()
    except UnicodeDecodeError:
        secret = ""
    if not secret or any(not "!" <= character <= "~" for character in secret):
        raise ConfigError(code, f"{path} does not hold one line of printable text", path=str(path))
    return secret


def read_master_key(path: Path) -> str:
    """The master key, refused where it could be guessed.

    Raises:
        ConfigError: CONFIG_MISSING, CONFIG_MASTER_KEY.
    """
    key = read_secret(path, code="CONFIG_MASTER_KEY")
    if not key.startswith("sk-") or len(key) < MIN_KEY_CHARACTERS or len(set(key)) < MIN_DISTINCT_CHARACTERS:
        raise ConfigError(
            "CONFIG_MASTER_KEY",
            f"it must be sk- and more, {MIN_KEY_CHARACTERS} characters or longer, {MIN_DISTINCT_CHARACTERS} distinct",
            path=str(path),
            characters=len(key),
        )
    return key
