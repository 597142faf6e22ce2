"""What the student trains on: the teacher's answers and signals in the student's own tokens.

Shape suffixes: N positions (all tokens of all examples), M answer positions of the teacher,
K kept tokens, V student vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray

from overproof.core.errors import StageError
from overproof.student.vocabulary import Vocabulary
from overproof.teacher.distribution import Signals
from overproof.teacher.example import Example

PROJECT_ROWS = 4096  # rows scattered over the student's vocabulary at a time
NO_TARGET = -1


@dataclass(frozen=True)
class StudentExample:
    """One conversation in the student's tokens.

    Attributes:
        tokens: its tokens after the shared prefix.
        teacher_positions: for each token the answer position of the teacher (counted within
            the example) whose distribution its successor is drawn from; -1 where there is none:
            in the prompt, at the end, and inside a token that the student spells in pieces.
        spelled: whether the successor is a later piece of a token that the student lacks.
    """

    tokens: list[int]
    teacher_positions: list[int]
    spelled: list[bool]


def respell(example: Example, vocabulary: Vocabulary) -> StudentExample:
    """Write an example in the student's tokens, and align it with the teacher's."""
    tokens: list[int] = []
    positions: list[int] = []
    spelled: list[bool] = []
    for index, token in enumerate(example.tokens):
        for number, piece in enumerate(vocabulary.pieces(token)):
            if tokens:  # what the token before this one predicts
                answer = index >= len(example.prompt)
                first = number == 0
                positions[-1] = index - len(example.prompt) if answer and first else NO_TARGET
                spelled[-1] = answer and not first
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
        ids_NK, probs_NK: the target distribution at each position (see `bucket_kl`).
        weight_N: 1 where there is a target, else 0.
    """

    prefix: NDArray[np.int64]
    lengths: NDArray[np.int64]
    tokens_N: NDArray[np.int64]
    ids_NK: NDArray[np.int32]
    probs_NK: NDArray[np.float32]
    weight_N: NDArray[np.float32]

    @classmethod
    def map(cls, folder: Path) -> TrainSet:
        """Map the arrays that `build_train_set` wrote, one `.npy` file each, without reading."""
        return cls(
            **{name: np.load(_file(folder, name), mmap_mode="r") for name in cls.__annotations__}
        )

    @property
    def examples(self) -> list[list[int]]:
        """The tokens, cut into examples."""
        ends = np.cumsum(self.lengths)
        return [
            self.tokens_N[end - size : end].tolist()
            for end, size in zip(ends, self.lengths, strict=True)
        ]


def project(
    signals: Signals, vocabulary: Vocabulary, top_k: int
) -> Iterator[tuple[NDArray[np.int32], NDArray[np.float32]]]:
    """The teacher's distributions over the student's tokens, some positions at a time.

    The mass of a token that the student lacks goes to the first piece of its spelling.

    Yields:
        ids and probabilities, (m, K) each, most likely first. K is `top_k`, or the student's
        vocabulary where that is smaller.
    """
    student_ids = torch.from_numpy(vocabulary.student_ids_U)
    top_k = min(top_k, vocabulary.size)
    parts = (signals.ids_NK.split(PROJECT_ROWS), signals.log_probs_NK.split(PROJECT_ROWS))
    for ids_mK, log_probs_mK in zip(*parts, strict=True):
        mass_mV = torch.zeros(len(ids_mK), vocabulary.size)
        mass_mV.scatter_add_(1, student_ids[ids_mK.long()], log_probs_mK.float().exp())
        probs_mK, best_mK = mass_mV.topk(top_k, dim=-1)
        yield best_mK.int().numpy(), probs_mK.numpy()


def build_train_set(
    folder: Path,
    prefix: Sequence[int],
    examples: Sequence[Example],
    vocabulary: Vocabulary,
    signals: Iterable[Signals] | None,
) -> TrainSet:
    """Write the targets of every position of every example, and map them.

    Args:
        folder: where the arrays go; one that is there is whole, and is kept.
        signals: the teacher's, in the order of the examples; None for the control arm, whose
            target is the next token alone.

    Raises:
        StageError: the signals are not those of these examples.
    """
    if not folder.is_dir():
        part = folder.with_name(f"{folder.name}.part")
        part.mkdir(parents=True, exist_ok=True)
        _write(part, prefix, examples, vocabulary, signals)
        part.rename(folder)
    return TrainSet.map(folder)


def _write(
    folder: Path,
    prefix: Sequence[int],
    examples: Sequence[Example],
    vocabulary: Vocabulary,
    signals: Iterable[Signals] | None,
) -> None:
    respelled = [respell(example, vocabulary) for example in examples]
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
    whole = shards if first is None else chain([first], shards)
    chunks = (chunk for shard in whole for chunk in project(shard, vocabulary, top_k))
    at = np.flatnonzero(drawn) if signals is not None else np.zeros(0, np.int64)
    # Written piece after piece: a full disk is an error here, in mapped memory it is a crash.
    with (
        _open(folder, "ids_NK", np.int32, (len(tokens), top_k)) as to_ids,
        _open(folder, "probs_NK", np.float32, (len(tokens), top_k)) as to_probs,
    ):
        for ids_mK, probs_mK in _blocks(tokens, at, chunks, top_k):
            to_ids.write(ids_mK.tobytes())
            to_probs.write(probs_mK.tobytes())


def _blocks(
    tokens_N: NDArray[np.int64],
    drawn: NDArray[np.int64],
    chunks: Iterable[tuple[NDArray[np.int32], NDArray[np.float32]]],
    top_k: int,
) -> Iterator[tuple[NDArray[np.int32], NDArray[np.float32]]]:
    """Targets of all positions, in order; `chunks` are those of the positions `drawn`.

    The target of the others is the next token itself: for the control arm, and inside spellings.

    Raises:
        StageError: there are more or fewer targets in `chunks` than places in `drawn`.
    """
    following_N = np.roll(tokens_N, -1)

    def block(start: int, stop: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        ids = np.repeat(following_N[start:stop].astype(np.int32)[:, None], top_k, axis=1)
        probs = np.zeros(ids.shape, np.float32)
        probs[:, 0] = 1.0
        return ids, probs

    start = done = 0
    for own_ids, own_probs in chunks:
        at = drawn[done : done + len(own_ids)]
        done += len(own_ids)
        if done > len(drawn):
            break
        ids, probs = block(start, at[-1] + 1)
        ids[at - start], probs[at - start] = own_ids, own_probs
        yield ids, probs
        start = at[-1] + 1
    if done != len(drawn):
        raise StageError(
            "the signals are not those of these answers",
            details=[f"got {done:,} positions or more, wanted {len(drawn):,}"],
            hint="remove the folder of the run's stages, and run the same command again",
        )
    yield block(start, len(tokens_N))


def _file(folder: Path, array: str) -> Path:
    return folder / f"{array}.npy"


def _open(folder: Path, array: str, dtype: type[np.generic], shape: tuple[int, int]) -> BinaryIO:
    """The array's file with its header written, for the values to follow in C order."""
    stream = _file(folder, array).open("wb")
    descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)
    return stream
