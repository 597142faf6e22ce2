from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overproof.core.errors import UsageError
from overproof.teacher.answers import _prompt, _write, shared_prefix
from overproof.teacher.example import Example
from overproof.teacher.sample import Request

PROMPTS = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=8), min_size=1, max_size=6)


@pytest.mark.parametrize(
    ("prompts", "wanted"),
    [
        ([[1, 2, 3], [1, 2, 4]], (1, 2)),
        ([[1, 2], [1, 2, 4]], (1,)),  # the shorter keeps one of its own
        ([[1, 2, 3]], (1, 2)),
        ([[5], [5, 6]], ()),
        ([[1, 2], [2, 1]], ()),
        ([[7, 7, 7], [7, 7, 7]], (7, 7)),
    ],
)
def test_the_shared_prefix(prompts: list[list[int]], wanted: tuple[int, ...]) -> None:
    assert shared_prefix(prompts) == wanted


@given(PROMPTS)
def test_the_prefix_is_shared_by_all_and_as_long_as_can_be(prompts: list[list[int]]) -> None:
    prefix = list(shared_prefix(prompts))
    size = len(prefix)
    assert all(prompt[:size] == prefix for prompt in prompts)
    assert all(len(prompt) > size for prompt in prompts)
    longer = {tuple(prompt[: size + 1]) for prompt in prompts}
    assert len(longer) > 1 or min(map(len, prompts)) == size + 1


def test_targets_are_the_places_before_answer_tokens() -> None:
    example = Example("k", (1, 2, 3), (4, 5))
    assert example.tokens == (1, 2, 3, 4, 5)
    assert [example.tokens[place + 1] for place in example.targets] == [4, 5]


def test_a_record_that_is_no_prompt_is_told() -> None:
    def row(messages):
        return SimpleNamespace(key="abc", record=SimpleNamespace(messages=messages))

    user = SimpleNamespace(role="user", content="Where is my parcel?")
    assert _prompt(row([user])) == user.content
    for wrong in (None, [], [user, user], [SimpleNamespace(role="system", content="x")]):
        with pytest.raises(UsageError, match="one prompt") as caught:
            _prompt(row(wrong))
        assert "record abc" in caught.value.render()


def test_equal_answers_to_one_prompt_are_kept_once(tmp_path: Path) -> None:
    requests = [
        Request.make(key, ids, 0, draw)
        for draw in (0, 1, 2)
        for key, ids in (("a", [1, 2]), ("b", [3]))
    ]
    said = {"a/0": [7], "b/0": [7], "a/1": [7], "b/1": [8], "a/2": [9], "b/2": [7]}
    assert _write(tmp_path / "train.jsonl", requests, said) == (4, 4)
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert [(row["key"], row["prompt"], row["answer"]) for row in rows] == [
        *(("a", [1, 2], [7]), ("b", [3], [7])),
        *(("b", [3], [8]), ("a", [1, 2], [9])),
    ]
