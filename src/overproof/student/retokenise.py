"""The teacher's answers in the tokens of a student that has others: the stage `retokenised`.

A student that is cut from a model with a tokenizer of its own reads and writes that one's tokens
and chat template. What the teacher was asked and what it said is the same text; here it is written
once more, and from here on the base stands where the teacher stood. What the teacher's
distributions say at the student's tokens is found when these are chosen, see `across`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from overproof.core.artifact import Artifact, Input, Json, Work, build
from overproof.core.errors import UsageError
from overproof.core.methods import Exact
from overproof.core.recipe import Recipe
from overproof.student.align import Side
from overproof.student.common import Common
from overproof.student.initial import MASS, size, spread_mass
from overproof.student.vocabulary import Vocabulary
from overproof.teacher.answers import (
    CHECKS,
    MADE_OF,
    PREFIX,
    TEXTS,
    UNCHECKED,
    Answers,
    made_of,
    read,
)
from overproof.teacher.cache import SignalCache
from overproof.teacher.example import Example
from overproof.teacher.kept import Spread
from overproof.teacher.local import Teacher
from overproof.teacher.prompts import HELDOUT, TRAIN, Asked, ask
from overproof.teacher.signals import answer_rows
from overproof.teacher.texts import write_examples
from overproof.teacher.tokens import byte_level

TOKENIZER, SIDES, ASKED = "teacher-tokenizer.json", "sides.json", "asked.json"
PROBES = ("Where is my parcel?", " 12,345 ", "naïve café", "日本語", "😀 👩‍👩‍👧", "  a\n\tb")


def side_of(teacher: Teacher) -> Side:
    """A model's tokenizer."""
    tokenizer = teacher.tokenizer.backend_tokenizer
    rows = teacher.model.config.vocab_size
    return Side.of(tokenizer, teacher.tokenizer_state, teacher.stop_ids, rows)


def demand(base: Teacher, recipe: Recipe) -> None:
    """Refuse, before any work, what does not go with a base of other tokens than the teacher's.

    Raises:
        UsageError: its tokenizer changes texts, or the recipe wants the teacher at every token.
    """
    side = side_of(base)
    changed = [text for text in PROBES if side.text(side.cut(text)) != text.encode()]
    if changed:
        raise UsageError(
            f"student.base: the tokenizer of {base.name} changes texts, and has other tokens than "
            "the teacher's",
            details=[f"{changed[0]!r} comes back as {side.text(side.cut(changed[0]))!r}"],
            hint="name a base whose byte-level BPE keeps every byte, or one with the teacher's "
            "tokens",
        )
    for wanted, field in ((recipe.train.on_policy, "on_policy"), (recipe.train.hidden, "hidden")):
        if wanted:
            raise UsageError(
                f"train.{field} needs a student with the teacher's tokens",
                details=[f"student.base: {base.name} has others"],
                hint=f"leave train.{field} out, or name a base of the teacher's own family",
            )
    if recipe.teacher.others:
        raise UsageError(
            "teacher.others needs a student with the teachers' tokens",
            details=[f"student.base: {base.name} has others"],
            hint="name one teacher, or a base of the teachers' own family",
        )
    if isinstance(recipe.signals, Exact) and recipe.signals.temperature != 1.0:
        raise UsageError(
            "signals.kind `exact` gives a student with other tokens the teacher's distributions at "
            "temperature 1",
            details=[f"signals.temperature: got {recipe.signals.temperature:g}"],
            hint="set it to 1, or take signals.kind `sampled` or `top-k`",
        )


def retokenise(
    load: Callable[[], Teacher],
    load_base: Callable[[], Teacher],
    samples: Artifact,
    signals: Artifact | None,
    records: Mapping[str, Artifact],
    resources: Mapping[str, Input],
    recipe: Recipe,
    store: Path,
) -> Artifact:
    """Write prompts and answers in the base's tokens, in the order of the teacher's.

    1. Render the prompts with the base's chat template; shots are not shown to a student.
    2. Cut each answer anew, behind it the base's own end where the teacher ended it.
    3. Say how much of the teacher's probability begins with each of the base's tokens: by this its
       vocabulary is trimmed.

    Args:
        load: the teacher, for its tokenizer.
        signals: its distributions; None: they are not known.
        records: the certified splits, `train` and `heldout`.
        resources: `teacher` and `base`.

    Raises:
        UsageError: an answer does not fit a training sequence in these tokens.
    """

    def make(work: Work) -> Json:
        teacher, base, answers = load(), load_base(), read(samples)
        # 1.
        alone = recipe.teacher.model_copy(update={"shots": ()})
        bare = recipe.model_copy(update={"teacher": alone})
        asked = ask(base, records["train"], records["heldout"], bare)
        # 2.
        sides = side_of(teacher), side_of(base)
        writer = Writer(*sides, asked)
        splits = {TRAIN: answers.train, HELDOUT: answers.heldout}
        if "checked" in samples.facts:
            splits[UNCHECKED] = answers.unchecked
        written = {name: [writer.write(one) for one in split] for name, split in splits.items()}
        _demand_room(asked.prefix, written[TRAIN], recipe)
        _write(work.folder, written, asked, samples)
        _write_sides(work.folder, teacher, base)
        facts: Json = {
            "answers": len(written[TRAIN]),
            "answer_tokens": sum(len(one.answer) for one in written[TRAIN]),
            "teacher": size(teacher.model),
        }
        # 3.
        if signals is not None:
            only = answer_rows(answers.train) if recipe.signals.prompts else None
            cache = SignalCache(signals.path, made_of(samples, recipe), only)
            np.save(work.folder / MASS, _mass(*sides, cache))
        return facts | {key: samples.facts[key] for key in ("checked",) if key in samples.facts}

    config: Json = {
        "system": recipe.teacher.system,
        "sample": recipe.sample.model_dump(),
        "seed": recipe.seed,
        "sequence_length": recipe.train.sequence_length,
    }
    inputs: dict[str, Input] = {"samples": samples, **records, **resources}
    if signals is not None:
        inputs["signals"] = signals
    return build(store, "retokenised", inputs=inputs, config=config, make=make, layer="student")


