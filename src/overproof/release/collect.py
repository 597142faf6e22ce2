"""Everything that the report shows, from the manifests of the stages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from overproof import __version__
from overproof.core.artifact import Artifact, Json
from overproof.core.host import Machine
from overproof.core.recipe import Recipe
from overproof.data import dataset
from overproof.policy import match
from overproof.policy.gate import Decision
from overproof.policy.obligations import Plan
from overproof.release import facts as f
from overproof.release import figures, method
from overproof.release.assemble import receipts
from overproof.release.origins import (
    model_of,
    recipe_without_folders,
    remote_of,
    shares_of,
    terms_of,
)
from overproof.release.parts import Parts, measured
from overproof.release.quality import result_of
from overproof.release.tally import BY_POSITION, DIFFERENCES
from overproof.student import arms
from overproof.student.budget import MB
from overproof.student.cost import Hardware
from overproof.student.dimensions import Dimensions
from overproof.student.initial import load_model_config
from overproof.teacher.origins import Origins

# What the measurement's figure at a dropped layer is, by the rule that chose.
SCORES = {
    "greedy-kl": "KL after dropping it too, nats per token",
    "angular": "KL after dropping the whole block, nats per token",
    "even": "not measured",
}


def collect(
    parts: Parts,
    recipe: Recipe,
    decision: Decision,
    plan: Plan,
    origins: Origins,
    proof: f.Proof,
    hardware: Hardware | None = None,
) -> f.ReportFacts:
    """Everything the report shows, from the stages' manifests.

    Args:
        hardware: that the recipe's budget was for.
    """
    teacher, base = origins.teacher, origins.base
    result, samples = result_of(parts.evaluation), parts.samples.facts
    over = parts.over_seeds(recipe.evaluate.confidence)
    speed = measured(parts.speed) if parts.speed else None
    machine = (speed or measured(parts.student))["machine"]
    return f.ReportFacts(
        name=plan.name,
        system=recipe.teacher.system,
        shots=len(recipe.teacher.shots),
        overproof=__version__,
        teacher_model=model_of(
            teacher, decision, remote_of(parts, recipe) if origins.remote else None
        ),
        base_model=model_of(base, decision) if base else None,
        base_terms=terms_of(decision, plan, len(origins.teachers)) if base else None,
        teachers=shares_of(parts, recipe, decision, plan, origins),
        teacher=figures.Arm.of(result.get("teacher", {})),
        student=figures.Arm.of(result["student"]),
        untrained=figures.Arm.of(result["untrained"]),
        controls=_controls(parts, result, recipe),
        differences=_arms(result[DIFFERENCES]),
        seeds=figures.Seeds(over["count"], _arms(over["arms"]), _arms(over[DIFFERENCES]))
        if over
        else None,
        evaluation=_evaluation(result, parts.initial, recipe),
        speed=_speeds(speed) if speed else None,
        sizes=_sizes(parts.initial, remote=origins.remote is not None),
        costs=_costs(parts, recipe, hardware),
        training=_run(parts.student, method.objective(recipe)),
        importance=_importance(parts.initial, recipe),
        method=method.sentences(
            recipe,
            parts.samples.facts,
            parts.initial.facts,
            match.display(base.resource.name) if base else None,
        ),
        agreement_by_position=figures.AgreementByPosition(
            *(_positions(result[arm]) for arm in ("student", "untrained"))
        ),
        answers=tuple(_answer(row, parts.controls) for row in result["answers"]),
        receipts=tuple(map(_receipt, receipts(parts.export))) if parts.export else (),
        dataset=_dataset(parts.train, recipe.data.train, samples["prompts"]),
        heldout=_dataset(parts.heldout, recipe.data.heldout, samples["heldout_prompts"]),
        terms=terms_of(decision, plan),
        proof=proof,
        stages=tuple(
            f.Stage(part.path.name, part.manifest["times"]["seconds"], part.sha256)
            for part in parts.chain
        ),
        machine=machine,
        recipe=recipe_without_folders(recipe, origins),
        elsewhere=elsewhere(
            machine, {part.path.name: measured(part)["machine"] for part in parts.arms}
        ),
    )


def _evaluation(result: Json, initial: Artifact, recipe: Recipe) -> figures.Evaluation:
    top_k, here = recipe.sample.top_k, recipe.teacher.endpoint is None
    return figures.Evaluation(
        result["prompts"],
        result["tokens"],
        recipe.evaluate.bootstrap,
        recipe.evaluate.confidence,
        result["products"],
        recipe.sample.temperature,
        recipe.sample.top_p,
        top_k if here and top_k < initial.facts["teacher"]["vocabulary"] else None,
        recipe.solving,
    )


def _sizes(initial: Artifact, *, remote: bool) -> figures.Sizes:
    student, larger = (
        figures.Size(**initial.facts[who]) for who in ("student", "base" if remote else "teacher")
    )
    return figures.Sizes(None, student, larger) if remote else figures.Sizes(larger, student)


def _costs(parts: Parts, recipe: Recipe, hardware: Hardware | None) -> figures.Costs | None:
    budget = recipe.student.budget
    if budget is None or parts.speed is None:
        return None
    speed = measured(parts.speed)
    decode, memory = (speed["student"][name] for name in ("decode_tokens_per_second", "peak_bytes"))
    shape = Dimensions.of(load_model_config(parts.student.path))
    machine = hardware.machine if hardware else {}
    return figures.Costs(
        budget.latency_ms,
        None if budget.memory_mb is None else budget.memory_mb * MB,
        budget.parameters,
        hardware.name if hardware else None,
        figures.Cost(**vars(hardware.predict(shape))) if hardware else None,
        figures.Cost(1000 / decode, memory, parts.initial.facts["parameters"]),
        all(machine.get(key) == speed["machine"][key] for key in ("processor", "cores")),
    )


def _controls(parts: Parts, result: Json, recipe: Recipe) -> tuple[figures.Control, ...]:
    return tuple(
        figures.Control(
            name,
            equal,
            figures.Arm.of(result[name]),
            _run(parts.controls[name][0], method.control(recipe)),
            _positions(result[name]),
        )
        for name, equal in ((arms.control_name(one), one.equal) for one in recipe.train.controls)
    )


def _positions(numbers: Json) -> figures.Positions:
    return tuple(tuple(row) for row in numbers[BY_POSITION])


def _answer(row: Json, controls: Iterable[str]) -> f.Answer:
    said = tuple(row[name] for name in controls)
    return f.Answer(row["prompt"], row["teacher"], row["student"], said)


def elsewhere(here: Machine, others: Mapping[str, Machine]) -> tuple[str, ...]:
    """A sentence for each stage whose machine or versions differ from those of the speeds."""
    found = []
    for name, machine in others.items():
        differs = [f"{key} {value}" for key, value in machine.items() if here.get(key) != value]
        if differs:
            found.append(f"The stage {name} was made elsewhere: {', '.join(differs)}.")
    return tuple(found)


def _arms(numbers: Mapping[str, Json]) -> dict[str, figures.Arm]:
    return {name: figures.Arm.of(found) for name, found in numbers.items()}


def _speed(measured: Json) -> figures.Speed:
    engine = measured["engine"]
    return figures.Speed(
        measured["decode_tokens_per_second"],
        measured["prefill_tokens_per_second"],
        measured["peak_bytes"],
        measured["file_bytes"],
        " ".join(str(value) for value in engine.values()) if isinstance(engine, dict) else engine,
        "q8_0",
        measured["threads"],
    )


def _speeds(measured: Json) -> figures.Speeds:
    teacher, base = (
        _speed(measured[who]) if who in measured else None for who in ("teacher", "base")
    )
    return figures.Speeds(teacher, _speed(measured["student"]), base)


def _run(artifact: Artifact, objective: str) -> figures.Run:
    facts, times = artifact.facts, artifact.manifest["times"]
    return figures.Run(
        objective,
        facts["steps"],
        facts["tokens"],
        times["measured"]["seconds"],
        times["measured"]["tokens_per_second"],
        tuple(enumerate(facts["losses"], start=1)),
    )


def _importance(initial: Artifact, recipe: Recipe) -> figures.Importance:
    removed = {
        row["layer"]: (order, row["kl_nats_per_token"])
        for order, row in enumerate(initial.facts["removals"], start=1)
    }
    rows = []
    for layer in range(initial.facts["base"]["layers"]):
        order, score = removed.get(layer, (None, None))
        rows.append(figures.Layer(layer, layer in initial.facts["kept_layers"], score, order))
    return figures.Importance(
        recipe.student.importance, SCORES[recipe.student.importance], tuple(rows)
    )


def _receipt(one: Json) -> f.Receipt:
    names = set(f.Receipt.__dataclass_fields__)
    given = {key: value for key, value in one.items() if key in names}
    if isinstance(given.get("engine"), dict):
        given["engine"] = " ".join(str(value) for value in given["engine"].values())
    return f.Receipt(**given)


def _dataset(artifact: Artifact, source: str, used: int) -> f.Dataset:
    certificate = dataset.certificate(artifact)
    return f.Dataset(
        name=f"{Path(source).parent.name}/{Path(source).stem}",
        records=certificate["records"],
        accepted=certificate["accepted"],
        rejected=certificate["rejected"],
        licences=certificate["licences"],
        head=certificate["tree"]["head"],
        reasons=certificate["reasons"],
        used=used,
    )
