"""What a run will take: the plan of `overproof distill --dry-run`.

Times are those of machines that were measured, scaled by parameters and by cores, and
interpolated by how fast this machine multiplies matrices, which is measured here and now. A plan
is an estimate and says so.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from overproof import matmul
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

# Four machines of two cores, 134.5M teacher, 60.3M student: what one core multiplies a second, and
# the tokens a second of each kind of stage (docs/benchmarks.md, docs/log.md). In brackets: not
# measured, taken to differ from the machine before as training does.
REFERENCE_CORES, REFERENCE_TEACHER, REFERENCE_STUDENT = 2, 134.5e6, 60.3e6
PRODUCTS = (71e9, 189e9, 470e9, 1200e9)  # fp32 with AVX2 alone, bf16 in two halves, whole, tiles
RATES = {
    "sample": (85.0, 378.0, 820.0, 907.0),
    "signals": (300.0, 1060.0, 1900.0, 2704.0),  # (AVX2), (two halves)
    "train": (210.0, 769.0, 1633.0, 1713.0),
    "evaluate": (33.0, 116.0, 207.0, 295.0),  # (AVX2), (whole); the teacher and three students
}
ANSWER_FRACTION = 0.65  # of max_new_tokens, the mean length of an answer
PROMPT_TOKENS = 24
MEASURED_STUDENTS = 3  # untrained, trained, control arm: what "evaluate" was measured with
FIXED_SECONDS = 150.0  # certify, shape, export, speed, proof
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
    answer, examples = _answer_tokens(recipe), _examples(recipe)
    # Of other architectures nothing was measured.
    seconds = dict[str, float]()
    student = Dimensions.of(base).cut(recipe.student) if packs(base) else None
    if packs(config) and student:
        seconds = _seconds(recipe, Dimensions.of(config), student)
    trainers = min(device.cores(), recipe.train.sequences)
    example_bytes = examples * (answer + PROMPT_TOKENS) * BYTES_PER_TOKEN
    kept_tokens = examples * (answer + recipe.signals.prompts * PROMPT_TOKENS)
    signals = None if isinstance(recipe.signals, Text) else recipe.signals
    signal_bytes = kept_tokens * kept_of(signals).bytes_for(config.hidden_size) if signals else 0.0
    return {
        "recipe": recipe.name,
        "data": {
            split: str(recipes.find_data(file, path))
            for split, file in (("train", recipe.data.train), ("heldout", recipe.data.heldout))
        },
        here.kind: {
            "name": here.name,
            "sha256": here.sha256,
            "parameters": big,
        },
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


def _answer_tokens(recipe: Recipe) -> float:
    """Tokens of one answer."""
    return ANSWER_FRACTION * recipe.sample.max_new_tokens


def _examples(recipe: Recipe) -> int:
    return recipe.sample.prompts * recipe.sample.answers


def _seconds(recipe: Recipe, teacher: Dimensions, student: Dimensions) -> dict[str, float]:
    """Seconds of each kind of stage on this machine."""
    answer, examples, heldout = (
        _answer_tokens(recipe),
        _examples(recipe),
        recipe.sample.heldout_prompts,
    )
    train, signals = recipe.train, recipe.signals
    steps = train.steps * train.sequences * train.sequence_length
    read = examples * (answer + PROMPT_TOKENS)
    tokens = {
        # How fast a service answers is not known.
        "sample": 0.0 if recipe.teacher.endpoint else (examples + heldout) * answer,
        "signals": 0.0 if isinstance(signals, Text) or signals.while_sampling else read,
        "train": float(steps),
        "evaluate": heldout * answer * _evaluations(recipe, teacher, student),
    }
    on_teacher = teacher.read_weights / REFERENCE_TEACHER
    on_student = student.read_weights / REFERENCE_STUDENT
    on_student_drawing = student.read_weights / REFERENCE_TEACHER
    seconds = {}
    for name, count in tokens.items():
        # A training worker has at least one sequence of each step.
        cores = min(device.cores(), train.sequences) if name == "train" else device.cores()
        larger = on_student if name == "train" else on_teacher
        rate = tokens_per_second(name, matmul.rate())
        seconds[name] = count / rate * larger * REFERENCE_CORES / cores
    # What the student says is drawn as the teacher's answers are, and read as signals are.
    own = train.own_steps * train.sequences * train.sequence_length
    drawn = own * answer / (answer + PROMPT_TOKENS)
    speaking = 0.0
    for name, count, larger in (
        ("sample", drawn, on_student_drawing),
        ("signals", own, on_teacher),
    ):
        rate = tokens_per_second(name, matmul.rate())
        speaking += count / rate * larger * REFERENCE_CORES / device.cores()
    seconds["train"] = _training(recipe, seconds["train"], speaking, seconds["signals"])
    return seconds | {"other": FIXED_SECONDS}


def _training(recipe: Recipe, plain: float, speaking: float, signals: float) -> float:
    """Seconds of all arms and seeds.

    Args:
        plain: of the steps alone, which every arm has. speaking: of the student's own text.
        signals: of their stage.
    """
    student = plain + speaking
    of = {"steps": plain, "time": student, "time-with-signals": student + signals}
    arms = student + sum(of[one.equal] for one in recipe.train.controls)
    return recipe.train.seeds * arms


def _evaluations(recipe: Recipe, teacher: Dimensions, student: Dimensions) -> float:
    """Work of all evaluations, in that of a teacher and three students, which was measured."""
    big, small = teacher.read_weights, student.read_weights
    trained = 1 + len(recipe.train.controls)
    passes = recipe.train.seeds * (big + trained * small) + small  # the untrained one but once
    return passes / (big + MEASURED_STUDENTS * small)


def tokens_per_second(stage: str, products_per_second: float) -> float:
    """What a kind of stage does on a machine like those measured, by how fast it multiplies.

    Between two machines the rates' logarithms are interpolated; below the slowest they fall in
    proportion; above the fastest they are its own.
    """
    known = RATES[stage]
    slowest = min(1.0, products_per_second / PRODUCTS[0])
    logs = np.interp(np.log(products_per_second), np.log(PRODUCTS), np.log(known))
    return float(np.exp(logs)) * slowest


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
