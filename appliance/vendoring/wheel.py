"""What a wheel would do to the host that installs it, found out without installing or importing anything.

`inspect_wheel` refuses a wheel that contradicts itself (archive, RECORD, names, versions, tags) and reports the rest:
what runs at interpreter start, what lands outside the package, which programs and plug-ins it registers, which native
libraries it carries. Judging that report is the policy's business (`admission`).
"""

from __future__ import annotations

import configparser
import re
from collections.abc import Iterator
from email.errors import MessageError
from email.message import Message
from email.parser import HeaderParser
from email.policy import compat32
from typing import Any

from packaging.tags import parse_tag
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version
from pydantic import BaseModel, ConfigDict, Field

from appliance.errors import VendorError
from appliance.files import sha256_hex
from appliance.vendoring.archive import Archive
from appliance.vendoring.licences import Licence, read_licence
from appliance.vendoring.native import MAGIC, NativeLibrary, read_native
from appliance.vendoring.record import algorithms, check_record, digests
from appliance.vendoring.selection import WheelName, wheel_name

_SCHEMES = frozenset({"purelib", "platlib", "headers", "scripts", "data"})
# what `site` imports, what the sitecustomize of Debian and Ubuntu does, and what a virtual environment's own .pth does
_STARTUP = frozenset({"sitecustomize", "usercustomize", "apport_python_hook", "_virtualenv"})
_OUTSIDE = ("[data]/", "[headers]/")
_BYTECODE = (".pyc", ".pyo")
_ENTRY = re.compile(r"[A-Za-z_][\w.]*(\s*:\s*[A-Za-z_][\w.]*)?(\s*\[[\w\s,.-]*\])?\Z")
_PROGRAM = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*\Z")


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StartupFile(_Document):
    """A file that Python reads or imports by itself at every start.

    Attributes:
        path: within the wheel.
        sha256: of its content.
        executes: whether it runs code (a `.pth` of path lines alone does not, it changes what is imported).
    """

    path: str
    sha256: str
    executes: bool


class Inspection(_Document):
    """The report on one wheel; the same bytes give the same report.

    Attributes:
        filename, sha256, size_bytes: of the wheel file.
        name, version: normalised.
        summary: one line of the publisher.
        requires_python, requires: from METADATA.
        licence: see `Licence`.
        files, unpacked_bytes: how much it installs.
        startup: what runs, or is read, at every interpreter start.
        programs: commands it puts on the path, name -> entry point or file.
        plugins: other entry points, `group: name` -> reference.
        outside: installed paths outside the package folder (`[data]/...`, `[headers]/...`).
        bytecode: compiled Python, which may differ from the source beside it.
        pickles: files that unpickling would execute if anything loads them.
        native: ELF files.
        paths: installed path -> SHA-256, for comparison between wheels; not part of the printed report.
    """

    filename: str
    sha256: str
    size_bytes: int
    name: str
    version: str
    summary: str
    requires_python: str | None
    requires: tuple[str, ...]
    licence: Licence
    files: int
    unpacked_bytes: int
    startup: tuple[StartupFile, ...]
    programs: dict[str, str]
    plugins: dict[str, str]
    outside: tuple[str, ...]
    bytecode: tuple[str, ...]
    pickles: tuple[str, ...]
    native: tuple[NativeLibrary, ...]
    paths: dict[str, str] = Field(default_factory=dict, exclude=True, repr=False)


