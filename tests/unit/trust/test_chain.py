from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trust_release

from overproof.core.errors import TrustError
from overproof.trust.chain import walk
from overproof.trust.folder import Folder
from overproof.trust.proofs import Proofs, read_proofs
from overproof.trust.verify import verify

Change = Callable[[dict[str, Any]], None]


def proofs(made: trust_release.Synthetic) -> Proofs:
    return read_proofs(Folder.list(made.release))


def with_export_input(folder: Path, change: Change) -> trust_release.Synthetic:
    """A release whose export stage, honestly stated, has an input as `change` leaves it."""
    made = trust_release.make(folder)
    export = made.named("export")
    row = dict(export.manifest["inputs"][0])
    change(row)
    changed = replace(export, manifest={**export.manifest, "inputs": [row]})
    made = replace(
        made,
        artifacts=(*made.artifacts[:-1], changed),
        predicates=(*made.predicates[:-1], ("parity-receipt", changed, trust_release.PARITY)),
    )
    made.attest()
    return made


def test_what_the_walk_meets(sealed: trust_release.Synthetic) -> None:
    chain = walk(proofs(sealed))
    assert [stage.name for stage in chain.stages] == [
        "train", "signals", "student", "control", "export",
    ]  # fmt: skip
    assert [(end.annotations.kind, end.annotations.name) for end in chain.ends] == [
        ("source", "train.jsonl"),
        ("code", "overproof"),
        ("teacher", "tiny-llama"),
    ]
    assert [end.annotations.name for end in chain.origins()] == ["tiny-llama"]
    assert [stage.name for stage in chain.datasets()] == ["train"]
    assert chain.model is not None
    assert chain.model.name == "student"
    assert [stage.name for stage in chain.builds] == ["export"]


def test_the_unchanged_input_passes(tmp_path: Path) -> None:
    made = with_export_input(tmp_path, lambda row: None)
    assert verify(made.release, made.key.public).exit_code == 0


UNKNOWN = {"sha256": "77" * 32}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row.update(name="control"), "called student 'control'"),
        (lambda row: row.update(kind="initial"), "called initial 'student'"),
        (lambda row: row.update(UNKNOWN), "loose end"),
        (lambda row: row.update(UNKNOWN, kind="source"), "loose end"),
        (lambda row: row.update(UNKNOWN, kind="weights", uri="file:x"), "loose end"),
    ],
)
def test_inputs_that_end_the_walk(tmp_path: Path, change: Change, message: str) -> None:
    made = with_export_input(tmp_path, change)
    with pytest.raises(TrustError, match=message) as caught:
        verify(made.release, made.key.public)
    assert caught.value.step == 5
    assert "proof/14-export.sigstore.json" in caught.value.render()


def test_a_build_from_elsewhere(tmp_path: Path) -> None:
    """The walk ends well, but the build does not come from the model beside it."""
    made = with_export_input(tmp_path, lambda row: row.update(UNKNOWN, kind="code", uri="file:x"))
    with pytest.raises(TrustError, match="does not depend on 'student'") as caught:
        verify(made.release, made.key.public)
    assert caught.value.step == 5


def test_a_source_that_no_dataset_reads(tmp_path: Path) -> None:
    made = with_export_input(tmp_path, lambda row: row.update(UNKNOWN, kind="source", uri="file:x"))
    with pytest.raises(TrustError, match="no dataset certifies") as caught:
        verify(made.release, made.key.public)
    assert caught.value.step == 5


def test_a_target_folder_may_be_left_to_the_release(tmp_path: Path) -> None:
    made = trust_release.make(tmp_path)
    flat = trust_release.artifact(
        tmp_path / "store", "export", "flat", {"student": made.named("student")},
        {"model.gguf": b"GGUF build"}, trust_release.PARITY,
    )  # fmt: skip
    made = replace(made, artifacts=(*made.artifacts[:-1], flat), predicates=made.predicates[:-1])
    made.attest()
    assert [stage.name for stage in walk(proofs(made)).builds] == ["flat"]


def test_files_of_two_students_do_not_mix(tmp_path: Path) -> None:
    made = trust_release.make(tmp_path)
    (made.release / "model/config.json").write_bytes(b'{"layers":3}')
    made.attest()
    with pytest.raises(TrustError, match=r"model/config\.json: not made by") as caught:
        verify(made.release, made.key.public)
    assert caught.value.step == 5
