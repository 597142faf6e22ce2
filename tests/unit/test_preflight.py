"""A recipe tried before anything is spent on it: the rules, and the look at a tiny teacher."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_teacher as tiny

from overproof import doctor, preflight
from overproof.core.config import find_recipe, load_recipe
from overproof.core.errors import PolicyError, StageError, UsageError
from overproof.core.recipe import Recipe
from overproof.preflight import Seen, first_prompts, judge, look

GOOD = Seen(
    rows=100, highest=99, changed=(), doubled=False, system=True, invites=True, ended=6, answers=8,
    longest=200, room=256, apart=0.02, uniform=3.0, expected=3.0, itself=1e-9, start=2.0,
)  # fmt: skip
PROMPTS = ["Where is my parcel?", "Refund it.", "My order has not arrived.", "Please?"]


def recipe(*more: str) -> Recipe:
    shape = ["student.layers=2", "student.mlp_width=null", "student.vocabulary=290"]
    return load_recipe(find_recipe("support"), ["sample.max_new_tokens=12", *shape, *more])


def test_a_good_recipe_passes() -> None:
    assert {check.state for check in judge(GOOD)} == {"ok"}
    assert all(check.remedy is None for check in judge(GOOD))


@pytest.mark.parametrize(
    ("name", "state", "changes"),
    [
        ("vocabulary", "missing", {"highest": 100}),
        ("round trip", "warning", {"changed": (("a  b", "a b"),)}),
        ("beginning", "missing", {"doubled": True}),
        ("system message", "warning", {"system": False}),
        ("turn", "missing", {"invites": False}),
        ("termination", "warning", {"ended": 3}),
        ("length", "missing", {"longest": 257}),
        ("served as read", "missing", {"apart": 0.3}),
        ("loss", "missing", {"uniform": 3.01}),
        ("loss", "missing", {"uniform": float("nan")}),
        ("divergence", "missing", {"itself": -1e-3}),
        ("divergence", "missing", {"itself": 0.1}),
        ("divergence", "missing", {"start": float("inf")}),
    ],
)
def test_each_fault_is_named_with_a_remedy(name: str, state: str, changes: dict[str, Any]) -> None:
    wrong = [check for check in judge(replace(GOOD, **changes)) if check.state != "ok"]
    assert [(check.name, check.state) for check in wrong] == [(name, state)]
    assert wrong[0].remedy


def test_a_look_at_a_teacher_finds_what_is_there() -> None:
    seen = look(tiny.teacher(), PROMPTS, recipe())
    assert seen.rows == tiny.TOKENS
    assert (seen.highest, seen.answers, seen.invites) == (tiny.TOKENS - 1, 4, True)
    assert seen.apart < 0.1
    bad = {check.name for check in judge(seen) if check.state == "missing"}
    assert not bad


def test_a_sampler_that_computes_something_else_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    true = preflight.shard_signals

    def other(model: Any, *rest: Any) -> Any:
        return true(tiny.model(seed=5), *rest)

    monkeypatch.setattr(preflight, "shard_signals", other)
    seen = look(tiny.teacher(), PROMPTS, recipe())
    assert "served as read" in {check.name for check in judge(seen) if check.state == "missing"}


def test_a_text_that_begins_twice_is_seen() -> None:
    teacher = tiny.teacher()
    bos = teacher.tokenizer.convert_ids_to_tokens(1)
    teacher.tokenizer.bos_token = bos
    teacher.tokenizer.chat_template = f"{bos}{bos}" + tiny.TEMPLATE
    assert look(teacher, PROMPTS, recipe()).doubled


def test_a_template_without_system_and_turn_is_seen() -> None:
    teacher = tiny.teacher()
    template = "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}"
    teacher.tokenizer.chat_template = template + "{% endfor %}"
    seen = look(teacher, PROMPTS, recipe())
    assert not seen.system
    assert not seen.invites


def test_a_template_that_refuses_a_system_message_is_a_warning() -> None:
    teacher = tiny.teacher()
    refusal = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('none') }}{% endif %}"
    teacher.tokenizer.chat_template = refusal + tiny.TEMPLATE
    assert not look(teacher, PROMPTS, recipe("teacher.system=null")).system
    with pytest.raises(StageError, match="refuses the conversation") as caught:
        look(teacher, PROMPTS, recipe())
    assert "leave teacher.system out" in str(caught.value.hint)


@pytest.mark.parametrize("made_small", ["{kind: jsd}", "{kind: reverse-kl}"])
@pytest.mark.parametrize("temperature", [1, 2])
def test_every_divergence_passes(made_small: str, temperature: int) -> None:
    signals = f"signals={{kind: exact, temperature: {temperature}}}"
    seen = look(tiny.teacher(), PROMPTS, recipe(signals, f"train.divergence={made_small}"))
    assert not [
        check for check in judge(seen) if check.name in {"loss", "divergence"} and check.remedy
    ]


def test_the_first_prompts_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows: list[Any] = [
        {"text": "no prompt"},
        {"prompt": 5},
        *({"prompt": f"p{n}"} for n in range(20)),
    ]
    path.write_text("not JSON\n" + "".join(json.dumps(row) + "\n" for row in rows))
    assert first_prompts(path, recipe()) == [f"p{n}" for n in range(preflight.PROMPTS)]
    path.write_text('{"text": "no prompt"}\n')
    with pytest.raises(UsageError, match="no prompt among its records"):
        first_prompts(path, recipe())


def test_terms_that_forbid_it_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def loaded(name: str) -> None:
        raise AssertionError(f"{name} was loaded")

    monkeypatch.setattr("overproof.teacher.local.load", loaded)
    denied = tiny.save(tmp_path / "Llama-2-7b-chat")
    with pytest.raises(PolicyError):
        preflight.run("support", [f"teacher.model={denied}"])


def test_a_teacher_that_the_run_will_make_cannot_be_tried() -> None:
    with pytest.raises(UsageError, match="not there yet") as caught:
        preflight.run("tiny-v4")
    assert "--dry-run" in caught.value.render()


@pytest.mark.slow
def test_the_recipe_that_ships_is_fit() -> None:
    result = doctor.run(doctor.Config(recipe="support"))
    assert result.exit_code == 0, result.checks
    assert result.to_json()["fit"]
    assert doctor.render(result).endswith("support can run here: overproof distill support")


def test_which_way_leads_to_the_students_tokens_is_told() -> None:
    """The teacher's own, a relative's, others that can be aligned, others that cannot."""
    teacher, other = tiny.teacher(), tiny.other()
    assert preflight.tokens(teacher, teacher, recipe()).detail == "the teacher's own"
    relative = replace(tiny.teacher(seed=3), name="relative")
    assert preflight.tokens(teacher, relative, recipe()).detail.startswith("those of relative")
    found = preflight.tokens(teacher, other, recipe())
    assert found.state == "ok"
    assert "aligned by bytes" in found.detail
    refused = preflight.tokens(teacher, other, recipe("train.on_policy={}"))
    assert refused.state == "missing"
    assert "train.on_policy" in str(refused)
