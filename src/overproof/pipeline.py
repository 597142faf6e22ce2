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
from overproof.core.methods import Scratch, Text
from overproof.core.recipe import Recipe
from overproof.core.section import Section

device.prepare()

from overproof import outlook  # noqa: E402
from overproof.data import certify, dataset  # noqa: E402
from overproof.engines import Engines, engines  # noqa: E402
from overproof.policy import gate, licences, obligations  # noqa: E402
from overproof.release import assemble, collect, quality, targets  # noqa: E402
from overproof.release.export import export  # noqa: E402
from overproof.release.facts import Proof  # noqa: E402
from overproof.release.parts import Parts  # noqa: E402
from overproof.student import arms, initial, retokenise, scratch  # noqa: E402
from overproof.teacher import answers, local, signals  # noqa: E402
from overproof.teacher.origins import Loader, Origin, Origins, find  # noqa: E402
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
    if recipe.teacher.scratch is None:
        origins = find(recipe)

    heldout = _certify(recipe, recipe.data.heldout, path, store, "heldout", None)
    train = _certify(recipe, recipe.data.train, path, store, "train", heldout)
    own = corpus = None
    if recipe.teacher.scratch is not None:
        corpus = _corpus(recipe, recipe.teacher.scratch, path, store, heldout, train)
        own = scratch.teacher(corpus, recipe.teacher.scratch, recipe.seed, path, store, by.train)
        origins = Origins(Origin(recipe.teacher.model, own.path, own))
    decision, plan, terms = ask_terms(recipe, origins, store)  # before any model is opened
    here, told_by, base = origins.here.input, origins.tokens_of, _base(origins)
    load = Loader(functools.partial(_load, recipe, origins, base))
    speak = Loader(lambda _: origins.speaker.load()) if origins.apart else load
    voice = origins.speaker.input

    draw = remote.sample if origins.remote else functools.partial(answers.sample, pool=by.pool)
    samples = draw(load, train, heldout, told_by, terms, recipe, store)
    text = isinstance(recipe.signals, Text)  # of which nothing is kept
    cached = None if text else signals.cache(load, samples, recipe, origins.taught_by, store)
    told = foreign = None
    if origins.apart:
        records, models = {"train": train, "heldout": heldout}, {"teacher": here, "base": voice}
        told = retokenise.retokenise(load, speak, samples, cached, records, models, recipe, store)
        foreign = quality.Foreign(speak, voice, told)
        base = None  # from here on it stands where the teacher stood
    said, known = told or samples, None if told else cached
    start = initial.initial(speak, said, known, recipe, voice, store, base)
    load.clear()  # training has its signals, unless it is on-policy: memory for the workers
    speak.clear()
    students = arms.students(load, start, samples, cached, recipe, here, store, by.train, told)
    load.clear()
    student = students[0]  # not the best of them: that would be chosen on the held-out prompts
    controls = arms.controls(start, said, cached, student, recipe, store, by.train)

    evaluations = quality.evaluations(
        load, samples, start, students, controls, recipe, told_by, store, foreign
    )
    texts = quality.heldout_texts(said, start)
    builds = speed = None
    if recipe.export.targets:
        builds = export(student, recipe.export, texts, store=store, source=said)
        speed = quality.speed(load, builds, here, store)

    parts = Parts(
        heldout=heldout, train=train, corpus=None if corpus is train else corpus, teacher=own,
        terms=terms, samples=samples, signals=cached, retokenised=told, initial=start,
        students=students, controls=controls, evaluations=evaluations, export=builds, speed=speed,
    )  # fmt: skip
    with disk_errors(out):
        return publish(parts, recipe, path, decision, plan, origins, out, signer)


def _corpus(
    recipe: Recipe, config: Scratch, path: Path, store: Path, heldout: Artifact, train: Artifact
) -> Artifact:
    """The records that a teacher of one's own is trained on; what cannot end well is refused."""
    sketch = scratch.sketch(config, recipe.teacher.model, path)
    demand(sketch, sketch, recipe)
    if config.data == recipe.data.train:
        return train
    return _certify(recipe, config.data, path, store, "corpus", heldout)


def _load(recipe: Recipe, origins: Origins, base: initial.Base | None, which: int) -> local.Teacher:
    """A teacher, or the base in whose tokens it answers; what cannot end well is refused."""
    if which:
        return origins.teachers[which].load()
    loaded = origins.here.load()
    other = base.load() if base else loaded
    demand(loaded, other, recipe)
    if origins.apart:
        retokenise.demand(other, recipe)
    return loaded


def demand(teacher: local.Teacher, base: local.Teacher, recipe: Recipe) -> None:
    """Refuse a student or a build that cannot be made of these.

    Args:
        base: what the student is cut from: the teacher itself, or another model.

    Raises:
        UsageError: the recipe asks for too much, or for no build whose speed can be measured.
        StageError: the architecture or tokenizer has no place in a student or an engine.
    """
    arms.demand(teacher, base, recipe)
    quality.demand_speed_target(recipe.export)
    for one in {id(teacher): teacher, id(base): base}.values():
        for target in recipe.export.targets:
            targets.find(target).demand(
                type(one.model).__name__, one.model.config, one.tokenizer_state
            )


def _base(origins: Origins) -> initial.Base | None:
    """What the student is cut from, where `_load` loads another model; loaded when needed.

    With other tokens than the teacher's it must converse: its own template is the student's.
    """
    one = origins.other
    if one is None:
        return None
    load = one.load if origins.apart else functools.partial(local.load_base, one.name)
    return initial.Base(one.resource, load)


def _certify(
    recipe: Recipe, source: str, path: Path, store: Path, name: str, exclude: Artifact | None
) -> Artifact:
    file = recipes.find_data(source, path)
    certified = certify.certify(file, recipe.data, store=store, name=name, exclude=exclude)
    licences.demand(dataset.certificate(certified)["licences"], source)
    return certified


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
