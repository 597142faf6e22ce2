"""The teacher's answers as an artifact: the stage `samples`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from overproof.core.artifact import Artifact, Input, Json, Work, build
from overproof.core.console import meter
from overproof.core.digest import pretty, sha256_bytes, sha256_file, sha256_json
from overproof.core.methods import Text
from overproof.core.recipe import Recipe
from overproof.teacher.cache import (
    SHARD_EXAMPLES,
    Binding,
    ShardFile,
    describe,
    shard_file,
    write_shard,
)
from overproof.teacher.example import Example
from overproof.teacher.forward import head_of
from overproof.teacher.journal import Entry, Journal
from overproof.teacher.kept import Kept, Signals, kept_of
from overproof.teacher.local import Teacher
from overproof.teacher.prompts import HELDOUT, TRAIN, Asked, ask
from overproof.teacher.request import Drawing, Request, Said
from overproof.teacher.routing import Load, demand_alike
from overproof.teacher.sample import Pool, draw_all, here
from overproof.teacher.texts import Examples, write_examples
from overproof.teacher.verified import right, shortest

UNCHECKED = "unchecked.jsonl"
PREFIX, TEXTS, CHECKS = "prefix.json", "prompts.json", "checks.json"
MADE_OF = "made_of.json"


@dataclass(frozen=True)
class Answers:
    """What the teacher said, in its own tokens.

    Training answers are read from their file when they are looked at.

    Attributes:
        prefix: tokens that every conversation starts with.
        student_prefix: the same of the student, still in the teacher's tokens: without the shots.
        unchecked: the training answers with those that their checks rejected; `train` where nothing
            is checked.
        texts: the held-out prompts as they were certified, by key.
        checks: what is right, of the held-out records that say so, by key.
    """

    prefix: tuple[int, ...]
    student_prefix: tuple[int, ...]
    train: Sequence[Example]
    unchecked: Sequence[Example]
    heldout: Sequence[Example]
    texts: dict[str, str]
    checks: dict[str, Json]


def sample(
    load: Load,
    train: Artifact,
    heldout: Artifact,
    teachers: Mapping[str, Input],
    terms: Artifact,
    recipe: Recipe,
    store: Path,
    pool: Pool = here,
) -> Artifact:
    """Answer the prompts of both splits with the teacher.

    1. Draw the prompts by the recipe's seed; render them with the teacher's chat template.
    2. Draw the answers, several a training prompt if the recipe says so; each is kept in a
       journal as soon as it ends, a training answer with its signals (and those of its prompt)
       if the recipe says so.
    3. Leave out those that do not pass their record's check, if the recipe says so.
    4. Write them teacher after teacher, draw after draw, in the order of the prompts, a prompt's
       equal answers of a teacher once. Signals are written in the same order.

    Args:
        load: loads a teacher, called only if there is something to do.
        teachers: what stands for each in a proof, by its role; the first comes first.
        terms: the verdict that permits it; an input, so that the proof shows it came first.
        pool: who draws; no part of the key, for it changes no answer.

    Raises:
        UsageError: a record is no single prompt, or an answer may not fit a training sequence.
        StageError: a worker died.
    """

    config = None if isinstance(recipe.signals, Text) else recipe.signals
    kept = kept_of(config) if config and config.while_sampling else None

    def make(work: Work) -> Json:
        # 1.
        teacher = load()
        keep = kept.within(teacher.model.config.vocab_size) if kept else None
        asked = ask(teacher, train, heldout, recipe)
        # 2.
        drawing = Drawing.of(recipe.sample, teacher.stop_ids, keep)
        every = [request for split in asked.requests.values() for request in split]
        expected = len(every) * recipe.sample.max_new_tokens
        with (
            closing(Journal(work.scratch("journal"))) as journal,
            meter("sampling", expected, "tokens") as progress,
        ):
            for which in sorted({request.teacher for request in every}):
                own = [request for request in every if request.teacher == which]
                one = teacher if which == 0 else load(which)
                demand_alike(teacher, one)
                draw_all(one.half, asked.prefix, own, drawing, journal, progress, pool)
            work.measured["tokens_per_second"] = round(progress.rate, 1)
            # 3. and 4.
            said, found = chosen(asked, journal, teacher, recipe)
            facts = write_all(work.folder, asked, said, journal, keep) | found
        write_origin(work.folder, teacher, whom(teachers), recipe, keep)
        return facts

    signals = recipe.signals.model_dump() if kept else None
    stage_config = {**sampler(recipe), "signals": signals}
    inputs: dict[str, Input] = {
        **teachers,
        "terms": terms,
        "train": train,
        "heldout": heldout,
    }
    return build(store, "samples", inputs=inputs, config=stage_config, make=make, layer="teacher")


class Drawn(Protocol):
    """Finished answers by the key of their request."""

    @property
    def done(self) -> Mapping[str, Entry]:
        """Their tokens."""

    def signals(self, key: str) -> bytes:
        """The bytes that were kept beside one."""


def chosen(
    asked: Asked, journal: Drawn, teacher: Teacher, recipe: Recipe
) -> tuple[dict[str, list[Said]], Json]:
    """The answers that are learned from and measured on; and what their checks found."""
    said = {
        name: _unique(sorted(split, key=lambda request: request.teacher), journal)
        for name, split in asked.requests.items()
    }
    config, facts = recipe.sample, Json()
    if config.verified:
        said[UNCHECKED] = said[TRAIN]
        facts["checked"] = len(said[TRAIN])
        said[TRAIN] = right(said[TRAIN], asked, teacher, "answers")
        facts["right"] = len(said[TRAIN])
        if config.shortest is not None:
            said[TRAIN] = shortest(said[TRAIN], config.shortest)
    return said, facts


def write_all(
    folder: Path,
    asked: Asked,
    said: dict[str, list[Said]],
    journal: Drawn,
    kept: Kept | None,
) -> Json:
    """Write what was asked and said; returns the stage's facts."""
    tokens = {name: _write(folder / name, rows) for name, rows in said.items()}
    if kept:
        write_signals(folder, said[TRAIN], journal, kept)
    prefixes = {"teacher": asked.prefix, "student": asked.student_prefix}
    (folder / PREFIX).write_text(json.dumps(prefixes), encoding="utf-8")
    (folder / TEXTS).write_text(json.dumps(asked.texts), encoding="utf-8")
    checks = {key: asked.checks[key] for key in asked.texts if key in asked.checks}
    (folder / CHECKS).write_text(json.dumps(checks), encoding="utf-8")
    several = Json()
    if any(one.request.teacher for rows in said.values() for one in rows):
        several["by_teacher"] = {
            name.partition(".")[0]: Counter(str(one.request.teacher) for one in said[name])
            for name in (TRAIN, HELDOUT)
        }
    return several | {
        "prompts": len({one.request.record for one in said[TRAIN]}),
        "answers": len(said[TRAIN]),
        "heldout_prompts": len(said[HELDOUT]),
        "answer_tokens": tokens[TRAIN] + tokens[HELDOUT],
        "prefix_tokens": len(asked.prefix),
    }


