"""How long the stages of a run take on this machine.

Times are those of machines that were measured, scaled by parameters and by cores, and
interpolated by how fast this machine multiplies matrices, which is measured here and now.
"""

from __future__ import annotations

import numpy as np

from overproof import matmul
from overproof.core import device

device.prepare()

from overproof.core.methods import Text  # noqa: E402
from overproof.core.recipe import Recipe  # noqa: E402
from overproof.student.dimensions import Dimensions  # noqa: E402

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


def answer_tokens(recipe: Recipe) -> float:
    """Tokens of one answer."""
    return ANSWER_FRACTION * recipe.sample.max_new_tokens


def examples(recipe: Recipe) -> int:
    """Answers to train on, at most."""
    return recipe.sample.prompts * recipe.sample.answers


def seconds(recipe: Recipe, teacher: Dimensions, student: Dimensions) -> dict[str, float]:
    """Seconds of each kind of stage on this machine."""
    answer, count, heldout = (
        answer_tokens(recipe),
        examples(recipe),
        recipe.sample.heldout_prompts,
    )
    train, signals = recipe.train, recipe.signals
    steps = train.steps * train.sequences * train.sequence_length
    read = count * (answer + PROMPT_TOKENS)
    tokens = {
        # How fast a service answers is not known.
        "sample": 0.0 if recipe.teacher.endpoint else (count + heldout) * answer,
        "signals": 0.0 if isinstance(signals, Text) or signals.while_sampling else read,
        "train": float(steps),
        "evaluate": heldout * answer * _evaluations(recipe, teacher, student),
    }
    on_teacher = teacher.read_weights / REFERENCE_TEACHER
    on_student = student.read_weights / REFERENCE_STUDENT
    on_student_drawing = student.read_weights / REFERENCE_TEACHER
    found = {}
    for name, amount in tokens.items():
        # A training worker has at least one sequence of each step.
        cores = min(device.cores(), train.sequences) if name == "train" else device.cores()
        larger = on_student if name == "train" else on_teacher
        rate = tokens_per_second(name, matmul.rate())
        found[name] = amount / rate * larger * REFERENCE_CORES / cores
    # What the student says is drawn as the teacher's answers are, and read as signals are.
    own = train.own_steps * train.sequences * train.sequence_length
    drawn = own * answer / (answer + PROMPT_TOKENS)
    speaking = 0.0
    for name, amount, larger in (
        ("sample", drawn, on_student_drawing),
        ("signals", own, on_teacher),
    ):
        rate = tokens_per_second(name, matmul.rate())
        speaking += amount / rate * larger * REFERENCE_CORES / device.cores()
    found["train"] = _training(recipe, found["train"], speaking, found["signals"])
    return found | {"other": FIXED_SECONDS}


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
