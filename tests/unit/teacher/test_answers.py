from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from overproof.core.config import find_recipe, load_recipe
from overproof.core.errors import UsageError
from overproof.teacher.answers import _unique, _write, write_signals
from overproof.teacher.cache import shard_file
from overproof.teacher.example import Example
from overproof.teacher.journal import Journal
from overproof.teacher.kept import TopK
from overproof.teacher.kept.top_k import TopSignals
from overproof.teacher.prompts import _prompt, beginning, demand_sequence, shared_prefix
from overproof.teacher.request import Request

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
    assert [example.tokens[place + 1] for place in example.targets()] == [4, 5]
    assert [example.tokens[place + 1] for place in example.targets(prompt=True)] == [2, 3, 4, 5]


def test_answers_that_may_be_too_long_are_refused_before_they_are_drawn() -> None:
    recipe = load_recipe(find_recipe("support"), ["sample.max_new_tokens=80"])
    demand_sequence(176, recipe)
    with pytest.raises(UsageError, match="too short for the longest prompt") as caught:
        demand_sequence(177, recipe)
    assert (
        "an answer of 80 tokens (sample.max_new_tokens) behind a prompt of 177"
        in caught.value.render()
    )


@pytest.mark.parametrize(
    ("text", "words", "wanted"),
    [
        ("I  want\nmy money back", 3, "I  want\nmy"),
        ("I want", 5, "I want"),
        (" I want", 1, " I"),
        ("I want ", None, "I want "),
        ("  ", 2, "  "),
    ],
)
def test_the_first_words_of_a_prompt(text: str, words: int | None, wanted: str) -> None:
    assert beginning(text, words) == wanted


def test_a_record_that_is_no_prompt_is_told() -> None:
    def row(messages):
        return SimpleNamespace(key="abc", record=SimpleNamespace(messages=messages))

    user = SimpleNamespace(role="user", content="Where is my parcel?")
    assert _prompt(row([user])) == user.content
    for wrong in (None, [], [user, user], [SimpleNamespace(role="system", content="x")]):
        with pytest.raises(UsageError, match="one prompt") as caught:
            _prompt(row(wrong))
        assert "record abc" in caught.value.render()


def test_equal_answers_of_two_teachers_both_stay(tmp_path: Path) -> None:
    requests = [
        replace(Request.make("a", [1], 0, draw), teacher=teacher)
        for draw, teacher in enumerate((0, 1, 1))
    ]
    with closing(Journal(tmp_path / "journal")) as journal:
        for request in requests:
            journal.add(request.key, [7], b"")
        assert [one.request.teacher for one in _unique(requests, journal)] == [0, 1]


@pytest.mark.parametrize("prompts", [False, True])
def test_equal_answers_to_one_prompt_are_kept_once(tmp_path: Path, prompts: bool) -> None:
    """Prompt `a` has one position inside, prompt `b` none."""
    requests = [
        Request.make(key, ids, 0, draw, signals=True)
        for draw in (0, 1, 2)
        for key, ids in (("a", [1, 2]), ("b", [3]))
    ]
    said = {"a/0": [7], "b/0": [7], "a/1": [7], "b/1": [8, 5], "a/2": [9], "b/2": [7]}
    kept = TopK(2, 1, prompts=prompts)
    journal = Journal(tmp_path / "journal")
    for number, (key, tokens) in enumerate(reversed(said.items())):
        size = len(tokens) + (prompts and key.startswith("a"))
        signals = TopSignals(
            torch.full((size, 2), number, dtype=torch.int32),
            torch.full((size, 2), -number, dtype=torch.float16),
            torch.full((size,), float(number)),
            torch.full((size, 1), 10 + number, dtype=torch.int32),
        )
        journal.add(key, tokens, kept.to_bytes(signals))
    rows = _unique(requests, journal)
    assert _write(tmp_path / "train.jsonl", rows) == 5
    write_signals(tmp_path, rows, journal, kept)
    journal.close()
    lines = (tmp_path / "train.jsonl").read_text().splitlines()
    assert [tuple(json.loads(line).values()) for line in lines] == [
        *(("a", 0, [1, 2], [7]), ("b", 0, [3], [7])),
        *(("b", 0, [3], [8, 5]), ("a", 0, [1, 2], [9])),
    ]
    found = kept.unpack(load_file(shard_file(tmp_path, 0)))
    numbers = [5, 5, 4, 2, 2, 1, 1] if prompts else [5, 4, 2, 2, 1]
    assert found.ids_NK.tolist() == [[number, number] for number in numbers]
    assert found.log_probs_NK[:, 0].tolist() == [-number for number in numbers]
    assert found.tail_N.tolist() == numbers
    assert found.drawn_NR.tolist() == [[10 + number] for number in numbers]
