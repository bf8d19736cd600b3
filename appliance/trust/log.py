"""An append-only Merkle log in a folder: the authority's transparency log and its certificate log.

`entries` holds one line an entry (base64), `checkpoint` the last signed tree head. An entry is durable before a
checkpoint covers it; a checkpoint is durable before it is handed out. When a log is opened, its entries must still
lead to the checkpoint: whoever shortens or rewrites the file is found out.
"""

from __future__ import annotations

import base64
import binascii
import os
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import FileError, TrustError
from appliance.files import locked, read_regular, translated, write_atomic
from appliance.trust import checkpoint, merkle
from appliance.trust.keys import PrivateKey

_MAX_BYTES = 1024**3  # bytes of all entries


@dataclass(frozen=True)
class Inclusion:
    """Where an entry stands in the log, and the proof of it."""

    index: int
    size: int
    root: bytes
    proof: tuple[bytes, ...]
    checkpoint: str


class MerkleLog:
    """A log kept in `directory`, signed with `key`, named by `origin`."""

    def __init__(self, directory: Path, origin: str, key: PrivateKey) -> None:
        self._entries = directory / "entries"
        self._checkpoint = directory / "checkpoint"
        self._lock = directory / "lock"
        self._directory = directory
        self.origin = origin
        self._key = key

    def append(self, entry: bytes) -> Inclusion:
        """Add one entry and prove that it is in.

        Raises:
            TrustError: TRUST_LOG_DAMAGED where the kept entries do not lead to the kept checkpoint.
            FileError: FILE_NO_SPACE, FILE_PERMISSION.
        """
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with locked(self._lock):
            leaves = [merkle.leaf_hash(each) for each in self.entries()]
            index = len(leaves)
            with translated(self._entries), open(self._entries, "ab") as stream:
                complete = _complete_length(self._entries)
                if complete != stream.tell():  # half a line of a killed writer: no checkpoint ever covered it
                    stream.truncate(complete)
                stream.write(base64.b64encode(entry) + b"\n")
                stream.flush()
                os.fsync(stream.fileno())
            leaves.append(merkle.leaf_hash(entry))
            root = merkle.root(leaves)
            note = checkpoint.write(self._key, origin=self.origin, size=len(leaves), root=root)
            write_atomic(self._checkpoint, note.encode())
        return Inclusion(index, len(leaves), root, tuple(merkle.inclusion_proof(leaves, index)), note)

    def entries(self) -> list[bytes]:
        """Every entry, checked against the last checkpoint.

        Raises:
            TrustError: TRUST_LOG_DAMAGED.
        """
        entries = read_entries(self._entries)
        head = self.head()
        if head is not None:
            checkpoint.verify(head, self._key.public_key(), origin=self.origin)
            prefix = [merkle.leaf_hash(each) for each in entries[: head.size]]
            if len(prefix) < head.size or merkle.root(prefix) != head.root:
                raise TrustError(
                    "TRUST_LOG_DAMAGED",
                    f"{self._entries} does not lead to its own checkpoint",
                    entries=len(entries),
                    checkpoint_size=head.size,
                )
        return entries

    def checkpoint_text(self) -> str:
        """The last checkpoint as it was signed; of an empty log, one of size zero, signed now."""
        try:
            return read_regular(self._checkpoint, max_bytes=4096).decode("utf-8")
        except FileError as error:
            if error.code != "FILE_MISSING":
                raise
            return checkpoint.write(self._key, origin=self.origin, size=0, root=merkle.root([]))

    def head(self) -> checkpoint.Checkpoint | None:
        """The last checkpoint, None of an empty log."""
        try:
            return checkpoint.read(read_regular(self._checkpoint, max_bytes=4096).decode("utf-8", "replace"))
        except FileError as error:
            if error.code == "FILE_MISSING":
                return None
            raise


def read_entries(path: Path) -> list[bytes]:
    """The complete lines of an entries file; half a last line (a killed writer) is left out.

    Raises:
        TrustError: TRUST_LOG_DAMAGED.
    """
    try:
        data = read_regular(path, max_bytes=_MAX_BYTES)
    except FileError as error:
        if error.code == "FILE_MISSING":
            return []
        raise
    lines = data.split(b"\n")[:-1]
    try:
        return [base64.b64decode(line, validate=True) for line in lines]
    except binascii.Error:
        raise TrustError("TRUST_LOG_DAMAGED", f"{path} holds a line that is not base64", path=str(path)) from None


def _complete_length(path: Path) -> int:
    return read_regular(path, max_bytes=_MAX_BYTES).rfind(b"\n") + 1
