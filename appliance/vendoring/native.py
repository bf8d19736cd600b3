"""Native libraries in a wheel: which machine they are for and which glibc their symbols ask for.

A wheel's tag promises a glibc (PEP 600); the symbol versions in `.gnu.version_r` are what the loader will hold it to.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from appliance.errors import VendorError

if TYPE_CHECKING:
    from elftools.elf.elffile import ELFFile

MAGIC = b"\x7fELF"
_MACHINES = {"EM_X86_64": "x86_64", "EM_AARCH64": "aarch64"}
_GLIBC = re.compile(r"GLIBC_(\d+)\.(\d+)(?:\.\d+)?\Z")
_HOST = re.compile(rb"(?:[A-Za-z0-9-]{1,63}\.)+[A-Za-z]{2,24}(?![A-Za-z0-9.-])")
_PF_X = 1


class NativeLibrary(BaseModel):
    """What an ELF file asks of its host.

    Attributes:
        path: within the wheel.
        machine: as `uname -m` prints it, or the ELF name where we do not know it.
        glibc: highest GLIBC symbol version, e.g. `2.17`; None where it needs none (static, or not against glibc).
        needs: names of the libraries it loads.
        search_paths: run paths that lead out of the package; hosts should not have them.
        hosts: names of hosts whose URLs stand in the file; most are documentation, some are where it phones home.
        executable_stack: whether it asks for a stack that may hold code; hardened hosts refuse that.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    machine: str
    glibc: str | None
    needs: tuple[str, ...]
    search_paths: tuple[str, ...]
    hosts: tuple[str, ...]
    executable_stack: bool

    @property
    def glibc_pair(self) -> tuple[int, int]:
        """(major, minor) of `glibc`, (0, 0) where it needs none."""
        if self.glibc is None:
            return (0, 0)
        major, minor = self.glibc.split(".")
        return int(major), int(minor)


def read_native(path: str, content: bytes, *, wheel: str) -> NativeLibrary:
    """Read the headers of an ELF file.

    Raises:
        VendorError: VENDOR_NATIVE where it cannot be read, VENDOR_TOOL_FAILED where the reader is not installed.
    """
    try:
        from elftools.common.exceptions import ELFError
        from elftools.elf.elffile import ELFFile
    except ImportError:
        raise VendorError(
            "VENDOR_TOOL_FAILED",
            "pyelftools is not installed here",
            tool="pyelftools",
            remedy="Vendoring belongs to the connected side: use an environment of vendor/requirements/training.lock.",
        ) from None
    try:
        elf = ELFFile(io.BytesIO(content))
        dynamic = list(_dynamic(elf))
        glibc = max(_glibc(elf), default=None)
        return NativeLibrary(
            path=path,
            machine=_MACHINES.get(elf["e_machine"], str(elf["e_machine"])),
            glibc=f"{glibc[0]}.{glibc[1]}" if glibc else None,
            needs=tuple(sorted(value for tag, value in dynamic if tag == "DT_NEEDED")),
            search_paths=tuple(
                part
                for tag, value in dynamic
                if tag in ("DT_RPATH", "DT_RUNPATH")
                for part in value.split(":")
                if part and not part.startswith(("$ORIGIN", "${ORIGIN}"))
            ),
            hosts=url_hosts(content),
            executable_stack=any(
                segment["p_type"] == "PT_GNU_STACK" and segment["p_flags"] & _PF_X for segment in elf.iter_segments()
            ),
        )
    # pyelftools answers damaged files with whatever its parsing meets
    except (ELFError, ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, MemoryError) as error:
        raise VendorError(
            "VENDOR_NATIVE", f"{wheel}: {path} cannot be read as ELF: {error!r}"[:300], wheel=wheel, file=path
        ) from None


def url_hosts(content: bytes) -> tuple[str, ...]:
    """Hosts of the http(s) URLs in a binary, sorted."""
    found: set[str] = set()
    at = content.find(b"://")
    while at != -1:
        if content[max(at - 5, 0) : at].lower().endswith((b"http", b"https")):
            host = _HOST.match(content, at + 3)
            if host:
                found.add(host[0].decode("ascii").lower())
        at = content.find(b"://", at + 3)
    return tuple(sorted(found))


def _dynamic(elf: ELFFile) -> Iterator[tuple[str, str]]:
    section = elf.get_section_by_name(".dynamic")
    for tag in section.iter_tags() if section else ():
        kind = tag.entry.d_tag
        if kind == "DT_NEEDED":
            yield kind, tag.needed
        elif kind == "DT_RUNPATH":
            yield kind, tag.runpath
        elif kind == "DT_RPATH":
            yield kind, tag.rpath


def _glibc(elf: ELFFile) -> Iterator[tuple[int, int]]:
    section = elf.get_section_by_name(".gnu.version_r")
    for _, versions in section.iter_versions() if section else ():
        for version in versions:
            found = _GLIBC.match(version.name)
            if found:
                yield int(found[1]), int(found[2])
