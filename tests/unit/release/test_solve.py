from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_teacher as tiny
import training

from overproof.core.config import find_recipe, load_recipe
from overproof.core.recipe import Recipe
from overproof.release import solve
from overproof.teacher.answers import Answers

VOWEL = {"kind": "regex", "pattern": "[aeiou]"}


def recipe() -> Recipe:
    return load_recipe(
        find_recipe("support"),
        [
            "sample={prompts: 1, heldout_prompts: 9, max_new_tokens: 40, batch: 8, temperature: 1}",
            "evaluate.attempts=3",
        ],
    )


ALWAYS = {"kind": "regex", "pattern": ""}
NEVER = {"kind": "exact", "answer": "\u2603" * 40}


def answers() -> Answers:
    problems = tiny.examples(9)
    checks = [ALWAYS, NEVER, VOWEL] * 3
    return Answers(
        training.HEAD,
        training.HEAD,
        [],
        [],
        problems,
        {},
        {one.key: check for one, check in zip(problems, checks, strict=True)},
    )


def test_problems_need_a_check_each() -> None:
    assert solve.checked(answers())
    some = answers()
    some.checks.pop("key-3")
    assert not solve.checked(some)


def test_a_problems_rate_is_its_share_of_right_answers(tmp_path: Path) -> None:
    """The same when the answers are read from the journal of a killed run."""
    solver = solve.Solver.of_teacher(tiny.brief(), answers())
    rates = solve.solve(solver, answers(), recipe(), tmp_path, "teacher")
    assert rates[0::3].mean() > 0.8  # an answer that was cut off is wrong
    assert rates[1::3].tolist() == [0.0] * 3
    assert 0 < rates[2::3].mean() < 1
    assert set((rates * 3).round(6)) <= {0.0, 1.0, 2.0, 3.0}
    again = solve.solve(solver, answers(), recipe(), tmp_path, "teacher")
    assert np.array_equal(rates, again)


def test_a_student_answers_in_its_own_tokens(tmp_path: Path) -> None:
    vocabulary, teacher = training.vocabulary(300), tiny.brief()
    student = tiny.model(layers=2, seed=1, vocabulary=vocabulary.size)
    solver = solve.Solver.of_student(student, vocabulary, teacher, answers())
    assert solver.spell([5, 340]) == (*vocabulary.pieces(5), *vocabulary.pieces(340))
    said = [*vocabulary.tokenizer.encode("Yes.").ids, vocabulary.whole(0)]
    assert solver.whole(said) == "Yes."
    rates = solve.solve(solver, answers(), recipe(), tmp_path, "student")
    assert rates[0::3].mean() > 0.5


def test_pass_at_1_and_the_lead_with_intervals() -> None:
    result: dict = {"teacher": {}, "student": {}, "differences": {}}
    rates = {"teacher": np.tile([0.0, 0.5], 50), "student": np.tile([0.5, 1.0], 50)}
    solve.add(result, rates, recipe())
    assert result["teacher"]["pass_at_1"]["value"] == 0.25
    assert result["student"]["pass_at_1"]["value"] == 0.75
    lead = result["differences"]["teacher"]["pass_at_1"]
    assert list(lead.values()) == pytest.approx([0.5, 0.5, 0.5])  # paired: always as much
