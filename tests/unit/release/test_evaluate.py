from __future__ import annotations

import math

import numpy as np
import pytest
import tiny_teacher as tiny
import torch
import training

from overproof.core.device import Processor
from overproof.core.sections import EvaluateConfig
from overproof.release.evaluate import evaluate
from overproof.release.tally import DIFFERENCES, Estimate, Tally, summary
from overproof.student import shape
from overproof.student.examples import respell
from overproof.student.vocabulary import Vocabulary

ARMS = ("student", "control")
MEASURES = ("kl_nats_per_token", "top1_agreement", "perplexity")


@pytest.fixture(scope="module")
def teacher():
    return tiny.model()


def measure(teacher, vocabulary: Vocabulary, models, count: int = 30, seed: int = 0, **changes):
    return evaluate(
        [(teacher, tiny.examples(count, seed=seed))],
        training.HEAD,
        training.HEAD,
        vocabulary,
        models,
        EvaluateConfig(**({"bootstrap": 200, "exact": True} | changes)),
        seed=1,
        length=training.ROOM,
        meter=tiny.meter(),
    )


@pytest.fixture(scope="module")
def exact(teacher):
    """Two models that are not the teacher, measured in fp32."""
    models = {"student": tiny.model(seed=1), "untrained": tiny.model(seed=2)}
    return measure(teacher, training.vocabulary(), models)


def test_a_student_that_is_the_teacher(teacher) -> None:
    vocabulary = training.vocabulary()
    same = shape.cut(teacher, [0, 1, 2], vocabulary)
    found = measure(teacher, vocabulary, {"student": same})
    assert found["student"]["kl_nats_per_token"]["value"] == pytest.approx(0, abs=1e-5)
    assert found["student"]["top1_agreement"]["value"] == 1.0
    assert found["student"]["perplexity"]["value"] == pytest.approx(
        found["teacher"]["perplexity"]["value"], rel=1e-4
    )
    assert found["teacher"]["kl_nats_per_token"] == {"value": 0, "low": 0, "high": 0}


def test_the_numbers_are_those_of_the_definition(teacher, exact) -> None:
    """Full vocabulary, each example alone, in plain formulas."""
    other, found = tiny.model(seed=1), exact["student"]
    kl, hits, nll, count = 0.0, 0, 0.0, 0
    for example in tiny.examples(30):
        text = [*training.HEAD, *example.tokens]
        rows = [len(training.HEAD) + place for place in example.targets()]
        log_p = tiny.alone(teacher, text)[rows].double().log_softmax(-1)
        log_q = tiny.alone(other, text)[rows].double().log_softmax(-1)
        kl += float((log_p.exp() * (log_p - log_q)).sum())
        hits += int((log_p.argmax(-1) == log_q.argmax(-1)).sum())
        nll -= float(log_q.gather(-1, torch.tensor(example.answer)[:, None]).sum())
        count += len(example.answer)
    assert found["kl_nats_per_token"]["value"] == pytest.approx(kl / count, rel=1e-4)
    assert found["top1_agreement"]["value"] == pytest.approx(hits / count)
    assert found["perplexity"]["value"] == pytest.approx(math.exp(nll / count), rel=1e-4)


@pytest.mark.parametrize("fast", [True, False])
def test_layers_in_bf16_change_little(teacher, exact, monkeypatch, fast: bool) -> None:
    processor = Processor("a processor", frozenset({"amx_bf16"} if fast else ()))
    monkeypatch.setattr("overproof.core.device.processor", lambda: processor)
    models = {"student": tiny.model(seed=1)}
    found = measure(teacher, training.vocabulary(), models, exact=False)
    assert exact["products"] == "fp32"
    assert found["products"] == ("bf16" if fast else "fp32")
    assert (found["student"] == exact["student"]) is not fast
    for key in MEASURES:
        wanted = exact["student"][key]["value"]
        assert found["student"][key]["value"] == pytest.approx(wanted, rel=0.02)


def test_intervals_hold_the_value_and_repeat(teacher, exact) -> None:
    models = {"student": tiny.model(seed=1), "untrained": tiny.model(seed=2)}
    found = measure(teacher, training.vocabulary(), models)
    assert found == exact
    assert set(found) == {"teacher", "student", "untrained", DIFFERENCES, "products"}
    for key in MEASURES:
        parts = [found[name][key]["value"] for name in models]
        paired = found[DIFFERENCES]["untrained"][key]
        assert paired["value"] == pytest.approx(parts[0] - parts[1])
        assert paired["low"] <= paired["value"] <= paired["high"]
    for name in models:
        for key in MEASURES:
            part = found[name][key]
            assert part["low"] <= part["value"] <= part["high"]
        assert found[name]["perplexity"]["low"] < found[name]["perplexity"]["high"]


