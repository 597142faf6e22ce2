"""What a run will take: the plan of `overproof distill --dry-run`."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

from overproof.core import config as recipes
from overproof.core import device
from overproof.core.artifact import Json
from overproof.core.config import Recipe
from overproof.policy import gate, obligations
from overproof.teacher import local

# Throughput of the reference machine (two cores with AMX, 135M teacher, 64M student; docs/
# benchmarks.md), scaled by parameters. A plan is an estimate and says so.
REFERENCE_TEACHER, REFERENCE_STUDENT = 134.5e6, 63.7e6
SAMPLE_RATE, SIGNAL_RATE, TRAIN_RATE = 900.0, 2400.0, 1520.0  # tokens a second
EVALUATE_RATE = 350.0  # answer tokens a second, teacher and three students together
SLOW_FACTOR = 4.0  # without bf16 matrix instructions
ANSWER_FRACTION = 0.65  # of max_new_tokens, the mean length of an answer
PROMPT_TOKENS = 24
FIXED_SECONDS = 150.0  # certify, shape, export, speed, proof
PROCESS_BYTES = 600e6  # libraries and temporaries of the run and of each worker
BYTES_PER_SIGNAL = 6  # id and log-probability


def plan(recipe: Recipe, path: Path) -> Json:
    """Verdicts, sizes, time, memory and disk of a run, before anything is spent.

    Raises:
        UsageError: a data file or the teacher does not exist.
        PolicyError: the teacher's terms forbid the run; the message names the clause.
    """
    place, resource = local.identify(recipe.teacher.model)
    config = local.config_of(recipe.teacher.model)
    decision, demanded = obligations.permit(
        gate.Teacher(resource.name, resource.sha256),
        place,
        channel=recipe.teacher.channel,
        name=recipe.student.name,
        on=dt.datetime.now(dt.UTC).date(),
    )
    layer = _layer_parameters(config)
    teacher = config.num_hidden_layers * layer + config.vocab_size * config.hidden_size
    narrow = _layer_parameters(config, recipe.student.mlp_width)
    student = recipe.student.layers * narrow + recipe.student.vocabulary * config.hidden_size
    answer = ANSWER_FRACTION * recipe.sample.max_new_tokens
    examples = recipe.sample.prompts * recipe.sample.answers
    slow = 1.0 if device.processor().bf16 else SLOW_FACTOR
    on_teacher, on_student = teacher / REFERENCE_TEACHER * slow, student / REFERENCE_STUDENT * slow
    steps = recipe.train.steps * recipe.train.sequences * recipe.train.sequence_length
    arms = 2 if recipe.train.control else 1
    seconds = {
        "sample": (examples + recipe.sample.heldout_prompts) * answer / SAMPLE_RATE * on_teacher,
        "signals": examples * (answer + PROMPT_TOKENS) / SIGNAL_RATE * on_teacher,
        "train": arms * steps / TRAIN_RATE * on_student,
        "evaluate": recipe.sample.heldout_prompts * answer / EVALUATE_RATE * on_teacher,
        "other": FIXED_SECONDS,
    }
    signal_bytes = examples * answer * recipe.signals.top_k * BYTES_PER_SIGNAL
    return {
        "recipe": recipe.name,
        "data": {
            split: str(recipes.find_data(file, path))
            for split, file in (("train", recipe.data.train), ("heldout", recipe.data.heldout))
        },
        "teacher": {"name": resource.name, "sha256": resource.sha256, "parameters": teacher},
        "terms": {
            "verdict": str(decision.verdict),
            "obligations": [one.id for one in decision.obligations],
            "warnings": list(decision.warnings),
        },
        "student": {"name": demanded.name, "parameters": student},
        "expected_seconds": {name: round(value) for name, value in seconds.items()},
        "expected_total_seconds": round(sum(seconds.values())),
        "expected_memory_bytes": round(
            14 * teacher + 20 * student + PROCESS_BYTES * (device.cores() + 1)
        ),
        # Signals, and what the student trains on: 14 bytes a kept token, also at the prompt's.
        "expected_disk_bytes": round(16 * student + 2 * teacher + 3 * signal_bytes),
        "machine": {
            "cores": device.cores(),
            "processor": device.processor().model,
            "bf16": device.processor().bf16,
        },
    }


def _layer_parameters(config: object, mlp_width: int | None = None) -> int:
    """Parameters of one decoder layer with gated MLP of that inner width, norms left out."""
    hidden, inner = getattr(config, "hidden_size", 0), getattr(config, "intermediate_size", 0)
    heads, groups = (
        getattr(config, "num_attention_heads", 1),
        getattr(config, "num_key_value_heads", 1),
    )
    width = getattr(config, "head_dim", None) or hidden // heads
    return int(hidden * width * (2 * heads + 2 * groups) + 3 * hidden * (mlp_width or inner))


def render(found: Json) -> str:
    """The plan for people."""
    gib = 2**30
    teacher, student = found["teacher"], found["student"]
    lines = [
        f"recipe      {found['recipe']}",
        *(f"{split:<12}{file}" for split, file in found["data"].items()),
        f"teacher     {teacher['name']}, {teacher['parameters'] / 1e6:.0f}M parameters",
        f"terms       {found['terms']['verdict']}"
        + "".join(f"\n            must: {one}" for one in found["terms"]["obligations"])
        + "".join(f"\n            note: {one}" for one in found["terms"]["warnings"]),
        f"student     {student['name']}, {student['parameters'] / 1e6:.1f}M parameters",
        "expected    "
        + ", ".join(f"{name} {value} s" for name, value in found["expected_seconds"].items()),
        f"in all      about {found['expected_total_seconds'] / 60:.0f} minutes, "
        f"{found['expected_memory_bytes'] / gib:.1f} GiB of memory, "
        f"{found['expected_disk_bytes'] / gib:.1f} GiB of disk",
        f"machine     {found['machine']['processor']}, {found['machine']['cores']} cores",
        "These are estimates from a reference machine; nothing was run.",
    ]
    return "\n".join(lines)
