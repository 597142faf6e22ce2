"""Packing: many short examples in one sequence, behind one shared prefix.

Every example of a task starts with the same system message. It is stored once a sequence; each
example attends to it and to itself, never to its neighbours, and its positions go on where the
prefix ends. The result equals separate sequences exactly, at a fraction of the tokens
(packing without cross-contamination: arXiv 2107.02027; the shared prefix is our addition).

Shape suffixes: R sequences of a batch, T tokens of a sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from overproof.core.errors import UsageError

Ints = NDArray[np.int64]
PREFIX = 0  # segment of the shared prefix
PADDING = -1  # segment of unused places
NOWHERE = -1  # source of a place that holds no example's token
STEP = 16  # odd numbers of rows cost a processor's matrix unit up to 40 % (docs/log.md)


@dataclass(frozen=True)
class Packed:
    """Sequences ready for a model.

    Attributes:
        tokens_RT: token ids; 0 where unused.
        positions_RT: position of each token in its own example, the prefix counted.
        segments_RT: 0 for the prefix, 1 and up for the examples, -1 for padding.
        source_RT: index of each token in the concatenation of all examples; -1 elsewhere.
        predicts_RT: whether the token's successor lies in the same example.
    """

    tokens_RT: Ints
    positions_RT: Ints
    segments_RT: Ints
    source_RT: Ints
    predicts_RT: NDArray[np.bool_]

    def rows(self, part: slice, *, whole: bool = False) -> Packed:
        """Some of the sequences.

        Args:
            whole: leave their length; else cut to the longest and up to a multiple of `STEP`.
        """
        used = int((self.segments_RT[part] != PADDING).sum(1).max(initial=1))
        used = self.tokens_RT.shape[1] if whole else -(-used // STEP) * STEP
        cut = (part, slice(used))
        return Packed(
            self.tokens_RT[cut],
            self.positions_RT[cut],
            self.segments_RT[cut],
            self.source_RT[cut],
            self.predicts_RT[cut],
        )

    def mask_RTT(self) -> NDArray[np.bool_]:
        """Who attends to whom, (R, T, T): the prefix and the own example, nothing later."""
        query, key = self.segments_RT[:, :, None], self.segments_RT[:, None, :]
        causal = np.tri(self.tokens_RT.shape[1], dtype=np.bool_)
        # A padded place attends to itself alone, so that its softmax is defined.
        allowed = ((key == query) & (query != PADDING)) | (key == PREFIX) & (query != PADDING)
        own = np.eye(self.tokens_RT.shape[1], dtype=np.bool_)
        mask: NDArray[np.bool_] = (allowed & causal) | own
        return mask


def pack(
    prefix: Sequence[int],
    examples: Sequence[Sequence[int]],
    length: int,
    order: Sequence[int] | None = None,
    *,
    alone: bool = False,
) -> Packed:
    """Lay examples into sequences of `length` tokens, first fit in the given order.

    Args:
        prefix: tokens that all examples start with; not repeated in `examples`.
        examples: the rest of each example.
        length: tokens a sequence.
        order: which examples, in which order; all of them by default.
        alone: one example a sequence, for models that cannot be told who attends to whom.

    Raises:
        UsageError: an example is longer than a sequence.
    """
    order = range(len(examples)) if order is None else order
    room = length - len(prefix)
    starts = np.concatenate([[0], np.cumsum([len(example) for example in examples])])
    rows: list[list[int]] = []
    free: list[int] = []
    usable: list[int] = []  # rows that the shortest example fits, oldest first
    shortest = min(map(len, examples), default=0)
    for index in order:
        need = len(examples[index])
        if need > room:
            raise UsageError(
                f"an example of {need} tokens does not fit a sequence of {length}",
                details=[f"{len(prefix)} tokens go to the shared prefix"],
                hint="raise train.sequence_length or lower sample.max_new_tokens",
            )
        row = next((row for row in usable if need <= free[row]), len(rows))
        if row == len(rows):
            rows.append([])
            free.append(room)
            usable.append(row)
        rows[row].append(index)
        free[row] -= need
        if alone or free[row] < shortest:
            usable.remove(row)
    return _lay(prefix, examples, length, rows, starts)


def longest_first(examples: Sequence[Sequence[int]]) -> list[int]:
    """An order for `pack` that fills few sequences well: first fit decreasing."""
    return sorted(range(len(examples)), key=lambda index: -len(examples[index]))


def _lay(
    prefix: Sequence[int],
    examples: Sequence[Sequence[int]],
    length: int,
    rows: list[list[int]],
    starts: Ints,
) -> Packed:
    shape = (len(rows), length)
    tokens, positions = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    segments, source = np.full(shape, PADDING), np.full(shape, NOWHERE)
    predicts = np.zeros(shape, np.bool_)
    head = len(prefix)
    for r, row in enumerate(rows):
        tokens[r, :head], positions[r, :head], segments[r, :head] = prefix, range(head), PREFIX
        at = head
        for segment, index in enumerate(row, start=1):
            size = len(examples[index])
            part = slice(at, at + size)
            tokens[r, part] = examples[index]
            positions[r, part] = np.arange(head, head + size)
            segments[r, part] = segment
            source[r, part] = np.arange(starts[index], starts[index] + size)
            predicts[r, at : at + size - 1] = True
            at += size
    return Packed(tokens, positions, segments, source, predicts)
