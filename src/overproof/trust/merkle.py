"""The record tree: RFC 6962 over leaves sorted by key, with proofs of presence and of absence.

Two neighbours with a key between them prove that the key is absent. That holds for a tree that
*is* sorted; whoever has the keys can recompute the head with `SortedTree` and see. A proof is
checked against a size and a head that come from something signed, the certificate of a dataset.
"""

from __future__ import annotations

import base64
import binascii
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from overproof.core.errors import TrustError, UsageError
from overproof.trust.rfc6962 import (
    EMPTY_HEAD,
    HASH_BYTES,
    Tree,
    check_inclusion,
    check_path,
    leaf_hash,
    size_and_root,
)

PROOF_FORMAT = "overproof-record-proof/1"


@dataclass(frozen=True)
class Leaf:
    """A key of the record tree with its place and path.

    Attributes:
        key: 32 bytes.
        index: place among the sorted keys, from 0.
        path: sibling hashes, bottom up.
    """

    key: bytes
    index: int
    path: tuple[bytes, ...]

    def to_json(self) -> dict[str, Any]:
        """Key in hex, hashes in base64."""
        return {
            "key": self.key.hex(),
            "index": self.index,
            "path": [base64.b64encode(item).decode() for item in self.path],
        }

    @classmethod
    def from_json(cls, value: object) -> Leaf:
        """Read strictly.

        Raises:
            TrustError: anything is missing, added, or not written as `to_json` writes it.
        """
        fields = _fields(value, {"key", "index", "path"})
        if not isinstance(fields["path"], list) or not _is_count(fields["index"]):
            raise TrustError("a leaf has a whole `index` and a list `path`")
        path = tuple(_unbase64(item) for item in fields["path"])
        leaf = cls(_unhex(fields["key"]), fields["index"], path)
        check_path(path)
        return leaf

    def check(self, *, size: int, head: bytes) -> None:
        """Check that this key is in the tree.

        Raises:
            TrustError: it is not.
        """
        check_inclusion(leaf_hash(self.key), self.index, self.path, size=size, root=head)


@dataclass(frozen=True)
class Present:
    """Proof that a key is in the record tree of this size and head."""

    size: int
    head: bytes
    leaf: Leaf

    @property
    def key(self) -> bytes:
        """The key that is shown to be present."""
        return self.leaf.key

    def check(self, key: bytes, *, size: int, head: str) -> None:
        """Check against a signed size and head (64 hex digits).

        Raises:
            TrustError: the proof is of another key or tree, or does not hold.
        """
        _same_tree(self, size, head)
        _same_key(self.key, key)
        self.leaf.check(size=size, head=self.head)

    def to_json(self) -> dict[str, Any]:
        """The proof as JSON."""
        return {**_header("present", self.size, self.head), "leaf": self.leaf.to_json()}


@dataclass(frozen=True)
class Absent:
    """Proof that a key is not in the record tree: its neighbours stand side by side.

    `left` is None where the key would come first, `right` where it would come last; both in an
    empty tree.
    """

    size: int
    head: bytes
    key: bytes
    left: Leaf | None
    right: Leaf | None

    def check(self, key: bytes, *, size: int, head: str) -> None:
        """Check against a signed size and head (64 hex digits).

        1. Key, size and head are those asked about.
        2. Each neighbour is in the tree, on its side of the key.
        3. Nothing fits between them: adjacent indices, or the end of the tree.

        Raises:
            TrustError: a rule is broken.
        """
        # 1.
        _same_tree(self, size, head)
        _same_key(self.key, key)
        # 2.
        for leaf in (self.left, self.right):
            if leaf is not None:
                leaf.check(size=size, head=self.head)
        if self.left is not None and not self.left.key < key:
            raise TrustError("the left neighbour is not below the key")
        if self.right is not None and not key < self.right.key:
            raise TrustError("the right neighbour is not above the key")
        # 3.
        below = self.left.index if self.left is not None else -1
        above = self.right.index if self.right is not None else size
        if below + 1 != above:
            raise TrustError(
                "the neighbours are not side by side",
                details=[f"got leaves {below} and {above} of {size}"],
            )
        if size == 0 and self.head != EMPTY_HEAD:
            raise TrustError("the head of an empty tree is the hash of nothing")

    def to_json(self) -> dict[str, Any]:
        """The proof as JSON."""
        return {
            **_header("absent", self.size, self.head),
            "key": self.key.hex(),
            "left": self.left.to_json() if self.left else None,
            "right": self.right.to_json() if self.right else None,
        }


def size_and_head(keys: Iterable[bytes]) -> tuple[int, str]:
    """Size and head of the record tree of keys that are sorted, without holding them.

    Raises:
        UsageError: a key is not 32 bytes, stands twice, or before a smaller one.
    """
    size, root = size_and_root(leaf_hash(key) for key in _demand_ascending(keys))
    return size, root.hex()


