"""A report and a card whose teacher answered behind an endpoint: what is shown, what is absent."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import report_facts
import tiny_teacher as tiny
import torch

from overproof.core.sections import EvaluateConfig
from overproof.release import card
from overproof.release.conclusion import conclude
from overproof.release.facts import Remote, ReportFacts, TeacherModel
from overproof.release.figures import AgreementByPosition, Arm, Interval, Sizes, Speeds
from overproof.release.report import render, to_json
from overproof.release.text_quality import Measured, Said, Sums, measure, summary
from overproof.student.vocabulary import trim
from overproof.teacher.example import Example
from overproof.teacher.kept import TopK
from overproof.teacher.signals import shard_signals

SAID = Remote({"big-2026-10-01": 9}, {"fp_1": 9}, "vendor", "2026-11-24", "2026-11-25", 2, "3 EUR")


def cross(value: float) -> Arm:
    return Arm(nats_per_byte=Interval(value, value - 0.05, value + 0.05))


def remote(**changes: object) -> ReportFacts:
    whole = report_facts.facts()
    arms = {"student": cross(0.8), "control": cross(1.0), "untrained": cross(1.4)}
    found = dataclasses.replace(
        whole,
        student=arms["student"],
        untrained=arms["untrained"],
        controls=(dataclasses.replace(whole.controls[0], quality=arms["control"], by_position=()),),
        teacher=Arm(),
        differences={
            name: report_facts.difference(arms["student"], arms[name])
            for name in ("control", "untrained")
        },
        teacher_model=TeacherModel("big", "https://api.example.org", None, remote=SAID),
        base_model=whole.teacher_model,
        base_terms=whole.terms,
        speed=Speeds(None, whole.speed.student, whole.speed.teacher),
        sizes=Sizes(None, whole.sizes.student, whole.sizes.teacher),
        agreement_by_position=AgreementByPosition(()),
    )
    return dataclasses.replace(found, **changes)


def test_the_page_says_what_is_known_and_what_is_not() -> None:
    page = render(remote())
    for text in (
        "https://api.example.org",
        "big-2026-10-01 (9 answers)",
        "unknown: the name of the model is the service",
        "The base that the student was cut from",
        "Student / base",
        "Cross-entropy",
        "2026-11-24, 2026-11-25",
        "3 EUR",
        "its weights were not seen",
    ):
        assert text in page, text
    assert "None" not in page
    assert 'Top-1 agreement<span class="ci">share' not in page  # no column of what nobody measured


def test_the_card_too() -> None:
    text = card.render(remote(), licence="Apache-2.0")
    assert "| endpoint | https://api.example.org, a vendor's |" in text.replace("\\", "")
    assert "9 answers" in text
    assert "The licence of this model: Apache-2.0." in text
    assert "None" not in text


def test_machines_read_null_for_what_is_unknown() -> None:
    found = to_json(remote())
    assert found["teacher_model"]["sha256"] is None
    assert found["speed"]["teacher"] is None
    assert found["sizes"]["teacher"] is None
    assert found["student"]["kl_nats_per_token"] is None
    assert not any(found["teacher"].values())


def test_the_conclusion_is_on_the_answers_and_no_more() -> None:
    found = conclude(remote())
    assert found.outcome == "helped"
    assert (
        "helped by 0.20 ± 0.10 nats per byte in cross-entropy of the teacher's answers"
        in found.headline
    )
    assert "on the teacher's text alone" in found.headline
    alone = conclude(remote(controls=()))
    assert alone.outcome == "not measured"
    assert any("better than before training" in line for line in alone.sentences)


@pytest.fixture(scope="module")
def measured() -> tuple[Measured, Said]:
    """The tiny teacher in the place of a service that shows its six likeliest tokens."""
    teacher = tiny.teacher()
    mass = np.ones(tiny.TOKENS)
    vocabulary = trim(tiny.tokenizer(), mass, 300, set(tiny.CONTROL))
    ids = torch.from_numpy(vocabulary.teacher_ids_V)
    student = tiny.model(vocabulary=vocabulary.size, seed=1)
    same = tiny.model(vocabulary=vocabulary.size)
    with torch.no_grad():
        same.load_state_dict(
            {
                name: value[ids] if value.shape[0] == tiny.TOKENS else value
                for name, value in teacher.model.state_dict().items()
            }
        )
    example = Example("a", (1, 40, 41), tuple(tiny.tokenizer().encode("parcel on Monday").ids))
    likely = shard_signals(teacher.model, (), [example], 64, TopK(6)).spread(None)
    size = len(teacher.text(example.answer).encode())
    given = np.ones(len(example.answer), np.bool_)
    given[-1] = False
    said = Said(example, size, likely, given)
    models = {"student": same, "untrained": student}
    return Measured((), vocabulary, models, 64), said


def test_cross_entropy_is_that_of_the_models_own_log_probabilities(
    measured: tuple[Measured, Said],
) -> None:
    how, said = measured
    found = measure(how, [said])
    tokens = [
        *how.vocabulary.spell(said.example.prompt),
        *how.vocabulary.spell(said.example.answer),
    ]
    start = len(how.vocabulary.spell(said.example.prompt))
    for name, model in how.models.items():
        log_q = torch.log_softmax(tiny.alone(model, tokens).double(), -1)
        nll = -sum(float(log_q[at - 1, tokens[at]]) for at in range(start, len(tokens)))
        assert found[name].nll == [pytest.approx(nll, rel=1e-4)]
        assert found[name].bytes == [len("parcel on Monday")]
        assert found[name].places == [len(said.example.answer) - 1]
        assert len(found[name].hits[0]) == found[name].places[0]


def test_kl_over_the_likeliest_tokens_is_not_negative_and_sees_who_is_closer(
    measured: tuple[Measured, Said],
) -> None:
    how, said = measured
    found = measure(how, [said])
    assert 0 <= found["student"].kl[0] < found["untrained"].kl[0]
    plain = measure(how, [Said(said.example, said.bytes)])
    assert plain["student"].kl == []
    assert plain["student"].nll == found["student"].nll


def test_what_was_not_measured_is_absent_and_differences_are_paired() -> None:
    sums = {
        "student": Sums(nll=[4.0, 6.0], bytes=[10, 10]),
        "control": Sums(nll=[5.0, 7.0], bytes=[10, 10]),
    }
    found = summary(sums, EvaluateConfig(bootstrap=50), 0)
    assert found["student"]["nats_per_byte"]["value"] == 0.5
    assert "kl_nats_per_token" not in found["student"]
    change = found["differences"]["control"]["nats_per_byte"]
    assert change["low"] == pytest.approx(-0.1)
    assert change["high"] == pytest.approx(-0.1)
