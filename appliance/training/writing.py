"""How training writes: documents with stable bytes, folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from appliance.errors import FileError
from appliance.files import safe_relative, sync_directory, translated


def yaml_bytes(value: Any) -> bytes:
    """YAML with stable bytes: keys in the order given, no anchors, one line a scalar."""

    class Plain(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 (the base class's signature)
            return True

    text: str = yaml.dump(value, Dumper=Plain, sort_keys=False, allow_unicode=True, width=100_000)
    return text.encode("utf-8")


def write_directory(directory: Path, files: Mapping[str, bytes], *, replace: bool = False) -> None:
    """Write a folder beside its place and rename it into it, so that a kill leaves the old folder, the new, or none.

    Args:
        directory: where it shall stand; its parent is made.
        files: relative name -> bytes.
        replace: whether a folder that is there may be replaced.

    Raises:
        FileError: FILE_EXISTS where something else is there, FILE_NO_SPACE, FILE_PERMISSION, FILE_UNSAFE_NAME.
    """
    directory = directory.absolute()
    stamp = f"{os.getpid()}.{os.urandom(4).hex()}"
    fresh, old = (directory.with_name(f".{directory.name}.{stamp}.{kind}") for kind in ("new", "old"))
    with translated(directory):
        occupied = directory.is_dir() and any(directory.iterdir())
        if (occupied and not replace) or (directory.exists() and not directory.is_dir()):
            raise FileError("FILE_EXISTS", f"{directory} is there already", path=str(directory))
        directory.parent.mkdir(parents=True, exist_ok=True)
        try:
            fresh.mkdir()
            for name, data in files.items():
                path = fresh / safe_relative(name)
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("xb") as stream:
                    stream.write(data)
                    stream.flush()
                    os.fsync(stream.fileno())
            sync_directory(fresh)
            if occupied:
                directory.rename(old)
            fresh.rename(directory)  # over an empty folder, or where none is
            sync_directory(directory.parent)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)
