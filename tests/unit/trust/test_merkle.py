from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from typing import Any

import pytest

from overproof.core.digest import canonical
from overproof.core.errors import TrustError, UsageError
from overproof.trust.merkle import (
    Absent,
    Leaf,
    Present,
    SortedTree,
    proof_from_json,
    size_and_head,
)

KEYS = [hashlib.sha256(b"%d" % i).digest() for i in range(11)]
TREE = SortedTree(KEYS)
FIRST, LAST = min(KEYS), max(KEYS)


def below(key: bytes) -> bytes:
    return (int.from_bytes(key, "big") - 1).to_bytes(32, "big")


def above(key: bytes) -> bytes:
    return (int.from_bytes(key, "big") + 1).to_bytes(32, "big")


def test_the_head_of_sorted_keys_needs_no_tree() -> None:
    assert size_and_head(sorted(KEYS)) == (TREE.size, TREE.head)
    assert size_and_head([]) == (0, SortedTree([]).head)
    with pytest.raises(UsageError, match="sorted"):
        size_and_head(sorted(KEYS, reverse=True))


def test_order_of_input_does_not_matter() -> None:
    assert SortedTree(reversed(KEYS)).head == TREE.head
    assert SortedTree(iter(KEYS)).size == len(KEYS)


@pytest.mark.parametrize("key", KEYS)
def test_present(key: bytes) -> None:
    proof = TREE.prove(key)
    assert isinstance(proof, Present)
    proof.check(key, size=TREE.size, head=TREE.head)
    with pytest.raises(TrustError, match="another key"):
        proof.check(above(key), size=TREE.size, head=TREE.head)


@pytest.mark.parametrize(
    ("key", "left", "right"),
    [
        (below(FIRST), False, True),
        (above(FIRST), True, True),
        (below(LAST), True, True),
        (above(LAST), True, False),
        (b"\x00" * 32, False, True),
        (b"\xff" * 32, True, False),
    ],
)
def test_absent(key: bytes, left: bool, right: bool) -> None:
    proof = TREE.prove(key)
    assert isinstance(proof, Absent)
    assert (proof.left is not None, proof.right is not None) == (left, right)
    proof.check(key, size=TREE.size, head=TREE.head)


def test_empty_tree() -> None:
    tree = SortedTree([])
    proof = tree.prove(KEYS[0])
    proof.check(KEYS[0], size=0, head=tree.head)
    forged = Absent(0, bytes.fromhex(TREE.head), KEYS[0], None, None)
    with pytest.raises(TrustError, match="empty tree"):
        forged.check(KEYS[0], size=0, head=TREE.head)


def absent() -> Absent:
    proof = TREE.prove(above(FIRST))
    assert isinstance(proof, Absent)
    return proof


def leaf(index: int) -> Leaf:
    proof = TREE.prove(sorted(KEYS)[index])
    assert isinstance(proof, Present)
    return proof.leaf


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: replace(p, right=leaf(2)), "side by side"),
        (lambda p: replace(p, right=None), "side by side"),
        (lambda p: replace(p, left=None), "side by side"),
        (lambda p: replace(p, left=None, right=None), "side by side"),
        (lambda p: replace(p, left=leaf(1), right=leaf(2)), "not below"),
        (lambda p: replace(p, right=leaf(0)), "not above"),
        (lambda p: replace(p, left=replace(leaf(0), key=below(FIRST))), "another root"),
        (lambda p: replace(p, right=replace(leaf(2), index=1)), "another root"),
        (lambda p: replace(p, size=TREE.size + 1), "another record tree"),
        (lambda p: replace(p, head=b"\x00" * 32), "another record tree"),
    ],
)
def test_forged_absence(change: Any, message: str) -> None:
    with pytest.raises(TrustError, match=message):
        change(absent()).check(above(FIRST), size=TREE.size, head=TREE.head)


def test_presence_cannot_be_denied() -> None:
    """A key that is there has no neighbours with nothing between them around it."""
    key = sorted(KEYS)[4]
    for left in (None, *map(leaf, range(len(KEYS)))):
        for right in (None, *map(leaf, range(len(KEYS)))):
            forged = Absent(TREE.size, bytes.fromhex(TREE.head), key, left, right)
            with pytest.raises(TrustError):
                forged.check(key, size=TREE.size, head=TREE.head)


@pytest.mark.parametrize("key", [KEYS[3], below(FIRST), above(FIRST), above(LAST)])
def test_json_round_trip(key: bytes) -> None:
    proof = TREE.prove(key)
    text = canonical(proof.to_json())
    assert proof_from_json(json.loads(text)) == proof


def edited(**fields: Any) -> dict[str, Any]:
    return {**TREE.prove(KEYS[0]).to_json(), **fields}


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        edited(format="overproof-record-proof/2"),
        edited(claim="maybe"),
        edited(claim="absent"),
        edited(size="11"),
        edited(size=True),
        edited(size=-1),
        edited(head=TREE.head.upper()),
        edited(head=TREE.head[:-1]),
        edited(head=[TREE.head]),
        edited(more=1),
        edited(leaf=None),
        edited(leaf={**TREE.prove(KEYS[0]).to_json()["leaf"], "path": "x"}),
        edited(leaf={**TREE.prove(KEYS[0]).to_json()["leaf"], "path": ["AAAA"]}),
        edited(leaf={**TREE.prove(KEYS[0]).to_json()["leaf"], "path": [7]}),
        edited(leaf={**TREE.prove(KEYS[0]).to_json()["leaf"], "index": 1.0}),
        edited(leaf={**TREE.prove(KEYS[0]).to_json()["leaf"], "key": 7}),
        {**absent().to_json(), "left": 5},
    ],
)
def test_json_is_read_strictly(value: Any) -> None:
    with pytest.raises(TrustError):
        proof_from_json(value)


def test_base64_has_one_spelling() -> None:
    value = TREE.prove(KEYS[0]).to_json()
    spelt = value["leaf"]["path"][0]
    assert spelt.endswith("=")
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    other = spelt[:-2] + alphabet[alphabet.index(spelt[-2]) + 1] + "="
    value["leaf"]["path"][0] = other
    with pytest.raises(TrustError, match="base64"):
        proof_from_json(value)


def test_usage() -> None:
    with pytest.raises(UsageError, match="once"):
        SortedTree([KEYS[0], KEYS[0]])
    with pytest.raises(UsageError, match="32 bytes"):
        SortedTree([b"short"])
    with pytest.raises(UsageError, match="32 bytes"):
        TREE.prove(b"short")


def test_proof_size_at_ten_million() -> None:
    """The design's bound: under 2 KB of hashes and keys, two neighbours of 24 levels each."""
    levels = (10_000_000 - 1).bit_length()
    assert 2 * (levels + 1) * 32 < 2000