def _demand_ascending(keys: Iterable[bytes]) -> Iterator[bytes]:
    before: bytes | None = None
    for key in keys:
        if len(key) != HASH_BYTES:
            raise UsageError(f"a record key is {HASH_BYTES} bytes")
        if before is not None and key == before:
            raise UsageError(
                "a record tree holds each key once",
                details=[f"twice: {key.hex()}"],
                hint="drop exact duplicates first",
            )
        if before is not None and key < before:
            raise UsageError("the keys of a record tree are sorted", details=[f"not: {key.hex()}"])
        yield key
        before = key


class SortedTree:
    """The record tree: leaves are keys in ascending order."""

    def __init__(self, keys: Iterable[bytes]) -> None:
        self._keys = list(_demand_ascending(sorted(keys)))
        self._tree = Tree(map(leaf_hash, self._keys))

    @property
    def size(self) -> int:
        """Number of keys."""
        return self._tree.size

    @property
    def head(self) -> str:
        """The root, 64 hex digits."""
        return self._tree.root.hex()

    def prove(self, key: bytes) -> Present | Absent:
        """Proof that a key is in the tree, or that it is not.

        Raises:
            UsageError: not a 32-byte key.
        """
        if len(key) != HASH_BYTES:
            raise UsageError(f"a record key is {HASH_BYTES} bytes", details=[f"got {len(key)}"])
        index = bisect_left(self._keys, key)
        if index < self.size and self._keys[index] == key:
            return Present(self.size, self._tree.root, self._leaf(index))
        left = self._leaf(index - 1) if index else None
        right = self._leaf(index) if index < self.size else None
        return Absent(self.size, self._tree.root, key, left, right)

    def _leaf(self, index: int) -> Leaf:
        return Leaf(self._keys[index], index, self._tree.inclusion(index))


def proof_from_json(value: object) -> Present | Absent:
    """Read a proof of presence or absence strictly.

    Raises:
        TrustError: anything is missing, added, or not written as `to_json` writes it.
    """
    if not isinstance(value, Mapping) or value.get("format") != PROOF_FORMAT:
        got = value.get("format") if isinstance(value, Mapping) else type(value).__name__
        raise TrustError("not a record proof", details=[f"got {got!r}, wanted {PROOF_FORMAT!r}"])
    head = {"format", "claim", "size", "head"}
    absent = value.get("claim") == "absent"
    fields = _fields(value, head | ({"key", "left", "right"} if absent else {"leaf"}))
    if fields["claim"] not in ("present", "absent") or not _is_count(fields["size"]):
        raise TrustError("a record proof claims `present` or `absent` of a tree of whole `size`")
    size, root = fields["size"], _unhex(fields["head"])
    if not absent:
        return Present(size, root, Leaf.from_json(fields["leaf"]))
    left, right = (
        None if fields[side] is None else Leaf.from_json(fields[side]) for side in ("left", "right")
    )
    return Absent(size, root, _unhex(fields["key"]), left, right)


def _header(claim: str, size: int, head: bytes) -> dict[str, Any]:
    return {"format": PROOF_FORMAT, "claim": claim, "size": size, "head": head.hex()}


def _same_tree(proof: Present | Absent, size: int, head: str) -> None:
    if proof.size != size or proof.head.hex() != head:
        raise TrustError(
            "the proof is of another record tree",
            details=[f"got size {proof.size}, head {proof.head.hex()}", f"wanted {size}, {head}"],
        )


def _same_key(got: bytes, wanted: bytes) -> None:
    if got != wanted:
        raise TrustError(
            "the proof is of another key", details=[f"got {got.hex()}, wanted {wanted.hex()}"]
        )


def _fields(value: object, names: set[str]) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or set(value) != names:
        got = sorted(map(str, value)) if isinstance(value, Mapping) else type(value).__name__
        raise TrustError("a proof has other fields", details=[f"got {got}, wanted {sorted(names)}"])
    return value


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _unhex(value: object) -> bytes:
    try:
        data = bytes.fromhex(value) if isinstance(value, str) else b""
    except ValueError:
        data = b""
    if len(data) != HASH_BYTES or data.hex() != value:
        raise TrustError("a key or head is 64 lowercase hex digits", details=[f"got {value!r:.80}"])
    return data


def _unbase64(value: object) -> bytes:
    try:
        data = base64.b64decode(value, validate=True) if isinstance(value, str) else b""
    except (binascii.Error, ValueError):
        data = b""
    if len(data) != HASH_BYTES or base64.b64encode(data).decode() != value:
        raise TrustError("a hash is 32 bytes of base64", details=[f"got {value!r:.80}"])
    return data
