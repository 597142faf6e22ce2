"""Merkle trees as RFC 6962 hashes them: root, inclusion, consistency.

A leaf is SHA-256(0x00 || data), a node SHA-256(0x01 || left || right), so that no leaf can be
passed off as a node. Every level is one `bytes` object of 32-byte hashes: two children lie side
by side, a pair is one slice, and a million leaves take about 64 MB and a few seconds.

A path does not commit to the number of leaves: the path of leaf 2 of 3 also holds for leaf 1 of 2.
Every check here therefore takes size *and* root from the caller, who has them from something
signed: a log checkpoint or a certificate.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import sha256

from overproof.core.errors import TrustError, UsageError

HASH_BYTES = 32  # SHA-256
LEAF = b"\x00"  # RFC 6962 section 2.1
NODE = b"\x01"  # RFC 6962 section 2.1
MAX_PATH = 64  # hashes in a path: no tree has more than 2**64 leaves (RFC 6962, uint64 size)
EMPTY_HEAD = sha256(b"").digest()  # RFC 6962 section 2.1: the hash of an empty list


def leaf_hash(data: bytes) -> bytes:
    """Hash of a leaf."""
    return sha256(LEAF + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash of an inner node."""
    return sha256(NODE + left + right).digest()


def size_and_root(leaf_hashes: Iterable[bytes]) -> tuple[int, bytes]:
    """Size and root of a tree, in the memory of one path whatever its size (RFC 6962 section 2.1).

    Kept are the roots of the complete subtrees so far, the largest first: one for each bit that
    is set in the size.
    """
    size, roots = 0, list[bytes]()
    for size, hash_ in enumerate(leaf_hashes, start=1):
        node, merged = hash_, size
        while not merged & 1:
            node, merged = node_hash(roots.pop(), node), merged >> 1
        roots.append(node)
    if not roots:
        return 0, EMPTY_HEAD
    root = roots.pop()
    while roots:
        root = node_hash(roots.pop(), root)
    return size, root


class Tree:
    """A tree over leaf hashes in the given order, all levels in memory.

    A last node without a sibling moves up unchanged, which gives the same tree as the
    recursive definition (split at the largest power of two below the size).
    """

    def __init__(self, leaf_hashes: Iterable[bytes]) -> None:
        level = b"".join(leaf_hashes)
        if len(level) % HASH_BYTES:
            raise UsageError(
                f"leaf hashes are {HASH_BYTES} bytes each", details=[f"got {len(level)} in all"]
            )
        self._levels = [level]
        while len(level) > HASH_BYTES:
            level = _parents(level)
            self._levels.append(level)

    @property
    def size(self) -> int:
        """Number of leaves."""
        return len(self._levels[0]) // HASH_BYTES

    @property
    def root(self) -> bytes:
        """The 32-byte root; of an empty tree, the hash of nothing."""
        return self._levels[-1] or EMPTY_HEAD

    def inclusion(self, index: int) -> tuple[bytes, ...]:
        """Path of a leaf, from its sibling up to the child of the root (RFC 6962 section 2.1.1).

        Raises:
            UsageError: there is no such leaf.
        """
        if not 0 <= index < self.size:
            raise UsageError(f"no leaf {index} in a tree of {self.size}")
        return self._siblings(0, index)

    def consistency(self, old_size: int) -> tuple[bytes, ...]:
        """Proof that the first `old_size` leaves are an earlier state (RFC 6962 section 2.1.2).

        Raises:
            UsageError: the tree never had that size; 0 has no proof, as nothing is to be shown.
        """
        if not 0 < old_size <= self.size:
            raise UsageError(f"no earlier state of size {old_size} of a tree of {self.size}")
        if old_size == self.size:
            return ()
        # The largest complete subtree that ends where the old tree ended.
        level, index = 0, old_size - 1
        while index & 1:
            level, index = level + 1, index >> 1
        start = (self._node(level, index),) if index else ()
        return start + self._siblings(level, index)

    def _node(self, level: int, index: int) -> bytes:
        return self._levels[level][index * HASH_BYTES : (index + 1) * HASH_BYTES]

    def _siblings(self, level: int, index: int) -> tuple[bytes, ...]:
        found = [
            self._node(height, (index >> (height - level)) ^ 1)
            for height in range(level, len(self._levels) - 1)
        ]
        return tuple(sibling for sibling in found if sibling)  # none at the ragged right edge