@dataclass(frozen=True)
class Writer:
    """Writes the teacher's conversations in the base's tokens."""

    teacher: Side
    base: Side
    asked: Asked

    def write(self, example: Example) -> Example:
        """One conversation."""
        return replace(example, prompt=self.prompts[example.key], answer=self._answer(example))

    @cached_property
    def prompts(self) -> dict[str, tuple[int, ...]]:
        """Own tokens of each record's prompt."""
        return {one.record: one.ids for split in self.asked.requests.values() for one in split}

    def _answer(self, example: Example) -> tuple[int, ...]:
        """Its text; an answer that was cut off inside a character ends before that."""
        raw = self.teacher.text(example.answer)
        try:
            text, whole = raw.decode(), True
        except UnicodeDecodeError as error:
            text, whole = raw[: error.start].decode(), False
        ended = whole and example.answer[-1:] and example.answer[-1] in self.teacher.ends
        return (*self.base.cut(text), *(self.base.ends[:1] if ended else ()))


def _mass(teacher: Side, base: Side, signals: Iterable[Spread]) -> NDArray[np.float64]:
    """The teacher's probability, summed over all positions, of what begins with each token."""
    first_U = Common.of(teacher, base).first_U
    found = np.zeros(base.rows)
    np.add.at(found, first_U, spread_mass(signals, teacher.rows))
    return found


def _demand_room(prefix: Sequence[int], written: Iterable[Example], recipe: Recipe) -> None:
    room = recipe.train.sequence_length
    longest = len(prefix) + max((len(one.tokens) for one in written), default=0)
    if longest > room:
        raise UsageError(
            f"train.sequence_length is {room}, too short for the longest prompt and answer",
            details=[f"they take {longest} tokens of student.base"],
            hint="raise it and run the same command again: no answer is drawn anew",
        )


def _write(
    folder: Path, written: Mapping[str, Sequence[Example]], asked: Asked, samples: Artifact
) -> None:
    """The files of a stage `samples`, so that it is read as one."""
    for name, split in written.items():
        write_examples(folder / name, split)
    prefixes = {"teacher": asked.prefix, "student": asked.prefix}
    (folder / PREFIX).write_text(json.dumps(prefixes), encoding="utf-8")
    (folder / ASKED).write_text(json.dumps(asked.prompts), encoding="utf-8")
    for name in (TEXTS, CHECKS, MADE_OF):
        (folder / name).write_bytes(samples.file(name).read_bytes())


def _write_sides(folder: Path, teacher: Teacher, base: Teacher) -> None:
    """What later stages must know of both tokenizers, without loading a model."""
    (folder / TOKENIZER).write_text(teacher.tokenizer.backend_tokenizer.to_str(), encoding="utf-8")
    rows = teacher.model.config.vocab_size
    sides = {"teacher_ends": teacher.stop_ids, "teacher_rows": rows, "base_ends": base.stop_ids}
    (folder / SIDES).write_text(json.dumps(sides), encoding="utf-8")


@dataclass(frozen=True)
class Both:
    """The teacher's own answers beside the same in the base's tokens.

    Attributes:
        heard: the teacher's, in its tokens. told: in the base's, row for row the same.
        texts: prompts as they were certified, by key.
        teacher: its tokenizer. student: that of the trimmed vocabulary.
    """

    heard: Answers
    told: Answers
    texts: Mapping[str, str]
    teacher: Side
    student: Side

    @classmethod
    def read(cls, samples: Artifact, retokenised: Artifact, vocabulary: Vocabulary) -> Both:
        """Those of finished stages."""
        sides = json.loads(retokenised.file(SIDES).read_bytes())
        theirs = Tokenizer.from_file(str(retokenised.file(TOKENIZER)))
        ours = vocabulary.tokenizer
        return cls(
            read(samples),
            read(retokenised),
            json.loads(retokenised.file(ASKED).read_bytes()),
            Side.of(theirs, byte_level(theirs), sides["teacher_ends"], sides["teacher_rows"]),
            Side.of(ours, byte_level(ours), vocabulary.ends(sides["base_ends"])),
        )
