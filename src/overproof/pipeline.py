"""The main job, stage after stage: from records and a teacher to a release with its proof."""

from __future__ import annotations

import functools
import shutil
from dataclasses import dataclass
from pathlib import Path

from overproof.core import config as recipes
from overproof.core import device
from overproof.core.artifact import Artifact, Json, Work, build
from overproof.core.artifact import describe as files_of
from overproof.core.console import note
from overproof.core.disk import disk_errors, exclusive, replace_folder
from overproof.core.methods import Text
from overproof.core.recipe import Recipe
from overproof.core.section import Section

device.prepare()

from overproof import outlook  # noqa: E402
from overproof.data import dataset  # noqa: E402
from overproof.engines import Engines, engines  # noqa: E402
from overproof.policy import gate, obligations  # noqa: E402
from overproof.release import assemble, collect, quality  # noqa: E402
from overproof.release.export import export  # noqa: E402
from overproof.release.facts import Proof  # noqa: E402
from overproof.release.parts import Parts  # noqa: E402
from overproof.sources import Models, Sources  # noqa: E402
from overproof.student import arms, initial  # noqa: E402
from overproof.teacher import answers, signals  # noqa: E402
from overproof.teacher.origins import Origins  # noqa: E402
from overproof.teacher.remote import stage as remote  # noqa: E402
from overproof.trust import attest, keys, verify  # noqa: E402

STAGES = "stages"
RELEASE = "release"


class Config(Section):
    """What `overproof distill` is asked for."""

    recipe: str = "support"
    out: Path = Path("out")
    key: Path | None = None
    overrides: tuple[str, ...] = ()
    ray: str | None = None
    dry_run: bool = False


@dataclass(frozen=True)
class Result:
    """A finished release and the verdict on it, or the plan of a dry run."""

    release: Path | None
    verdict: verify.Verdict | None
    plan: Json | None = None

    @property
    def exit_code(self) -> int:
        """0, or that of the verification."""
        return self.verdict.exit_code if self.verdict else 0

    def to_json(self) -> Json:
        """For machines."""
        if self.plan is not None:
            return {"plan": self.plan}
        return {
            "release": str(self.release),
            "verdict": self.verdict.to_json() if self.verdict else None,
        }


def run(config: Config) -> Result:
    """Distil, from records to a verified release.

    Raises:
        UsageError: a recipe, a teacher or a data file that cannot be used.
        PolicyError: the teacher's terms or a licence forbid it.
        StageError: the world got in the way; run it again, finished stages are kept.
    """
    path = recipes.find_recipe(config.recipe)
    recipe = outlook.fitted(recipes.load_recipe(path, config.overrides), path)
    if config.dry_run:
        return Result(None, None, outlook.plan(recipe, path))
    # The second lock is the one that `certify` takes: it shall replace no stage of this run.
    with exclusive(config.out), exclusive(config.out / STAGES):
        signer = (
            keys.PrivateKey.load(config.key) if config.key else keys.ensure(keys.default_folder())
        )
        with engines(config.ray, recipe, config.out) as found:
            release = distil(recipe, path, config.out, signer, found)
        return Result(release, verify.verify(release, signer.public))


def distil(recipe: Recipe, path: Path, out: Path, signer: keys.PrivateKey, by: Engines) -> Path:
    """The whole way. Each line is a stage; each stage is kept if it is finished already."""
    store = out / STAGES
    sources = Sources.of(recipe, path, store, by)
    train, heldout, origins = sources.train, sources.heldout, sources.origins
    decision, plan, terms = ask_terms(recipe, origins, store)  # before any model is opened
    models = Models.of(recipe, origins)
    load, here = models.load, models.here

    draw = remote.sample if origins.remote else functools.partial(answers.sample, pool=by.pool)
    samples = draw(load, train, heldout, models.told_by, terms, recipe, store)
    text = isinstance(recipe.signals, Text)  # of which nothing is kept
    cached = None if text else signals.cache(load, samples, recipe, origins.taught_by, store)
    told, foreign = None, None
    if origins.apart:  # the student has other tokens
        told = models.retold(samples, cached, train, heldout, recipe, store)
        foreign = quality.Foreign(models.speak, models.voice, told)
    said, known = told or samples, None if told else cached
    start = initial.initial(
        models.speak, said, known, recipe, models.voice, store, None if told else models.base
    )
    models.clear()  # training has its signals, unless it is on-policy: memory for the workers
    students = arms.students(load, start, samples, cached, recipe, here, store, by.train, told)
    models.clear()
    student = students[0]  # not the best of them: that would be chosen on the held-out prompts
    controls = arms.controls(start, said, cached, student, recipe, store, by.train)

    evaluations = quality.evaluations(
        load, samples, start, students, controls, recipe, models.told_by, store, foreign
    )
    texts = quality.heldout_texts(said, start)
    builds = speed = None
    if recipe.export.targets:
        builds = export(student, recipe.export, texts, store=store, source=said)
        speed = quality.speed(load, builds, here, store)

    parts = Parts(
        heldout=heldout, train=train, corpus=sources.corpus, teacher=sources.teacher,
        terms=terms, samples=samples, signals=cached, retokenised=told, initial=start,
        students=students, controls=controls, evaluations=evaluations, export=builds, speed=speed,
    )  # fmt: skip
    with disk_errors(out):
        return publish(parts, recipe, path, decision, plan, origins, out, signer)