def _parents(level: bytes) -> bytes:
    pair = 2 * HASH_BYTES
    whole = len(level) // pair * pair
    above = [sha256(NODE + level[at : at + pair]).digest() for at in range(0, whole, pair)]
    return b"".join(above) + level[whole:]


def check_inclusion(
    leaf: bytes, index: int, path: Sequence[bytes], *, size: int, root: bytes
) -> None:
    """Check that a leaf hash is at `index` of the tree of `size` leaves with that root.

    RFC 9162 section 2.1.3.2; every hash of the path must be used, none may be missing.

    Raises:
        TrustError: it is not.
    """
    if not 0 <= index < size:
        raise TrustError(f"leaf {index} is outside of a tree of {size}")
    check_path(path)
    last, hash_ = size - 1, leaf
    for sibling in path:
        if last == 0:
            raise TrustError("the inclusion proof is too long")
        if index & 1 or index == last:
            hash_ = node_hash(sibling, hash_)
            while not index & 1 and index:
                index, last = index >> 1, last >> 1
        else:
            hash_ = node_hash(hash_, sibling)
        index, last = index >> 1, last >> 1
    if last:
        raise TrustError("the inclusion proof is too short")
    _check_root(hash_, root, "the inclusion proof leads to another root")


def check_consistency(
    path: Sequence[bytes], *, old_size: int, old_root: bytes, size: int, root: bytes
) -> None:
    """Check that the tree of `size` leaves extends the tree of `old_size` (RFC 9162 2.1.4.2).

    Raises:
        TrustError: it does not, or there is nothing to compare with (`old_size` 0).
    """
    if not 0 < old_size <= size:
        raise TrustError(f"a tree of {size} cannot extend a tree of {old_size}")
    check_path(path)
    if old_size == size:
        if path:
            raise TrustError("the consistency proof of equal trees is empty")
        _check_root(old_root, root, "two trees of equal size have different roots")
        return
    hashes = list(path)
    if old_size & (old_size - 1) == 0:  # the old tree is complete: its root is the start
        hashes.insert(0, old_root)
    if not hashes:
        raise TrustError("the consistency proof is too short")
    index, last = old_size - 1, size - 1
    while index & 1:
        index, last = index >> 1, last >> 1
    old = new = hashes[0]
    for sibling in hashes[1:]:
        if last == 0:
            raise TrustError("the consistency proof is too long")
        if index & 1 or index == last:
            old, new = node_hash(sibling, old), node_hash(sibling, new)
            while not index & 1 and index:
                index, last = index >> 1, last >> 1
        else:
            new = node_hash(new, sibling)
        index, last = index >> 1, last >> 1
    if last:
        raise TrustError("the consistency proof is too short")
    _check_root(old, old_root, "the consistency proof starts from another root")
    _check_root(new, root, "the consistency proof leads to another root")


def check_path(path: Sequence[bytes]) -> None:
    """Check the form of a path.

    Raises:
        TrustError: an item is no hash, or there are more than any tree needs.
    """
    if len(path) > MAX_PATH or any(len(item) != HASH_BYTES for item in path):
        raise TrustError(
            "not a proof path",
            details=[f"wanted at most {MAX_PATH} hashes of {HASH_BYTES} bytes"],
        )


def _check_root(got: bytes, wanted: bytes, what: str) -> None:
    if got != wanted:
        raise TrustError(what, details=[f"got {got.hex()}, wanted {wanted.hex()}"])
