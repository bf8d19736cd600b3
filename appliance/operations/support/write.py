"""Writing the bundle: a plain tar archive that anybody can read before it leaves the host."""

from __future__ import annotations

import io
import json
import os
import tarfile
from datetime import datetime
from pathlib import Path
from typing import Any

from appliance.files import sha256_hex, write_atomic
from appliance.operations.doctor.gather import Places
from appliance.operations.support import gate
from appliance.operations.support.collect import Collection, collect

CONTENTS = "CONTENTS.json"


def support_bundle(places: Places, out: Path, *, now: datetime, logs: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Collect, search for secrets, write.

    Args:
        places: of the installation.
        out: the archive, replaced whole or not at all; mode 0600.
        now: the clock.
        logs: further log files.

    Returns:
        Files with digests, and what was left out.

    Raises:
        OperationError: OPERATION_SUPPORT_LEAK; nothing is written then.
        FileError: FILE_NO_SPACE, FILE_PERMISSION, FILE_MISSING.
    """
    made = collect(places, now=now, logs=logs)
    contents = _contents(made)
    files = {CONTENTS: json.dumps(contents, indent=1, sort_keys=True).encode() + b"\n", **made.files}
    gate.check(files, gate.known_secrets(made.secret_files, os.environ))
    write_atomic(out, archive(files, now), mode=0o600)
    return {"archive": str(out), **contents}


def archive(files: dict[str, bytes], now: datetime) -> bytes:
    """A tar archive without owners, not compressed: it is small, and to be read."""
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in sorted(files.items()):
            member = tarfile.TarInfo(f"appliance-support/{name}")
            member.size, member.mode, member.mtime = len(content), 0o600, int(now.timestamp())
            tar.addfile(member, io.BytesIO(content))
    return output.getvalue()


def _contents(made: Collection) -> dict[str, Any]:
    return {
        "files": {name: {"bytes": len(data), "sha256": sha256_hex(data)} for name, data in made.files.items()},
        "left_out": made.left_out,
    }
