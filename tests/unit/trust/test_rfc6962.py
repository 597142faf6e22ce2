from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from overproof.core.errors import TrustError, UsageError
from overproof.trust import rfc6962
from overproof.trust.rfc6962 import Tree, check_consistency, check_inclusion, leaf_hash

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "vectors/trust/rfc6962.json").read_text()
)
LEAVES = [leaf_hash(bytes.fromhex(leaf)) for leaf in VECTORS["leaves"]]
ROOTS = [bytes.fromhex(root) for root in VECTORS["roots"]]


def path_of(row: dict[str, Any]) -> tuple[bytes, ...]:
    return tuple(bytes.fromhex(item) for item in row["path"])


def test_roots() -> None:
    assert Tree([]).root.hex() == VECTORS["empty_root"]
    for size, root in enumerate(ROOTS, start=1):
        assert Tree(LEAVES[:size]).root == root


@pytest.mark.parametrize("row", VECTORS["inclusion"])
def test_inclusion_vectors(row: dict[str, Any]) -> None:
    size, index = row["size"], row["index"]
    assert Tree(LEAVES[:size]).inclusion(index) == path_of(row)
    check_inclusion(LEAVES[index], index, path_of(row), size=size, root=ROOTS[size - 1])


@pytest.mark.parametrize("row", VECTORS["consistency"])
def test_consistency_vectors(row: dict[str, Any]) -> None:
    size, old = row["size"], row["old"]
    assert Tree(LEAVES[:size]).consistency(old) == path_of(row)
    check_consistency(
        path_of(row), old_size=old, old_root=ROOTS[old - 1], size=size, root=ROOTS[size - 1]
    )


def test_a_path_does_not_commit_to_the_size() -> None:
    """Why every check takes size and root from something signed."""
    path = Tree(LEAVES[:3]).inclusion(2)
    check_inclusion(LEAVES[2], 2, path, size=3, root=ROOTS[2])
    check_inclusion(LEAVES[2], 1, path, size=2, root=ROOTS[2])


@pytest.mark.parametrize(
    ("index", "size", "change", "message"),
    [
        (8, 8, lambda p: p, "outside"),
        (-1, 8, lambda p: p, "outside"),
        (5, 8, lambda p: p[:-1], "too short"),
        (5, 8, lambda p: (*p, p[0]), "too long"),
        (5, 8, lambda p: (p[1], p[0], p[2]), "another root"),
        (4, 8, lambda p: p, "another root"),
        (5, 8, lambda p: (p[0][:-1], *p[1:]), "not a proof path"),
        (5, 8, lambda p: p * 30, "not a proof path"),
    ],
)
def test_wrong_inclusion(index: int, size: int, change: Any, message: str) -> None:
    path = change(Tree(LEAVES).inclusion(5))
    with pytest.raises(TrustError, match=message):
        check_inclusion(LEAVES[5], index, path, size=size, root=ROOTS[7])


@pytest.mark.parametrize(
    ("old", "old_root", "change", "message"),
    [
        (0, 0, lambda p: p, "cannot extend"),
        (9, 5, lambda p: p, "cannot extend"),
        (6, 4, lambda p: p, "starts from another root"),
        (6, 5, lambda p: p[:-1], "too short"),
        (6, 5, lambda p: (), "too short"),
        (6, 5, lambda p: (*p, p[0]), "too long"),
        (8, 7, lambda p: p, "is empty"),
        (8, 6, lambda p: (), "different roots"),
    ],
)
def test_wrong_consistency(old: int, old_root: int, change: Any, message: str) -> None:
    path = change(Tree(LEAVES).consistency(6))
    with pytest.raises(TrustError, match=message):
        check_consistency(path, old_size=old, old_root=ROOTS[old_root], size=8, root=ROOTS[7])


def test_a_leaf_is_no_node() -> None:
    inner = LEAVES[0] + LEAVES[1]
    assert leaf_hash(inner) != rfc6962.node_hash(LEAVES[0], LEAVES[1])


def test_usage() -> None:
    tree = Tree(LEAVES)
    for call in (lambda: tree.inclusion(8), lambda: tree.consistency(0), lambda: Tree([b"short"])):
        with pytest.raises(UsageError):
            call()
