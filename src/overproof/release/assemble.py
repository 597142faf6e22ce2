"""Putting a release together: model, builds, report, card, obligations."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from overproof import __version__
from overproof.core.artifact import Artifact, Json, Resource
from overproof.core.host import Machine
from overproof.core.recipe import Recipe
from overproof.data import dataset
from overproof.policy import licences, match
from overproof.policy.gate import Decision
from overproof.policy.lookup import Finding
from overproof.policy.obligations import Plan
from overproof.release import facts as f
from overproof.release import method
from overproof.release.card import write_card
from overproof.release.parts import Parts
from overproof.release.quality import result_of
from overproof.release.report import write_report
from overproof.release.tally import BY_POSITION, DIFFERENCES
from overproof.student import arms
from overproof.student.budget import MB
from overproof.student.cost import Hardware
from overproof.student.dimensions import Dimensions
from overproof.student.initial import load_model_config
from overproof.teacher import local
from overproof.teacher.origins import Origin, Origins
from overproof.teacher.remote.ledger import Spent
from overproof.teacher.remote.purse import in_words
from overproof.teacher.remote.stage import endpoint_of

# What the measurement's figure at a dropped layer is, by the rule that chose.
SCORES = {
    "greedy-kl": "KL after dropping it too, nats per token",
    "angular": "KL after dropping the whole block, nats per token",
    "even": "not measured",
}


def write(folder: Path, parts: Parts, facts: f.ReportFacts, plan: Plan) -> None:
    """Fill an empty folder with all of a release but its proof.

    Args:
        facts: what `collect` found.
        plan: name, notices and card lines that the teacher's terms ask for.
    """
    _copy(parts.student, folder / "model")
    if parts.export:
        _copy(parts.export, folder / "export")
    write_report(facts, folder)
    models = [facts.teacher_model, *([facts.base_model] if facts.base_model else [])]
    # The terms of a vendor's service license no weights.
    licence = joined([one.licence for one in models if one.has_licence]) or "other"
    write_card(facts, folder, licence=licence, card_lines=plan.card_lines)
    for name, text in plan.files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")


def _copy(artifact: Artifact, folder: Path) -> None:
    for entry in artifact.manifest["files"]:
        target = folder / entry["name"]
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(artifact.path / entry["name"], target)


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
    speed = _measured(parts.speed) if parts.speed else None
    machine = (speed or _measured(parts.student))["machine"]
    return f.ReportFacts(
        name=plan.name,
        system=recipe.teacher.system,
        shots=len(recipe.teacher.shots),
        overproof=__version__,
        teacher_model=_model(teacher, decision, _remote(parts, recipe) if origins.remote else None),
        base_model=_model(base, decision) if base else None,
        base_terms=_terms(decision, plan, 1) if base else None,
        teacher=_arm(result.get("teacher", {})),
        student=_arm(result["student"]),
        untrained=_arm(result["untrained"]),
        controls=_controls(parts, result, recipe),
        differences=_arms(result[DIFFERENCES]),
        seeds=f.Seeds(over["count"], _arms(over["arms"]), _arms(over[DIFFERENCES]))
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
        agreement_by_position=f.AgreementByPosition(
            *(_positions(result[arm]) for arm in ("student", "untrained"))
        ),
        answers=tuple(_answer(row, parts.controls) for row in result["answers"]),
        receipts=tuple(map(_receipt, receipts(parts.export))) if parts.export else (),
        dataset=_dataset(parts.train, recipe.data.train, samples["prompts"]),
        heldout=_dataset(parts.heldout, recipe.data.heldout, samples["heldout_prompts"]),
        terms=_terms(decision, plan),
        proof=proof,
        stages=tuple(
            f.Stage(part.path.name, part.manifest["times"]["seconds"], part.sha256)
            for part in parts.chain
        ),
        machine=machine,
        recipe=recipe_without_folders(recipe, teacher.resource, base.resource if base else None),
        elsewhere=elsewhere(
            machine, {part.path.name: _measured(part)["machine"] for part in parts.arms}
        ),
    )


def _model(origin: Origin, decision: Decision, remote: f.Remote | None = None) -> f.TeacherModel:
    one = origin.resource
    return f.TeacherModel(
        match.display(one.name),
        one.uri,
        None if remote else one.sha256,
        teacher_licence(decision, one),
        local.hub_name(origin.name) if isinstance(origin.input, Resource) and not remote else None,
        remote,
    )


def _remote(parts: Parts, recipe: Recipe) -> f.Remote:
    """What the service said of itself; of its weights nothing is known."""
    said, endpoint = parts.samples.facts["remote"], endpoint_of(recipe)
    spent = in_words(Spent(**_measured(parts.samples)["spent"]), endpoint.price)
    names = ("answered", "fingerprints", "operator", "first", "last", "left_out")
    return f.Remote(**{name: said[name] for name in names}, spent=spent)


def _evaluation(result: Json, initial: Artifact, recipe: Recipe) -> f.Evaluation:
    top_k, here = recipe.sample.top_k, recipe.teacher.endpoint is None
    return f.Evaluation(
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


def _sizes(initial: Artifact, *, remote: bool) -> f.Sizes:
    student, larger = (
        f.Size(**initial.facts[who]) for who in ("student", "base" if remote else "teacher")
    )
    return f.Sizes(None, student, larger) if remote else f.Sizes(larger, student)


def _costs(parts: Parts, recipe: Recipe, hardware: Hardware | None) -> f.Costs | None:
    budget = recipe.student.budget
    if budget is None or parts.speed is None:
        return None
    speed = _measured(parts.speed)
    decode, memory = (speed["student"][name] for name in ("decode_tokens_per_second", "peak_bytes"))
    shape = Dimensions.of(load_model_config(parts.student.path))
    machine = hardware.machine if hardware else {}
    return f.Costs(
        budget.latency_ms,
        None if budget.memory_mb is None else budget.memory_mb * MB,
        budget.parameters,
        hardware.name if hardware else None,
        f.Cost(**vars(hardware.predict(shape))) if hardware else None,
        f.Cost(1000 / decode, memory, parts.initial.facts["parameters"]),
        all(machine.get(key) == speed["machine"][key] for key in ("processor", "cores")),
    )


def _controls(parts: Parts, result: Json, recipe: Recipe) -> tuple[f.Control, ...]:
    return tuple(
        f.Control(
            name,
            equal,
            _arm(result[name]),
            _run(parts.controls[name][0], method.control(recipe)),
            _positions(result[name]),
        )
        for name, equal in ((arms.control_name(one), one.equal) for one in recipe.train.controls)
    )


def _positions(numbers: Json) -> f.Positions:
    return tuple(tuple(row) for row in numbers[BY_POSITION])


def _answer(row: Json, controls: Iterable[str]) -> f.Answer:
    said = tuple(row[name] for name in controls)
    return f.Answer(row["prompt"], row["teacher"], row["student"], said)


def _measured(artifact: Artifact) -> Json:
    found: Json = artifact.manifest["times"]["measured"]
    return found


def elsewhere(here: Machine, others: Mapping[str, Machine]) -> tuple[str, ...]:
    """A sentence for each stage whose machine or versions differ from those of the speeds."""
    found = []
    for name, machine in others.items():
        differs = [f"{key} {value}" for key, value in machine.items() if here.get(key) != value]
        if differs:
            found.append(f"The stage {name} was made elsewhere: {', '.join(differs)}.")
    return tuple(found)


def _terms(decision: Decision, plan: Plan, which: int = 0) -> Json:
    """A verdict as the report shows it: what is built in is named like any other teacher."""
    found = decision.predicates([one.id for one in plan.obligations])[which]
    name, shown = found["teacher"]["name"], decision.rulings[which].display
    found["teacher"] = {**found["teacher"], "name": shown}
    found["warnings"] = [line.replace(name, shown) for line in found["warnings"]]
    return found


def recipe_without_folders(recipe: Recipe, teacher: Resource, base: Resource | None = None) -> Json:
    """The recipe as run; of a path on the maker's machine its last part."""
    found: Json = recipe.model_dump(mode="json")
    if teacher.is_here:
        found["teacher"]["model"] = teacher.name
    if recipe.student.budget and recipe.student.budget.hardware:
        found["student"]["budget"]["hardware"] = Path(recipe.student.budget.hardware).name
    if found["student"]["base"] and (base or teacher).is_here:
        found["student"]["base"] = (base or teacher).name
    given = [(found["data"], key) for key in ("train", "heldout")]
    if recipe.teacher.scratch:
        given += [(found["teacher"]["scratch"], key) for key in ("configuration", "data")]
    for section, key in given:
        path = Path(section[key])
        if path.is_absolute() or path.parts[:1] in (("~",), ("..",)):
            section[key] = path.name
    return found


