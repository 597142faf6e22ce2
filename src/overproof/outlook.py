"""What a run will take: the plan of `overproof distill --dry-run`.

Times are those of `pace`. A plan is an estimate and says so.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import asdict
from pathlib import Path
from typing import Any

from overproof import matmul, pace
from overproof.core import config as recipes
from overproof.core import device

device.prepare()

import torch  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

from overproof.core.artifact import Json, Resource  # noqa: E402
from overproof.core.endpoint import Budget  # noqa: E402
from overproof.core.methods import Scratch, Text  # noqa: E402
from overproof.core.recipe import Recipe  # noqa: E402
from overproof.core.sections import StudentConfig  # noqa: E402
from overproof.data import read  # noqa: E402
from overproof.policy import gate, obligations, own  # noqa: E402
from overproof.release.quality import demand_speed_target  # noqa: E402
from overproof.release.words import duration  # noqa: E402
from overproof.student import budget, experts, general, scratch, shape  # noqa: E402
from overproof.student.cost import Hardware  # noqa: E402
from overproof.student.dimensions import Dimensions  # noqa: E402
from overproof.teacher import local, prompts  # noqa: E402
from overproof.teacher.forward import packs  # noqa: E402
from overproof.teacher.kept import kept_of  # noqa: E402
from overproof.teacher.origins import Origin, Origins, find  # noqa: E402
from overproof.teacher.remote import stage as remote  # noqa: E402

# A parameter of the student while it trains: fp32 and what computes; where it learns, gradients and
# the optimizer's state as well. Adapters themselves are a few in a hundred.
TRAINING_BYTES, LORA_BYTES = 20, 8
PROCESS_BYTES = 800e6  # libraries and temporaries of the run and of each worker
BYTES_PER_TOKEN = 70  # of all training examples, in the run and in each training worker


def fitted(recipe: Recipe, path: Path) -> Recipe:
    """The recipe with a shape that its budget allows, where it has a budget.

    Args:
        path: of the recipe; the file of the hardware may lie beside it.

    Raises:
        UsageError: no shape fits, or the hardware was not measured.
    """
    if recipe.student.budget is None:
        return recipe
    base = Dimensions.of(local.config_of(recipe.student.base or recipe.teacher.model))
    student = budget.fitted(recipe.student, base, hardware_of(recipe, path)).student
    return recipe.model_copy(update={"student": student})


def hardware_of(recipe: Recipe, path: Path) -> Hardware | None:
    """The measured hardware that the recipe's budget names; None: it names none."""
    wanted = recipe.student.budget.hardware if recipe.student.budget else None
    if wanted is None:
        return None
    return Hardware.load(recipes.find_data(wanted, path))


