"""The report: its JSON, its page, its charts, its verdict."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import report_facts
from report_facts import arm, interval, positions

from overproof.core.errors import StageError
from overproof.release import card, charts, words
from overproof.release.conclusion import conclude
from overproof.release.facts import Answer, ReportFacts, TeacherModel, clean
from overproof.release.figures import (
    AgreementByPosition,
    Arm,
    Cost,
    Costs,
    Importance,
    Interval,
    Layer,
    Seeds,
)
from overproof.release.report import render, to_json, write_report


@pytest.fixture(scope="module")
def facts() -> ReportFacts:
    return report_facts.facts()


@pytest.fixture(scope="module")
def page(facts: ReportFacts) -> str:
    return render(facts)


class Page(HTMLParser):
    """Tags with their attributes, and the visible text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


# --- report.json --------------------------------------------------------------------------------


def test_json_holds_every_promised_key(facts: ReportFacts) -> None:
    found = to_json(facts)
    arms = {name: found[name] for name in ("teacher", "student", "untrained")}
    arms["control"] = found["controls"][0]["quality"]
    for numbers in arms.values():
        assert set(numbers) == {
            "kl_nats_per_token", "top1_agreement", "perplexity", "pass_at_1", "nats_per_byte",
            "common_kl_nats_per_place", "common_top1_agreement",
        }  # fmt: skip
    assert found["student"]["kl_nats_per_token"].keys() == {"value", "low", "high"}
    assert found["speed"]["student"].keys() == {
        "decode_tokens_per_second", "prefill_tokens_per_second", "peak_memory_bytes",
        "file_bytes", "engine", "type", "threads",
    }  # fmt: skip
    assert found["training"]["losses"][0][0] == 1
    assert found["controls"][0]["run"]["steps"] == 600
    assert found["importance"]["layers"][21] == {
        "layer": 21, "kept": False, "score": 0.02, "order": 1,
    }  # fmt: skip
    assert found["agreement_by_position"]["student"][0][2] == 200
    assert found["receipts"][0]["passed"] is True
    assert found["dataset"]["licences"] == {"CC0-1.0": 4180}
    assert found["terms"] == report_facts.TERMS
    assert found["verdict"]["outcome"] == "helped"
    assert {"name", "system", "sizes", "answers", "proof", "stages", "machine", "limits"} <= set(
        found
    )


def test_json_has_no_number_that_json_lacks(facts: ReportFacts) -> None:
    endless = Arm(interval(10.0, 1.0), interval(0.1, 0.01), Interval(math.inf, 5.0, math.nan))
    found = to_json(dataclasses.replace(facts, untrained=endless))
    assert found["untrained"]["perplexity"] == {"value": None, "low": 5.0, "high": None}
    json.dumps(found, allow_nan=False)


def test_no_control_arms_are_an_empty_list(facts: ReportFacts) -> None:
    assert to_json(dataclasses.replace(facts, controls=()))["controls"] == []


def test_a_receipt_beyond_its_bounds_has_not_passed(facts: ReportFacts) -> None:
    receipt = facts.receipts[0]
    assert receipt.passed
    assert not dataclasses.replace(receipt, kl_nats_per_token=0.021).passed
    assert not dataclasses.replace(receipt, top1_agreement=0.949).passed


# --- files --------------------------------------------------------------------------------------


def test_equal_facts_give_equal_bytes(facts: ReportFacts, tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
        write_report(report_facts.facts(), folder)
    for name in ("report.json", "report.html"):
        first, second = ((folder / name).read_bytes() for folder in folders)
        assert first == second
    assert json.loads((tmp_path / "a" / "report.json").read_bytes()) == to_json(facts)


def test_a_folder_that_is_not_there_is_a_clear_error(facts: ReportFacts, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="cannot write"):
        write_report(facts, tmp_path / "missing")


# --- report.html --------------------------------------------------------------------------------


def test_page_fetches_nothing_and_runs_nothing(page: str) -> None:
    parsed = Page(page)
    tags = [tag for tag, _ in parsed.tags]
    assert not {"script", "iframe", "object", "embed", "base", "form", "img"} & set(tags)
    for tag, attributes in parsed.tags:
        assert "src" not in attributes and "srcset" not in attributes
        assert not any(name.startswith("on") for name in attributes)
        target = attributes.get("href") or attributes.get("xlink:href") or "#"
        if tag != "a":
            assert target.startswith(("#", "data:")), (tag, target)
    assert "@import" not in page
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))
    policy = next(a for tag, a in parsed.tags if tag == "meta" and "http-equiv" in a)
    assert (policy["content"] or "").startswith("default-src 'none'")