def teacher_licence(decision: Decision, only: Resource | None = None) -> str | None:
    """All licences of the models' weights and of what they derive from, joined by AND.

    None where one of them is unknown: the others alone would promise too much.

    Args:
        only: one of the models; None: all, whose terms the student is under.
    """
    rows = [
        row
        for ruling in decision.rulings
        if only is None or ruling.teacher.sha256 == only.sha256
        for finding in _findings(ruling.finding)
        if finding.channel == "weights"
        for row in finding.rows or (None,)
    ]
    return joined([row.licence if row else None for row in rows])


def joined(expressions: Sequence[str | None]) -> str | None:
    """Licences that all count, each once; None where one is unknown."""
    parts: list[str] = []
    for expression in expressions:
        if expression is None:
            return None
        text = licences.normalise(expression)
        parts += [f"({text})"] if " OR " in text else text.split(" AND ")
    return " AND ".join(dict.fromkeys(parts)) or None


def _findings(finding: Finding) -> Iterator[Finding]:
    yield finding
    for found in finding.inherited:
        yield from _findings(found)


def _arm(numbers: Json) -> f.Arm:
    fields = (field.name for field in dataclasses.fields(f.Arm))
    return f.Arm(**{name: f.Interval(**numbers[name]) for name in fields if name in numbers})


