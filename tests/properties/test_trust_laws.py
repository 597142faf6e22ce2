"""Laws of the proof: no byte of a release can change, and Merkle trees are what RFC 6962 says."""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Iterator
from itertools import permutations
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "trust"))

import trust_release

from overproof.core.errors import TrustError
from overproof.trust.folder import Folder
from overproof.trust.keys import PublicKey
from overproof.trust.merkle import Absent, Present, SortedTree, proof_from_json
from overproof.trust.rfc6962 import (
    Tree,
    check_consistency,
    check_inclusion,
    leaf_hash,
    node_hash,
    size_and_root,
)
from overproof.trust.strict import parse_canonical
from overproof.trust.tlog import LogProof, Note
from overproof.trust.verify import verify

FAST = settings(deadline=None, max_examples=150)
ON_DISK = settings(
    deadline=None,
    max_examples=250,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    made = trust_release.make(tmp_path_factory.mktemp("laws"))
    made.attest()
    yield made.release
    verify(made.release, SIGNER)  # every example has put the release back as it was


SIGNER: PublicKey = trust_release.signing_key().public


def rejected(release: Path, *names: str) -> TrustError:
    """The release is rejected with a step's number, and one of the names is in the message."""
    with pytest.raises(TrustError) as caught:
        verify(release, SIGNER)
    error = caught.value
    assert error.step in range(1, 7), str(error)
    assert any(name in error.render() for name in names), (names, error.render())
    return error


@ON_DISK
@given(data=st.data())
def test_flipping_any_byte_is_rejected(release: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(Folder.list(release).files))
    file = release / name
    old = file.read_bytes()
    at = data.draw(st.integers(0, len(old) - 1))
    flip = data.draw(st.integers(1, 255))
    file.write_bytes(old[:at] + bytes([old[at] ^ flip]) + old[at + 1 :])
    try:
        rejected(release, name)
    finally:
        file.write_bytes(old)


def test_flipping_each_byte_of_the_log_is_rejected(release: Path) -> None:
    """The files with the most room for another spelling, byte for byte."""
    for name in ("proof/checkpoint", "proof/12-student.tlog-proof"):
        file = release / name
        old = file.read_bytes()
        for at in range(len(old)):
            file.write_bytes(old[:at] + bytes([old[at] ^ 0x20]) + old[at + 1 :])
            rejected(release, name)
        file.write_bytes(old)


@ON_DISK
@given(data=st.data())
def test_cutting_or_lengthening_a_file_is_rejected(release: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(Folder.list(release).files))
    file = release / name
    old = file.read_bytes()
    at = data.draw(st.integers(0, len(old)))
    added = data.draw(st.sampled_from([b"", b"\n", b" ", b"\x00", b"=", b"\r\n"]))
    new = old[:at] + added + (old[at:] if added else b"")
    if new == old:
        return
    file.write_bytes(new)
    try:
        rejected(release, name)
    finally:
        file.write_bytes(old)


def test_deleting_any_file_is_rejected(release: Path) -> None:
    for name in Folder.list(release).files:
        file = release / name
        old = file.read_bytes()
        file.unlink()
        rejected(release, name)
        file.write_bytes(old)


@ON_DISK
@given(data=st.data())
def test_swapping_two_files_is_rejected(release: Path, data: st.DataObject) -> None:
    names = st.sampled_from(Folder.list(release).files)
    one, two = data.draw(st.lists(names, min_size=2, max_size=2, unique=True))
    first, second = (release / one).read_bytes(), (release / two).read_bytes()
    assert first != second
    (release / one).write_bytes(second)
    (release / two).write_bytes(first)
    try:
        rejected(release, one, two)
    finally:
        (release / one).write_bytes(first)
        (release / two).write_bytes(second)


PLACES = st.sampled_from(
    ["", "model/", "export/", "export/new/", "proof/", "proof/dataset/", "proof/new/"]
)
ENDS = st.sampled_from(["", ".txt", ".sigstore.json", ".tlog-proof", ".py", "~"])


@ON_DISK
@given(place=PLACES, end=ENDS, data=st.data())
def test_adding_any_file_is_rejected(
    release: Path, place: str, end: str, data: st.DataObject
) -> None:
    known = Folder.list(release).files
    copied = data.draw(st.sampled_from(known))
    name = f"{place}added{end}"
    made_folder = not (release / name).parent.exists()
    (release / name).parent.mkdir(exist_ok=True)
    shutil.copyfile(release / copied, release / name)
    try:
        rejected(release, name)
    finally:
        (release / name).unlink()
        if made_folder:
            (release / name).parent.rmdir()


def naive_root(leaves: list[bytes]) -> bytes:
    """RFC 6962 section 2.1, word for word."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaf_hash(leaves[0])
    k = largest_power(len(leaves))
    return node_hash(naive_root(leaves[:k]), naive_root(leaves[k:]))


def naive_path(m: int, leaves: list[bytes]) -> list[bytes]:
    """RFC 6962 section 2.1.1."""
    if len(leaves) == 1:
        return []
    k = largest_power(len(leaves))
    if m < k:
        return [*naive_path(m, leaves[:k]), naive_root(leaves[k:])]
    return [*naive_path(m - k, leaves[k:]), naive_root(leaves[:k])]


def naive_subproof(m: int, leaves: list[bytes], whole: bool) -> list[bytes]:
    """RFC 6962 section 2.1.2."""
    if m == len(leaves):
        return [] if whole else [naive_root(leaves)]
    k = largest_power(len(leaves))
    if m <= k:
        return [*naive_subproof(m, leaves[:k], whole), naive_root(leaves[k:])]
    return [*naive_subproof(m - k, leaves[k:], False), naive_root(leaves[:k])]


def largest_power(n: int) -> int:
    """Largest power of two below n."""
    return 1 << (n - 1).bit_length() - 1


LEAVES = st.lists(st.binary(max_size=4), max_size=70)


@FAST
@given(LEAVES)
def test_root_equals_the_recursive_definition(leaves: list[bytes]) -> None:
    assert Tree(map(leaf_hash, leaves)).root == naive_root(leaves)
    assert size_and_root(map(leaf_hash, leaves)) == (len(leaves), naive_root(leaves))


@FAST
@given(LEAVES.filter(bool), st.data())
def test_inclusion_equals_the_recursive_definition(
    leaves: list[bytes], data: st.DataObject
) -> None:
    index = data.draw(st.integers(0, len(leaves) - 1))
    tree = Tree(map(leaf_hash, leaves))
    path = tree.inclusion(index)
    assert list(path) == naive_path(index, leaves)
    check_inclusion(leaf_hash(leaves[index]), index, path, size=len(leaves), root=tree.root)


@FAST
@given(LEAVES.filter(bool), st.data())
def test_consistency_equals_the_recursive_definition(
    leaves: list[bytes], data: st.DataObject
) -> None:
    old = data.draw(st.integers(1, len(leaves)))
    tree = Tree(map(leaf_hash, leaves))
    path = tree.consistency(old)
    assert list(path) == naive_subproof(old, leaves, True)
    check_consistency(
        path,
        old_size=old,
        old_root=naive_root(leaves[:old]),
        size=len(leaves),
        root=tree.root,
    )


@FAST
@given(st.lists(st.binary(max_size=4), min_size=2, max_size=40, unique=True), st.data())
def test_a_leaf_is_at_one_index_only(leaves: list[bytes], data: st.DataObject) -> None:
    tree = Tree(map(leaf_hash, leaves))
    index = data.draw(st.integers(0, len(leaves) - 1))
    other = data.draw(st.integers(0, len(leaves) - 1).filter(lambda i: i != index))
    with pytest.raises(TrustError):
        check_inclusion(
            leaf_hash(leaves[index]),
            other,
            tree.inclusion(index),
            size=len(leaves),
            root=tree.root,
        )


KEYS = st.sets(st.binary(min_size=32, max_size=32), max_size=40)


@FAST
@given(KEYS, st.binary(min_size=32, max_size=32), st.data())
def test_every_key_is_present_or_absent(
    keys: set[bytes], other: bytes, data: st.DataObject
) -> None:
    tree = SortedTree(keys)
    key = data.draw(st.sampled_from([*sorted(keys), other]))
    proof = tree.prove(key)
    assert isinstance(proof, Present) == (key in keys)
    proof_from_json(proof.to_json()).check(key, size=tree.size, head=tree.head)


@FAST
@given(KEYS.filter(bool), st.data())
def test_a_present_key_cannot_be_proven_absent(keys: set[bytes], data: st.DataObject) -> None:
    """Whatever true leaves a forger puts left and right."""
    tree = SortedTree(keys)
    leaves = [tree.prove(key) for key in sorted(keys)]
    key = data.draw(st.sampled_from(sorted(keys)))
    choices = st.sampled_from([None, *(p.leaf for p in leaves if isinstance(p, Present))])
    forged = Absent(
        tree.size, bytes.fromhex(tree.head), key, data.draw(choices), data.draw(choices)
    )
    with pytest.raises(TrustError):
        forged.check(key, size=tree.size, head=tree.head)


@FAST
@given(KEYS.filter(lambda keys: len(keys) > 1), st.data())
def test_an_absent_key_cannot_be_proven_present(keys: set[bytes], data: st.DataObject) -> None:
    gone = data.draw(st.sampled_from(sorted(keys)))
    whole, rest = SortedTree(keys), SortedTree(keys - {gone})
    with pytest.raises(TrustError):
        whole.prove(gone).check(gone, size=rest.size, head=rest.head)


def test_the_order_of_keys_does_not_matter() -> None:
    keys = [hashlib.sha256(bytes([i])).digest() for i in range(4)]
    assert len({SortedTree(order).head for order in permutations(keys)}) == 1


@FAST
@given(st.binary(max_size=300))
def test_parsers_raise_nothing_but_trust_errors(data: bytes) -> None:
    for parse in (parse_canonical, Note.parse, LogProof.parse):
        try:
            parse(data)
        except TrustError:
            continue
