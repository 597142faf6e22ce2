"""What the student trains on: the teacher's answers and signals in the student's own tokens.

Shape suffixes: N positions (all tokens of all examples), M answer positions of the teacher,
K kept tokens, V student vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from overproof.student.vocabulary import Vocabulary
from overproof.teacher.example import Example
from overproof.teacher.signals import Signals

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
    """Examples with a target at each position, as plain arrays that workers can map.

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

    def save(self, folder: Path) -> None:
        """One `.npy` file an array, so that each can be mapped."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, array in vars(self).items():
            np.save(folder / f"{name}.npy", array)

    @classmethod
    def map(cls, folder: Path) -> TrainSet:
        """Map the arrays of a saved set, without reading them."""
        return cls(
            **{name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in cls.__annotations__}
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
) -> Iterator[tuple[slice, NDArray[np.int32], NDArray[np.float32]]]:
    """The teacher's distributions over the student's tokens, some positions at a time.

    The mass of a token that the student lacks goes to the first piece of its spelling. K is
    `top_k`, or the student's vocabulary where that is smaller.

    Yields:
        which answer positions of the teacher; ids and probabilities there, (m, K) each.
    """
    student_ids = torch.from_numpy(vocabulary.student_ids_U)
    count, top_k = len(signals.tail_N), min(top_k, vocabulary.size)
    for start in range(0, count, PROJECT_ROWS):
        rows = slice(start, min(count, start + PROJECT_ROWS))
        mass_mV = torch.zeros(rows.stop - start, vocabulary.size)
        mass_mV.scatter_add_(
            1, student_ids[signals.ids_NK[rows].long()], signals.log_probs_NK[rows].float().exp()
        )
        probs_mK, ids_mK = mass_mV.topk(top_k, dim=-1)
        yield rows, ids_mK.int().numpy(), probs_mK.numpy()


def build_train_set(
    prefix: Sequence[int],
    examples: Sequence[Example],
    vocabulary: Vocabulary,
    signals: Signals | None,
) -> TrainSet:
    """Targets for every position of every example.

    Args:
        signals: the teacher's; None for the control arm, whose target is the next token alone.
    """
    respelled = [respell(example, vocabulary) for example in examples]
    tokens = np.array([token for one in respelled for token in one.tokens])
    position = np.array([place for one in respelled for place in one.teacher_positions])
    spelled = np.array([flag for one in respelled for flag in one.spelled])
    lengths = np.array([len(one.tokens) for one in respelled])
    kept = 1 if signals is None else min(signals.ids_NK.shape[1], vocabulary.size)
    # The default target is the next token itself: for the control arm, and inside spellings.
    ids = np.empty((len(tokens), kept), np.int32)
    ids[:] = np.roll(tokens, -1)[:, None]
    probs = np.zeros((len(tokens), kept), np.float32)
    probs[:, 0] = 1.0
    drawn = np.flatnonzero(position != NO_TARGET)  # one for each answer position, in their order
    if signals is not None:
        for rows, student_ids, student_probs in project(signals, vocabulary, kept):
            ids[drawn[rows]], probs[drawn[rows]] = student_ids, student_probs
    weight = spelled.astype(np.float32)
    weight[drawn] = 1.0
    head = [piece for token in prefix for piece in vocabulary.pieces(token)]
    return TrainSet(np.array(head), lengths, tokens, ids, probs, weight)
