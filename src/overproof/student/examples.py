"""What the student trains on: the teacher's answers and signals in the student's own tokens.

Shape suffixes: N positions (all tokens of all examples), M target positions of the teacher,
K kept tokens, V student vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from overproof.core.errors import StageError
from overproof.student.losses import Sparse
from overproof.student.vocabulary import Vocabulary
from overproof.teacher.distribution import Signals
from overproof.teacher.example import Example

PROJECT_ROWS = 4096  # rows scattered over the student's vocabulary at a time
NO_TARGET = -1
SMALL = 4096  # bytes of an array that is not worth a mapping


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
        lengths: tokens of each example.
        tokens_N: all examples' tokens, one after another.
        ids_NK, probs_NK, drawn_NR: the target distribution at each position, see `losses.Sparse`.
        weight_N: 1 where there is a target, else 0.
        temperatures: one number, the temperature of the distributions.
    """

    prefix: NDArray[np.int64]
    lengths: NDArray[np.int64]
    tokens_N: NDArray[np.int64]
    ids_NK: NDArray[np.int32]
    probs_NK: NDArray[np.float32]
    drawn_NR: NDArray[np.int32]
    weight_N: NDArray[np.float32]
    temperatures: NDArray[np.float32]

    @classmethod
    def map(cls, folder: Path) -> TrainSet:
        """Map the arrays that `build_train_set` wrote, one `.npy` file each, without reading."""
        return cls(**{name: _mapped(_file(folder, name)) for name in cls.__annotations__})

    def target(self, which: NDArray[np.int64]) -> Sparse:
        """The target of some positions."""
        return Sparse(
            torch.from_numpy(self.ids_NK[which]).long(),
            torch.from_numpy(self.probs_NK[which]),
            torch.from_numpy(self.drawn_NR[which]).long(),
        )

    @property
    def temperature(self) -> float:
        """Of the distributions."""
        return float(self.temperatures[0])

    @property
    def examples(self) -> list[list[int]]:
        """The tokens, cut into examples."""
        ends = np.cumsum(self.lengths)
        return [
            self.tokens_N[end - size : end].tolist()
            for end, size in zip(ends, self.lengths, strict=True)
        ]


class Targets(NamedTuple):
    """Target distributions at some positions, as `TrainSet` holds them."""

    ids_mK: NDArray[np.int32]
    probs_mK: NDArray[np.float32]
    drawn_mR: NDArray[np.int32]


def project(signals: Signals, vocabulary: Vocabulary, top_k: int) -> Iterator[Targets]:
    """The teacher's distributions over the student's tokens, some positions at a time.

    The mass of a token that the student lacks goes to the first piece of its spelling.

    Yields:
        targets, most likely first. K is `top_k`, or the student's vocabulary where that is smaller.
    """
    student_ids = torch.from_numpy(vocabulary.student_ids_U)
    top_k = min(top_k, vocabulary.size)
    for start in range(0, len(signals.tail_N), PROJECT_ROWS):
        part = signals.rows(slice(start, start + PROJECT_ROWS))
        mass_mV = torch.zeros(len(part.tail_N), vocabulary.size)
        mass_mV.scatter_add_(1, student_ids[part.ids_NK.long()], part.log_probs_NK.float().exp())
        probs_mK, best_mK = mass_mV.topk(top_k, dim=-1)
        drawn_mR = student_ids[part.drawn_NR.long()]
        yield Targets(best_mK.int().numpy(), probs_mK.numpy(), drawn_mR.int().numpy())


def build_train_set(
    folder: Path,
    prefix: Sequence[int],
    examples: Sequence[Example],
    vocabulary: Vocabulary,
    signals: Iterable[Signals] | None,
    *,
    prompts: bool = False,
    temperature: float = 1.0,
) -> TrainSet:
    """Write the targets of every position of every example, and map them.

    Args:
        folder: where the arrays go; one that is there is whole, and is kept.
        signals: the teacher's, in the order of the examples; None for the control arm, whose
            target is the next token alone.
        prompts: whether the prompts' positions have signals, and are learned, too.
        temperature: that the signals were taken at.

    Raises:
        StageError: the signals are not those of these examples.
    """
    if not folder.is_dir():
        part = folder.with_name(f"{folder.name}.part")
        part.mkdir(parents=True, exist_ok=True)
        respelled = [respell(example, vocabulary, prompt=prompts) for example in examples]
        _write(part, prefix, respelled, vocabulary, signals)
        np.save(_file(part, "temperatures"), np.array([temperature], np.float32))
        part.rename(folder)
    return TrainSet.map(folder)


