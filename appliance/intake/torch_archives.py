"""A look at a `.pt` file without torch: one stored zip archive of a state dict, and nothing beside it.

Two readers of one zip can see two archives (a prefix, a comment, a second directory, a name that climbs); what is
admitted here leaves them nothing to differ about.
"""

from __future__ import annotations

import io
import re
import zipfile

from appliance.errors import IntakeError
from appliance.intake.pickles import TORCH, scan
from appliance.routers.archives import hidden_part

MAX_MEMBERS = 4096
_MEMBER = re.compile(
    r"([A-Za-z0-9_][A-Za-z0-9_.-]{0,100})/"
    r"(data\.pkl|byteorder|version|\.format_version|\.storage_alignment|\.data/serialization_id|data/\d{1,6})\Z"
)


def check(data: bytes, *, what: str) -> None:
    """Refuse anything but a plain state dict.

    Args:
        data: the whole file.
        what: its name, for messages.

    Raises:
        IntakeError: INTAKE_TORCH_FORM for the archive, INTAKE_PICKLE_FORM and INTAKE_PICKLE_IMPORT for what it pickles.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if hidden := hidden_part(archive, data):
                raise _refused(what, hidden)
            pickled = _members(archive, what, len(data))
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError, OverflowError) as error:
        raise _refused(what, f"broken archive: {error}") from None
    scan(pickled, allowed=TORCH, what=f"{what}:data.pkl", persistent_ids=True)


def _members(archive: zipfile.ZipFile, what: str, total: int) -> bytes:
    infos = archive.infolist()
    if len(infos) > MAX_MEMBERS:
        raise _refused(what, f"it has {len(infos)} members")
    tops: set[str] = set()
    names: set[str] = set()
    for info in infos:
        match = _MEMBER.match(info.filename)
        if match is None or info.filename in names:
            raise _refused(what, f"unexpected member {info.filename[:80]!r}")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 0x1 or info.compress_size != info.file_size:
            raise _refused(what, f"{info.filename[:80]} is compressed or encrypted")
        if (info.external_attr >> 16) & 0o170000 not in (0, 0o100000):
            raise _refused(what, f"{info.filename[:80]} is not a regular file")
        names.add(info.filename)
        tops.add(match.group(1))
    if len(tops) != 1 or sum(info.file_size for info in infos) > total:
        raise _refused(what, "its members do not form one archive")
    top = next(iter(tops))
    if f"{top}/data.pkl" not in names:
        raise _refused(what, "it holds no data.pkl (TorchScript and old formats are not admitted)")
    if archive.testzip() is not None:
        raise _refused(what, "a member's checksum is wrong")
    return archive.read(f"{top}/data.pkl")


def _refused(what: str, why: str) -> IntakeError:
    return IntakeError("INTAKE_TORCH_FORM", f"{what}: {why}", file=what)
