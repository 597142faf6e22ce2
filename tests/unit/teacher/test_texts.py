from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overproof.teacher import texts
from overproof.teacher.example import Example
from overproof.teacher.texts import Examples, write_examples

WHOLE = [
    Example(f"key-{number}", (number,), tuple(range(number)), number % 2) for number in range(9)
]


def written(path: Path, examples: list[Example] = WHOLE) -> Path:
    assert write_examples(path, examples) == sum(len(one.answer) for one in examples)
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("texts") / "train.jsonl")


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_they_are_the_rows(file: Path, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "CHUNK", chunk)
    found = Examples(file)
    assert list(found) == WHOLE
    assert len(found) == len(WHOLE)
    assert found[-1] == WHOLE[-1]
    with pytest.raises(IndexError):
        found[len(WHOLE)]


@given(st.integers(-12, 12) | st.none(), st.integers(-12, 12) | st.none(), st.integers(-3, 3))
def test_a_slice_is_that_of_a_list(file: Path, start: int, stop: int, inner: int) -> None:
    found = Examples(file)[start:stop]
    assert list(found) == WHOLE[start:stop]
    assert list(found[inner:]) == WHOLE[start:stop][inner:]


def test_another_process_gets_the_place_and_not_the_bytes(file: Path) -> None:
    part = Examples(file)[2:5]
    sent = pickle.dumps(part)
    assert b"key-3" not in sent
    assert list(pickle.loads(sent)) == WHOLE[2:5]  # noqa: S301 - made above


def test_no_rows(tmp_path: Path) -> None:
    found = Examples(written(tmp_path / "none.jsonl", []))
    assert list(found) == []
    assert list(found[:3]) == []


def test_rows_are_not_left_out(file: Path) -> None:
    with pytest.raises(ValueError, match="got a step of 2, wanted 1"):
        Examples(file)[::2]
