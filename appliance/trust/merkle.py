"""The Merkle tree of RFC 6962: root, inclusion and consistency proofs, and their verification. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from appliance.errors import TrustError


def leaf_hash(entry: bytes) -> bytes:
    """SHA-256(0x00 || entry), RFC 6962 section 2.1."""
    return hashlib.sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """SHA-256(0x01 || left || right), RFC 6962 section 2.1."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def root(leaves: Sequence[bytes]) -> bytes:
    """MTH of leaf hashes; of none, SHA-256 of nothing."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    level = list(leaves)
    while len(level) > 1:
        paired = [node_hash(level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
        level = paired + level[len(paired) * 2 :]
    return level[0]


def inclusion_proof(leaves: Sequence[bytes], index: int) -> list[bytes]:
    """The audit path of leaf `index` in the tree over all `leaves` (RFC 6962 section 2.1.1), lowest first."""
    if not 0 <= index < len(leaves):
        raise IndexError(index)
    path: list[bytes] = []
    low, high = 0, len(leaves)
    while high - low > 1:
        middle = low + _split(high - low)
        if index < middle:
            path.append(root(leaves[middle:high]))
            high = middle
        else:
            path.append(root(leaves[low:middle]))
            low = middle
    return path[::-1]


def consistency_proof(leaves: Sequence[bytes], old_size: int) -> list[bytes]:
    """Proof that the tree over the first `old_size` leaves is a prefix of the whole (RFC 6962 section 2.1.2)."""
    if not 0 < old_size <= len(leaves):
        raise IndexError(old_size)

    def subproof(m: int, part: Sequence[bytes], complete: bool) -> list[bytes]:
        if m == len(part):
            return [] if complete else [root(part)]
        k = _split(len(part))
        if m <= k:
            return [*subproof(m, part[:k], complete), root(part[k:])]
        return [*subproof(m - k, part[k:], False), root(part[:k])]

    return subproof(old_size, leaves, True)


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], expected_root: bytes) -> None:
    """Check an audit path (RFC 9162 section 2.1.3.2).

    Raises:
        TrustError: TRUST_LOG_PROOF.
    """
    node, last, computed = index, size - 1, leaf
    good = 0 <= index < size
    for sibling in proof:
        if not good or last == 0:
            good = False
            break
        if node & 1 or node == last:
            computed = node_hash(sibling, computed)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            computed = node_hash(computed, sibling)
        node, last = node >> 1, last >> 1
    if not good or last != 0 or computed != expected_root:
        raise TrustError(
            "TRUST_LOG_PROOF", "the inclusion proof does not lead to the log's root", log_index=index, tree_size=size
        )


def verify_consistency(old_size: int, old_root: bytes, new_size: int, new_root: bytes, proof: Sequence[bytes]) -> None:
    """Check that a log only grew (RFC 9162 section 2.1.4.2).

    Raises:
        TrustError: TRUST_LOG_INCONSISTENT.
    """
    if not _consistent(old_size, old_root, new_size, new_root, list(proof)):
        raise TrustError(
            "TRUST_LOG_INCONSISTENT",
            "the log's older tree is not a prefix of its newer one",
            old_size=old_size,
            new_size=new_size,
        )


def _consistent(old_size: int, old_root: bytes, new_size: int, new_root: bytes, proof: list[bytes]) -> bool:
    if old_size == new_size:
        return not proof and old_root == new_root
    if not 0 < old_size < new_size or not proof:
        return False
    if old_size & (old_size - 1) == 0:
        proof = [old_root, *proof]
    node, last = old_size - 1, new_size - 1
    while node & 1:
        node, last = node >> 1, last >> 1
    old = new = proof[0]
    for sibling in proof[1:]:
        if last == 0:
            return False
        if node & 1 or node == last:
            old, new = node_hash(sibling, old), node_hash(sibling, new)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            new = node_hash(new, sibling)
        node, last = node >> 1, last >> 1
    return last == 0 and old == old_root and new == new_root


def _split(size: int) -> int:
    """Largest power of two smaller than `size`."""
    return int(1 << ((size - 1).bit_length() - 1))
