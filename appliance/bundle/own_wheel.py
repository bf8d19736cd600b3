"""The appliance's own wheel, made without a build tool and the same on every machine.

Everything the standard build would put in is here: the package's files, METADATA, WHEEL, the console script and RECORD
(PyPA binary distribution format 1.0). Entries are stored, not deflated, sorted, and carry one fixed time, so the bytes
depend on nothing but the sources.
"""

from __future__ import annotations

import base64
import hashlib
import io
import zipfile
from pathlib import Path

import appliance

DISTRIBUTION = "llm_routing_appliance"
_FIXED_TIME = (1980, 1, 1, 0, 0, 0)  # the earliest a zip can say
_LEFT_OUT = {"__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache"}


def own_wheel(package: Path | None = None, *, version: str | None = None) -> tuple[str, bytes]:
    """Build the wheel.

    Args:
        package: folder of the `appliance` package; the running one by default.
        version: its version; the running one by default.

    Returns:
        File name and content.
    """
    package = package or Path(appliance.__file__).parent
    version = version or appliance.__version__
    info = f"{DISTRIBUTION}-{version}.dist-info"
    files = {
        f"appliance/{path.relative_to(package).as_posix()}": path.read_bytes()
        for path in package.rglob("*")
        if path.is_file() and _own(path, package) and not _LEFT_OUT & set(path.parts) and path.suffix != ".pyc"
    }
    files[f"{info}/METADATA"] = (
        f"Metadata-Version: 2.1\nName: llm-routing-appliance\nVersion: {version}\nRequires-Python: >=3.11\n"
        "Summary: The air-gapped LLM routing appliance.\nLicense: Apache-2.0\n"
    ).encode()
    files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: appliance\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files[f"{info}/entry_points.txt"] = b"[console_scripts]\nappliance = appliance.cli.main:main\n"
    record = "".join(f"{name},sha256={_record_digest(files[name])},{len(files[name])}\n" for name in sorted(files))
    files[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(
            files, key=lambda name: (name.startswith(info), name)
        ):  # metadata last, as the format advises
            entry = zipfile.ZipInfo(name, _FIXED_TIME)
            entry.create_system = 3  # unix, whatever builds it
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, files[name])
    return f"{DISTRIBUTION}-{version}-py3-none-any.whl", buffer.getvalue()


def _own(path: Path, package: Path) -> bool:
    """Whether a file is ours: a link counts as its target where that lies beside the package (the recipes in `ca/`)."""
    return not path.is_symlink() or path.resolve().is_relative_to(package.parent.resolve() / "ca")


def _record_digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode("ascii")
