"""What a run begins with: certified records, and the models that its stages load."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from overproof.core import config as recipes
from overproof.core import device
from overproof.core.artifact import Artifact, Input
from overproof.core.contract import BASE, TEACHER
from overproof.core.methods import Scratch
from overproof.core.recipe import Recipe

device.prepare()

from overproof.data import certify, dataset  # noqa: E402
from overproof.engines import Engines  # noqa: E402
from overproof.policy import licences  # noqa: E402
from overproof.release import quality, targets  # noqa: E402
from overproof.student import arms, initial, retokenise, scratch  # noqa: E402
from overproof.teacher import local  # noqa: E402
from overproof.teacher.origins import Loader, Origin, Origins, find  # noqa: E402


@dataclass(frozen=True)
class Sources:
    """What a run begins with.

    Attributes:
        corpus, teacher: where the run trains its own teacher: that, and its records, unless they
            are those of `train`.
    """

    train: Artifact
    heldout: Artifact
    origins: Origins
    corpus: Artifact | None = None
    teacher: Artifact | None = None

    @staticmethod
    def of(recipe: Recipe, path: Path, store: Path, by: Engines) -> Sources:
        """The certified records and the models, which are looked for before anything is done."""
        made = recipe.teacher.scratch
        if made is None:
            origins = find(recipe)
            return Sources(*_splits(recipe, path, store), origins)
        train, heldout = _splits(recipe, path, store)
        corpus = _corpus(recipe, made, path, store, heldout, train)
        own = scratch.teacher(corpus, made, recipe.seed, path, store, by.train)
        origins = Origins(Origin(recipe.teacher.model, own.path, own))
        return Sources(train, heldout, origins, None if corpus is train else corpus, own)


@dataclass(frozen=True)
class Models:
    """The models of a run, loaded when a stage needs them.

    Attributes:
        load: the teachers; the base, in whose tokens a teacher behind an endpoint answers.
        speak: the model whose tokens and template the student has.
        here: what stands for the first that `load` loads; told_by: for all of these, by role.
        voice: what stands for that of `speak`.
        base: what the student is cut from, where that is another model.
    """

    load: Loader
    speak: Loader
    here: Input
    told_by: Mapping[str, Input]
    voice: Input
    base: initial.Base | None

    @staticmethod
    def of(recipe: Recipe, origins: Origins) -> Models:
        """Those of these origins."""
        base = _base(origins)
        load = Loader(functools.partial(_load, recipe, origins, base))
        speak = Loader(lambda _: origins.speaker.load()) if origins.apart else load
        here, voice = origins.here.input, origins.speaker.input
        return Models(load, speak, here, origins.tokens_of, voice, base)

    def retold(
        self,
        samples: Artifact,
        cached: Artifact | None,
        train: Artifact,
        heldout: Artifact,
        recipe: Recipe,
        store: Path,
    ) -> Artifact:
        """The answers in the student's own tokens, where these are not the teacher's."""
        records = {"train": train, "heldout": heldout}
        models = {TEACHER: self.here, BASE: self.voice}
        return retokenise.retokenise(
            self.load, self.speak, samples, cached, records, models, recipe, store
        )

    def clear(self) -> None:
        """Keep none in memory."""
        self.load.clear()
        self.speak.clear()


def _splits(recipe: Recipe, path: Path, store: Path) -> tuple[Artifact, Artifact]:
    """Both splits, certified: `train`, which has no record of `heldout`, and that."""
    heldout = certified(recipe, recipe.data.heldout, path, store, "heldout", None)
    return certified(recipe, recipe.data.train, path, store, "train", heldout), heldout


def _corpus(
    recipe: Recipe, config: Scratch, path: Path, store: Path, heldout: Artifact, train: Artifact
) -> Artifact:
    """The records that a teacher of one's own is trained on; what cannot end well is refused."""
    sketch = scratch.sketch(config, recipe.teacher.model, path)
    demand(sketch, sketch, recipe)
    if config.data == recipe.data.train:
        return train
    return certified(recipe, config.data, path, store, "corpus", heldout)


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


def certified(
    recipe: Recipe, source: str, path: Path, store: Path, name: str, exclude: Artifact | None
) -> Artifact:
    """A set of records, certified; licences that forbid training are refused.

    Args:
        source: as the recipe names it. exclude: a set whose records it must not have.
    """
    file = recipes.find_data(source, path)
    certified = certify.certify(file, recipe.data, store=store, name=name, exclude=exclude)
    licences.demand(dataset.certificate(certified)["licences"], source)
    return certified