def _unique(requests: Sequence[Request], journal: Drawn) -> list[Said]:
    """The answers in the order of the requests, a prompt's equal answers of a teacher once."""
    found = dict[tuple[str, int, tuple[int, ...]], Said]()
    for request in requests:
        tokens = journal.done[request.key].tokens
        found.setdefault((request.record, request.teacher, tuple(tokens)), Said(request, tokens))
    return list(found.values())


def _write(path: Path, said: Sequence[Said]) -> int:
    """Write the answers of one split; returns their tokens."""
    return write_examples(path, (one.example for one in said))


def write_signals(
    folder: Path,
    said: Sequence[Said],
    journal: Drawn,
    kept: Kept,
    file: ShardFile = shard_file,
) -> None:
    """Write the signals that were kept beside the answers, in the same order."""
    for number, start in enumerate(range(0, len(said), SHARD_EXAMPLES)):
        parts = [
            kept.from_bytes(journal.signals(one.request.key), one.positions(kept))
            for one in said[start : start + SHARD_EXAMPLES]
        ]
        write_shard(file(folder, number), kept, Signals.joined(parts))


def sampler(recipe: Recipe) -> Json:
    """What decides, beside teacher and prompts, which answers are drawn."""
    return {
        "sample": recipe.sample.model_dump(),
        "routing": recipe.teacher.routing,
        "system": recipe.teacher.system,
        "shots": [shot.model_dump() for shot in recipe.teacher.shots],
        "seed": recipe.seed,
    }


def whom(teachers: Mapping[str, Input]) -> str:
    """SHA-256 of who answers: of the teacher's weights, or of several teachers and their order."""
    every = [one.sha256 for one in teachers.values()]
    return every[0] if len(every) == 1 else sha256_json(every)


def write_origin(folder: Path, here: Teacher, who: str, recipe: Recipe, kept: Kept | None) -> None:
    """Say beside the answers what their signals depend on, which every cache of them is bound to.

    Args:
        here: whose tokens and template they are in.
        who: digest of who said them.
        kept: of signals beside them; None: there are none.
    """
    origin = {
        "teacher": who,
        "tokenizer": sha256_json(here.tokenizer_state),
        "chat_template": sha256_bytes(here.chat_template.encode()),
        "corpus": sha256_file(folder / TRAIN),
        "sampler": sha256_json(sampler(recipe)),
    }
    (folder / MADE_OF).write_text(pretty(origin), encoding="utf-8")
    if kept:
        binding = _with_signals(origin, recipe)
        describe(folder, kept, binding, head_of(here.half).weight)


def _with_signals(origin: Binding, recipe: Recipe) -> Binding:
    kept = recipe.signals.model_dump(exclude={"while_sampling"})
    return {**origin, "signals": sha256_json(kept)}


def made_of(samples: Artifact, recipe: Recipe) -> Binding:
    """What the signals of these answers must have been made of."""
    return _with_signals(json.loads(samples.file(MADE_OF).read_bytes()), recipe)


def read(samples: Artifact) -> Answers:
    """The answers of a finished stage."""
    prefixes = json.loads(samples.file(PREFIX).read_bytes())
    prefix, alone = (tuple(prefixes[whose]) for whose in ("teacher", "student"))
    texts = json.loads(samples.file(TEXTS).read_bytes())
    checks = json.loads(samples.file(CHECKS).read_bytes())
    train, heldout = Examples(samples.file(TRAIN)), list(Examples(samples.file(HELDOUT)))
    every = Examples(samples.file(UNCHECKED)) if "checked" in samples.facts else train
    return Answers(prefix, alone, train, every, heldout, texts, checks)
