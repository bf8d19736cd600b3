"""`artifact pack`: a router's files and its description, made to agree."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import yaml

from appliance import documents
from appliance.artifact import (
    METADATA_NAMES,
    SIGNATURE_NAME,
    ArtifactFiles,
    encoder_metadata,
    from_files,
    read,
    router_metadata,
)
from appliance.errors import IntakeError
from appliance.files import sha256_hex, sync_directory, translated, write_atomic


def pack(folder: Path, out: Path, *, name: str | None = None, version: str | None = None) -> ArtifactFiles:
    """Write an artifact whose `router.yaml` names exactly the files beside it; an old signature is left behind.

    Args:
        folder: payload and `router.yaml` (or `encoder.yaml`), as training writes them or edited by hand.
        out: the new folder; appears whole or not at all.
        name: replaces the router's name.
        version: replaces the router's version.

    Raises:
        IntakeError: INTAKE_PACK where `out` exists or a name is given for an encoder.
        ArtifactError, DocumentError, FileError: the folder is not an artifact.
    """
    if out.exists():
        raise IntakeError("INTAKE_PACK", f"{out} exists already", path=str(out), remedy="Choose another --out.")
    draft = read(folder)
    files = dict(draft.files)
    if draft.kind == "router":
        files[METADATA_NAMES["router"]] = _described(files, name=name, version=version)
    elif name is not None or version is not None:
        raise IntakeError("INTAKE_PACK", "an encoder's description is not changed here", path=str(folder))
    packed = from_files(files)
    if packed.kind == "router":
        router_metadata(packed)
    else:
        encoder_metadata(packed)
    write_folder(packed, out)
    return packed


def _described(files: dict[str, bytes], *, name: str | None, version: str | None) -> bytes:
    what = METADATA_NAMES["router"]
    value: Any = documents.read_yaml(files[what], what=what)
    if not isinstance(value, dict):
        raise IntakeError("INTAKE_PACK", f"{what} is not a mapping")
    value["files"] = {file: sha256_hex(data) for file, data in sorted(files.items()) if file != what}
    if name is not None:
        value["name"] = name
    if version is not None:
        value["version"] = version
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True).encode("utf-8")


def write_folder(artifact: ArtifactFiles, out: Path) -> None:
    """Write an artifact's folder, with its signature where it has one; it appears whole or not at all.

    Raises:
        IntakeError: INTAKE_PACK where `out` exists.
        FileError: as `translated`.
    """
    if out.exists():
        raise IntakeError("INTAKE_PACK", f"{out} exists already", path=str(out), remedy="Choose another --out.")
    signature = {} if artifact.signature is None else {SIGNATURE_NAME: artifact.signature}
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    with translated(out):
        try:
            temporary.mkdir(parents=True)
            for name, data in {**artifact.files, **signature}.items():
                path = temporary / name
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(path, data)
            temporary.rename(out)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        sync_directory(out.parent)
