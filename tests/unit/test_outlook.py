from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

from overproof.core.config import Recipe, find_recipe, load_recipe
from overproof.core.errors import PolicyError, UsageError
from overproof.outlook import plan, render
from overproof.release.facts import Json
from overproof.teacher import local

# transformers takes seconds to read the configuration out of a GGUF file.
config_of = functools.cache(local.config_of)


@pytest.fixture(autouse=True, scope="module")
def _read_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "config_of", config_of)
        yield


def recipe(*overrides: str) -> tuple[Recipe, Path]:
    path = find_recipe("support")
    return load_recipe(path, overrides), path


def made(*overrides: str) -> Json:
    return plan(*recipe(*overrides))


@pytest.fixture(scope="module")
def support() -> Json:
    return made()


def test_the_teacher_is_the_real_one(support: Json) -> None:
    """SmolLM2-135M has 134.5 million parameters; norms are left out of the plan."""
    assert support["teacher"]["parameters"] == pytest.approx(134.515e6, rel=1e-3)
    assert len(support["teacher"]["sha256"]) == 64
    assert support["terms"]["verdict"].startswith("allow")


def test_the_student_is_smaller_and_its_parts_add_up(support: Json) -> None:
    assert support["student"]["parameters"] < 0.6 * support["teacher"]["parameters"]
    seconds = support["expected_seconds"]
    assert set(seconds) == {"sample", "signals", "train", "evaluate", "other"}
    assert support["expected_total_seconds"] == pytest.approx(sum(seconds.values()), abs=3)
    assert support["expected_memory_bytes"] > 4 * support["teacher"]["parameters"]


def test_more_work_takes_longer(support: Json) -> None:
    recipe = load_recipe(find_recipe("support"))
    steps, prompts = recipe.train.steps, recipe.sample.prompts
    twice = made(f"train.steps={2 * steps}")["expected_seconds"]["train"]
    assert twice == pytest.approx(2 * support["expected_seconds"]["train"], abs=2)
    alone = made("train.control=false")["expected_seconds"]["train"]
    assert alone == pytest.approx(support["expected_seconds"]["train"] / 2, abs=2)
    more = made(f"sample.prompts={2 * prompts}")
    assert more["expected_seconds"]["sample"] > 1.8 * support["expected_seconds"]["sample"]
    assert more["expected_disk_bytes"] > support["expected_disk_bytes"]
    again = made("sample.answers=2")["expected_seconds"]
    assert again["signals"] == pytest.approx(more["expected_seconds"]["signals"], abs=1)


def test_nothing_is_spent_on_a_recipe_that_cannot_run() -> None:
    with pytest.raises(UsageError, match="no data file"):
        made("data.train=nowhere.jsonl")
    with pytest.raises(UsageError, match="no built-in teacher"):
        made("teacher.model=builtin:nobody")


def test_the_plan_for_people(support: Json) -> None:
    text = render(support)
    for part in ("recipe      support", "134M parameters", "terms       allow", "minutes", "GiB"):
        assert part in text.replace("135M", "134M")
    assert text.endswith("nothing was run.")


def test_a_forbidden_teacher_has_no_plan(tmp_path: Path) -> None:
    """As in the run itself: a script that asks for the plan first must not take it for a yes."""
    folder = tmp_path / "Llama-2-7b-chat-hf"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(PolicyError, match="do not permit"):
        made(f"teacher.model={folder}")


def test_warnings_of_the_gate_are_shown(support: Json) -> None:
    assert support["terms"]["warnings"]
    assert all(f"note: {one}" in render(support) for one in support["terms"]["warnings"])
