from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import training
from tiny_teacher import examples

from overproof.student import examples as sets
from overproof.student.arrays import Growing, array_file, mapped
from overproof.student.examples import TrainSet, build_train_set


def test_rows_that_come_one_after_another_are_the_array(tmp_path: Path) -> None:
    whole = np.arange(12_000, dtype=np.float32).reshape(-1, 3)
    with Growing(tmp_path, "some", whole.dtype, 3) as file:
        for start in range(0, len(whole), 700):
            file.add(whole[start : start + 700])
    found = mapped(array_file(tmp_path, "some"))
    assert isinstance(found, np.memmap)
    assert np.array_equal(found, whole)


def test_no_rows_are_an_empty_array(tmp_path: Path) -> None:
    with Growing(tmp_path, "none", np.dtype(np.int64), 0):
        pass
    assert mapped(array_file(tmp_path, "none")).shape == (0, 0)


def test_values_are_written_in_the_arrays_type(tmp_path: Path) -> None:
    with Growing(tmp_path, "keys", np.dtype("S64")) as file:
        file.add([b"a" * 64, b"b"])
    assert mapped(array_file(tmp_path, "keys")).tolist() == [b"a" * 64, b"b"]


@pytest.mark.parametrize("together", [1, 4, 1000])
def test_a_set_does_not_depend_on_how_many_are_laid_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, together: int
) -> None:
    few = examples(10)
    vocabulary = training.vocabulary(300)  # some tokens are spelled in pieces
    whole = build_train_set(tmp_path / "whole", training.HEAD, few, vocabulary, None)
    monkeypatch.setattr(sets, "TOGETHER", together)
    parts = build_train_set(tmp_path / "parts", training.HEAD, few, vocabulary, None)
    for name in TrainSet.__annotations__:
        if name != "targets":
            assert np.array_equal(getattr(whole, name), getattr(parts, name)), name
    for name in vars(whole.targets):
        assert np.array_equal(getattr(whole.targets, name), getattr(parts.targets, name)), name
    left = {file.stem for file in (tmp_path / "parts").iterdir()}
    assert not left & set(sets.PASSING)
