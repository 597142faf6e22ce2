"""What the student trains on: the teacher's answers and signals in the student's own tokens.

Shape suffix: N positions (all tokens of all examples).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from overproof.data.pack import NOWHERE, Packed, pack
from overproof.student.arrays import Growing, array_file, mapped
from overproof.student.targets import Targets, map_targets, write_targets
from overproof.student.vocabulary import Vocabulary
from overproof.teacher.example import Example
from overproof.teacher.kept import Spread

NO_TARGET = -1
KEY_BYTES = 64  # of a record's key
TOGETHER = 4096  # examples laid together: bounds memory
PASSING = ("following_N", "places_M")  # arrays that targets are made with, and that then go


@dataclass(frozen=True)
class StudentExample:
    """One conversation in the student's tokens.

    Attributes:
        tokens: its tokens after the shared prefix.
        teacher_positions: for each token the position of the teacher (its targets counted within
            the example) whose distribution its successor is drawn from; -1 where there is none:
            in the prompt unless it is wanted, at the end, and inside a token that the student
            spells in pieces.
        spelled: whether the successor is a later piece of a token that the student lacks.
    """

    tokens: list[int]
    teacher_positions: list[int]
    spelled: list[bool]


def respell(example: Example, vocabulary: Vocabulary, *, prompt: bool = False) -> StudentExample:
    """Write an example in the student's tokens, and align it with the teacher's.

    Args:
        prompt: the prompt has targets too, see `Example.targets`.
    """
    start = example.targets(prompt=prompt).start
    tokens: list[int] = []
    positions: list[int] = []
    spelled: list[bool] = []
    for index, token in enumerate(example.tokens):
        for number, piece in enumerate(vocabulary.pieces(token)):
            if tokens:  # what the token before this one predicts
                wanted, first = index > start, number == 0
                positions[-1] = index - 1 - start if wanted and first else NO_TARGET
                spelled[-1] = wanted and not first
            tokens.append(piece)
            positions.append(NO_TARGET)
            spelled.append(False)
    return StudentExample(tokens, positions, spelled)


@dataclass(frozen=True)
class TrainSet:
    """Examples with a target at each position, as arrays in files that every worker maps.

    Attributes:
        prefix: tokens of the shared prefix.
        keys: of each example, the record's that it answers.
        lengths: tokens of each example.
        one_a_row: whether each stands alone in its sequence, see `pack`; one flag.
        tokens_N: all examples' tokens, one after another.
        weight_N: 1 where there is a target, else 0.
        targets: what the student should say at each position.
    """

    prefix: NDArray[np.int64]
    keys: NDArray[np.bytes_]
    lengths: NDArray[np.int64]
    one_a_row: NDArray[np.bool_]
    tokens_N: NDArray[np.int64]
    weight_N: NDArray[np.float32]
    targets: Targets

    @classmethod
    def map(cls, folder: Path) -> TrainSet:
        """Map the arrays that `build_train_set` wrote, one `.npy` file each, without reading."""
        names = [name for name in cls.__annotations__ if name != "targets"]
        arrays = {name: mapped(array_file(folder, name)) for name in names}
        return cls(**arrays, targets=map_targets(folder))

    @property
    def temperature(self) -> float:
        """Of the distributions."""
        return float(self.targets.temperature[0])

    @property
    def alone(self) -> bool:
        """Whether each example stands alone in its sequence."""
        return bool(self.one_a_row[0])

    @property
    def examples(self) -> list[list[int]]:
        """The tokens, cut into examples."""
        ends = np.cumsum(self.lengths)
        return [
            self.tokens_N[end - size : end].tolist()
            for end, size in zip(ends, self.lengths, strict=True)
        ]

    def packed(self, which: NDArray[np.int64], length: int) -> Packed:
        """Some examples in sequences of `length` tokens, first fit in the given order.

        Returns:
            sequences whose `source_RT` counts in the whole set.
        """
        stops, sizes = np.cumsum(self.lengths)[which], self.lengths[which]
        places = [np.arange(stop - size, stop) for stop, size in zip(stops, sizes, strict=True)]
        texts = [self.tokens_N[place].tolist() for place in places]
        found = pack(self.prefix.tolist(), texts, length, alone=self.alone)
        place_N = np.concatenate([*places, [NOWHERE]])  # the last for those that have none
        return replace(found, source_RT=place_N[found.source_RT])

    def records(self, source: NDArray[np.int64]) -> list[str]:
        """Keys of the records that some positions belong to, each once, in the set's order.

        Args:
            source: positions, as in `Packed.source_RT`; negative ones belong to none.
        """
        return [key.decode() for key in dict.fromkeys(self.keys[self.numbers(source)].tolist())]

    def numbers(self, source: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which examples some positions belong to, each once, ascending; see `records`."""
        which = np.searchsorted(np.cumsum(self.lengths), source[source >= 0], side="right")
        return np.unique(which)


