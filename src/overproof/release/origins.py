"""What the report says of the models that a student comes from, and of their terms."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from overproof.core.artifact import Json, Resource
from overproof.core.recipe import Recipe
from overproof.policy import licences, match
from overproof.policy.gate import Decision
from overproof.policy.lookup import Finding
from overproof.policy.obligations import Plan
from overproof.release import facts as f
from overproof.release import method
from overproof.release.figures import Arm
from overproof.release.parts import Parts, measured
from overproof.release.quality import result_of
from overproof.teacher import files
from overproof.teacher.origins import Origin, Origins
from overproof.teacher.remote.ledger import Spent
from overproof.teacher.remote.purse import in_words
from overproof.teacher.remote.stage import endpoint_of


def model_of(origin: Origin, decision: Decision, remote: f.Remote | None = None) -> f.TeacherModel:
    """A model by name, place, digest and licence."""
    one = origin.resource
    return f.TeacherModel(
        match.display(one.name),
        one.uri,
        None if remote else one.sha256,
        teacher_licence(decision, one),
        files.hub_name(origin.name) if isinstance(origin.input, Resource) and not remote else None,
        remote,
    )


def remote_of(parts: Parts, recipe: Recipe) -> f.Remote:
    """What the service said of itself; of its weights nothing is known."""
    said, endpoint = parts.samples.facts["remote"], endpoint_of(recipe)
    spent = in_words(Spent(**measured(parts.samples)["spent"]), endpoint.price)
    names = ("answered", "fingerprints", "operator", "first", "last", "left_out")
    return f.Remote(**{name: said[name] for name in names}, spent=spent)


def terms_of(decision: Decision, plan: Plan, which: int = 0) -> Json:
    """A verdict as the report shows it: what is built in is named like any other teacher."""
    found = decision.predicates([one.id for one in plan.obligations])[which]
    name, shown = found["teacher"]["name"], decision.rulings[which].display
    found["teacher"] = {**found["teacher"], "name": shown}
    found["warnings"] = [line.replace(name, shown) for line in found["warnings"]]
    return found


def shares_of(
    parts: Parts, recipe: Recipe, decision: Decision, plan: Plan, origins: Origins
) -> tuple[f.Share, ...]:
    """What each of several teachers gave; of one alone, nothing that is not said elsewhere."""
    if not origins.others:
        return ()
    counts = parts.samples.facts["by_teacher"]
    answering = sorted(counts["heldout"], key=int)
    found = result_of(parts.evaluation)
    # Where one teacher has all the held-out prompts, the whole is what is known of it.
    against = dict(zip(answering, found.get("teachers", [found]), strict=True))
    return tuple(
        f.Share(
            model_of(teacher, decision),
            terms_of(decision, plan, which),
            records,
            counts["train"].get(str(which), 0),
            counts["heldout"].get(str(which), 0),
            Arm.of(against[str(which)]["student"]) if str(which) in against else None,
        )
        for which, (teacher, records) in enumerate(
            zip(origins.teachers, method.routed(recipe), strict=True)
        )
    )


def recipe_without_folders(recipe: Recipe, origins: Origins) -> Json:
    """The recipe as run; of a path on the maker's machine its last part."""
    found: Json = recipe.model_dump(mode="json")
    teacher, base = origins.teacher.resource, origins.base and origins.base.resource
    for section, origin in zip(
        (found["teacher"], *found["teacher"]["others"]), origins.teachers, strict=True
    ):
        if origin.resource.is_here:
            section["model"] = origin.resource.name
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
