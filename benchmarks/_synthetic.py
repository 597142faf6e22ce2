"""Data of any size in the forms that the stages read, made without holding it in memory."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch

from overproof.core import artifact
from overproof.core.artifact import Artifact, Json, Work
from overproof.student.arrays import array_file
from overproof.teacher.answers import CHECKS, MADE_OF, PREFIX, TEXTS
from overproof.teacher.cache import SHARD_EXAMPLES, describe, shard_file, write_shard
from overproof.teacher.example import Example
from overproof.teacher.kept import Sampled
from overproof.teacher.kept.sampled import SampledSignals
from overproof.teacher.prompts import HELDOUT, TRAIN
from overproof.teacher.texts import write_examples

SUPPORT = Path(__file__).parents[1] / "datasets/support/train.jsonl"
HEAD = 20  # tokens of the shared prefix
PROMPT, ANSWER = (8, 24), 24  # tokens: prompts between these, every answer
VOCABULARY = 16_384  # as in the recipe `support`
KEPT = Sampled(50)  # as a recipe has it by default
BINDING = {"corpus": "synthetic"}


def records(file: Path, count: int) -> None:
    """The shipped requests again and again, each made another by a number in letters."""
    with SUPPORT.open(encoding="utf-8") as stream:
        shipped = [json.loads(line)["prompt"] for line in stream]
    with file.open("w", encoding="utf-8") as out:
        for number, prompt in enumerate(islice(cycle(shipped), count)):
            out.write(json.dumps({"prompt": f"{prompt} ({_letters(number)})"}) + "\n")


def _letters(number: int) -> str:
    return "".join(chr(ord("a") + int(digit)) for digit in str(number))


def samples(store: Path, count: int) -> Artifact:
    """Answers as the stage `samples` writes them."""

    def make(work: Work) -> Json:
        draw = np.random.default_rng(count)

        def rows() -> Iterator[Example]:
            for number in range(count):
                tokens = tuple(draw.integers(VOCABULARY, size=PROMPT[1] + ANSWER).tolist())
                prompt, answer = tokens[: draw.integers(*PROMPT)], tokens[-ANSWER:]
                yield Example(f"{number:064x}", prompt, answer)

        write_examples(work.folder / TRAIN, rows())
        prefix = list(range(HEAD))
        small = {
            PREFIX: {"teacher": prefix, "student": prefix},
            **{name: {} for name in (TEXTS, CHECKS, MADE_OF)},
        }
        for name, value in small.items():
            (work.folder / name).write_text(json.dumps(value), encoding="utf-8")
        (work.folder / HELDOUT).touch()
        return {}

    return artifact.build(store, "samples", inputs={}, config={"answers": count}, make=make)


def signals(folder: Path, count: int) -> None:
    """Signals of these answers; all whole shards are one file, under many names."""
    folder.mkdir()
    describe(folder, KEPT, BINDING, torch.zeros(1, 1))
    whole, rest = divmod(count, SHARD_EXAMPLES)
    for number in range(whole):
        if number:
            os.link(shard_file(folder, 0), shard_file(folder, number))
        else:
            write_shard(shard_file(folder, 0), KEPT, _drawn(SHARD_EXAMPLES * ANSWER))
    if rest:
        write_shard(shard_file(folder, whole), KEPT, _drawn(rest * ANSWER))


def _drawn(positions: int) -> SampledSignals:
    draw = np.random.default_rng(positions)
    drawn = np.sort(draw.integers(VOCABULARY, size=(positions, KEPT.draws)), axis=1)
    return SampledSignals(torch.from_numpy(drawn.astype(np.int32)))


def training_set(folder: Path, count: int) -> None:
    """A training set as `build_train_set` writes it, one token kept of each position."""
    folder.mkdir()
    draw = np.random.default_rng(count)
    lengths = draw.integers(*PROMPT, size=count) + ANSWER
    total = int(lengths.sum())
    tokens = draw.integers(VOCABULARY, size=total)
    arrays = {
        "prefix": np.arange(HEAD),
        "keys": np.char.zfill(np.arange(count).astype(np.bytes_), 64),
        "lengths": lengths,
        "tokens_N": tokens,
        "weight_N": np.ones(total, np.float32),
        "temperature": np.array([1.0]),
        "one_a_row": np.array([False]),
        "ids_NK": np.roll(tokens, -1).astype(np.int32)[:, None],
        "probs_NK": np.ones((total, 1), np.float32),
        "drawn_NR": np.zeros((total, 0), np.int32),
    }
    for name, array in arrays.items():
        np.save(array_file(folder, name), array)