def test_what_models_wrote_is_shown_not_run(page: str) -> None:
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "&lt;img src=x onerror=alert(2)&gt;" in page
    assert "&lt;b&gt;" in page
    assert "\x1b" not in page and "\u202e" not in page


@pytest.mark.parametrize(
    "change",
    [
        {"name": "<script>x</script>"},
        {"system": "<script>x</script>"},
        {"method": ("<script>x</script>",)},
        {"limits": ("<script>x</script>",)},
        {"machine": {"<script>x</script>": "<script>x</script>"}},
        {"recipe": {"<script>x</script>": "</pre><script>x</script>"}},
        {"importance": Importance("</p><script>x", "<script>x</script>", (Layer(0, False, 1.0),))},
    ],
    ids=lambda change: next(iter(change)),
)
def test_no_field_reaches_the_page_unescaped(change: dict[str, object]) -> None:
    assert "<script" not in render(report_facts.facts(**change))


def test_only_web_addresses_become_links(facts: ReportFacts) -> None:
    teacher = dataclasses.replace(facts.teacher_model, uri="javascript:alert(1)")
    parsed = Page(render(dataclasses.replace(facts, teacher_model=teacher)))
    assert "javascript:alert(1)" in parsed.text
    assert not any("javascript" in (a.get("href") or "") for _, a in parsed.tags)


def test_page_shows_numbers_with_intervals_units_and_the_proof(page: str) -> None:
    text = " ".join(Page(page).text.split())
    for wanted in (
        "0.512", "0.497–0.527", "70.4%", "68.9–71.9%", "nats per token", "158",
        "tokens per second", "overproof verify RELEASE --signer demo.pub", "d4" * 32,
        "replayed", "attested", "Distillation helped", "not legal advice",
    ):  # fmt: skip
        assert wanted in text, wanted


def test_problems_solved_are_shown_where_they_were_measured(facts: ReportFacts, page: str) -> None:
    assert "Problems solved" not in page
    solved = {
        name: dataclasses.replace(getattr(facts, name), pass_at_1=interval(value, 0.02))
        for name, value in (("teacher", 0.31), ("student", 0.46))
    }
    shown = render(dataclasses.replace(facts, **solved))
    assert "Problems solved" in shown
    assert "31.0%" in shown
    assert "46.0%" in shown


def test_every_figure_and_table_has_a_caption(page: str) -> None:
    figures = re.findall(r"<figure.*?</figure>", page, re.DOTALL)
    assert len(figures) == 4 + 7
    assert all("<figcaption>" in figure for figure in figures)
    assert page.count("<table") == 7


def test_ids_are_unique_and_links_inside_the_page_hold(page: str) -> None:
    parsed = Page(page)
    ids = [a["id"] for _, a in parsed.tags if "id" in a]
    assert len(ids) == len(set(ids))
    targets = {a.get("href") or a.get("xlink:href") or "" for _, a in parsed.tags}
    inside = {target[1:] for target in targets if target.startswith("#")}
    inside |= set(re.findall(r"url\(#([^)]*)\)", page))
    assert inside <= set(ids)


def test_page_of_the_barest_release() -> None:
    bare = report_facts.facts(
        controls=(),
        system=None,
        untrained=Arm(),
        importance=Importance("even", "none", (Layer(0, True), Layer(1, False))),
        agreement_by_position=AgreementByPosition(()),
        answers=(),
        receipts=(),
        heldout=None,
        terms={"verdict": "allow", "row": None, "obligations": []},
        recipe={},
    )
    page = render(bare)
    assert "Not measured" in page
    assert "No build was made" in page
    assert set(charts.all_charts(bare)) == {"loss", "speed"}


def test_no_word_of_a_control_arm_that_was_not_trained() -> None:
    whole = report_facts.facts()
    bare = report_facts.facts(
        controls=(),
        agreement_by_position=AgreementByPosition(positions(0.7, 0.1)),
        answers=tuple(dataclasses.replace(one, controls=()) for one in whole.answers),
    )
    said = re.sub(r"\s+", " ", Page(render(bare)).text)
    headline = conclude(bare).headline
    assert headline in said
    assert "control arm" not in said.replace(headline, "").lower()
    assert "The losses of" not in said
    assert "control arm" not in " ".join(to_json(bare)["limits"])
    page = render(whole)
    assert "A control arm is the same student" in page
    assert "perplexity the control arm" in page
    assert "The losses of student and control arm are different quantities" in page


