"""Budgets: what is chosen, what is refused and with which figures, and how they are written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError
from test_cost import BASE, hardware

from overproof import outlook
from overproof.core.config import find_recipe, load_recipe
from overproof.core.errors import UsageError
from overproof.core.limits import overrides_of
from overproof.core.sections import Budget, StudentConfig
from overproof.student.budget import excess, fitted
from overproof.student.dimensions import Dimensions


def chosen(**changes: object) -> Dimensions:
    limits = {
        name: changes.pop(name)
        for name in ("latency_ms", "memory_mb", "parameters")
        if name in changes
    }
    asked = StudentConfig(**{"name": "s", "vocabulary": 16_384, "budget": limits} | changes)
    found = fitted(asked, BASE, hardware())
    shape = BASE.cut(found.student)
    assert excess(shape, asked.budget, hardware()) == []
    assert found.predicted == hardware().predict(shape)
    return shape


@pytest.mark.parametrize("millions", [35, 45, 60, 80])
def test_layers_and_width_shrink_together_and_heads_stay(millions: int) -> None:
    shape = chosen(parameters=millions * 1_000_000)
    shares = (shape.layers / BASE.layers, shape.mlp_width / BASE.mlp_width)
    assert abs(shares[0] - shares[1]) < 0.07
    assert shape.kv_heads == BASE.kv_heads
    assert shape.mlp_width % 64 == 0
    assert shape.parameters > 0.93 * millions * 1_000_000


def test_a_larger_budget_never_gives_a_smaller_share() -> None:
    shares = []
    for millions in range(30, 140, 10):
        shape = chosen(parameters=millions * 1_000_000)
        shares.append(min(shape.layers / BASE.layers, shape.mlp_width / BASE.mlp_width))
    assert shares == sorted(shares)
    assert chosen(parameters=140_000_000).layers == BASE.layers
    assert chosen(parameters=140_000_000).mlp_width == BASE.mlp_width


def test_every_limit_counts() -> None:
    wide = chosen(parameters=80_000_000)
    cost = hardware().predict(wide)
    quick = chosen(parameters=80_000_000, latency_ms=0.7 * cost.latency_ms)
    small = chosen(parameters=80_000_000, memory_mb=0.7 * cost.memory_bytes / 1e6)
    assert quick.parameters < wide.parameters
    assert small.parameters < wide.parameters


def test_what_the_recipe_names_stays() -> None:
    assert chosen(parameters=60_000_000, layers=12).layers == 12
    fixed = chosen(parameters=60_000_000, layers=12, mlp_width=512, kv_heads=2)
    assert (fixed.layers, fixed.mlp_width, fixed.kv_heads, fixed.heads) == (12, 512, 2, 6)


def test_heads_go_where_nothing_else_fits() -> None:
    least = chosen(parameters=60_000_000, layers=8, mlp_width=384)
    few = chosen(parameters=least.parameters - 1_000_000)
    assert few.kv_heads < BASE.kv_heads


@pytest.mark.parametrize(
    ("limits", "told"),
    [
        ({"parameters": 0}, "parameters: "),
        ({"latency_ms": 0}, "latency: "),
        ({"memory_mb": 0.0}, "memory: "),
        ({"parameters": 1_000_000, "latency_ms": 0.01}, "latency: "),
    ],
)
def test_what_cannot_be_met_is_refused_with_the_smallest_figures(
    limits: dict[str, float], told: str
) -> None:
    with pytest.raises(UsageError, match=r"no shape fits student\.budget on box") as caught:
        chosen(**limits)
    text = caught.value.render()
    assert told in text
    assert "the smallest has 8 layers, MLPs of 384, 1 of 3 groups of heads, 16,384" in text


def test_latency_needs_measured_hardware() -> None:
    asked = StudentConfig(name="s", vocabulary=16_384, budget=Budget(latency_ms=5.0))
    with pytest.raises(UsageError, match="needs a measured piece of hardware"):
        fitted(asked, BASE, None)
    small = StudentConfig(name="s", vocabulary=16_384, budget=Budget(parameters=60_000_000))
    assert fitted(small, BASE, None).predicted is None
    with pytest.raises(ValidationError, match="limits nothing"):
        Budget(hardware="box.json")


def test_the_option_becomes_overrides() -> None:
    found = overrides_of("latency=5ms, memory=0.1GB,parameters=60.5M,for=box.json")
    assert found[:3] == ["student.layers=null", "student.mlp_width=null", "student.kv_heads=null"]
    asked = load_recipe(find_recipe("support"), found).student
    assert asked.budget == Budget(
        latency_ms=5.0, memory_mb=100.0, parameters=60_500_000, hardware="box.json"
    )
    assert asked.layers is asked.mlp_width is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "limits nothing"),
        ("latency", "has no value"),
        ("speed=5", "'speed' is no limit"),
        ("latency=5", "one of the units ms, s, us"),
        ("memory=5kg", "one of the units MB"),
        ("parameters=-5M", "wanted a number"),
    ],
)
def test_an_option_that_says_nothing_is_refused(text: str, told: str) -> None:
    with pytest.raises(UsageError, match=told) as caught:
        overrides_of(text)
    assert "latency=5ms,memory=100MB" in caught.value.render()


def test_the_plan_shows_shape_and_prediction(tmp_path: Path) -> None:
    (tmp_path / "box.json").write_text(json.dumps(hardware().to_json()))
    path = find_recipe("support")
    limits = overrides_of(f"parameters=45M,latency=6ms,for={tmp_path / 'box.json'}")
    recipe = outlook.fitted(load_recipe(path, limits), path)
    assert recipe.student.layers is not None
    found = outlook.plan(recipe, path)
    assert found["student"]["parameters"] <= 45_000_000
    assert found["student"]["predicted"]["hardware"] == "box"
    assert "on box" in outlook.render(found)
    assert outlook.fitted(load_recipe(path), path) == load_recipe(path)
