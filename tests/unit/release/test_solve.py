from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_teacher as tiny
import training

from overproof.core.config import Recipe, find_recipe, load_recipe
from overproof.release import solve
from overproof.teacher.answers import Answers

VOWEL = {"kind": "regex", "pattern": "[aeiou]"}


def recipe() -> Recipe:
    return load_recipe(
        find_recipe("support"),
        [
            "sample={prompts: 1, heldout_prompts: 9, max_new_tokens: 6, batch: 8, temperature: 1}",
            "evaluate.attempts=3",
        ],
    )


def answers(check: dict | None = VOWEL) -> Answers:
    problems = tiny.examples(9)
    checks = {one.key: check for one in problems if check}
    return Answers(training.HEAD, [], problems, {}, checks)


def test_problems_need_a_check_each() -> None:
    assert solve.checked(answers())
    assert not solve.checked(answers(None))
    some = answers()
    some.checks.pop("key-3")
    assert not solve.checked(some)


@pytest.mark.parametrize(
    ("check", "wanted"),
    [({"kind": "regex", "pattern": ""}, 1.0), ({"kind": "exact", "answer": "\u2603" * 40}, 0.0)],
)
def test_always_and_never_right(tmp_path: Path, check: dict, wanted: float) -> None:
    teacher = tiny.teacher()
    solver = solve.Solver.of_teacher(teacher, answers(check))
    rates = solve.solve(solver, answers(check), recipe(), tmp_path, "teacher")
    assert rates.tolist() == [wanted] * 9


def test_a_problems_rate_is_its_share_of_right_answers(tmp_path: Path) -> None:
    """The same whether it is drawn in one go, or read from the journal of a killed run."""
    vocabulary, teacher = training.vocabulary(300), tiny.teacher()
    student = tiny.model(layers=2, seed=1, vocabulary=vocabulary.size)
    solver = solve.Solver.of_student(student, vocabulary, teacher, answers())
    rates = solve.solve(solver, answers(), recipe(), tmp_path, "student")
    again = solve.solve(solver, answers(), recipe(), tmp_path, "student")
    anew = solve.solve(solver, answers(), recipe(), tmp_path / "other", "student")
    assert np.array_equal(rates, again)
    assert np.array_equal(rates, anew)
    assert set((rates * 3).round(6)) <= {0.0, 1.0, 2.0, 3.0}
    assert 0 < rates.mean() < 1


def test_pass_at_1_and_the_lead_with_intervals() -> None:
    result: dict = {"teacher": {}, "student": {}, "differences": {}}
    rates = {"teacher": np.tile([0.0, 0.5], 50), "student": np.tile([0.5, 1.0], 50)}
    solve.add(result, rates, recipe())
    assert result["teacher"]["pass_at_1"]["value"] == 0.25
    assert result["student"]["pass_at_1"]["value"] == 0.75
    lead = result["differences"]["teacher"]["pass_at_1"]
    assert list(lead.values()) == pytest.approx([0.5, 0.5, 0.5])  # paired: always as much