def ask_terms(
    recipe: Recipe, origins: Origins, store: Path
) -> tuple[gate.Decision, obligations.Plan, Artifact]:
    """Ask the gate, before the first token of the teacher; keep its verdict as an artifact.

    Raises:
        PolicyError: the terms forbid it; the message names the clause.
    """
    decision, plan = obligations.permit(recipe, origins.places)
    for warning in decision.warnings:
        note(f"terms: {warning}")
    # The day is left out: a verdict that has not changed since yesterday is the same verdict.
    verdicts = [
        {key: value for key, value in one.items() if key != "on"} for one in decision.predicates()
    ]

    def make(_: Work) -> Json:
        return {"verdict": str(decision.verdict)}

    terms = build(
        store,
        "terms",
        inputs=origins.roles,
        config={"verdicts": verdicts},
        make=make,
        layer="policy",
    )
    return decision, plan, terms


def publish(
    parts: Parts,
    recipe: Recipe,
    path: Path,
    decision: gate.Decision,
    plan: obligations.Plan,
    origins: Origins,
    out: Path,
    signer: keys.PrivateKey,
) -> Path:
    """Write the release beside its place, prove it, verify it, and move it there."""
    final, partial = out / RELEASE, out / f".{RELEASE}.partial"
    if plan.message:
        note(plan.message)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    predicates = _predicates(parts, recipe, decision, plan, origins)
    proof = Proof(
        signer=signer.public.hint,
        statements=len(parts.chain) + len(predicates) + 1,
        command=f"overproof verify . --signer {signer_file(signer)}",
    )
    hardware = outlook.hardware_of(recipe, path)
    facts = collect.collect(parts, recipe, decision, plan, origins, proof, hardware)
    assemble.write(partial, parts, facts, plan)
    obligations.raise_unmet(obligations.recheck(partial, plan.name, plan.obligations))
    attest.attest(
        partial, artifacts=parts.chain, predicates=predicates, signer=signer, name=plan.name
    )
    verify.verify(partial, signer.public)
    made = files_of(partial)
    if final.exists() and files_of(final) != made:
        note(f"release: replaces another one in {final}")
    replace_folder(partial, final)
    note(f"release: {len(made)} files in {final}")
    return final


def signer_file(signer: keys.PrivateKey) -> str:
    """How the report's command names the public key: by fingerprint, not by a path."""
    return f"KEY.pub  # sha256 {signer.public.hint[:16]}…"


def _predicates(
    parts: Parts,
    recipe: Recipe,
    decision: gate.Decision,
    plan: obligations.Plan,
    origins: Origins,
) -> list[attest.Predicate]:
    met = [one.id for one in plan.obligations]
    found: list[attest.Predicate] = [
        ("certificate", part, dataset.certificate(part)) for part in parts.datasets
    ]
    found += [("terms-verdict", parts.terms, one) for one in decision.predicates(met)]
    if origins.remote is not None:
        named = {"name": origins.remote.name, "sha256": origins.remote.sha256}
        said = {"teacher": named, **parts.samples.facts["remote"]}
        found.append(("remote-teacher", parts.samples, said))
    over = parts.over_seeds(recipe.evaluate.confidence)
    seeds = {"seeds": over} if over else {}
    found.append(("evaluation", parts.evaluation, parts.evaluation.facts | seeds))
    if parts.export:
        found += [
            ("parity-receipt", parts.export, receipt) for receipt in assemble.receipts(parts.export)
        ]
    return found


def render(result: Result) -> str:
    """Where the release is and what the verification says; or the plan."""
    if result.plan is not None:
        return outlook.render(result.plan)
    if result.verdict is None:
        return ""
    return f"{verify.render(result.verdict)}\n\nrelease: {result.release}"
