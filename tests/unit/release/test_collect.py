"""What the release says of its makers: licences, machines, and no path of theirs."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from types import SimpleNamespace

import pytest

from overproof.core import artifact, host
from overproof.core.artifact import Artifact, Resource, Work
from overproof.core.config import find_recipe, load_recipe
from overproof.core.recipe import Recipe
from overproof.policy.gate import Decision, Teacher, decide
from overproof.policy.obligations import Plan, carry_out
from overproof.release import collect, origins, quality
from overproof.release.speed import Speed
from overproof.teacher.origins import Origin, Origins

DAY = dt.date(2026, 11, 24)
LLAMA = "LicenseRef-scancode-llama-3.1-license-2024"
FOLDER = "/srv/maker/models/SmolLM2-135M-Instruct"


def decision(name: str) -> Decision:
    return decide([Teacher(name, "a1" * 32)], channel="weights", on=DAY)


@pytest.mark.parametrize(
    ("name", "licence"),
    [
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "Apache-2.0"),
        # Its own row says MIT and Llama; the base that it inherits from says Llama again.
        ("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", f"MIT AND {LLAMA}"),
        # Two vendors' rows apply.
        ("nvidia/llama-3.1-nemotron-70b", f"{LLAMA} AND LicenseRef-NVIDIA-Open-Model-2025-10-24"),
        ("nobody/unheard-of", None),
    ],
)
def test_every_licence_that_applies_is_listed_once(name: str, licence: str | None) -> None:
    assert origins.teacher_licence(decision(name)) == licence


def test_an_unknown_licence_among_several_is_not_passed_over() -> None:
    found = decision("deepseek-ai/DeepSeek-R1-Distill-Llama-8B").deciding.finding
    bare = SimpleNamespace(channel="weights", rows=(), inherited=())
    ruling = SimpleNamespace(
        finding=SimpleNamespace(channel="weights", rows=found.rows, inherited=(bare,))
    )
    assert origins.teacher_licence(SimpleNamespace(rulings=(ruling,))) is None  # type: ignore[arg-type]


def test_a_choice_of_licences_keeps_its_brackets() -> None:
    rows = [SimpleNamespace(licence=text) for text in ("MIT OR Apache-2.0", "MIT", "MIT AND ISC")]
    finding = SimpleNamespace(channel="weights", rows=rows, inherited=())
    rulings = (SimpleNamespace(finding=finding),)
    found = origins.teacher_licence(SimpleNamespace(rulings=rulings))  # type: ignore[arg-type]
    assert found == "(MIT OR Apache-2.0) AND MIT AND ISC"


def test_stages_of_another_machine_are_told() -> None:
    here: host.Machine = {"processor": "A", "cores": 2, "torch": "2.13.0"}
    found = collect.elsewhere(here, {"student": {**here, "torch": "2.12.0"}, "control": dict(here)})
    assert found == ("The stage student was made elsewhere: torch 2.12.0.",)
    assert collect.elsewhere(here, {"student": {**here, "processor": "B", "cores": 64}}) == (
        "The stage student was made elsewhere: processor B, cores 64.",
    )


def test_the_terms_name_the_teacher_as_notice_does() -> None:
    ruled = decision(FOLDER)
    plan: Plan = carry_out(ruled, "small")
    found = origins.terms_of(ruled, plan)
    assert found["teacher"]["name"] == "SmolLM2-135M-Instruct"
    assert "Teacher: SmolLM2-135M-Instruct" in plan.notice_text
    assert "/srv/maker" not in str(found)


def test_the_recipe_is_shown_without_its_makers_folders() -> None:
    recipe: Recipe = load_recipe(find_recipe("support"), ())
    built_in = Resource("teacher", "builtin:some", "pkg:pypi/some@1", "0" * 64)
    built = Origins(Origin(recipe.teacher.model, FOLDER, built_in))
    assert origins.recipe_without_folders(recipe, built) == recipe.model_dump(mode="json")
    teacher = recipe.teacher.model_copy(update={"model": FOLDER})
    data = recipe.data.model_copy(update={"train": "~/data/train.jsonl"})
    mine = recipe.model_copy(update={"teacher": teacher, "data": data})
    local = Resource("teacher", "SmolLM2-135M-Instruct", "file:SmolLM2-135M-Instruct", "0" * 64)
    found = origins.recipe_without_folders(mine, Origins(Origin(str(FOLDER), FOLDER, local)))
    assert found["teacher"]["model"] == "SmolLM2-135M-Instruct"
    assert found["data"]["train"] == "train.jsonl"


def test_speeds_are_kept_with_the_machine_that_gave_them(
    builds: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(work: Work) -> dict[str, object]:
        folder = work.folder / quality.SPEED_TARGET
        folder.mkdir()
        (folder / "model.gguf").write_bytes(b"")
        return {}

    def pretend(files: dict[str, Path]) -> dict[str, Speed]:
        return {name: Speed(1.0, (1.0,), 1.0, 1, 1, 4, {"name": "x"}) for name in files}

    monkeypatch.setattr(quality, "measure", pretend)
    monkeypatch.setattr(quality, "write_loaded", lambda *given: given[-1].write_bytes(b""))
    monkeypatch.setattr(host, "machine", lambda: {"processor": "B"})
    export: Artifact = artifact.build(tmp_path, "export", inputs={}, config={}, make=make)
    load = lambda: SimpleNamespace(model=None, tokenizer=None)  # noqa: E731
    teacher = Resource("teacher", "t", "file:t", "a1" * 32)
    found = quality.speed(load, export, teacher, tmp_path)  # type: ignore[arg-type]
    measured = found.manifest["times"]["measured"]
    assert measured["machine"] == {"processor": "B"}
    assert collect._speed(measured["teacher"]).threads == 4
