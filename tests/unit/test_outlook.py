from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from overproof import matmul
from overproof.core import device
from overproof.core.config import find_recipe, load_recipe
from overproof.core.errors import PolicyError, UsageError
from overproof.core.recipe import Recipe
from overproof.outlook import plan, render
from overproof.pace import PRODUCTS, RATES, tokens_per_second
from overproof.release.facts import Json
from overproof.teacher import local

# transformers takes seconds to read the configuration out of a GGUF file.
config_of = functools.cache(local.config_of)
Machine = Callable[[int, float], None]
HALVES, WHOLE, TILES = PRODUCTS[1:]
ANEW = "signals.while_sampling=false"


@pytest.fixture(autouse=True, scope="module")
def _read_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local, "config_of", config_of)
        yield


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Sets the cores, and what each multiplies a second."""

    def pretend(cores: int, rate: float) -> None:
        monkeypatch.setattr(device, "cores", lambda: cores)
        monkeypatch.setattr(matmul, "rate", lambda: rate)

    return pretend


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


def test_a_teacher_of_ones_own_has_sizes_and_no_times(machine: Machine) -> None:
    machine(2, WHOLE)
    path = find_recipe("tiny-v4")
    found = plan(load_recipe(path), path)
    assert found["terms"]["verdict"] == "allow"
    # As many as the recipe's configuration makes, with its 2,048 tokens.
    assert found["teacher"]["parameters"] == pytest.approx(1.69e6, rel=0.01)
    assert found["student"]["parameters"] < 0.6 * found["teacher"]["parameters"]
    assert found["expected_seconds"] == {}
    assert found["expected_total_seconds"] is None
    assert "no model of this architecture was timed" in render(found)
    with pytest.raises(UsageError, match=r"student\.experts is 9"):
        plan(load_recipe(path, ["student.experts=9"]), path)


def test_more_work_takes_longer(support: Json) -> None:
    recipe = load_recipe(find_recipe("support"))
    steps, prompts = recipe.train.steps, recipe.sample.prompts
    twice = made(f"train.steps={2 * steps}")["expected_seconds"]["train"]
    assert twice == pytest.approx(2 * support["expected_seconds"]["train"], abs=2)
    alone = made("train.controls=[]")["expected_seconds"]["train"]
    assert alone == pytest.approx(support["expected_seconds"]["train"] / 2, abs=2)
    timed = made("train.controls=[{equal: steps}, {equal: time}]", "train.seeds=2")
    assert timed["expected_seconds"]["train"] == pytest.approx(6 * alone, abs=6)
    assert timed["expected_seconds"]["evaluate"] > 2 * support["expected_seconds"]["evaluate"]
    assert "control, equal time; each 2 times" in render(timed)
    more = made(f"sample.prompts={2 * prompts}")
    assert more["expected_seconds"]["sample"] > 1.8 * support["expected_seconds"]["sample"]
    assert more["expected_disk_bytes"] > support["expected_disk_bytes"]
    again = made("sample.answers=2")["expected_seconds"]
    assert again["sample"] == pytest.approx(more["expected_seconds"]["sample"], rel=0.15)


def test_signals_take_time_in_a_pass_of_their_own_alone(support: Json) -> None:
    assert support["expected_seconds"]["signals"] == 0
    own = made(ANEW)["expected_seconds"]["signals"]
    assert own > 30
    assert made(ANEW, "sample.answers=2")["expected_seconds"]["signals"] == pytest.approx(
        2 * own, abs=1
    )


def test_what_the_student_says_takes_time(support: Json) -> None:
    before = support["expected_seconds"]["train"]
    half = made("train.on_policy={warm_start: 0.5, fraction: 0.5}")["expected_seconds"]["train"]
    every = made("train.on_policy={warm_start: 0.5, fraction: 1}")["expected_seconds"]["train"]
    assert before < half < every
    assert every - before == pytest.approx(2 * (half - before), abs=2)


def test_more_cores_take_less_time_and_more_memory(machine: Machine) -> None:
    sequences = load_recipe(find_recipe("support")).train.sequences
    machine(2, TILES)
    two = made(ANEW)
    machine(64, TILES)
    many = made(ANEW)
    before, after = two["expected_seconds"], many["expected_seconds"]
    for name in ("sample", "signals", "evaluate"):
        assert after[name] == pytest.approx(before[name] / 32, abs=1)
    # A step has this many sequences, and no use for more workers.
    assert after["train"] == pytest.approx(before["train"] * 2 / sequences, abs=1)
    assert after["other"] == before["other"]
    assert many["expected_memory_bytes"] > two["expected_memory_bytes"] + 62 * 500_000_000


def test_the_reference_machine_takes_what_was_measured(machine: Machine) -> None:
    """Seconds of the stages on two cores with AMX, docs/benchmarks.md."""
    machine(2, TILES)
    seconds = made(ANEW)["expected_seconds"]
    measured = {"sample": 208 + 20, "signals": 92, "train": 287 + 284, "evaluate": 71}
    assert {name: seconds[name] for name in measured} == pytest.approx(measured, rel=0.12)


@pytest.mark.parametrize("stage", RATES)
def test_the_rates_of_the_machines_measured_and_between(stage: str) -> None:
    rates = RATES[stage]
    at = [tokens_per_second(stage, one) for one in PRODUCTS]
    assert at == pytest.approx(rates)
    for i in range(len(PRODUCTS) - 1):
        between = tokens_per_second(stage, (PRODUCTS[i] * PRODUCTS[i + 1]) ** 0.5)
        assert between == pytest.approx((rates[i] * rates[i + 1]) ** 0.5)
    assert tokens_per_second(stage, PRODUCTS[0] / 4) == pytest.approx(rates[0] / 4)
    assert tokens_per_second(stage, 10 * TILES) == pytest.approx(rates[-1])


def test_a_slower_machine_takes_what_was_measured_on_it(machine: Machine) -> None:
    """Seconds of the stages on an EPYC of the generation before, docs/log.md."""
    machine(2, HALVES)
    seconds = made()["expected_seconds"]
    assert seconds["sample"] == pytest.approx(440, rel=0.15)
    assert seconds["train"] == pytest.approx(639 + 637, rel=0.15)


def test_how_fast_this_machine_multiplies() -> None:
    matmul.rate.cache_clear()
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert 1e8 < matmul.rate() < 1e14
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_a_head_that_is_not_tied_is_counted(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(2, TILES)
    tied = made()
    config = copy.deepcopy(config_of("builtin:smollm2-135m-instruct"))
    config.tie_word_embeddings = False
    monkeypatch.setattr(local, "config_of", lambda _: config)
    own = made()
    vocabulary = load_recipe(find_recipe("support")).student.vocabulary
    for name, rows in (("teacher", config.vocab_size), ("student", vocabulary)):
        more = own[name]["parameters"] - tied[name]["parameters"]
        assert more == rows * config.hidden_size
    # A table that is only looked up costs memory and no time.
    assert own["expected_seconds"] == tied["expected_seconds"]
    assert own["expected_memory_bytes"] > tied["expected_memory_bytes"]


def test_adapters_take_less_memory(machine: Machine, support: Json) -> None:
    machine(2, TILES)
    all_, few = (made(*more)["expected_memory_bytes"] for more in ((), ("train.lora={}",)))
    assert all_ - few == pytest.approx(12 * support["student"]["parameters"])


def test_memory_grows_with_the_examples(machine: Machine) -> None:
    machine(2, TILES)
    recipe = load_recipe(find_recipe("support"))
    one, ten = made(), made(f"sample.prompts={10 * recipe.sample.prompts}")
    tokens = 9 * recipe.sample.prompts * (0.65 * recipe.sample.max_new_tokens + 24)
    more = ten["expected_memory_bytes"] - one["expected_memory_bytes"]
    assert more == pytest.approx(3 * 70 * tokens, rel=1e-6)


def test_what_the_run_would_refuse_has_no_plan() -> None:
    with pytest.raises(UsageError, match="larger than the model") as caught:
        made("student.layers=31", "student.mlp_width=1537")
    assert len(caught.value.details) == 2
    with pytest.raises(UsageError, match=r"export\.targets lacks gguf-q8_0"):
        made("export.targets=[gguf-f16]")


def test_nothing_is_spent_on_a_recipe_that_cannot_run() -> None:
    with pytest.raises(UsageError, match="no data file"):
        made("data.train=nowhere.jsonl")
    with pytest.raises(UsageError, match="no built-in teacher"):
        made("teacher.model=builtin:nobody")


def test_the_plan_for_people(support: Json) -> None:
    text = render(support)
    for part in ("recipe      support", "134M parameters", "terms       allow", " min, ", "GiB"):
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
