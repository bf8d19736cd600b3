"""Removable media without root: vfat images, written and read with mtools, as a stick or a card would hold them."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path


def make_stick(image: Path, files: Sequence[Path], *, size_bytes: int) -> Path:
    """A vfat image with these files in its root folder; the image is sparse."""
    with image.open("wb") as stream:
        stream.truncate(size_bytes)
    _run("mkfs.vfat", "-F", "32", str(image))
    _run("mcopy", "-i", str(image), *map(str, files), "::/")
    return image


def read_stick(image: Path, target: Path) -> Path:
    """Copy everything off an image, as mounting would show it."""
    target.mkdir(parents=True)
    _run("mcopy", "-i", str(image), "-s", "-p", "::/*", str(target))
    return target


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