def plan(recipe: Recipe, path: Path) -> Json:
    """Verdicts, sizes, time, memory and disk of a run, before anything is spent.

    Raises:
        UsageError: a data file or the teacher does not exist, the student is larger than the
            teacher, the build whose speed is measured is not asked for, or the longest answer does
            not fit a training sequence.
        PolicyError: the teacher's terms forbid the run; the message names the clause.
    """
    if recipe.teacher.scratch is not None:
        origins, config, decision, demanded = _own(recipe, recipe.teacher.scratch, path)
    else:
        origins = find(recipe)
        config = local.config_of(origins.here.name)
        decision, demanded = obligations.permit(recipe, origins.places)
    here, other = origins.here.resource, origins.other
    base = local.config_of(other.name) if other else config
    shape.demand_size(base, recipe.student)
    experts.demand(base, recipe.student)
    demand_speed_target(recipe.export)
    prompts.demand_sequence(1, recipe)  # of the prompts nothing is known yet
    big, small = _parameters(config), _student_parameters(base, recipe.student)
    answer, examples = pace.answer_tokens(recipe), pace.examples(recipe)
    # Of other architectures nothing was measured.
    seconds = dict[str, float]()
    student = Dimensions.of(base).cut(recipe.student) if packs(base) else None
    if packs(config) and student:
        seconds = pace.seconds(recipe, Dimensions.of(config), student)
    trainers = min(device.cores(), recipe.train.sequences)
    example_bytes = examples * (answer + pace.PROMPT_TOKENS) * BYTES_PER_TOKEN
    kept_tokens = examples * (answer + recipe.signals.prompts * pace.PROMPT_TOKENS)
    signals = None if isinstance(recipe.signals, Text) else recipe.signals
    signal_bytes = kept_tokens * kept_of(signals).bytes_for(config.hidden_size) if signals else 0.0
    return {
        "recipe": recipe.name,
        "data": {
            split: str(recipes.find_data(file, path))
            for split, file in (("train", recipe.data.train), ("heldout", recipe.data.heldout))
        },
        here.kind: _named(here, big),
        **({"others": [_other(one) for one in origins.others]} if origins.others else {}),
        **({"remote": _remote(recipe, path)} if origins.remote else {}),
        "terms": {
            "verdict": str(decision.verdict),
            "obligations": [one.id for one in decision.obligations],
            "warnings": list(decision.warnings),
        },
        "student": {
            "name": demanded.name,
            "parameters": small,
            "shape": asdict(student) if student else None,
            "predicted": _predicted(recipe, path, student) if student else None,
        },
        "arms": ["student", *(f"control, equal {one.equal}" for one in recipe.train.controls)],
        "seeds": recipe.train.seeds,
        "expected_seconds": {name: round(value) for name, value in seconds.items()},
        "expected_total_seconds": round(sum(seconds.values())) if seconds else None,
        "expected_memory_bytes": round(
            14 * big
            + (LORA_BYTES if recipe.train.lora else TRAINING_BYTES) * small
            + PROCESS_BYTES * (device.cores() + 1)
            + example_bytes * (trainers + 1)
        ),
        # Signals, and what the student trains on: as much again or more.
        "expected_disk_bytes": round(
            (12 + 2 * recipe.train.trainings) * small + 2 * big + 3 * signal_bytes
        ),
        "machine": {
            "cores": device.cores(),
            "processor": device.processor().model,
            "bf16": device.processor().bf16,
            "products_per_second": matmul.rate(),
        },
    }


def _named(one: Resource, parameters: int) -> Json:
    return {"name": one.name, "sha256": one.sha256, "parameters": parameters}


def _other(teacher: Origin) -> Json:
    return _named(teacher.resource, _parameters(local.config_of(teacher.name)))


def _remote(recipe: Recipe, path: Path) -> Json:
    """What asking the service takes at most: every prompt the longest, every answer too.

    Raises:
        UsageError: a data file does not exist.
    """
    endpoint = remote.endpoint_of(recipe)
    splits = [
        list(read.lone_prompts(recipes.find_data(file, path), recipe.data.max_record_bytes))
        for file in (recipe.data.train, recipe.data.heldout)
    ]
    requests, worst = remote.worst_of(splits, recipe)
    price, budget = endpoint.price, endpoint.budget
    money = price.of(*worst) if price else None
    return {
        "name": recipe.teacher.model,
        "url": endpoint.url,
        "requests": requests,
        "worst_prompt_tokens": worst.prompt,
        "worst_answer_tokens": worst.answer,
        "worst_money": money,
        "currency": price.currency if price else None,
        "budget": budget.model_dump() if budget else None,
        "within_budget": _within(budget, worst.total, money),
    }


def _within(budget: Budget | None, tokens: int, money: float | None) -> bool | None:
    """Whether the worst fits; None: there is no budget."""
    if budget is None:
        return None
    fits_money = budget.money is None or (money is not None and money <= budget.money)
    return fits_money and (budget.tokens is None or tokens <= budget.tokens)


def _parameters(config: Any) -> int:
    """Of a model of this configuration; no memory is taken for its weights."""
    if packs(config):
        return Dimensions.of(config).parameters
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return sum(one.numel() for one in model.parameters())


def _student_parameters(base: Any, student: StudentConfig) -> int:
    """Of a student that is cut from a base of this configuration."""
    if packs(base):
        return Dimensions.of(base).cut(student).parameters
    return _parameters(general.config_of(base, student))


