"""The targets of a training set on the disk: what the student should say at each position.

Two forms, for the two forms of the loss (`losses.py`): tokens with their probabilities, and the
teacher's hidden states. Both are arrays in files that every worker maps.

Shape suffixes: N positions of the set, M those with a signal of the teacher, m some of them, K kept
tokens, R drawn ones, E the teacher's width, U its vocabulary, V the student's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from overproof.core.errors import StageError
from overproof.student.arrays import Growing, array_file, mapped
from overproof.student.cells import Cells
from overproof.student.losses import Dense, Sparse, Target
from overproof.student.vocabulary import Vocabulary
from overproof.teacher.cache import SignalCache
from overproof.teacher.kept import Spread, States

PROJECT_ROWS = 4096  # rows scattered over the student's vocabulary at a time
NO_ROW = -1


class Block(NamedTuple):
    """Tokens and probabilities at some positions, as `SparseTargets` holds them."""

    ids_mK: NDArray[np.int32]
    probs_mK: NDArray[np.float32]
    drawn_mR: NDArray[np.int32]


@dataclass(frozen=True)
class SparseTargets:
    """Tokens with their probabilities, see `losses.Sparse`.

    Attributes:
        temperature: of the distributions; one number.
    """

    ids_NK: NDArray[np.int32]
    probs_NK: NDArray[np.float32]
    drawn_NR: NDArray[np.int32]
    temperature: NDArray[np.float64]

    def at(self, which: NDArray[np.int64]) -> Target:
        """The target of some positions."""
        return Sparse(
            torch.from_numpy(self.ids_NK[which]).long(),
            torch.from_numpy(self.probs_NK[which]),
            torch.from_numpy(self.drawn_NR[which]).long(),
        )


@dataclass(frozen=True)
class CellTargets:
    """Cells with their probabilities, see `cells.Cells`; of a teacher with other tokens.

    Attributes:
        ids_NK, probs_NK, drawn_NR, temperature: see `SparseTargets`; ids are those of cells.
        own_N: the next token of each position, taken out of its cell; -1: none is.
        cell_V: the cell of each student token.
    """

    ids_NK: NDArray[np.int32]
    probs_NK: NDArray[np.float32]
    drawn_NR: NDArray[np.int32]
    temperature: NDArray[np.float64]
    own_N: NDArray[np.int32]
    cell_V: NDArray[np.int64]

    def at(self, which: NDArray[np.int64]) -> Target:
        """The target of some positions."""
        inner = SparseTargets(self.ids_NK, self.probs_NK, self.drawn_NR, self.temperature)
        cell_V = np.asarray(self.cell_V)
        own = torch.from_numpy(np.asarray(self.own_N[which])).long()
        return Cells(inner.at(which), torch.from_numpy(cell_V), int(cell_V.max()) + 1, own)


@dataclass(frozen=True)
class StateTargets:
    """The teacher's hidden states, see `losses.Dense`.

    Attributes:
        states_ME: bf16, as its bits. head_UE: the teacher's, fp32 or bf16 as its bits.
        row_N: the state of each position; -1 where the target is the next token alone.
        next_N: the next token of each position.
        student_ids_U: see `Vocabulary`. size: of the student's vocabulary; temperature: of the
            distributions; one number each.
    """

    states_ME: NDArray[np.int16]
    head_UE: NDArray[Any]
    row_N: NDArray[np.int32]
    next_N: NDArray[np.int32]
    student_ids_U: NDArray[np.int64]
    size: NDArray[np.int64]
    temperature: NDArray[np.float64]

    def at(self, which: NDArray[np.int64]) -> Target:
        """The target of some positions."""
        row = np.asarray(self.row_N[which])
        head = torch.from_numpy(np.asarray(self.head_UE))
        return Dense(
            torch.from_numpy(self.states_ME[np.maximum(row, 0)]).view(torch.bfloat16),
            head.view(torch.bfloat16) if head.dtype == torch.int16 else head,
            torch.from_numpy(np.asarray(self.student_ids_U)),
            int(self.size[0]),
            float(self.temperature[0]),
            torch.from_numpy(np.where(row == NO_ROW, self.next_N[which], NO_ROW)).long(),
        )


Targets = SparseTargets | CellTargets | StateTargets


def map_targets(folder: Path) -> Targets:
    """Map what was written of one form."""
    form: type[Targets] = SparseTargets
    for other, array in ((StateTargets, "states_ME"), (CellTargets, "cell_V")):
        form = other if array_file(folder, array).is_file() else form
    return form(**{name: mapped(array_file(folder, name)) for name in form.__annotations__})


def write_targets(
    folder: Path,
    following_N: NDArray[np.int64],
    places_M: NDArray[np.int64],
    vocabulary: Vocabulary,
    signals: Iterable[Spread] | None,
) -> None:
    """Write the target of every position.

    Args:
        following_N: the student's next tokens.
        places_M: positions with a signal, ascending; the target of the others is the next token.
        signals: the teacher's, at those positions; None: none.

    Raises:
        StageError: there are more or fewer signals than such positions.
    """
    if isinstance(signals, SignalCache) and isinstance(signals.kept, States):
        _write_states(folder, following_N, places_M, vocabulary, signals)
    else:
        _write_sparse(folder, following_N, places_M, vocabulary, signals)


def _write_states(
    folder: Path,
    following_N: NDArray[np.int64],
    places_M: NDArray[np.int64],
    vocabulary: Vocabulary,
    signals: SignalCache,
) -> None:
    head_UE = signals.head_VE
    if head_UE is None:
        raise StageError("the signals are hidden states, and the teacher's head is not with them")
    for name, array in around_states(following_N, places_M, vocabulary, head_UE).items():
        np.save(array_file(folder, name), array)
    done = 0
    with Growing(folder, "states_ME", np.dtype(np.int16), head_UE.shape[1]) as states:
        for shard in signals.signals():
            (states_mE,) = shard.arrays
            done += len(states_mE)
            states.add(states_mE.contiguous().view(torch.int16).numpy())
    demand_equal(done, len(places_M))


def around_states(
    following_N: NDArray[np.int64],
    places_M: NDArray[np.int64],
    vocabulary: Vocabulary,
    head_UE: Tensor,
) -> dict[str, NDArray[Any]]:
    """The fields of `StateTargets` but the states themselves and the temperature.

    Args:
        following_N, places_M: see `write_targets`.
        head_UE: the teacher's output embedding.
    """
    row_N = np.full(len(following_N), NO_ROW, np.int32)
    row_N[places_M] = np.arange(len(places_M))
    head = head_UE.view(torch.int16) if head_UE.dtype == torch.bfloat16 else head_UE
    return {
        "row_N": row_N,
        "next_N": following_N.astype(np.int32),
        "student_ids_U": vocabulary.student_ids_U,
        "size": np.array([vocabulary.size]),
        "head_UE": head.numpy(),
    }


def _write_sparse(
    folder: Path,
    following_N: NDArray[np.int64],
    places_M: NDArray[np.int64],
    vocabulary: Vocabulary,
    signals: Iterable[Spread] | None,
) -> None:
    shards = iter(signals or ())
    first = next(shards, None)
    top_k = 1 if first is None else min(first.ids_NK.shape[1], vocabulary.size)
    draws = 0 if first is None else first.drawn_NR.shape[1]
    whole = shards if first is None else chain([first], shards)
    blocks = (block for shard in whole for block in project(shard, vocabulary, top_k))
    at = places_M if signals is not None else places_M[:0]
    write_blocks(folder, following_N, at, blocks, top_k, draws)


def write_blocks(
    folder: Path,
    following_N: NDArray[np.int64],
    places: NDArray[np.int64],
    blocks: Iterable[Block],
    top_k: int,
    draws: int,
) -> None:
    """Write the arrays of sparse targets, position after position.

    Args:
        following_N: what has all mass where no block says otherwise.
        places: of the blocks, ascending.

    Raises:
        StageError: there are more or fewer of them than places.
    """
    with (
        Growing(folder, "ids_NK", np.dtype(np.int32), top_k) as to_ids,
        Growing(folder, "probs_NK", np.dtype(np.float32), top_k) as to_probs,
        Growing(folder, "drawn_NR", np.dtype(np.int32), draws) as to_drawn,
    ):
        for block in _blocks(following_N, places, blocks, top_k, draws):
            for file, array in zip((to_ids, to_probs, to_drawn), block, strict=True):
                file.add(array)


def project(signals: Spread, vocabulary: Vocabulary, top_k: int) -> Iterator[Block]:
    """The teacher's distributions over the student's tokens, some positions at a time.

    The mass of a token that the student lacks goes to the first piece of its spelling.

    Yields:
        targets, most likely first. K is `top_k`, or the student's vocabulary where that is smaller.
    """
    student_ids = torch.from_numpy(vocabulary.student_ids_U)
    top_k = min(top_k, vocabulary.size)
    for start in range(0, len(signals.ids_NK), PROJECT_ROWS):
        part = signals.rows(slice(start, start + PROJECT_ROWS))
        mass_mV = torch.zeros(len(part.ids_NK), vocabulary.size)
        mass_mV.scatter_add_(1, student_ids[part.ids_NK], part.probs_NK)
        probs_mK, best_mK = mass_mV.topk(top_k, dim=-1)
        drawn_mR = student_ids[part.drawn_NR]
        yield Block(best_mK.int().numpy(), probs_mK.numpy(), drawn_mR.int().numpy())


def _blocks(
    following_N: NDArray[np.int64],
    places: NDArray[np.int64],
    blocks: Iterable[Block],
    top_k: int,
    draws: int,
) -> Iterator[Block]:
    """Targets of all positions, in order; `blocks` are those of the positions `places`.

    The others' is what follows: the next token, for the control arm and inside spellings.

    Raises:
        StageError: there are more or fewer of them than places.
    """

    def block(start: int, stop: int) -> Block:
        following = following_N[start:stop].astype(np.int32)[:, None]
        probs = np.zeros((stop - start, top_k), np.float32)
        probs[:, 0] = 1.0
        # With nothing left for a tail, what is drawn from it counts for nothing.
        return Block(following.repeat(top_k, axis=1), probs, following.repeat(draws, axis=1))

    start = done = 0
    for own in blocks:
        at = places[done : done + len(own.ids_mK)]
        done += len(own.ids_mK)
        if done > len(places):
            break
        found = block(start, at[-1] + 1)
        for all_of_them, some in zip(found, own, strict=True):
            all_of_them[at - start] = some
        yield found
        start = at[-1] + 1
    demand_equal(done, len(places))
    yield block(start, len(following_N))


def demand_equal(got: int, wanted: int) -> None:
    """Refuse signals that are not as many as the positions.

    Raises:
        StageError: more or fewer.
    """
    if got != wanted:
        raise StageError(
            "the signals are not those of these answers",
            details=[f"got {got:,} positions or more, wanted {wanted:,}"],
            hint="remove the folder of the run's stages, and run the same command again",
        )
