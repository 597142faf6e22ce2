"""A finished stage `samples` of the tiny teacher, for the stages that follow it."""

from __future__ import annotations

import json
from pathlib import Path

import tiny_teacher as tiny

from overproof.core.artifact import Artifact, Json, Work, build
from overproof.core.config import find_recipe, load_recipe
from overproof.core.recipe import Recipe
from overproof.teacher.answers import made_of
from overproof.teacher.cache import describe, shard_file, write_shard
from overproof.teacher.kept import Signals, TopK
from overproof.teacher.texts import write_examples

HEAD = (1, 7, 8)
STUDENT_HEAD = 2  # tokens: the student is shown less
ROOM = 40
WHOLE = TopK(6, 4, prompts=True)
ORIGIN = {"teacher": "a", "tokenizer": "b", "chat_template": "c", "corpus": "d", "sampler": "e"}


def samples(store: Path, asked: Recipe, kept: Signals | None, count: int = 10) -> Artifact:
    """A finished stage `samples` with or without signals."""

    def make(work: Work) -> Json:
        write_examples(work.folder / "train.jsonl", tiny.examples(count))
        (work.folder / "heldout.jsonl").write_text("")
        prefixes = {"teacher": HEAD, "student": HEAD[:STUDENT_HEAD]}
        (work.folder / "prefix.json").write_text(json.dumps(prefixes))
        (work.folder / "prompts.json").write_text("{}")
        (work.folder / "checks.json").write_text("{}")
        (work.folder / "made_of.json").write_text(json.dumps(ORIGIN))
        return {}

    found = build(store, "samples", inputs={}, config={}, make=make)
    if kept is not None:
        binding, head = made_of(found, asked), tiny.model().lm_head.weight
        describe(found.path, WHOLE, binding, head)
        write_shard(shard_file(found.path, 0), WHOLE, kept)
    return found


def recipe(*more: str) -> Recipe:
    overrides = ["signals.top_k=6", "signals.tail_draws=4", f"train.sequence_length={ROOM}"]
    return load_recipe(find_recipe("support"), [*overrides, *more])