def _own(
    recipe: Recipe, made: Scratch, path: Path
) -> tuple[Origins, Any, gate.Decision, obligations.Plan]:
    """What is known of a teacher that the run will make: no digest yet."""
    config = scratch.config_of(recipes.find_data(made.configuration, path))
    config.vocab_size = made.vocabulary
    recipes.find_data(made.data, path)
    name, today = recipe.teacher.model, dt.datetime.now(dt.UTC).date()
    decision = own.decision(name, None, recipe.teacher.channel, today)
    resource = Resource("teacher", name, "stage:teacher", "")
    origins = Origins(Origin(name, Path(), resource))
    return origins, config, decision, obligations.carry_out(decision, recipe.student.name)


def _predicted(recipe: Recipe, path: Path, student: Dimensions) -> Json | None:
    """What the budget's hardware makes of the shape; None: it names none."""
    hardware = hardware_of(recipe, path)
    return {"hardware": hardware.name, **asdict(hardware.predict(student))} if hardware else None


def _asking(found: Json) -> list[str]:
    """The lines of a remote teacher."""
    worst, answers = found["worst_prompt_tokens"], found["worst_answer_tokens"]
    money = found["worst_money"]
    cost = "" if money is None else f", {money:,.2f} {found['currency']}"
    budget = {
        None: "no budget",
        True: "within the budget",
        False: "beyond the budget: the run stops before it is exceeded",
    }[found["within_budget"]]
    return [
        f"teacher     {found['name']} at {found['url']}",
        f"at worst    {found['requests']:,} requests, {worst:,} tokens of prompts and {answers:,} "
        f"of answers{cost}; retries aside",
        f"            {budget}",
    ]


def _shape_lines(student: Json) -> list[str]:
    shape, cost = student["shape"], student["predicted"]
    if shape is None:  # of an architecture whose dimensions are not known by name
        return []
    lines = [
        f"shape       {shape['layers']} layers, MLPs of {shape['mlp_width']:,}, "
        f"{shape['kv_heads']} groups of heads, {shape['hidden']:,} channels, "
        f"{shape['vocabulary']:,} tokens"
    ]
    if cost:
        lines.append(
            f"predicted   {cost['latency_ms']:.3g} ms a token, {cost['memory_bytes'] / 1e6:.0f} MB "
            f"on {cost['hardware']}"
        )
    return lines


def render(found: Json) -> str:
    """The plan for people."""
    gib = 2**30
    weights = "base" if "base" in found else "teacher"
    total = found["expected_total_seconds"]
    whole = "a time that is not known"
    if total is not None:
        whole = "about " + duration(60 * round(total / 60)).removesuffix(" 0 s")
    teacher, student = found[weights], found["student"]
    lines = [
        f"recipe      {found['recipe']}",
        *(f"{split:<12}{file}" for split, file in found["data"].items()),
        *(_asking(found["remote"]) if "remote" in found else ()),
        f"{weights:<12}{teacher['name']}, {teacher['parameters'] / 1e6:.0f}M parameters",
        *(
            f"beside it   {other['name']}, {other['parameters'] / 1e6:.0f}M parameters"
            for other in found.get("others", ())
        ),
        f"terms       {found['terms']['verdict']}"
        + "".join(f"\n            must: {one}" for one in found["terms"]["obligations"])
        + "".join(f"\n            note: {one}" for one in found["terms"]["warnings"]),
        f"student     {student['name']}, {student['parameters'] / 1e6:.1f}M parameters",
        *_shape_lines(student),
        f"trained     {'; '.join(found['arms'])}"
        + (f"; each {found['seeds']} times" if found["seeds"] > 1 else ""),
        "expected    "
        + (
            ", ".join(f"{name} {duration(s)}" for name, s in found["expected_seconds"].items())
            or "no model of this architecture was timed"
        ),
        f"in all      {whole}, "
        f"{found['expected_memory_bytes'] / gib:.1f} GiB of memory, "
        f"{found['expected_disk_bytes'] / gib:.1f} GiB of disk",
        f"machine     {found['machine']['processor']}, {found['machine']['cores']} cores, "
        f"{found['machine']['products_per_second'] / 1e12:.2f} TFLOP/s each",
        "These are estimates from machines that were measured; nothing was run.",
    ]
    return "\n".join(lines)