def test_threads_and_other_machines_are_shown(facts: ReportFacts) -> None:
    moved = dataclasses.replace(facts, elsewhere=("The stage student was made elsewhere: <b>.",))
    page = render(moved)
    assert '<th scope="row">Threads, the fastest number</th><td>2</td><td>1</td>' in page
    assert "<p>The stage student was made elsewhere: &lt;b&gt;.</p>" in page
    assert "made elsewhere" not in render(facts)


def test_a_failed_receipt_and_a_refusal_are_not_painted_green(facts: ReportFacts) -> None:
    page = render(
        dataclasses.replace(
            facts,
            receipts=(dataclasses.replace(facts.receipts[0], top1_agreement=0.5),),
            terms={**report_facts.TERMS, "verdict": "deny"},
        )
    )
    assert '<span class="tag bad">failed</span>' in page
    assert '<span class="tag bad">not permitted</span>' in page


# --- charts -------------------------------------------------------------------------------------


def test_charts_are_well_formed_named_and_without_dates(facts: ReportFacts) -> None:
    drawn = charts.all_charts(facts)
    assert list(drawn) == ["loss", "speed", "position", "importance"]
    for svg in drawn.values():
        root = ET.fromstring(svg)  # noqa: S314
        assert root.attrib["role"] == "img"
        assert root.attrib["aria-label"]
        assert "metadata" not in svg and "date" not in svg
        assert not any(stand_in in svg for stand_in in charts.VARIABLES)
        assert "DejaVu" not in svg


def test_charts_use_the_colours_of_the_page(facts: ReportFacts) -> None:
    speed = charts.quality_against_speed(facts) or ""
    for name in ("teacher", "student", "control", "untrained"):
        assert f"var(--{name}, #" in speed


def test_axes_are_labelled_with_units(facts: ReportFacts) -> None:
    text = {name: " ".join(ET.fromstring(svg).itertext()) for name, svg in  # noqa: S314
            charts.all_charts(facts).items()}  # fmt: skip
    assert "nats per token" in text["loss"] and "training step" in text["loss"]
    assert "tokens per second (q8_0)" in text["speed"]
    assert "position in the answer, tokens" in text["position"]
    assert "dropped (18)" in text["importance"] and "kept (12)" in text["importance"]


def test_long_curves_are_thinned_by_means() -> None:
    x, y = charts._thinned(range(1, 1201), [float(k % 5) for k in range(1200)])
    assert len(x) == charts.MAX_POINTS
    assert y == pytest.approx([2.0] * charts.MAX_POINTS)
    assert (x[0], x[-1]) == (3.0, 1198.0)


def test_positions_few_answers_reach_are_left_out() -> None:
    x, y = charts._binned(((0, 0.5, 30), (1, 0.8, 10), (2, 0.0, charts.MIN_ANSWERS - 1)))
    assert x == [pytest.approx(0.25)]
    assert y == [pytest.approx(0.575)]


def test_a_loss_that_is_not_positive_still_draws(facts: ReportFacts) -> None:
    run = dataclasses.replace(facts.training, losses=((1, 0.5), (2, 0.0)))
    assert charts.loss_curve(dataclasses.replace(facts, training=run))


def test_a_dollar_sign_is_a_dollar_sign(facts: ReportFacts) -> None:
    run = dataclasses.replace(facts.training, objective="costs $5 and $6_x")
    assert "costs $5 and $6_x" in (
        charts.loss_curve(dataclasses.replace(facts, training=run)) or ""
    )


# --- the verdict --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("student", "control", "outcome"),
    [
        (arm(0.5, 0.70, 3.6), arm(0.7, 0.64, 4.1), "helped"),
        (arm(0.7, 0.64, 4.1), arm(0.5, 0.70, 3.6), "hurt"),
        (arm(0.5, 0.64, 3.6), arm(0.7, 0.70, 3.6), "mixed"),
        (arm(0.5, 0.70, 3.6), arm(0.5, 0.70, 3.6), "not shown"),
        (arm(0.5, 0.70, 3.6), arm(0.51, 0.64, 3.6), "helped"),
        (arm(0.5, 0.70, 3.6), None, "not measured"),
        (arm(0.5, 0.70, 3.6), Arm(), "not measured"),
    ],
)
def test_verdict(student: Arm, control: Arm | None, outcome: str) -> None:
    controls = (report_facts.control(control),) if control else ()
    found = conclude(report_facts.facts(student=student, controls=controls))
    assert found.outcome == outcome
    assert found.headline.lower().startswith(
        {"helped": "distillation helped", "hurt": "distillation did not help"}.get(outcome, outcome)
    )