def lay(
    prefix: Sequence[int],
    examples: Sequence[Example],
    respelled: Sequence[StudentExample],
    *,
    alone: bool = False,
) -> tuple[dict[str, NDArray[Any]], NDArray[np.bool_]]:
    """Examples one after another.

    Args:
        prefix: of the student's tokens.
        alone: one example a sequence, for a student that does not pack.

    Returns:
        the fields of a `TrainSet` but weights and targets; and which positions have a signal.
    """
    position = np.array([place for one in respelled for place in one.teacher_positions], np.int64)
    laid = {
        "prefix": np.array(prefix, np.int64),
        "keys": np.array([example.key.encode() for example in examples]),
        "lengths": np.array([len(one.tokens) for one in respelled], np.int64),
        "one_a_row": np.array([alone]),
        "tokens_N": np.array([token for one in respelled for token in one.tokens], np.int64),
    }
    return laid, position != NO_TARGET


def build_train_set(
    folder: Path,
    prefix: Sequence[int],
    examples: Sequence[Example],
    vocabulary: Vocabulary,
    signals: Iterable[Spread] | None,
    *,
    prompts: bool = False,
    temperature: float = 1.0,
    alone: bool = False,
) -> TrainSet:
    """Write the targets of every position of every example, and map them.

    Args:
        folder: where the arrays go; one that is there is whole, and is kept.
        signals: the teacher's, in the order of the examples; None for the control arm, whose
            target is the next token alone.
        prompts: whether the prompts' positions have signals, and are learned, too.
        temperature: that the signals were taken at.
        alone: one example a sequence, for a student that does not pack.

    Raises:
        StageError: the signals are not those of these examples.
    """
    if not folder.is_dir():
        part = folder.with_name(f"{folder.name}.part")
        part.mkdir(parents=True, exist_ok=True)
        head = vocabulary.spell(prefix)
        _write_examples(part, head, examples, vocabulary, prompts=prompts, alone=alone)
        np.save(array_file(part, "temperature"), np.array([temperature]))
        passing = [array_file(part, name) for name in PASSING]
        following_N, places_M = map(mapped, passing)
        write_targets(part, following_N, places_M, vocabulary, signals)
        for file in passing:
            file.unlink()
        part.rename(folder)
    return TrainSet.map(folder)


def _write_examples(
    folder: Path,
    head: Sequence[int],
    examples: Sequence[Example],
    vocabulary: Vocabulary,
    *,
    prompts: bool,
    alone: bool,
) -> None:
    """Write the fields of a `TrainSet` but the targets, and what these are made with.

    Args:
        head: the shared prefix in the student's tokens.
    """
    first, start = None, 0
    with (
        Growing(folder, "keys", np.dtype(f"S{KEY_BYTES}")) as keys,
        Growing(folder, "lengths", np.dtype(np.int64)) as lengths,
        Growing(folder, "tokens_N", np.dtype(np.int64)) as tokens,
        Growing(folder, "weight_N", np.dtype(np.float32)) as weights,
        Growing(folder, PASSING[0], np.dtype(np.int64)) as following,
        Growing(folder, PASSING[1], np.dtype(np.int64)) as places,
    ):
        for at in range(0, len(examples), TOGETHER):
            few = list(examples[at : at + TOGETHER])
            respelled = [respell(example, vocabulary, prompt=prompts) for example in few]
            laid, signalled = lay(head, few, respelled, alone=alone)
            spelled = np.array([flag for one in respelled for flag in one.spelled], np.bool_)
            keys.add(laid["keys"])
            lengths.add(laid["lengths"])
            tokens.add(laid["tokens_N"])
            weights.add(signalled | spelled)
            # What follows the last token of all is the first one, whose weight there is 0.
            following.add(laid["tokens_N"][1:] if first is None else laid["tokens_N"])
            first = laid["tokens_N"][:1] if first is None else first
            places.add(start + np.flatnonzero(signalled))
            start += len(signalled)
        following.add([] if first is None else first)
    small, _ = lay(head, (), (), alone=alone)
    for name in ("prefix", "one_a_row"):
        np.save(array_file(folder, name), small[name])
