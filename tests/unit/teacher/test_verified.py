from __future__ import annotations

import json
from pathlib import Path

import pytest
import tiny_teacher as tiny

from overproof.core.artifact import Artifact, build
from overproof.core.config import find_recipe, load_recipe
from overproof.core.errors import StageError, UsageError
from overproof.core.recipe import Recipe
from overproof.core.sections import DataConfig
from overproof.data.certify import certify
from overproof.teacher import answers
from overproof.teacher.cache import SignalCache
from overproof.teacher.prompts import Asked, ask
from overproof.teacher.request import Request, Said
from overproof.teacher.verified import right, shortest

VOWEL = {"kind": "regex", "pattern": "[aeiou]"}  # what a teacher of noise says now and then
PROMPTS = 12


def said(record: str, draw: int, size: int) -> Said:
    return Said(Request.make(record, [1], 0, draw), [5] * size)


def test_the_shortest_are_kept_in_their_order() -> None:
    every = [said("a", 0, 9), said("b", 0, 2), said("a", 1, 3), said("a", 2, 3), said("b", 1, 8)]
    assert shortest(every, 1) == [every[1], every[2]]
    assert shortest(every, 2) == [every[1], every[2], every[3], every[4]]
    assert shortest(every, 9) == every


def test_only_right_answers_stay() -> None:
    teacher = tiny.teacher()
    words = ["Yes, on Monday.", "No."]
    every = [
        Said(Request.make(record, [1], 0, draw), [*tiny.tokenizer().encode(text).ids, 0])
        for record in ("a", "b")
        for draw, text in enumerate(words)
    ]
    checks = {
        "a": {"kind": "exact", "answer": "Yes, on Monday."},
        "b": {"kind": "exact", "answer": "No."},
    }
    cut = Said(Request.make("a", [1], 0, 7), every[0].tokens[:-1])
    assert right([*every, cut], asked(checks), teacher, "answers") == [every[0], every[3]]
    nobody = {key: {"kind": "exact", "answer": "Perhaps."} for key in checks}
    with pytest.raises(StageError, match="none of 5 answers passes its check") as caught:
        right([*every, cut], asked(nobody), teacher, "answers")
    assert caught.value.details == (
        "2 times: got 'Yes, on Monday.', wanted 'Perhaps.'",
        "2 times: got 'No.', wanted 'Perhaps.'",
        "1 times: cut off at the longest length",
    )


def asked(checks: dict) -> Asked:
    return Asked((), (), {}, {}, {}, checks)


def certified(folder: Path, name: str, check: dict | None) -> Artifact:
    file = folder / f"{name}.jsonl"
    rows = [
        {"prompt": f"{name} number {number}?", "licence": "CC0-1.0", "origin": "here"}
        | ({"check": check} if check else {})
        for number in range(PROMPTS)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = DataConfig(train="x", heldout="y")
    return certify(file, config, store=folder / "stages", name=name, exclude=None)


def drawn(folder: Path, recipe: Recipe, check: dict | None = VOWEL) -> Artifact:
    teacher = tiny.brief()
    terms = build(folder / "stages", "terms", inputs={}, config={}, make=lambda _: {})
    return answers.sample(
        tiny.loads(teacher),
        certified(folder, "train", check),
        certified(folder, "heldout", None),
        {"teacher": teacher.resource},
        terms,
        recipe,
        folder / "stages",
    )


def recipe(*more: str) -> Recipe:
    base = [
        "signals={kind: top-k, top_k: 6}",
        "sample={prompts: 12, heldout_prompts: 4, answers: 4, max_new_tokens: 12, batch: 8,"
        " temperature: 1.0}",
        "teacher.system=null",
        "train.sequence_length=256",
    ]
    return load_recipe(find_recipe("support"), [*base, *more])


def test_a_run_learns_from_right_answers_alone_with_the_signals_of_these(tmp_path: Path) -> None:
    asked = recipe("sample.verified=true")
    made = drawn(tmp_path, asked)
    found, teacher = answers.read(made), tiny.brief()
    texts = [teacher.text(one.answer) for one in found.train]
    assert all(any(vowel in text for vowel in "aeiou") for text in texts)
    assert all(teacher.ended(one.answer) for one in found.train)
    assert 0 < made.facts["right"] < made.facts["checked"] <= 4 * PROMPTS
    assert made.facts["answers"] == made.facts["right"] == len(found.train)
    assert len(found.heldout) == 4  # what is measured on is not chosen
    assert len(found.unchecked) == made.facts["checked"]
    assert [one for one in found.unchecked if one in found.train] == [*found.train]
    signals = SignalCache(made.path, answers.made_of(made, asked))
    positions = sum(len(one.targets(prompt=True)) for one in found.train)
    assert sum(len(part.ids_NK) for part in signals) == positions
    assert drawn(tmp_path / "again", asked).sha256 == made.sha256
    few = drawn(tmp_path, recipe("sample.verified=true", "sample.shortest=1"))
    keys = [one.key for one in answers.read(few).train]
    assert len(keys) == len(set(keys)) == few.facts["prompts"]


SHOTS = (
    "teacher.shots=[{prompt: 'Where is it?', answer: On Monday.}, {prompt: 'When?', answer: Soon.}]"
)


def test_what_is_shown_to_the_teacher_is_not_shown_to_the_student(tmp_path: Path) -> None:
    found = answers.read(drawn(tmp_path, recipe(SHOTS)))
    teacher = tiny.brief()
    shown, alone = map(teacher.tokenizer.decode, (found.prefix, found.student_prefix))
    assert shown.endswith(alone)
    assert "On Monday.<|end|>" in shown
    assert "Monday" not in alone
    own = "".join(teacher.tokenizer.decode(found.heldout[0].prompt))
    text = found.texts[found.heldout[0].key]
    assert alone + own == f"<|start|>user\n{text}<|end|>\n<|start|>assistant\n"
    plain = answers.read(drawn(tmp_path, recipe()))
    assert plain.prefix == plain.student_prefix == found.student_prefix
    assert [one.prompt for one in plain.heldout] == [one.prompt for one in found.heldout]


def test_a_template_that_writes_the_last_turn_otherwise_cannot_show_shots(tmp_path: Path) -> None:
    teacher = tiny.brief()
    teacher.tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }}{% endfor %} turn {{ messages | length }}"
    )
    train, heldout = (certified(tmp_path, name, None) for name in ("train", "heldout"))
    with pytest.raises(UsageError, match="writes a prompt otherwise behind"):
        ask(teacher, train, heldout, recipe(SHOTS))


def test_a_record_without_a_check_is_told_before_anything_is_drawn(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="and a record has none"):
        drawn(tmp_path, recipe("sample.verified=true"), None)


def test_a_check_that_cannot_be_read_is_told_with_its_record(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no check") as caught:
        drawn(tmp_path, recipe("sample.verified=true"), {"kind": "guess"})
    assert caught.value.details[0].startswith("record ")


def test_the_shortest_of_what_is_not_checked_is_refused() -> None:
    with pytest.raises(UsageError, match="it needs verified: true"):
        recipe("sample.shortest=1")
