"""The stages `evaluation` and `speed`: what the report's numbers come from."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from overproof.core import device, host

device.prepare()

import numpy as np  # noqa: E402
import torch  # noqa: E402

from overproof.core.artifact import Artifact, Input, Json, Work, build  # noqa: E402
from overproof.core.console import Meter, meter  # noqa: E402
from overproof.core.digest import pretty  # noqa: E402
from overproof.core.errors import UsageError  # noqa: E402
from overproof.core.recipe import Recipe  # noqa: E402
from overproof.core.sections import ExportConfig  # noqa: E402
from overproof.release import solve  # noqa: E402
from overproof.release.evaluate import evaluate  # noqa: E402
from overproof.release.export import write_loaded  # noqa: E402
from overproof.release.speed import measure  # noqa: E402
from overproof.release.tally import BY_POSITION, DIFFERENCES, STUDENT, TEACHER  # noqa: E402
from overproof.release.targets import find  # noqa: E402
from overproof.release.text_quality import Said, evaluate_text, heldout  # noqa: E402
from overproof.student import initial as first  # noqa: E402
from overproof.student.arms import stage_name  # noqa: E402
from overproof.student.examples import respell  # noqa: E402
from overproof.student.vocabulary import Vocabulary  # noqa: E402
from overproof.teacher.answers import Answers, read  # noqa: E402
from overproof.teacher.example import Example  # noqa: E402
from overproof.teacher.forward import fast_dtype, halved, mixed  # noqa: E402
from overproof.teacher.local import Teacher  # noqa: E402
from overproof.teacher.request import Drawing, Request  # noqa: E402
from overproof.teacher.routing import Load, by_teacher, role  # noqa: E402
from overproof.teacher.sample import sampler  # noqa: E402

RESULT = "evaluation.json"
UNTRAINED = "untrained"
SPEED_TARGET = "gguf-q8_0"  # teacher and student are timed in the same engine and type


def evaluations(
    load: Load,
    samples: Artifact,
    start: Artifact,
    students: Sequence[Artifact],
    controls: Mapping[str, Sequence[Artifact]],
    recipe: Recipe,
    speakers: Mapping[str, Input],
    store: Path,
) -> tuple[Artifact, ...]:
    """The stages `evaluation`, one a seed: all arms of that seed against the teacher."""
    return tuple(
        evaluation(
            load,
            samples,
            start,
            {STUDENT: student} | {name: found[turn] for name, found in controls.items()},
            recipe,
            speakers,
            store,
            turn,
        )
        for turn, student in enumerate(students)
    )


def evaluation(
    load: Load,
    samples: Artifact,
    start: Artifact,
    trained: Mapping[str, Artifact],
    recipe: Recipe,
    speakers: Mapping[str, Input],
    store: Path,
    turn: int = 0,
) -> Artifact:
    """The stage `evaluation`: every arm against the teacher, and answers side by side.

    Args:
        start: the untrained student.
        trained: `student`, and the control arms by name.
        speakers: what stands for the models that `load` loads, by role: the teachers, or the base
            in whose tokens a remote teacher's answers are.
        turn: which of the seeds; what is no arm is measured with the first, and answers are shown
            of it.
    """
    remote = recipe.teacher.endpoint is not None
    arms = trained if turn else {UNTRAINED: start, **trained}

    def make(work: Work) -> Json:
        teacher, answers = load(), read(samples)
        vocabulary = Vocabulary.load(start.path)
        shown = [] if turn else answers.heldout[: recipe.evaluate.answers]
        loud = {name: first.load_model(arm.path) for name, arm in trained.items() if shown}
        said = _side_by_side(teacher, answers, shown, vocabulary, loud, recipe)
        del loud
        ready = (lambda model: model) if recipe.evaluate.exact else mixed  # drops what it copies
        models = {name: ready(first.load_model(arm.path)) for name, arm in arms.items()}
        with meter("evaluating", len(answers.heldout), "prompts") as progress:
            heard = heldout(samples, answers, teacher, recipe) if remote else None
            result = _against(load, answers, heard, vocabulary, models, recipe, progress)
        if solve.checked(answers):
            solvers = arms if turn else {TEACHER: None, **arms}
            solve.add(result, _rates(load, answers, vocabulary, solvers, recipe, work), recipe)
        result["answers"] = said
        result["tokens"] = sum(len(example.answer) for example in answers.heldout)
        result["prompts"] = len(answers.heldout)
        (work.folder / RESULT).write_text(pretty(result), encoding="utf-8")
        return {
            name: {key: value for key, value in result[name].items() if key != BY_POSITION}
            for name in (TEACHER, *arms)
            if name in result
        } | {key: result[key] for key in ("products", DIFFERENCES)}

    config = {
        "evaluate": recipe.evaluate.model_dump(),
        "seed": recipe.seed,
        "sequence_length": recipe.train.sequence_length,
        "sample": recipe.sample.model_dump(),
    }
    inputs: dict[str, Input] = {"samples": samples, UNTRAINED: start, **trained, **speakers}
    name = stage_name("evaluation", turn)
    return build(
        store, "evaluation", inputs=inputs, config=config, make=make, name=name, layer="release"
    )


def _against(
    load: Load,
    answers: Answers,
    heard: Sequence[Said] | None,
    vocabulary: Vocabulary,
    models: Mapping[str, Any],
    recipe: Recipe,
    progress: Meter,
) -> Json:
    """Every model against the teacher; against what is known of it, if it is not here.

    Args:
        heard: a remote teacher's answers.
    """
    config, seed, length = recipe.evaluate, recipe.seed, recipe.train.sequence_length
    if heard is not None:
        return evaluate_text(
            answers.student_prefix,
            heard,
            vocabulary,
            models,
            config,
            seed=seed,
            length=length,
            meter=progress,
        )
    return evaluate(
        ((load(which).model, examples) for which, examples in by_teacher(answers.heldout)),
        answers.prefix,
        answers.student_prefix,
        vocabulary,
        models,
        config,
        seed=seed,
        length=length,
        meter=progress,
    )


def _rates(
    load: Load,
    answers: Answers,
    vocabulary: Vocabulary,
    solvers: Mapping[str, Artifact | None],
    recipe: Recipe,
    work: Work,
) -> dict[str, solve.Rates]:
    """How often each solves each held-out problem.

    Args:
        solvers: arms by name; None: the teacher.
    """
    folder = work.scratch("solving")
    rates = dict[str, solve.Rates]()
    for name, arm in solvers.items():
        if arm is None and recipe.teacher.endpoint:
            rates[name] = solve.judged(load(), answers)
            continue
        if arm is None:
            rates[name] = _teachers_rates(load, answers, recipe, folder)
            continue
        teacher = load()
        model = first.load_model(arm.path)
        if fast_dtype(model) == torch.bfloat16:
            model = halved(model)
        student = solve.Solver.of_student(model, vocabulary, teacher, answers)
        rates[name] = solve.solve(student, answers, recipe, folder, name)
    return rates


def _teachers_rates(load: Load, answers: Answers, recipe: Recipe, folder: Path) -> solve.Rates:
    """How often each problem is solved by the teacher whose it is."""
    parts = list[solve.Rates]()
    for which, examples in by_teacher(answers.heldout):
        own, name = replace(answers, heldout=examples), role(TEACHER, which)
        solver = solve.Solver.of_teacher(load(which), own)
        parts.append(solve.solve(solver, own, recipe, folder, name))
    return np.concatenate(parts)


def result_of(artifact: Artifact) -> Json:
    """The numbers of a finished evaluation."""
    found: Json = json.loads(artifact.file(RESULT).read_bytes())
    return found


def _side_by_side(
    teacher: Teacher,
    answers: Answers,
    shown: Sequence[Example],
    vocabulary: Vocabulary,
    models: Mapping[str, Any],
    recipe: Recipe,
) -> list[Json]:
    """The same prompts answered by each model, drawn with the same settings and seeds."""
    if not shown:
        return []
    head = vocabulary.spell(answers.student_prefix)
    requests = [Request.make(one.key, vocabulary.spell(one.prompt), recipe.seed) for one in shown]
    drawing = Drawing.of(
        recipe.sample.model_copy(update={"batch": len(shown)}),
        tuple(int(vocabulary.student_ids_U[token]) for token in teacher.stop_ids),
    )
    said: dict[str, dict[str, str]] = {}
    for name, model in models.items():
        drawn = sampler(model, head, requests, drawing).draw(requests)
        said[name] = {one.record: vocabulary.tokenizer.decode(text.tokens) for one, text in drawn}
    return [
        {
            "prompt": answers.texts[one.key].strip(),
            "teacher": teacher.tokenizer.decode(one.answer, skip_special_tokens=True).strip(),
            **{name: texts[one.key].strip() for name, texts in said.items()},
        }
        for one in shown
    ]


def demand_speed_target(config: ExportConfig) -> None:
    """Refuse builds without the one whose speed is measured.

    Raises:
        UsageError: it is not among the targets, and others are.
    """
    if config.targets and SPEED_TARGET not in config.targets:
        raise UsageError(
            f"export.targets lacks {SPEED_TARGET}, the build whose speed is measured",
            details=[f"got {', '.join(config.targets)}"],
            hint="name it too, or leave all builds out: export.targets: []",
        )


def speed(load: Callable[[], Teacher], export: Artifact, resource: Input, store: Path) -> Artifact:
    """The stage `speed`: teacher and student in turn, in the same engine and type.

    Of a teacher that is not here no speed is known: the base of the student takes its place.

    Speeds differ from run to run, so they are measured times of the manifest, not facts of it.
    """

    def make(work: Work) -> Json:
        teacher = load()
        target = find(SPEED_TARGET)
        file = work.scratch(f"{resource.kind}.gguf")
        if not file.is_file():
            half = file.with_suffix(".half")
            write_loaded(target, teacher.model, teacher.tokenizer, half)
            half.replace(file)
        student = next(
            export.path / entry["name"]
            for entry in export.manifest["files"]
            if entry["name"].startswith(f"{SPEED_TARGET}/") and entry["name"].endswith(".gguf")
        )
        found = measure({resource.kind: file, "student": student})
        work.measured.update({name: one.to_json() for name, one in found.items()})
        work.measured["machine"] = host.machine()
        return {"target": SPEED_TARGET}

    inputs: dict[str, Input] = {"export": export, resource.kind: resource}
    return build(
        store, "speed", inputs=inputs, config={"target": SPEED_TARGET}, make=make, layer="release"
    )


def heldout_texts(samples: Artifact, initial: Artifact) -> list[list[int]]:
    """Held-out conversations in the student's tokens, for the parity receipts."""
    answers, vocabulary = read(samples), Vocabulary.load(initial.path)
    head = list(vocabulary.spell(answers.student_prefix))
    return [head + respell(example, vocabulary).tokens for example in answers.heldout]