def against(student: Arm, *controls: Arm, **more: object) -> ReportFacts:
    """Facts of a student and control arms, the second of equal time."""
    named = (("control", "steps"), ("control-time", "time"))
    found = tuple(
        report_facts.control(one, *name) for one, name in zip(controls, named, strict=False)
    )
    return report_facts.facts(student=student, controls=found, **more)


def test_the_headline_names_the_measures_it_rests_on() -> None:
    found = conclude(against(arm(0.5, 0.7, 3.6), arm(0.51, 0.64, 4.1)))
    assert found.headline.startswith(
        "Distillation helped by 6.0 ± 3.0 points in top-1 agreement and 0.50 ± 0.23 in "
        "perplexity of the teacher's text: "
    )
    assert any("no difference is shown" in sentence for sentence in found.sentences)


@pytest.mark.parametrize(
    ("low", "high", "outcome"),
    [(-0.2, -0.01, "helped"), (-0.2, 0.0, "not shown"), (0.0, 0.2, "not shown"), (0.01, 1, "hurt")],
)
def test_the_paired_difference_decides(low: float, high: float, outcome: str) -> None:
    """The arms' own intervals overlap in each case: hard prompts are hard for both."""
    own = Arm(Interval(0.5, 0.1, 0.9))
    paired = {"control": Arm(Interval((low + high) / 2, low, high))}
    assert conclude(against(own, own, differences=paired)).outcome == outcome


def test_a_difference_is_shown_with_its_sign() -> None:
    sentences = conclude(report_facts.facts()).sentences
    assert "prompt by prompt −0.229 [" in sentences[0]
    assert "prompt by prompt +6.2 [+3.2, +9.2] points; the student is better" in sentences[1]


def test_perplexity_below_the_teachers_own_does_not_count() -> None:
    # A control arm that sharpened beyond the teacher (2.31): lower is no longer closer.
    sharp = conclude(against(arm(0.5, 0.7, 2.6), arm(0.7, 0.64, 2.1)))
    assert sharp.outcome == "helped"
    assert any("does not count" in sentence for sentence in sharp.sentences)
    # The same for a student: no credit for it either.
    student = conclude(against(arm(0.5, 0.7, 2.1), arm(0.5, 0.7, 2.6)))
    assert student.outcome == "not shown"


def test_perplexity_of_sharpened_text_does_not_count() -> None:
    """The control arm fits text drawn at 0.2 better; that is no closeness to the teacher."""
    whole = against(arm(0.5, 0.7, 4.5), arm(0.7, 0.64, 4.1))
    assert conclude(whole).outcome == "mixed"
    drawn = dataclasses.replace(whole.evaluation, temperature=0.2, top_p=0.9)
    found = conclude(dataclasses.replace(whole, evaluation=drawn))
    assert found.outcome == "helped"
    assert any("drawn at temperature 0.2 and top-p 0.9" in one for one in found.sentences)


def test_unequal_budgets_are_told(facts: ReportFacts) -> None:
    assert any("600 steps on 1,180,000 tokens" in s for s in conclude(facts).sentences)
    shorter = report_facts.control(facts.controls[0].quality, steps=300)
    found = conclude(dataclasses.replace(facts, controls=(shorter,)))
    assert any("budgets differ" in sentence for sentence in found.sentences)
    timed = report_facts.control(
        facts.controls[0].quality, "control-time", "time", steps=700, seconds=611.0
    )
    found = conclude(report_facts.facts(controls=(*facts.controls, timed)))
    assert any(
        "The control arm of equal time had 700 steps on 1,180,000 tokens in 10 min 11 s, the "
        "student 600 steps on 1,180,000 tokens in 10 min 12 s." in one
        for one in found.sentences
    )


@pytest.mark.parametrize(
    ("equal_time", "outcome", "words_"),
    [
        (arm(0.9, 0.60, 4.3), "helped", "against the control arm of equal time it helped by 0.40"),
        (arm(0.5, 0.70, 3.6), "not shown", "from the control arm of equal time it cannot be told"),
        (arm(0.3, 0.80, 3.0), "mixed", "control arm of equal time it did not help, which is ahead"),
    ],
)
def test_it_helped_if_it_did_against_every_control_arm(
    equal_time: Arm, outcome: str, words_: str
) -> None:
    found = conclude(against(arm(0.5, 0.7, 3.6), arm(0.7, 0.64, 4.1), equal_time))
    assert found.outcome == outcome
    assert "against the control arm it helped by 0.200 ± 0.036 nats per token" in found.headline
    assert words_ in found.headline