def inspect_wheel(data: bytes, filename: str) -> Inspection:
    """Look into a wheel.

    Args:
        data: the whole file.
        filename: its name, which must agree with its content.

    Raises:
        VendorError: VENDOR_ARCHIVE, VENDOR_RECORD, VENDOR_METADATA, VENDOR_ENTRY_POINT, VENDOR_NATIVE.
    """
    named = wheel_name(filename)
    if named is None:
        raise VendorError("VENDOR_METADATA", f"{filename[:120]!r} is not a wheel's name", wheel=filename[:200])
    archive = Archive(data, what=filename)
    info = _info_folder(archive, named, filename)
    record = archive.read(f"{info}/RECORD")
    wanted = algorithms(record)
    contents: dict[str, tuple[str, str, str, int]] = {}
    native: list[NativeLibrary] = []
    startup: list[StartupFile] = []
    for member in archive.members:
        content = archive.read(member)
        contents[member] = digests(content, wanted)
        if content.startswith(MAGIC):
            native.append(read_native(member, content, wheel=filename))
        if _at_start(installed_path(member)):
            executes = not member.lower().endswith(".pth") or _runs_code(content)
            startup.append(StartupFile(path=member, sha256=contents[member][0], executes=executes))
    check_record(record, contents, info=info, wheel=filename)
    _check_wheel_file(archive.read(f"{info}/WHEEL"), named, filename)
    metadata = _metadata(archive.read(f"{info}/METADATA"), named, filename)
    entries = dict(_entry_points(archive, f"{info}/entry_points.txt", filename))
    programs = {name: target for (group, name), target in entries.items() if group in _PROGRAM_GROUPS}
    programs |= {path.rpartition("/")[2]: path for path in contents if ".data/scripts/" in path}
    return Inspection(
        filename=filename,
        sha256=sha256_hex(data),
        size_bytes=len(data),
        name=named.project,
        version=str(named.version),
        summary=str(metadata.get("Summary", ""))[:500],
        requires_python=_text(metadata, "Requires-Python"),
        requires=tuple(str(value) for value in metadata.get_all("Requires-Dist", [])),
        licence=read_licence(metadata, contents, info=info),
        files=len(contents),
        unpacked_bytes=archive.size_bytes,
        startup=tuple(startup),
        programs=dict(sorted(programs.items())),
        plugins={f"{g}: {n}": t for (g, n), t in sorted(entries.items()) if g not in _PROGRAM_GROUPS},
        outside=tuple(sorted(path for path in map(installed_path, contents) if path.startswith(_OUTSIDE))),
        bytecode=tuple(sorted(path for path in contents if path.lower().endswith(_BYTECODE))),
        pickles=tuple(
            sorted(path for path in contents if path.lower().endswith((".pkl", ".pickle", ".joblib", ".pt")))
        ),
        native=tuple(native),
        paths={installed_path(path): entry[0] for path, entry in contents.items() if not path.startswith(f"{info}/")},
    )


_PROGRAM_GROUPS = frozenset({"console_scripts", "gui_scripts"})


def installed_path(member: str) -> str:
    """Where a member lands: below site-packages as it is, elsewhere with the scheme in brackets (`[data]/etc/x`)."""
    first, _, rest = member.partition("/")
    if not first.endswith(".data") or not rest:
        return member
    scheme, _, path = rest.partition("/")
    return path if scheme in ("purelib", "platlib") else f"[{scheme}]/{path}"


def _at_start(path: str) -> bool:
    """Whether Python reads or imports the path at interpreter start, wherever the wheel hides it."""
    parts = path.split("/")
    if parts[0] == "[data]" and "site-packages" in parts:
        parts = parts[parts.index("site-packages") + 1 :]
    lowered = parts[0].lower() if parts else ""
    return (len(parts) == 1 and lowered.endswith(".pth")) or lowered.split(".")[0] in _STARTUP


def _runs_code(pth: bytes) -> bool:
    """Whether `site.addpackage` would execute a line of a `.pth` file."""
    return any(line.startswith(("import ", "import\t")) for line in pth.decode("utf-8-sig", "replace").splitlines())