def test_spelled_tokens_count_as_misses_and_their_later_pieces_cost(teacher) -> None:
    """The student is the teacher with fewer tokens: right wherever it can say the token."""
    vocabulary = training.vocabulary(280)
    student = shape.cut(teacher, [0, 1, 2], vocabulary)
    examples = tiny.examples(30)
    found = measure(teacher, vocabulary, {"student": student})["student"]
    best = [
        int(row.argmax())
        for one in examples
        for row in tiny.alone(teacher, [*training.HEAD, *one.tokens])[
            [len(training.HEAD) + place for place in one.targets()]
        ]
    ]
    sayable = vocabulary.kept_U[best].mean()
    assert sayable < 1
    assert found["top1_agreement"]["value"] <= sayable
    pieces = sum(sum(respell(one, vocabulary).spelled) for one in examples)
    assert pieces > 0
    assert found["kl_nats_per_token"]["value"] > pieces / len(best)  # each costs > 1 nat here


def test_agreement_by_position(exact) -> None:
    lengths = [len(one.answer) for one in tiny.examples(30)]
    rows = exact["student"]["agreement_by_position"]
    assert [row[0] for row in rows] == list(range(max(lengths)))
    assert [row[2] for row in rows] == [
        sum(size > place for size in lengths) for place in range(max(lengths))
    ]
    hits = sum(row[1] * row[2] for row in rows)
    assert hits / sum(lengths) == pytest.approx(exact["student"]["top1_agreement"]["value"])
    assert all(row[1] == 1.0 for row in exact["teacher"]["agreement_by_position"])


def test_a_spelling_longer_than_a_sequence_is_not_left_out(teacher) -> None:
    vocabulary = training.vocabulary(258)
    student = shape.cut(teacher, [0, 1, 2], vocabulary)
    found = evaluate(
        [(teacher, tiny.examples(30))], (), (), vocabulary, {"student": student},
        EvaluateConfig(bootstrap=10), seed=0, length=17, meter=tiny.meter(),
    )  # fmt: skip
    assert math.isfinite(found["student"]["kl_nats_per_token"]["value"])


def test_the_interval_is_the_percentile_bootstrap() -> None:
    sums, tokens = np.array([1.0, 6.0]), np.array([1.0, 2.0])
    draws = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    got = Estimate.of(sums, tokens, draws).interval(1.0)
    assert got == {"value": 7 / 3, "low": 1.0, "high": 3.0}
    equal = Estimate.of(np.array([2.0, 2.0]), np.ones(2), draws, np.exp).interval(0.95)
    assert equal == {"value": math.exp(2), "low": math.exp(2), "high": math.exp(2)}


def test_a_difference_is_paired() -> None:
    """Prompts that are hard for both arms spread their means, not their difference."""
    rng, tallies = np.random.default_rng(0), {name: Tally() for name in ("teacher", *ARMS)}
    for hardness in rng.uniform(0, 1, 200):
        for name, tally in tallies.items():
            better = {"student": 0.0, "control": 0.05, "teacher": -hardness}[name]
            tally.add(float(hardness + better) * 10, 10.0, np.arange(10) < 10 * (1 - hardness))
    found = summary(tallies, EvaluateConfig(), seed=0)
    kl = "kl_nats_per_token"
    assert found["student"][kl]["high"] > found["control"][kl]["low"]
    assert found[DIFFERENCES]["control"][kl]["value"] == pytest.approx(-0.05)
    assert found[DIFFERENCES]["control"][kl]["high"] == pytest.approx(-0.05)
    assert set(found[DIFFERENCES]) == {"control"}


def test_the_number_of_processes_does_not_show(teacher, monkeypatch) -> None:
    models = {"student": tiny.model(seed=1)}
    found = []
    for cores in (1, 2, 3):
        monkeypatch.setattr("overproof.core.device.cores", lambda cores=cores: cores)
        found.append(measure(teacher, training.vocabulary(), models, count=40))
    assert found[0] == found[1] == found[2]