@pytest.mark.parametrize(
    ("half", "outcome"), [(0.05, "helped"), (0.19, "helped"), (0.21, "not shown")]
)
def test_a_lead_must_hold_over_seeds_too(half: float, outcome: str) -> None:
    """The interval over prompts leaves out zero in each case."""
    arms = {"student": Arm(interval(0.5, 0.1)), "control": Arm(interval(0.7, 0.1))}
    lead = Arm(interval(-0.2, half))
    whole = against(
        arms["student"],
        arms["control"],
        differences={"control": Arm(interval(-0.21, 0.06))},
        seeds=Seeds(3, arms, {"control": lead}),
    )
    found = conclude(whole)
    assert found.outcome == outcome
    assert "over 3 seeds −0.200 [" in found.sentences[0]
    assert any("Student's t of 3 differences" in one for one in found.sentences)
    if outcome == "helped":
        margin = {0.05: "0.060", 0.19: "0.19"}[half]  # the wider of the two
        assert (
            f"helped by {0.2:.{len(margin) - 2}f} ± {margin} nats per token in KL" in found.headline
        )
    page, text = render(whole), card.render(whole, licence="MIT")
    assert "Means over 3 seeds" in page
    assert "Student less control arm" in page
    assert "Means over 3 trainings" in text
    for limits in (page, text):
        assert "each model was trained once" not in limits
        assert "The seeds change the order of the training data" in limits


def test_charts_and_page_of_several_control_arms() -> None:
    whole = against(
        arm(0.5, 0.7, 3.6), arm(0.7, 0.64, 4.1), arm(0.6, 0.66, 4.0),
        answers=(Answer("p", "t", "s", ("text of steps", "text of time")),),
    )  # fmt: skip
    drawn = {
        name: " ".join(ET.fromstring(svg).itertext())  # noqa: S314
        for name, svg in charts.all_charts(whole).items()
    }
    for name in ("loss", "speed", "position"):
        assert "control, equal time" in drawn[name]
    page = render(whole)
    assert page.count("Control arm of equal time") == 3  # quality, answers, training
    assert "text of time" in page


@pytest.mark.parametrize(
    ("untrained", "words_"),
    [
        (arm(10.3, 0.02, 48_000.0), "Training itself helped"),
        (arm(0.1, 0.9, 2.4), "Training itself did harm"),
        (arm(0.512, 0.704, 3.61), "shows no effect"),
        (arm(10.3, 0.9, 3.61), "better by one measure, worse by another"),
        (Arm(), "was not measured"),
    ],
)
def test_the_untrained_student_is_compared_too(untrained: Arm, words_: str) -> None:
    found = conclude(report_facts.facts(untrained=untrained))
    assert words_ in found.sentences[-1]
    # Ahead of the control arm, and no nearer to the teacher than before: that has helped nobody.
    in_vain = "harm" in words_ or "no effect" in words_
    assert found.outcome == ("not shown" if in_vain else "helped")
    assert ("training did not make the student better" in found.headline) == in_vain


@pytest.mark.parametrize(
    ("control", "teacher", "outcome_", "words_"),
    [
        (
            0.3,
            0.2,
            "helped",
            (
                "Checking helped by 20.0 ± 5.0 points",
                "solves more of these problems than its teacher",
            ),
        ),
        (0.3, 0.9, "helped", ("Checking helped", "solves fewer of these problems")),
        (0.7, 0.5, "hurt", ("Checking did not help", "cannot be told apart from its teacher")),
        (0.5, 0.2, "not shown", ("no evidence that checking", "solves more")),
    ],
)
def test_a_student_that_learned_to_solve_is_judged_by_that_alone(
    control: float, teacher: float, outcome_: str, words_: tuple[str, str]
) -> None:
    """In all of them it is nearer to the teacher than its control arm."""

    def with_pass(arm_: Arm, value: float) -> Arm:
        return dataclasses.replace(arm_, pass_at_1=interval(value, 0.04))

    plain = report_facts.facts()
    rates = {"control": control, "untrained": 0.0, "teacher": teacher}
    facts = report_facts.facts(
        student=with_pass(plain.student, 0.5),
        untrained=with_pass(plain.untrained, 0.0),
        teacher=with_pass(plain.teacher, teacher),
        controls=(report_facts.control(with_pass(plain.controls[0].quality, control)),),
        differences={
            name: dataclasses.replace(
                plain.differences.get(name, Arm()), pass_at_1=interval(0.5 - value, 0.05)
            )
            for name, value in rates.items()
        },
        evaluation=dataclasses.replace(plain.evaluation, solving=True),
    )
    found = conclude(facts)
    assert found.outcome == outcome_
    assert all(part in found.headline for part in words_), found.headline
    kl = next(sentence for sentence in found.sentences if sentence.startswith("KL"))
    assert "It does not count" in kl
    assert any("better than the teacher" in s for s in found.sentences) == (teacher < 0.5)


