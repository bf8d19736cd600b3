"""A genuine, signed release of a few kilobytes, for tests that install hundreds of times.

Signature, trust repository, manifest, reader and installer are the real ones. Small are its contents: a script of a few
lines in place of uv, and one in place of Python that only compares what the environment and the payload say of
themselves. The real ones run in the other installation tests.
"""

from __future__ import annotations

import io
import sys
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from appliance.bundle.health import check_health
from appliance.bundle.inputs import Payload
from appliance.bundle.install import Report, install
from appliance.bundle.stage0.journal import Prefix
from appliance.bundle.stage0.preparing import Conduct
from tests.support import bundle as support
from tests.support.trust import DevelopmentAuthority

# what it puts in Python's place answers the health check, whatever the options: PAYLOAD and PROFILE come last
PYTHON = """\
#!/bin/sh -eu
while [ $# -gt 2 ]; do shift; done
read -r note < "$1/evidence/note.txt"
[ "$note" = "{version}" ] && healthy=true || healthy=false
echo "[{{\\"check\\": \\"one release\\", \\"healthy\\": $healthy, \\"text\\": \\"$note in {version}\\"}}]"
"""

# the part of uv's command line that the installer uses: `uv venv ... DIR`, `uv pip install --python P ...`; like uv it
# leaves its lock in the environment, and a cache whose files the environment shares
_MAKER = """\
#!/bin/sh -eu
for last; do :; done
case $1 in
venv)
    mkdir -p "$last/bin"
    echo "version = {version}" > "$last/pyvenv.cfg"
    : > "$last/.lock"
    ;;
pip)
    while [ "$1" != --python ]; do shift; done
    unpacked=$UV_CACHE_DIR/archive-v0/tiny
    mkdir -p "$unpacked"
    : > "$UV_CACHE_DIR/CACHEDIR.TAG"
    cat > "$unpacked/python" <<'END'
{python}END
    chmod 755 "$unpacked/python"
    ln "$unpacked/python" "$2"
    ;;
esac
"""


def release(
    out: Path, authority: DevelopmentAuthority, version: str, *, epoch: int = 1, state: int = 1, python: str = PYTHON
) -> support.SmallRelease:
    """Build and sign it; `state` is the layout that it reads, `python` what stands in Python's place."""
    maker = _MAKER.format(version=version, python=python.format(version=version))
    payload = [
        Payload("requirements.txt", b""),
        Payload("wheels/uv-1.0-py3-none-any.whl", _wheel({"uv-1.0.data/scripts/uv": maker})),
        Payload("config/appliance.yaml", b"schema_version: 1\n"),
        Payload("evidence/note.txt", f"{version}\n".encode()),
    ]
    return support.small_release(
        out, authority, version, epoch=epoch, state_version=state, payload=payload, profile="tiny"
    )


def bring(
    release: support.SmallRelease, prefix: Path, checkpoint: Callable[[str], None] = lambda _name: None
) -> Report:
    """Install it."""
    conduct = Conduct(checkpoint=checkpoint, python=sys._base_executable)
    return install([release.media], prefix, release.anchor, now=datetime.now(UTC), conduct=conduct)


def running(prefix: Path) -> str | None:
    """The release that `current` names, proven to be whole; None where nothing runs yet."""
    home = Prefix(prefix)
    name = home.active()
    if name is not None:
        check_health(home.current / "env" / "bin" / "python", home.current / "payload", "tiny")
    return name


def _wheel(files: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as wheel:
        for name, text in files.items():
            wheel.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), text)
    return buffer.getvalue()
