"""What a sidecar leaves in the volume beside the routers: how it fares with the registry.

A gateway that follows the volume hears of nothing else, and would take a volume that answers for a registry that does.
The note is not signed, because nothing is decided by it: whoever can write to the volume can lie about the registry's
age, and do nothing else. So it is read as anything else of the volume is: one regular file, bounded, of one known form.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from appliance import documents
from appliance.errors import ApplianceError
from appliance.registry.contract import Store

KEY = "sync.json"
MAX_BYTES = 256 * 1024
NOTHING_TOLD = "REGISTRY_SIDECAR"
QUIET_AFTER = timedelta(minutes=15)  # without a sound answer, and somebody should look
_WRITTEN_EVERY = timedelta(minutes=1)  # an answer as good as the last one
_CLOCKS_DIFFER = timedelta(minutes=5)  # between the sidecar's host and this one

Code = Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]{0,63}$")]
_Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]


class Heard(BaseModel):
    """How one channel is followed.

    Attributes:
        contact: when the registry last answered soundly, RFC 3339, UTC; None where it never did.
        problem: code of what kept the last pass from it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    contact: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")] | None = None
    problem: Code | None = None

    @field_validator("contact")
    @classmethod
    def _a_time(cls, value: str | None) -> str | None:
        if value is not None:
            datetime.fromisoformat(value)
        return value

    @property
    def at(self) -> datetime | None:
        """`contact` as a time."""
        return None if self.contact is None else datetime.fromisoformat(self.contact)


class Note(BaseModel):
    """The file `sync.json`.

    Attributes:
        problem: code of what kept the sidecar from asking for any channel.
        channels: name -> how it is followed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    problem: Code | None = None
    channels: Annotated[dict[_Name, Heard], Field(max_length=1024)] = Field(default_factory=dict)


def heard(contact: datetime | None, problem: str | None) -> Heard:
    """For `leave`."""
    text = None if contact is None else contact.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return Heard(contact=text, problem=problem)


def leave(volume: Store, channels: Mapping[str, Heard], problem: str | None = None) -> bool:
    """Write the note where it says something new; other channels' lines, of another sidecar's, stay.

    Raises:
        RegistryError: what the volume refuses.
    """
    standing = _standing(volume)
    before = standing or Note()
    told = {
        name: each.model_copy(update={"problem": _why(before.channels.get(name, Heard()).problem, each.problem)})
        for name, each in channels.items()
    }
    note = Note(problem=_why(before.problem, problem), channels={**before.channels, **told})
    if standing is not None and not _is_news(standing, note):
        return False
    volume.put(KEY, documents.write_json(note.model_dump()))
    return True


def _why(before: str | None, now: str | None) -> str | None:
    """What is wrong; that the registry is left alone for a while is no reason where one stands already."""
    return before if now == "REGISTRY_BREAKER_OPEN" and before is not None else now


def read(data: bytes) -> Note:
    """What was left.

    Raises:
        DocumentError: it is no note.
    """
    return documents.validate(Note, documents.read_json(data, what=KEY, max_bytes=MAX_BYTES), what=KEY)


def _standing(volume: Store) -> Note | None:
    try:
        blob = volume.get(KEY, max_bytes=MAX_BYTES)
        return read(blob.data) if blob is not None else None
    except ApplianceError:
        return None  # none, or none that counts: the next one takes its place


def _is_news(before: Note, now: Note) -> bool:
    if before.problem != now.problem or before.channels.keys() != now.channels.keys():
        return True
    return any(_differ(before.channels[name], heard_of) for name, heard_of in now.channels.items())


def _differ(before: Heard, now: Heard) -> bool:
    if before.problem != now.problem or before.at is None or now.at is None:
        return before != now
    return abs(now.at - before.at) >= _WRITTEN_EVERY


@dataclass(frozen=True)
class Told:
    """What a reader makes of it for one channel, at one moment.

    Attributes:
        age_s: seconds since the registry last answered the sidecar soundly; None where that is not known.
        problem: code of why not since.
    """

    age_s: float | None
    problem: str | None


class Sidecar:
    """A volume's sidecar, as far as it tells of itself. `look` reads and may wait for a disk; the rest does neither.

    Args:
        volume: that it writes.
    """

    def __init__(self, volume: Store) -> None:
        self._volume = volume
        self._etag: str | None = None
        self._note: Note | None = None
        self._unsound = False

    def look(self) -> None:
        """Read the note again. One that is gone, with its volume perhaps, grows old and is not forgotten."""
        try:
            blob = self._volume.get(KEY, max_bytes=MAX_BYTES, unless=self._etag)
            if blob is not None:
                self._note, self._etag = read(blob.data), blob.etag
            self._unsound = False
        except ApplianceError as error:
            self._unsound = error.code != "REGISTRY_NOT_FOUND"

    def of(self, channel: str, now: datetime) -> Told | None:
        """What it tells of a channel; None where no sidecar was ever heard of."""
        if self._note is None:
            return Told(None, NOTHING_TOLD) if self._unsound else None
        line = self._note.channels.get(channel, Heard())
        problem = self._note.problem or line.problem or (NOTHING_TOLD if self._unsound else None)
        if line.at is None or line.at - now > _CLOCKS_DIFFER:
            return Told(None, problem or NOTHING_TOLD)
        return Told(max(0.0, (now - line.at).total_seconds()), problem)

    def every(self, now: datetime) -> dict[str, Told]:
        """What it tells of all its channels; of `*` where it has none, because the registry never answered."""
        names = list(self._note.channels) if self._note is not None else []
        if not names and (self._unsound or (self._note is not None and self._note.problem)):
            names = ["*"]
        return {name: told for name in names if (told := self.of(name, now)) is not None}
