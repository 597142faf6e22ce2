from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from pydantic import ValidationError

from overproof.core import config
from overproof.core.config import find_data, find_recipe, load_recipe
from overproof.core.errors import UsageError
from overproof.core.recipe import Recipe

SMALL: dict[str, Any] = {
    "name": "small",
    "data": {"train": "a.jsonl", "heldout": "b.jsonl"},
    "teacher": {"model": "builtin:x"},
    "sample": {"prompts": 10},
    "student": {"name": "Small", "layers": 2, "vocabulary": 512},
    "train": {"steps": 3},
}


def written(tmp_path: Path, recipe: Any) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump(recipe) if not isinstance(recipe, str) else recipe)
    return path


def changed(*place: str, value: Any) -> dict[str, Any]:
    recipe = json.loads(json.dumps(SMALL))
    node = recipe
    for part in place[:-1]:
        node = node[part]
    node[place[-1]] = value
    return dict(recipe)


def refused(tmp_path: Path, recipe: Any, *overrides: str) -> UsageError:
    with pytest.raises(UsageError) as caught:
        load_recipe(written(tmp_path, recipe), overrides)
    return caught.value


def test_a_small_recipe(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path, SMALL))
    assert (recipe.name, recipe.train.steps, recipe.seed) == ("small", 3, 0)


def test_it_is_frozen(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path, SMALL))
    with pytest.raises(ValidationError):
        recipe.seed = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("place", "hint"),
    [
        (("train", "step"), "did you mean 'steps'?"),
        (("train", "learnig_rate"), "did you mean 'learning_rate'?"),
        (("smaple",), "did you mean 'sample'?"),
        (("train", "divergence", "bata"), "did you mean 'beta'?"),
        (("student", "qqqq"), "overproof distill --print-schema lists every key"),
    ],
)
def test_an_unknown_key_names_the_nearest(
    tmp_path: Path, place: tuple[str, ...], hint: str
) -> None:
    recipe = changed("train", "divergence", value={"kind": "jsd"})
    node = recipe
    for part in place[:-1]:
        node = node[part]
    node[place[-1]] = 5
    error = refused(tmp_path, recipe)
    assert f"{'.'.join(place)}: unknown key" in error.details
    assert error.hint == hint
    assert error.exit_code == 2


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("train", "steps"), 0, "train.steps: got 0; input should be greater than 0"),
        (("train", "steps"), "many", "train.steps: got 'many'"),
        (("sample", "top_p"), 1.5, "sample.top_p: got 1.5"),
        (("train", "divergence"), {"kind": "jsd", "beta": 1}, "train.divergence.beta: got 1"),
        (
            ("train", "divergence"),
            {"kind": "alpha-beta", "alpha": 1e-9, "beta": 1},
            "0, or 0.01 at least",
        ),
        (("signals",), {"kind": "exact", "temperature": 1e-40}, "signals.temperature: got 1e-40"),
        (
            ("signals",),
            {"kind": "sampled", "temperature": float("inf")},
            "signals.temperature: got inf",
        ),
        (("train", "divergence"), {"kind": "js"}, "does not match any of the expected tags"),
        (("train", "divergence"), {"kind": "alpha-beta", "alpha": 0, "beta": 0}, "both 0"),
        (("name",), "No Spaces", "name: got 'No Spaces'"),
        (("data",), "a.jsonl", "data: got 'a.jsonl'"),
        (("export",), {"targets": ["gguf-q9"]}, "export.targets.0: got 'gguf-q9'"),
    ],
)
def test_a_wrong_value_is_shown_with_its_place(
    tmp_path: Path, place: tuple[str, ...], value: Any, said: str
) -> None:
    assert said in "\n".join(refused(tmp_path, changed(*place, value=value)).details)


def test_a_missing_field_is_named(tmp_path: Path) -> None:
    recipe = changed("train", value={})
    assert "train.steps: missing" in refused(tmp_path, recipe).details