def _info_folder(archive: Archive, named: WheelName, filename: str) -> str:
    tops = {name.split("/", 1)[0] for name in archive.members}
    infos = sorted(top for top in tops if top.lower().endswith(".dist-info"))
    if len(infos) != 1:
        raise _metadata_error(filename, f"{len(infos)} .dist-info folders", folders=infos[:5])
    folders = infos + sorted(top for top in tops if top.lower().endswith(".data"))
    for folder in folders:
        stem = folder.rpartition(".")[0]
        project, _, version = stem.partition("-")
        if canonicalize_name(project) != named.project or _version(version) != named.version:
            raise _metadata_error(filename, f"{folder} belongs to another name or version", folder=folder)
    if len(folders) > 2:
        raise _metadata_error(filename, "more than one .data folder", folders=folders)
    for member in archive.members:
        first, _, rest = member.partition("/")
        if first.lower().endswith(".data") and rest.partition("/")[0] not in _SCHEMES:
            raise _metadata_error(filename, f"{member} is of no install scheme", file=member)
    for needed in ("RECORD", "METADATA", "WHEEL"):
        if f"{infos[0]}/{needed}" not in archive.members:
            raise _metadata_error(filename, f"no {infos[0]}/{needed}", file=needed)
    return infos[0]


def _headers(data: bytes, filename: str, what: str) -> Message:
    try:
        return HeaderParser(policy=compat32).parsestr(data.decode("utf-8"))
    except (UnicodeDecodeError, MessageError, ValueError) as error:
        raise _metadata_error(filename, f"{what} cannot be read: {error}") from None


def _check_wheel_file(data: bytes, named: WheelName, filename: str) -> None:
    headers = _headers(data, filename, "WHEEL")
    if not str(headers.get("Wheel-Version", "")).startswith("1."):
        raise _metadata_error(filename, f"Wheel-Version {headers.get('Wheel-Version')!r} is not 1.x")
    told = {tag for value in headers.get_all("Tag", []) for tag in parse_tag(str(value).strip())}
    if told != named.tags:
        differing = sorted(str(tag) for tag in told ^ named.tags)
        raise _metadata_error(filename, "WHEEL and the file name tell different tags", tags=differing[:10])


def _metadata(data: bytes, named: WheelName, filename: str) -> Message:
    metadata = _headers(data, filename, "METADATA")
    names = [str(value).strip() for value in metadata.get_all("Name", [])]
    versions = [str(value).strip() for value in metadata.get_all("Version", [])]
    if [canonicalize_name(name) for name in names] != [named.project]:
        raise _metadata_error(filename, f"METADATA has the name {names[:3]}, the file name says otherwise")
    if [_version(version) for version in versions] != [named.version]:
        raise _metadata_error(filename, f"METADATA has the version {versions[:3]}, the file name says otherwise")
    return metadata


def _entry_points(archive: Archive, path: str, filename: str) -> Iterator[tuple[tuple[str, str], str]]:
    """Entry points as installers read them; names and references that could break out of a script are refused."""
    if path not in archive.members:
        return
    parser = configparser.ConfigParser(delimiters=("=",), interpolation=None, strict=True, default_section="\0")
    parser.optionxform = str  # type: ignore[assignment]
    try:
        parser.read_string(archive.read(path).decode("utf-8"))
    except (configparser.Error, UnicodeDecodeError) as error:
        raise _metadata_error(filename, f"entry_points.txt cannot be read: {' '.join(str(error).split())}") from None
    for group in parser.sections():
        for name, target in parser.items(group):
            if not _ENTRY.match(target or "") or (group in _PROGRAM_GROUPS and not _PROGRAM.match(name)):
                raise VendorError(
                    "VENDOR_ENTRY_POINT",
                    f"{filename}: entry point {name[:80]!r} = {str(target)[:80]!r} is not a plain name and reference",
                    wheel=filename,
                    group=group,
                )
            yield (group, name), target


def _text(metadata: Message, header: str) -> str | None:
    value = metadata.get(header)
    return None if value is None else str(value).strip()[:500]


def _version(text: str) -> Version | None:
    try:
        return Version(text)
    except InvalidVersion:
        return None


def _metadata_error(filename: str, cause: str, **evidence: Any) -> VendorError:
    return VendorError("VENDOR_METADATA", f"{filename}: {cause}", wheel=filename, **evidence)