def _write(
    folder: Path,
    prefix: Sequence[int],
    respelled: Sequence[StudentExample],
    vocabulary: Vocabulary,
    signals: Iterable[Signals] | None,
) -> None:
    tokens = np.array([token for one in respelled for token in one.tokens])
    position = np.array([place for one in respelled for place in one.teacher_positions])
    drawn = position != NO_TARGET
    spelled = np.array([flag for one in respelled for flag in one.spelled])
    small = {
        "prefix": np.array([piece for token in prefix for piece in vocabulary.pieces(token)]),
        "lengths": np.array([len(one.tokens) for one in respelled]),
        "tokens_N": tokens,
        "weight_N": (drawn | spelled).astype(np.float32),
    }
    for name, array in small.items():
        np.save(_file(folder, name), array)
    shards = iter(signals or ())
    first = next(shards, None)
    top_k = 1 if first is None else min(first.ids_NK.shape[1], vocabulary.size)
    draws = 0 if first is None else first.drawn_NR.shape[1]
    whole = shards if first is None else chain([first], shards)
    chunks = (chunk for shard in whole for chunk in project(shard, vocabulary, top_k))
    at = np.flatnonzero(drawn) if signals is not None else np.zeros(0, np.int64)
    # Written piece after piece: a full disk is an error here, in mapped memory it is a crash.
    with (
        _open(folder, "ids_NK", np.int32, (len(tokens), top_k)) as to_ids,
        _open(folder, "probs_NK", np.float32, (len(tokens), top_k)) as to_probs,
        _open(folder, "drawn_NR", np.int32, (len(tokens), draws)) as to_drawn,
    ):
        for block in _blocks(tokens, at, chunks, top_k, draws):
            for stream, array in zip((to_ids, to_probs, to_drawn), block, strict=True):
                stream.write(array.tobytes())


def _blocks(
    tokens_N: NDArray[np.int64],
    places: NDArray[np.int64],
    chunks: Iterable[Targets],
    top_k: int,
    draws: int,
) -> Iterator[Targets]:
    """Targets of all positions, in order; `chunks` are those of the positions `places`.

    The target of the others is the next token itself: for the control arm, and inside spellings.

    Raises:
        StageError: there are more or fewer targets in `chunks` than places.
    """
    following_N = np.roll(tokens_N, -1)

    def block(start: int, stop: int) -> Targets:
        following = following_N[start:stop].astype(np.int32)[:, None]
        probs = np.zeros((stop - start, top_k), np.float32)
        probs[:, 0] = 1.0
        # With nothing left for a tail, what is drawn from it counts for nothing.
        return Targets(following.repeat(top_k, axis=1), probs, following.repeat(draws, axis=1))

    start = done = 0
    for own in chunks:
        at = places[done : done + len(own.ids_mK)]
        done += len(own.ids_mK)
        if done > len(places):
            break
        found = block(start, at[-1] + 1)
        for all_of_them, some in zip(found, own, strict=True):
            all_of_them[at - start] = some
        yield found
        start = at[-1] + 1
    if done != len(places):
        raise StageError(
            "the signals are not those of these answers",
            details=[f"got {done:,} positions or more, wanted {len(places):,}"],
            hint="remove the folder of the run's stages, and run the same command again",
        )
    yield block(start, len(tokens_N))


def _file(folder: Path, array: str) -> Path:
    return folder / f"{array}.npy"


def _mapped(file: Path) -> NDArray[Any]:
    """A small array is read: one without a value cannot be mapped."""
    array: NDArray[Any] = np.load(file, mmap_mode="r" if file.stat().st_size > SMALL else None)
    return array


def _open(folder: Path, array: str, dtype: type[np.generic], shape: tuple[int, int]) -> BinaryIO:
    """The array's file with its header written, for the values to follow in C order."""
    stream = _file(folder, array).open("wb")
    descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)
    return stream
