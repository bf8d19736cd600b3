"""Releases beyond 2 GiB and 4 GiB, and volumes that keep below what vfat can hold; sparse files make them cheap."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import pytest

from appliance import documents
from appliance.bundle.build import manifest_document
from appliance.bundle.stage0.extract import check_members
from appliance.bundle.stage0.main import release_region
from appliance.bundle.stage0.manifest import Member, region_bytes
from appliance.bundle.stage0.media import MANIFEST, SIGNATURE, choose, open_sources
from appliance.bundle.stage0.refusal import Refused
from appliance.bundle.stage0.ustar import BLOCK, END_BLOCKS, padded, tar_header
from tests.support import bundle as support

pytestmark = pytest.mark.slow
GIB = 1024**3
SEGMENT = 4 * 1024 * 1024
VFAT_LIMIT = 4 * GIB - 1


@dataclass(frozen=True)
class Large:
    """A sparse release: a small member, weights of nothing but zeros, another small member."""

    head: bytes
    members: tuple[Member, ...]
    pieces: dict[int, bytes]  # where the region is not zero

    @property
    def region(self) -> int:
        return region_bytes(self.members)

    def write(
        self, path: Path, start: int = 0, end: int | None = None, *, around: tuple[bytes, int] = (b"", 0)
    ) -> Path:
        """Write head, label, and region[start:end] with holes where it is zero."""
        end = self.region if end is None else end
        with path.open("wb") as stream:
            stream.write(self.head + around[0])
            base = stream.tell()
            for at, data in self.pieces.items():
                if start <= at < end:
                    assert at + len(data) <= end, "the test cuts between pieces"
                    stream.seek(base + at - start)
                    stream.write(data)
            stream.truncate(base + end - start + around[1])
        return path


def large(weights_bytes: int) -> Large:
    zeros = hashlib.sha256()
    for _ in range(weights_bytes // SEGMENT):
        zeros.update(bytes(SEGMENT))
    zeros.update(bytes(weights_bytes % SEGMENT))
    first, last = b"first", b"last of all"
    members = (
        Member("data/first", len(first), hashlib.sha256(first).hexdigest()),
        Member("models/weights.bin", weights_bytes, zeros.hexdigest()),
        Member("data/last", len(last), hashlib.sha256(last).hexdigest()),
    )
    pieces, at = {}, 0
    for member, content in zip(members, (first, b"", last), strict=True):
        pieces[at] = member.header + content
        at += BLOCK + padded(member.size_bytes)
    segments = []
    empty = hashlib.sha256(bytes(SEGMENT)).hexdigest()
    for start in range(0, region_bytes(members), SEGMENT):
        length = min(SEGMENT, region_bytes(members) - start)
        inside = {where - start: data for where, data in pieces.items() if start <= where < start + length}
        if not inside and length == SEGMENT:
            segments.append(empty)
            continue
        segment = bytearray(length)
        for where, data in inside.items():
            segment[where : where + len(data)] = data
        segments.append(hashlib.sha256(segment).hexdigest())
    document = manifest_document(
        support.identity(),
        members=members,
        trust=support.TRUST,
        segment_bytes=SEGMENT,
        segments=segments,
        installed=(0, 0),
    )
    manifest = documents.write_json(document)
    files = {f"trust/{name}": data for name, data in support.TRUST.items()}
    files |= {MANIFEST: manifest, SIGNATURE: support.StandInSigner().sign_statement(manifest)}
    head = b"".join(
        tar_header(name, len(data)) + data + bytes(padded(len(data)) - len(data)) for name, data in files.items()
    )
    return Large(head, members, pieces)


def check(media: list[Path]) -> list[str]:
    repaired: list[str] = []
    with open_sources(media) as (sources, unreadable):
        release, chosen, set_aside = choose(sources, support.stand_in_authenticate)
        region = release_region(chosen, release, set_aside + unreadable, repaired.append)
        check_members(region, release.manifest.members)
    return repaired


def test_an_archive_beyond_two_gib_is_verified_to_the_last_byte(tmp_path):
    release = large(2 * GIB + 12_345)
    path = release.write(tmp_path / "large.tar")
    assert path.stat().st_size > 2 * GIB
    assert check([path]) == []
    with path.open("rb+") as stream:
        stream.seek(path.stat().st_size - len(END_BLOCKS) - BLOCK - padded(11) - 600)  # in the weights' last block
        stream.write(b"\1")
    with pytest.raises(Refused) as caught:
        check([path])
    assert caught.value.code in ("BUNDLE_MEMBER_DIGEST", "BUNDLE_PADDING")


def test_a_release_beyond_four_gib_travels_in_volumes_that_vfat_can_hold(tmp_path):
    release = large(4 * GIB + 54_321)
    slice_bytes = 3 * GIB
    second = release.region - slice_bytes

    def label(name: str, size: int) -> tuple[bytes, int]:
        return tar_header(name, size), len(END_BLOCKS)

    one = release.write(tmp_path / "r.tar.v001", 0, slice_bytes, around=label("volume/001-of-002", slice_bytes))
    two = release.write(tmp_path / "r.tar.v002", slice_bytes, around=label("volume/002-of-002", second))
    folded = {at % slice_bytes: data for at, data in release.pieces.items()}  # XOR with zeros changes nothing
    both = Large(release.head, release.members, folded)
    parity = both.write(tmp_path / "r.tar.parity", 0, slice_bytes, around=label("volume/parity-of-002", slice_bytes))
    assert all(path.stat().st_size <= VFAT_LIMIT for path in (one, two, parity))
    assert one.stat().st_size + two.stat().st_size > 4 * GIB
    assert check([two, one]) == []
    (repaired,) = check([parity, one])
    assert repaired.startswith("volume 2 of 2 is missing")


def test_a_member_that_tar_cannot_number_is_refused_when_the_release_is_built():
    with pytest.raises(Refused) as caught:
        tar_header("models/weights.bin", 8 * GIB)
    assert caught.value.code == "BUNDLE_LIMIT"
    assert len(tar_header("models/weights.bin", 8 * GIB - 1)) == BLOCK