def _arms(numbers: Mapping[str, Json]) -> dict[str, f.Arm]:
    return {name: _arm(found) for name, found in numbers.items()}


def _speed(measured: Json) -> f.Speed:
    engine = measured["engine"]
    return f.Speed(
        measured["decode_tokens_per_second"],
        measured["prefill_tokens_per_second"],
        measured["peak_bytes"],
        measured["file_bytes"],
        " ".join(str(value) for value in engine.values()) if isinstance(engine, dict) else engine,
        "q8_0",
        measured["threads"],
    )


def _speeds(measured: Json) -> f.Speeds:
    teacher, base = (
        _speed(measured[who]) if who in measured else None for who in ("teacher", "base")
    )
    return f.Speeds(teacher, _speed(measured["student"]), base)


def _run(artifact: Artifact, objective: str) -> f.Run:
    facts, times = artifact.facts, artifact.manifest["times"]
    return f.Run(
        objective,
        facts["steps"],
        facts["tokens"],
        times["measured"]["seconds"],
        times["measured"]["tokens_per_second"],
        tuple(enumerate(facts["losses"], start=1)),
    )


def _importance(initial: Artifact, recipe: Recipe) -> f.Importance:
    removed = {
        row["layer"]: (order, row["kl_nats_per_token"])
        for order, row in enumerate(initial.facts["removals"], start=1)
    }
    rows = []
    for layer in range(initial.facts["base"]["layers"]):
        order, score = removed.get(layer, (None, None))
        rows.append(f.Layer(layer, layer in initial.facts["kept_layers"], score, order))
    return f.Importance(recipe.student.importance, SCORES[recipe.student.importance], tuple(rows))


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


def receipts(export: Artifact) -> Sequence[Json]:
    """The parity receipts of an export."""
    found: dict[str, Any] = export.facts["receipts"]
    return list(found.values())
