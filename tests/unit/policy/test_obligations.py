"""Obligations: carried out in the plan, rechecked in the release."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import pytest

from overproof.core.config import find_recipe, load_recipe
from overproof.core.contract import CARD, NOTICE
from overproof.core.errors import PolicyError, StageError, UsageError
from overproof.policy.gate import Decision, Teacher, decide
from overproof.policy.obligations import (
    MAX_NAME,
    Plan,
    carry_out,
    done,
    own_text,
    permit,
    raise_unmet,
    recheck,
    rename,
    texts_beside,
    unmet,
)
from overproof.policy.rows import Obligation, load_rows
from overproof.teacher.files import identify
from overproof.teacher.origins import find

TODAY = date(2026, 11, 24)
GEMMA_TEXT = "Gemma Terms of Use\n" + "terms " * 200


def decision(*names: str) -> Decision:
    return decide([Teacher(name) for name in names], channel="weights", on=TODAY)


def release(folder: Path, plan: Plan) -> Path:
    """A release as the export stage writes it."""
    card = "\n".join([f"# {plan.name}", *plan.card_lines])
    for path, text in {**plan.files, CARD: card}.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    return folder


def test_a_llama_student_is_renamed_noticed_carded_and_rechecked(tmp_path) -> None:
    plan = carry_out(decision("meta-llama/Llama-3.1-8B-Instruct"), "support-flash").require()
    assert plan.name == "Llama-support-flash"
    assert "'Llama-support-flash', not 'support-flash'" in plan.message
    assert "Llama 3.1 is licensed under the Llama 3.1 Community License" in plan.notice_text
    assert "Built with Llama" in plan.card_lines
    assert any("700,000,000" in line for line in plan.card_lines)
    assert plan.files[NOTICE] == plan.notice_text
    (copy,) = (text for path, text in plan.files.items() if path != NOTICE)
    assert copy.startswith("LLAMA 3.1 COMMUNITY LICENSE AGREEMENT")
    assert recheck(release(tmp_path, plan), plan.name, plan.obligations) == []
    assert done(plan.obligations, []) == {obligation.id for obligation in plan.obligations}


def test_the_builtin_student_keeps_its_name_and_ships_the_licence(tmp_path) -> None:
    plan = carry_out(decision("builtin:smollm2-135m-instruct"), "support-flash")
    assert plan.name == "support-flash"
    assert plan.message is None
    assert "smollm2-135m-instruct (SmolLM2) by Hugging Face" in plan.notice_text
    assert "builtin:" not in plan.notice_text
    assert "Apache License" in plan.files["proof/licences/Apache-2.0.txt"]
    assert recheck(release(tmp_path, plan), plan.name, plan.obligations) == []


@pytest.mark.parametrize("row", load_rows(), ids=lambda row: row.id)
def test_every_permitted_row_can_be_carried_out_and_rechecked(row, tmp_path) -> None:
    name = row.match[0].replace("[0-9]", "1").replace("*", "x")
    decided = decide([Teacher(name)], channel=row.channel, on=TODAY)
    if not decided.verdict.permits:
        return
    keys = {o.value for o in decided.obligations if o.kind == "license_copy"}
    plan = carry_out(decided, "flash", dict.fromkeys(keys, GEMMA_TEXT)).require()
    assert recheck(release(tmp_path, plan), plan.name, plan.obligations) == []


@pytest.mark.parametrize("victim", ["name", "NOTICE", "README", "licence", "card name"])
def test_each_removed_piece_is_found(tmp_path, victim) -> None:
    plan = carry_out(decision("meta-llama/Llama-3.1-8B"), "flash")
    release(tmp_path, plan)
    name = plan.name
    if victim == "name":
        name = "flash"
    elif victim == "NOTICE":
        (tmp_path / NOTICE).unlink()
    elif victim == "README":
        (tmp_path / CARD).write_text(f"# {name}\n")
    elif victim == "card name":
        card = (tmp_path / CARD).read_text()
        (tmp_path / CARD).write_text(card.replace(name, "flash"))
    else:
        next((tmp_path / "proof/licences").glob("*.txt")).write_text("see the web site")
    wanted = {
        "name": {"llama-3.1/name"},
        "card name": {"llama-3.1/name"},
        "NOTICE": {"llama-3.1/notice", "llama-3.1/use-policy", "llama-3.1/users"},
        "README": {"llama-3.1/card", "llama-3.1/use-policy", "llama-3.1/users"},
        "licence": {"llama-3.1/licence"},
    }[victim]
    found = recheck(tmp_path, name, plan.obligations)
    assert {entry.obligation.id for entry in found} == wanted
    assert done(plan.obligations, found).isdisjoint(wanted)
    with pytest.raises(PolicyError) as error:
        raise_unmet(found)
    assert error.value.exit_code == 3
    assert all(identity in error.value.render() for identity in wanted)


def test_an_empty_release_meets_nothing_and_a_missing_one_is_an_error(tmp_path) -> None:
    plan = carry_out(decision("meta-llama/Llama-3.1-8B"), "flash")
    assert len(recheck(tmp_path, plan.name, plan.obligations)) == len(plan.obligations)
    with pytest.raises(StageError, match="no release"):
        recheck(tmp_path / "none", plan.name, plan.obligations)


def test_line_breaks_do_not_hide_a_notice() -> None:
    duty = Obligation(id="a", kind="notice", value="one two three")
    assert unmet({NOTICE: "one\n  two three"}, "x", [duty]) == []
    assert unmet({CARD: "one two three"}, "x", [duty]) != []


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("flash", "Llama-flash"),
        ("Llama-flash", "Llama-flash"),
        ("llama-flash", "Llama-flash"),
        ("LLAMA_flash", "Llama-flash"),
        ("llama", "Llama"),
        ("my-llama", "Llama-my-llama"),
    ],
)
def test_the_prefix_is_put_before_the_name_once(name, wanted) -> None:
    prefix = [Obligation(id="a", kind="name_prefix", value="Llama")]
    assert rename(name, prefix) == wanted
    assert rename(wanted, prefix) == wanted


@pytest.mark.parametrize("name", ["", "-a", "a b", "a/b", "../a", "ü", "a\n"])
def test_what_is_no_name_is_a_usage_error(name) -> None:
    with pytest.raises(UsageError, match="no name for a model"):
        rename(name, [])


def test_a_name_that_grows_too_long_says_how_to_rename() -> None:
    prefix = [Obligation(id="a", kind="name_prefix", value="Llama")]
    assert len(rename("x" * (MAX_NAME - 6), prefix)) == MAX_NAME
    with pytest.raises(PolicyError) as error:
        rename("x" * (MAX_NAME - 5), prefix)
    assert "shorter student.name" in error.value.hint


def test_two_prefixes_cannot_both_come_first() -> None:
    two = [Obligation(id=v, kind="name_prefix", value=v) for v in ("Llama", "Vicuna")]
    with pytest.raises(PolicyError, match="no name can meet"):
        rename("flash", two)


def test_a_refused_decision_plans_nothing() -> None:
    with pytest.raises(PolicyError, match="do not permit"):
        carry_out(decision("meta-llama/Llama-2-7b"), "flash")


def test_a_licence_that_is_not_carried_is_asked_for_and_taken_from_beside_the_weights(
    tmp_path,
) -> None:
    gemma = decision("google/gemma-3-1b-it")
    plan = carry_out(gemma, "flash")
    assert [entry.obligation.id for entry in plan.missing] == ["gemma/licence"]
    with pytest.raises(PolicyError, match="cannot be carried out") as error:
        plan.require()
    assert "into LICENSE beside the model's weights" in error.value.render()
    (tmp_path / "model.gguf").touch()
    (tmp_path / "LICENSE").write_text(GEMMA_TEXT)
    for place in (tmp_path, tmp_path / "model.gguf"):
        texts = texts_beside(place, gemma.obligations)
        assert carry_out(gemma, "flash", texts).require().missing == ()


def test_one_file_is_not_the_text_of_two_licences(tmp_path) -> None:
    (tmp_path / "LICENSE").write_text(GEMMA_TEXT)
    both = decision("google/gemma-3-1b-it", "nvidia/NVIDIA-Nemotron-Nano-9B-v2")
    assert texts_beside(tmp_path, both.obligations) == {}
    assert texts_beside(tmp_path, decision("builtin:smollm2-135m-instruct").obligations) == {}


def test_a_licence_file_that_is_no_text_is_an_error(tmp_path) -> None:
    (tmp_path / "LICENSE").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(StageError, match="cannot read the licence"):
        texts_beside(tmp_path, decision("google/gemma-3-1b-it").obligations)


def test_terms_that_travel_are_told_to_every_recipient() -> None:
    texts = {"LicenseRef-Gemma-2026-04-01": GEMMA_TEXT}
    plan = carry_out(decision("google/gemma-3-1b-it"), "flash", texts)
    for text in (plan.notice_text, "\n".join(plan.card_lines)):
        assert "passed on under the same terms" in text
        assert "ai.google.dev/gemma/prohibited_use_policy" in text


def test_shipped_licence_texts_are_whole() -> None:
    assert own_text("Apache-2.0").rstrip().endswith("limitations under the License.")
    assert "“Llama” at the beginning" in own_text("LicenseRef-scancode-llama-3.1-license-2024")
    assert own_text("LicenseRef-Gemma-2026-04-01") is None


def test_no_local_path_reaches_the_notice() -> None:
    plan = carry_out(decision("/home/someone/private/Llama-3.1-8B"), "flash")
    assert "private" not in plan.notice_text


def test_a_folder_of_this_machine_is_no_publisher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path = tmp_path / "qwen3-work"  # a folder's name is not the model's either
    (tmp_path / "private/Llama-3.1-8B").mkdir(parents=True)
    (tmp_path / "private/Llama-3.1-8B/config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(find_recipe("support"), ["teacher.model=private/Llama-3.1-8B"])
    found, plan = permit(recipe, [identify(recipe.teacher.model)])
    assert "private" not in json.dumps([found.predicates(), plan.notice_text, plan.card_lines])
    assert plan.name.startswith("Llama-")


def test_what_the_student_is_cut_from_is_judged_too(tmp_path: Path) -> None:
    for name in ("Llama-3.1-8B", "Llama-2-7b-chat-hf", "SmolLM2-360M"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"name": name}))

    def asked(base: str, *more: str) -> tuple[Decision, Plan]:
        teacher = f"teacher.model={tmp_path / 'SmolLM2-360M'}"
        settings = [teacher, f"student.base={tmp_path / base}", *more]
        recipe = load_recipe(find_recipe("support"), settings)
        return permit(recipe, find(recipe).places)

    found, plan = asked("Llama-3.1-8B")
    assert [one.display for one in found.rulings] == ["SmolLM2-360M", "Llama-3.1-8B"]
    assert plan.name.startswith("Llama-")
    assert "Teacher: SmolLM2-360M" in plan.notice_text
    assert "Base: Llama-3.1-8B" in plan.notice_text
    with pytest.raises(PolicyError, match="Llama-2-7b-chat-hf"):
        asked("Llama-2-7b-chat-hf")


def test_of_several_teachers_the_strictest_verdict_counts(tmp_path: Path) -> None:
    names = ("Llama-3.1-8B", "Llama-2-7b-chat-hf", "SmolLM2-360M", "SmolLM2-1.7B")
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"name": name}))

    def asked(*others: str) -> tuple[Decision, Plan]:
        more = json.dumps([{"model": str(tmp_path / name)} for name in others])
        settings = [f"teacher.model={tmp_path / 'SmolLM2-360M'}", f"teacher.others={more}"]
        recipe = load_recipe(find_recipe("support"), settings)
        return permit(recipe, find(recipe).places)

    found, plan = asked("SmolLM2-1.7B")
    assert plan.name == "SmolLM2-Support-Flash"
    found, plan = asked("SmolLM2-1.7B", "Llama-3.1-8B")
    assert [one.display for one in found.rulings] == [
        "SmolLM2-360M",
        "SmolLM2-1.7B",
        "Llama-3.1-8B",
    ]
    assert found.verdict == found.rulings[2].verdict != found.rulings[0].verdict
    assert plan.name.startswith("Llama-")
    assert plan.notice_text.count("Teacher: ") == 3
    with pytest.raises(PolicyError, match="Llama-2-7b-chat-hf"):
        asked("SmolLM2-1.7B", "Llama-2-7b-chat-hf")


def test_the_weights_of_a_base_are_judged_as_weights_whatever_the_teachers_channel() -> None:
    models = [Teacher("gemini-2.5-pro"), Teacher("meta-llama/Llama-3.1-8B", "1" * 64, "base")]
    found = decide(models, channel="api", on=TODAY)
    assert [one["channel"] for one in found.predicates()] == ["api", "weights"]
    assert found.rulings[1].verdict.permits
