"""A student measured against a teacher of other tokens, by the definition."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "student"))

import tiny_teacher as tiny
from test_across import pair, vocabulary

from overproof.core.sections import EvaluateConfig
from overproof.release.byte_sums import CROSS
from overproof.release.conclusion import BELOW, compare
from overproof.release.figures import Arm, Evaluation, Interval
from overproof.release.foreign import AGREEMENT, KL, evaluate_foreign
from overproof.release.tally import DIFFERENCES
from overproof.student.across import align
from overproof.student.common import Common


@pytest.fixture(scope="module")
def measured():
    made = vocabulary()
    models = {
        name: tiny.model(vocabulary=made.size, seed=seed)
        for seed, name in enumerate(("student", "control"), 3)
    }
    return made, models, evaluate_foreign(
        tiny.model(), pair(made), made, models, EvaluateConfig(bootstrap=100, exact=True),
        seed=1, length=128, meter=tiny.meter(3),
    )  # fmt: skip


def test_the_numbers_are_those_of_the_definition(measured) -> None:
    """Each conversation alone, with cells summed token by token."""
    made, models, found = measured
    both, model = pair(made), models["student"]
    common = Common.of(both.teacher, both.student)
    nll = own = size = kl = hits = places = 0.0
    for heard, told in zip(both.heard.heldout, both.told.heldout, strict=True):
        one = align(heard, told, "", both, made, prompts=False)
        text = [*made.spell(both.told.student_prefix), *one.student.tokens]
        log_q = tiny.alone(model, text).double().log_softmax(-1)
        theirs = [*both.heard.prefix, *heard.tokens]
        log_p = tiny.alone(tiny.model(), theirs).double().log_softmax(-1)
        asked = len(text) - len(made.spell(told.answer))
        nll -= sum(float(log_q[at - 1, text[at]]) for at in range(asked, len(text)))
        begun = len(theirs) - len(heard.answer)
        own -= sum(float(log_p[at - 1, theirs[at]]) for at in range(begun, len(theirs)))
        size += len(both.teacher.text(heard.answer))
        for place in one.places:
            if common.cell_U[place.said[0]] != common.cell_V[place.own]:
                continue
            p = log_p[begun - 1 + place.rows[0]].exp().numpy()
            q = log_q[len(made.spell(both.told.student_prefix)) + place.at].exp().numpy()
            p_C = np.bincount(common.cell_U, p, common.cells)
            q_C = np.bincount(common.cell_V, q, common.cells)
            seen = p_C > 0
            kl += float((p_C[seen] * np.log(p_C[seen] / q_C[seen])).sum())
            hits += p_C.argmax() == q_C.argmax()
            places += 1
    assert found["student"][CROSS]["value"] == pytest.approx(nll / size, rel=1e-5)
    assert found["teacher"][CROSS]["value"] == pytest.approx(own / size, rel=1e-5)
    assert found["student"][KL]["value"] == pytest.approx(kl / places, rel=1e-5)
    assert found["student"][AGREEMENT]["value"] == pytest.approx(hits / places)
    assert places > 20


def test_the_student_is_compared_prompt_by_prompt(measured) -> None:
    _, models, found = measured
    assert set(found) == {"teacher", *models, DIFFERENCES, "products"}
    assert set(found[DIFFERENCES]) == {"control"}
    for key in (CROSS, KL, AGREEMENT):
        one = found[DIFFERENCES]["control"][key]
        apart = found["student"][key]["value"] - found["control"][key]["value"]
        assert one["value"] == pytest.approx(apart)
        assert one["low"] <= one["value"] <= one["high"]
    assert KL not in found["teacher"]


def interval(value: float) -> Interval:
    return Interval(value, value - 0.01, value + 0.01)


@pytest.mark.parametrize(
    ("temperature", "student", "counts", "why"),
    [(1.0, 0.6, True, ""), (1.0, 0.4, False, BELOW), (0.7, 0.6, False, "temperature 0.7")],
)
def test_cross_entropy_counts_where_lower_is_closer(temperature, student, counts, why) -> None:
    """Of a teacher that is here it is known what its own is."""
    arms = [Arm(nats_per_byte=interval(value)) for value in (student, 0.7)]
    change, teacher = Arm(nats_per_byte=interval(student - 0.7)), Arm(nats_per_byte=interval(0.5))
    how = Evaluation(10, 100, 10, 0.95, "fp32", temperature, 1.0)
    (found,) = compare(*arms, change, teacher, how)
    assert (not found.objection) is counts
    assert why in found.objection
    (remote,) = compare(*arms, change, Arm(), how)
    assert not remote.objection


def test_a_student_that_says_the_same_text_has_no_divergence_over_cells() -> None:
    """The same tokenizer on both sides: cells are tokens, and KL is the plain one."""
    side = pair(vocabulary()).teacher
    common = Common.of(side, side)
    assert common.cells == tiny.TOKENS - 1  # its two control tokens are one
    assert common.alone_V[[token for token, raw in side.bytes_of.items() if raw]].all()
    assert torch.equal(torch.from_numpy(common.cell_U), torch.from_numpy(common.cell_V))


def test_the_benchmark_counts_how_the_texts_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[3] / "benchmarks")
    made = vocabulary()
    counts = importlib.import_module("other_tokens").alignment(
        pair(made), SimpleNamespace(vocabulary=made)
    )
    assert json.loads(json.dumps(counts)) == counts
    assert counts["joined"] > 0
    assert counts["one_to_one"] + counts["joined"] < counts["shared_places"]
    assert counts["shared_places"] < counts["student_tokens"]
    assert counts["student_tokens"] < counts["teacher_tokens"]
