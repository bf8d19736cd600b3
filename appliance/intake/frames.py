"""What passes between the border and its confined worker: length-prefixed frames over pipes, nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import BinaryIO

MAX_FRAMES = 80  # a router's files and a few more
_PREFIX = 8  # bytes, little-endian


def pack(frames: Sequence[bytes]) -> bytes:
    """Frames as one string of bytes."""
    return b"".join(len(frame).to_bytes(_PREFIX, "little") + frame for frame in frames)


def unpack(data: bytes) -> list[bytes]:
    """Frames out of one string of bytes.

    Raises:
        ValueError: where lengths and bytes do not agree.
    """
    frames: list[bytes] = []
    position = 0
    while position < len(data):
        length = int.from_bytes(data[position : position + _PREFIX], "little")
        position += _PREFIX
        if position + length > len(data) or len(frames) >= MAX_FRAMES:
            raise ValueError("frames do not fit")
        frames.append(data[position : position + length])
        position += length
    return frames


def send(stream: BinaryIO, frames: Sequence[bytes]) -> None:
    """Write frames."""
    stream.write(pack(frames))
    stream.flush()
