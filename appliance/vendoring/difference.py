"""What a release brings that the one before did not: the page an approver reads before signing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from appliance import documents
from appliance.errors import DocumentError, VendorError
from appliance.files import read_regular
from appliance.vendoring.wheel import Inspection

MAX_REPORT_BYTES = 64 * 1024 * 1024  # bytes
REPORT_NAME = "admission.json"


class Report(BaseModel):
    """The admission report of a release, carried in it and compared with the next one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    wheels: tuple[Inspection, ...]


@dataclass(frozen=True)
class Difference:
    """One line for the approver.

    Attributes:
        kind: `new`, `removed`, `changed`, `rebuilt` (same version, other bytes), or what a package newly does:
            `startup`, `program`, `plugin`, `native`, `host`, `outside`, `licence`, `requires`.
        package: normalised name.
        detail: versions, or the thing that is new.
    """

    kind: str
    package: str
    detail: str

    @property
    def weighty(self) -> bool:
        """Whether it deserves a second look: code that runs by itself, machine code, or bytes changed in place."""
        return self.kind in ("rebuilt", "startup", "native", "outside", "licence", "new")


def write_report(inspections: Iterable[Inspection]) -> bytes:
    """The report as canonical JSON; the same wheels give the same bytes."""
    ordered = tuple(sorted(inspections, key=lambda wheel: wheel.filename))
    return documents.write_json(Report(wheels=ordered).model_dump(mode="json"))


def read_report(data: bytes, *, what: str) -> tuple[Inspection, ...]:
    """Read a report.

    Raises:
        VendorError: VENDOR_REPORT where it is none.
    """
    try:
        value: Any = documents.read_json(data, what=what, max_bytes=MAX_REPORT_BYTES)
        return documents.validate(Report, value, what=what).wheels
    except DocumentError as error:
        raise VendorError("VENDOR_REPORT", f"not an admission report: {error.cause}", path=what) from None


def read_report_file(path: Path) -> tuple[Inspection, ...]:
    """Read a report from a file; see `read_report`."""
    return read_report(read_regular(path, max_bytes=MAX_REPORT_BYTES), what=str(path))


def compare(before: Iterable[Inspection], after: Iterable[Inspection]) -> list[Difference]:
    """Everything that differs, package by package, the weighty first."""
    old = {wheel.name: wheel for wheel in before}
    new = {wheel.name: wheel for wheel in after}
    found: list[Difference] = []
    for name in sorted(old.keys() | new.keys()):
        if name not in new:
            found.append(Difference("removed", name, old[name].version))
        elif name not in old:
            found.append(Difference("new", name, new[name].version))
            found += _brings(None, new[name])
        elif old[name].sha256 != new[name].sha256:
            same = old[name].version == new[name].version
            versions = f"{old[name].version} -> {new[name].version}"
            found.append(Difference("rebuilt" if same else "changed", name, new[name].filename if same else versions))
            found += _brings(old[name], new[name])
    return sorted(found, key=lambda difference: (not difference.weighty, difference.package, difference.kind))


def summary(differences: Iterable[Difference], *, at_most: int = 3) -> Iterator[str]:
    """Lines for a person: one per kind and package, an exclamation mark before what deserves a second look."""
    groups: dict[tuple[bool, str, str], list[str]] = {}
    for difference in differences:
        groups.setdefault((difference.weighty, difference.kind, difference.package), []).append(difference.detail)
    for (weighty, kind, package), details in groups.items():
        more = f" and {len(details) - at_most} more" if len(details) > at_most else ""
        yield f"{'!' if weighty else ' '} {kind:9} {package}: {', '.join(details[:at_most])}{more}"


def _brings(old: Inspection | None, new: Inspection) -> Iterator[Difference]:
    for kind, before, after in (
        ("startup", _startup(old), _startup(new)),
        ("program", _items(old.programs if old else {}), _items(new.programs)),
        ("plugin", _items(old.plugins if old else {}), _items(new.plugins)),
        ("native", _native(old), _native(new)),
        ("host", _hosts(old), _hosts(new)),
        ("outside", set(old.outside if old else ()), set(new.outside)),
        ("requires", _requires(old), _requires(new)),
        ("licence", _licence(old or new), _licence(new)),
    ):
        for detail in sorted(after - before):
            yield Difference(kind, new.name, detail)


def _items(mapping: dict[str, str]) -> set[str]:
    return {f"{name} = {target}" for name, target in mapping.items()}


def _startup(wheel: Inspection | None) -> set[str]:
    return {f"{file.path} sha256:{file.sha256[:16]}" for file in wheel.startup} if wheel else set()


def _native(wheel: Inspection | None) -> set[str]:
    # the folder of bundled libraries and their hashed names change with every build: the plain name is what matters
    return {_plain(library.path) for library in wheel.native} if wheel else set()


def _hosts(wheel: Inspection | None) -> set[str]:
    return {host for library in wheel.native for host in library.hosts} if wheel else set()


def _plain(path: str) -> str:
    folder, _, name = path.rpartition("/")
    stem, _, rest = name.partition(".so")
    head, dash, tail = stem.rpartition("-")
    hashed = dash and len(tail) >= 8 and all(char in "0123456789abcdef" for char in tail)
    return f"{folder}/{head if hashed else stem}.so" if ".so" in name else f"{folder}/{name}{rest}"


def _requires(wheel: Inspection | None) -> set[str]:
    return {text.split(";")[0].strip() for text in wheel.requires if "extra ==" not in text} if wheel else set()


def _licence(wheel: Inspection) -> set[str]:
    return {" / ".join(wheel.licence.names) or "none named"}