# --- words --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.5121, "0.512"), (0.0, "0"), (1104.4, "1,104"), (48_211.3, "48,211"), (0.00002, "0.0000200"),
     (61.44, "61.4"), (912_345_678.0, "912 million"), (3e12, "3.0e+12"),
     (9.996, "10.0"), (-0.31, "-0.310"), (3e-9, "3.0e-09"),
     (math.inf, "not finite"), (math.nan, "not finite"), (None, "–")],
)  # fmt: skip
def test_measured(value: float | None, text: str) -> None:
    assert words.measured(value) == text


def test_a_number_with_its_margin() -> None:
    assert words.within(1.3496, 0.0312) == "1.350 ± 0.031"
    assert words.within(1.35, 0.0996) == "1.35 ± 0.10"
    assert words.within(48_211.3, 1450.0) == "48,211 ± 1,450"
    assert words.within(0.5, 0.0) == "0.500 ± 0"
    assert words.within(math.inf, math.nan) == "not finite ± not finite"


def test_units() -> None:
    assert words.size(52_100_000) == "52.1 MB"
    assert words.size(2_340_000_000) == "2.34 GB"
    assert words.size(2_340) == "2.3 kB"
    assert words.parameters(134_515_008) == "134.5 M"
    assert words.parameters(7_000_000_000) == "7.00 B"
    assert words.duration(59.94) == "59.9 s"
    assert words.duration(59.97) == "1 min 0 s"
    assert words.duration(615.2) == "10 min 15 s"
    assert words.duration(7_265) == "2 h 1 min"
    assert words.times(158.2, 61.4) == "2.58×"
    assert words.times(1.0, 0.0) == "–"
    assert words.part(1.0, 4.0) == "25.0%"


def test_clean_leaves_ordinary_text_alone() -> None:
    assert clean("naïve 日本 🙂\n\tשלום") == "naïve 日本 🙂\n\tשלום"
    assert clean("a\x00b\ud800c\x1b[0m") == "a�b�c�[0m"


def test_a_half_surrogate_in_an_answer_does_not_break_the_files(tmp_path: Path) -> None:
    broken = report_facts.facts(answers=(Answer("p\ud83d", "t", "s"),))
    write_report(broken, tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["answers"][0]["prompt"] == "p�"


def test_a_budget_is_shown_against_what_came_out() -> None:
    predicted, actual = Cost(4.25, 90e6, 47_112_192), Cost(5.5, 96_000_000, 47_112_192)
    costs = Costs(5.0, None, 50_000_000, "box", predicted, actual, same=False)
    page = render(report_facts.facts(costs=costs))
    for part in ("4.25", "5.50", "96.0", "<b>box</b>", "they do not test the prediction"):
        assert part in page, part
    page = render(report_facts.facts(costs=dataclasses.replace(costs, same=True)))
    assert "they do not test the prediction" not in page
    page = render(
        report_facts.facts(costs=dataclasses.replace(costs, hardware=None, predicted=None))
    )
    assert page.count("not predicted") == 3
    assert "Predicted" not in render(report_facts.facts())


def test_what_a_student_is_cut_from_is_named() -> None:
    base = TeacherModel("Small-1B", "file:Small-1B", "b" * 64, "MIT", "maker/Small-1B")
    facts = report_facts.facts(base_model=base, base_terms=report_facts.TERMS)
    page = render(facts)
    assert "The base that the student was cut from" in page
    assert "Small-1B" in page
    assert "Student / teacher" in page  # which is here, and what it is measured against
    text = card.render(facts, licence="MIT")
    assert "| base | Small-1B |" in text.replace("\\", "")
    assert "maker/Small-1B" in card.metadata(facts, "MIT", ())["base_model"]