@pytest.mark.parametrize(
    "text", ["a: [1, 2", "\t- x", "key: 'unended", "a: 2024-13-45", "[" * 5000, "seed: 1\nseed: 2"]
)
def test_no_yaml(tmp_path: Path, text: str) -> None:
    assert "is not YAML" in refused(tmp_path, text).what


@pytest.mark.parametrize(("text", "kind"), [("- a\n- b", "list"), ("", "NoneType"), ("x", "str")])
def test_yaml_but_no_mapping(tmp_path: Path, text: str, kind: str) -> None:
    assert f"holds {kind}, wanted a mapping" in refused(tmp_path, text).what


def test_no_utf8(tmp_path: Path) -> None:
    path = tmp_path / "small.yaml"
    path.write_bytes(b"name: caf\xe9\n")
    with pytest.raises(UsageError, match="is not YAML"):
        load_recipe(path)


def test_a_recipe_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read"):
        load_recipe(tmp_path / "absent.yaml")


def test_overrides_are_read_as_yaml(tmp_path: Path) -> None:
    path = written(tmp_path, SMALL)
    overrides = ("train.steps=7", "train.controls=[]", "export.targets=[gguf-f16]", "seed = 2")
    recipe = load_recipe(path, overrides)
    assert (recipe.train.steps, recipe.train.controls, recipe.seed) == (7, (), 2)
    assert recipe.export.targets == ("gguf-f16",)


def test_the_last_override_wins(tmp_path: Path) -> None:
    assert load_recipe(written(tmp_path, SMALL), ("seed=1", "seed=2")).seed == 2


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.steps", "has no value"),
        ("=5", "has no value"),
        ("train..steps=5", "has no value"),
        ("name.first=x", "is no section"),
        ("train.steps=[1", "the value is not YAML"),
        ("seed=2024-13-45", "the value is not YAML"),
        ("train.stpes=5", "did you mean 'steps'?"),
        ("train=5", "train: got 5"),
    ],
)
def test_a_wrong_override(tmp_path: Path, override: str, said: str) -> None:
    assert said in refused(tmp_path, SMALL, override).render()


def test_an_override_makes_the_section_that_is_not_there(tmp_path: Path) -> None:
    assert load_recipe(written(tmp_path, SMALL), ("evaluate.answers=2",)).evaluate.answers == 2


def test_the_schema_accepts_a_recipe_and_refuses_an_unknown_key() -> None:
    schema = Recipe.model_json_schema()
    jsonschema.validate(SMALL, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(changed("train", "stepz", value=1), schema)


def shipped() -> list[str]:
    folder = Path(__file__).parents[3] / "recipes"
    return sorted(file.stem for file in folder.glob("*.yaml"))


@pytest.mark.parametrize("name", shipped())
def test_each_recipe_that_ships_is_valid_and_finds_its_data(name: str) -> None:
    path = find_recipe(name)
    recipe = load_recipe(path)
    assert recipe.name == name
    assert find_data(recipe.data.train, path).is_file()
    assert find_data(recipe.data.heldout, path).is_file()


def test_an_unknown_recipe_lists_those_that_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes/support.yaml").touch()
    monkeypatch.setattr(config, "resource_folders", lambda: [tmp_path])
    with pytest.raises(UsageError) as caught:
        find_recipe("suport")
    assert caught.value.details == ("known: support",)
    assert caught.value.hint == "did you mean 'support'?"


def test_a_path_that_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no recipe at"):
        find_recipe(str(tmp_path / "absent.yaml"))


def test_data_stands_beside_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").touch()
    assert find_data("a.jsonl", tmp_path / "small.yaml") == tmp_path / "a.jsonl"
    with pytest.raises(UsageError) as caught:
        find_data("absent.jsonl", tmp_path / "small.yaml")
    assert f"tried {tmp_path / 'absent.jsonl'}" in caught.value.details
