"""What a student trains on whose teacher has other tokens.

1. Each answer is aligned with the teacher's by its bytes (`align`), and so is the prompt's text
   where the prompts are learned too.
2. At a place where both sides have a boundary, the teacher's distribution is one over the cells
   that both vocabularies have in common (`common`). The student's own next token is taken out of
   its cell with the probability that the teacher's tokens of the span have one after another
   (likelihood chaining), where that is known.
3. Everywhere else in the text, inside the teacher's tokens, the next token is the target.

Shape suffixes: N positions of the set, M those with a signal, m some of them, n rows of signals,
K kept tokens, R drawn ones, C cells.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from overproof.student.align import spans
from overproof.student.arrays import array_file
from overproof.student.common import NONE, Common
from overproof.student.examples import StudentExample, TrainSet, lay, respell
from overproof.student.retokenise import Both
from overproof.student.targets import Block, demand_equal, write_blocks
from overproof.student.vocabulary import Vocabulary
from overproof.teacher.cache import SHARD_EXAMPLES
from overproof.teacher.example import Example
from overproof.teacher.kept import Spread

Floats = NDArray[np.float64]
UNKNOWN = np.nan
LEAST_TAIL = 1e-6  # of the mass; what rounding leaves where every token is known
PROJECT_ROWS = 1024  # rows scattered over the cells at a time


class Place(NamedTuple):
    """A place of the student's text where both sides have a boundary.

    Attributes:
        at: the place, in the example.
        rows: of the teacher's signals of this example, those that its tokens of the span are drawn
            from, in order.
        said: these tokens.
        own: the student's next token. whole: whether it is all of the span.
        after: the row behind the span; -1: there is none.
    """

    at: int
    rows: tuple[int, ...]
    said: tuple[int, ...]
    own: int
    whole: bool
    after: int


@dataclass(frozen=True)
class Aligned:
    """An example in the student's tokens, and where the teacher can be asked.

    Attributes:
        places: ascending.
        learned: places that have a target: all in the answer; in the prompt those of its text that
            is aligned.
    """

    student: StudentExample
    places: list[Place]
    learned: list[int]


def align(
    heard: Example, told: Example, text: str, both: Both, vocabulary: Vocabulary, *, prompts: bool
) -> Aligned:
    """Align one conversation.

    Args:
        heard: in the teacher's tokens. told: the same in the base's.
        text: of the prompt.
        prompts: whether signals and targets of the prompt are wanted.
    """
    student = respell(told, vocabulary)
    asked = len(vocabulary.spell(told.prompt))
    start = heard.targets(prompt=prompts).start
    rows = range(len(heard.targets(prompt=prompts)))
    found = list[Place]()
    learned = set(range(asked - 1, len(student.tokens) - 1))
    parts = [(range(asked, len(student.tokens)), range(len(heard.prompt), len(heard.tokens)))]
    if prompts:
        parts.insert(0, _same_text(heard, student.tokens[:asked], text, both))
    for ours, theirs in parts:
        tokens = [student.tokens[one] for one in ours]
        said = [heard.tokens[one] for one in theirs]
        for span in spans(both.student.texts(tokens), both.teacher.texts(said)):
            mine = [ours[one] for one in span.ours]
            at = [theirs[one] - 1 - start for one in span.theirs]
            learned |= {one - 1 for one in mine if one}
            if mine[0] == 0 or at[0] < 0:  # nothing stands before it, in either
                continue
            after = at[-1] + 1 if at[-1] + 1 in rows else NONE
            words = tuple(said[one] for one in span.theirs)
            own = student.tokens[mine[0]]
            found.append(Place(mine[0] - 1, tuple(at), words, own, len(mine) == 1, after))
    return Aligned(student, found, sorted(learned))


def _same_text(heard: Example, asked: Sequence[int], text: str, both: Both) -> tuple[range, range]:
    """Where the prompt's text stands on either side; nowhere, if on one it is not found whole."""
    ours = _within(both.student.texts(asked), text)
    theirs = _within(both.teacher.texts(heard.prompt), text)
    return (ours, theirs) if len(ours) and len(theirs) else (range(0), range(0))


def _within(tokens: Sequence[bytes], text: str) -> range:
    """The tokens that a text is made of; none, if it is not there or shares a token."""
    wanted = text.strip().encode()
    begin = b"".join(tokens).find(wanted)
    ends = np.cumsum([len(one) for one in tokens])
    starts = ends - np.array([len(one) for one in tokens], np.int64)
    first = np.flatnonzero((starts == begin) & (ends > starts))
    last = np.flatnonzero((ends == begin + len(wanted)) & (ends > starts))
    if begin < 0 or not len(first) or not len(last):
        return range(0)
    return range(int(first[0]), int(last[0]) + 1)


def masses(found: Spread, places: Sequence[Place], common: Common) -> Floats:
    """The teacher's probability of the student's own next token, at each place.

    1. The chain: its tokens of the span one after another, and none behind them with which a
       longer token of the student's goes on.
    2. Beside it, tokens of the teacher's that are longer than the student's and begin with it.
    3. Where the student's token is a part of the teacher's, only a token of the same text can take
       the place of the chain.

    Args:
        found: of one or several examples; `rows` of the places are rows of it.

    Returns:
        nan where the signals do not say it.
    """
    ids, probs = found.ids_NK.numpy(), found.probs_NK.double().numpy()
    whole = found.tail_N.numpy() < LEAST_TAIL

    def one(row: int, token: int) -> float:
        there = probs[row, ids[row] == token].sum()
        return float(there) if there > 0 or whole[row] else UNKNOWN

    def chained(place: Place) -> float:
        mass = float(np.prod([one(*pair) for pair in zip(place.rows, place.said, strict=True)]))
        more = common.further.get(place.said)
        if more is None:
            return mass
        if place.after == NONE:
            return UNKNOWN
        return mass * (1.0 - _of(ids[place.after], probs[place.after], more))

    def alone(place: Place) -> float:
        token = int(common.same_V[place.own])
        if token == NONE or (token,) in common.further:
            return UNKNOWN
        return one(place.rows[0], token)

    mass = np.array([chained(place) if place.whole else alone(place) for place in places])
    row = [place.rows[0] for place in places]
    own_m1 = np.array([place.own for place in places], np.int64)[:, None]
    begins_mK = (common.first_U[ids[row]] == own_m1) & common.longer_U[ids[row]]
    beside: Floats = (probs[row] * begins_mK).sum(-1)
    return mass + beside


def _of(ids_K: NDArray[np.int64], probs_K: Floats, tokens: Iterable[int]) -> float:
    return float(probs_K[np.isin(ids_K, list(tokens))].sum())


def build_cell_set(
    folder: Path,
    both: Both,
    vocabulary: Vocabulary,
    signals: Iterable[Spread],
    *,
    prompts: bool = False,
    temperature: float = 1.0,
    alone: bool = False,
) -> TrainSet:
    """Write the targets of every position, and map them; see `examples.build_train_set`.

    Args:
        signals: the teacher's, in the order of its answers, a shard at a time.
    """
    if not folder.is_dir():
        part = folder.with_name(f"{folder.name}.part")
        part.mkdir(parents=True, exist_ok=True)
        _write(part, both, vocabulary, signals, prompts, temperature, alone)
        part.rename(folder)
    return TrainSet.map(folder)


def _write(
    folder: Path,
    both: Both,
    vocabulary: Vocabulary,
    signals: Iterable[Spread],
    prompts: bool,
    temperature: float,
    alone: bool,
) -> None:
    common = Common.of(both.teacher, both.student)
    pairs = zip(both.heard.train, both.told.train, strict=True)
    aligned = [
        align(heard, told, both.texts[told.key], both, vocabulary, prompts=prompts)
        for heard, told in pairs
    ]
    laid, _ = lay(
        vocabulary.spell(both.told.student_prefix),
        both.told.train,
        [one.student for one in aligned],
        alone=alone,
    )
    starts = np.cumsum(laid["lengths"]) - laid["lengths"]
    weight_N = np.zeros(len(laid["tokens_N"]), np.float32)
    for start, one in zip(starts, aligned, strict=True):
        weight_N[start + np.array(one.learned, np.int64)] = 1.0
    following_N = np.roll(laid["tokens_N"], -1)
    alone_N = common.alone_V[following_N]
    own_N = np.where(alone_N, NONE, following_N).astype(np.int32)
    sizes = [len(one.targets(prompt=prompts)) for one in both.heard.train]
    groups = _groups(aligned, starts.tolist(), sizes, common)
    shards = iter(signals)
    first = next(shards)
    top_k = min(first.ids_NK.shape[1], common.cells) + 1
    blocks = _blocks(groups, chain([first], shards), common, top_k, own_N)
    places = np.array([at for group in groups for at in group.at], np.int64)
    said_N = np.where(alone_N, common.cell_V[following_N], common.cells)
    write_blocks(folder, said_N, places, blocks, top_k, first.drawn_NR.shape[1])
    small = {
        **laid,
        "weight_N": weight_N,
        "temperature": np.array([temperature]),
        "own_N": own_N,
        "cell_V": common.cell_V,
    }
    for name, array in small.items():
        np.save(array_file(folder, name), array)


class Group(NamedTuple):
    """The places of the examples of a shard.

    Attributes:
        positions: rows of the shard. at: each place, over the whole set.
        places: with rows of the shard.
    """

    positions: int
    at: list[int]
    places: list[Place]


def _groups(
    aligned: Sequence[Aligned], starts: Sequence[int], sizes: Sequence[int], common: Common
) -> list[Group]:
    """All places, a shard at a time.

    One whose next tokens lie in different cells is left to the text: there the two sides cut the
    text so differently that their next tokens are not the same event.
    """
    found = list[Group]()
    for number, (one, start, size) in enumerate(zip(aligned, starts, sizes, strict=True)):
        if number % SHARD_EXAMPLES == 0:
            found.append(Group(0, [], []))
        group = found[-1]
        for place in one.places:
            if common.cell_U[place.said[0]] == common.cell_V[place.own]:
                group.at.append(start + place.at)
                group.places.append(_moved(place, group.positions))
        found[-1] = group._replace(positions=group.positions + size)
    return found


def _moved(place: Place, by: int) -> Place:
    after = place.after if place.after == NONE else place.after + by
    return place._replace(rows=tuple(row + by for row in place.rows), after=after)


def _blocks(
    groups: Sequence[Group],
    shards: Iterable[Spread],
    common: Common,
    top_k: int,
    own_N: NDArray[np.int32],
) -> Iterator[Block]:
    """Targets of all places, in order; tells `own_N` which own tokens are taken out.

    Raises:
        StageError: there are more or fewer signals than positions.
    """
    wanted = sum(group.positions for group in groups)
    got = 0
    for group, found in zip(groups, shards, strict=False):
        got += len(found.ids_NK)
        demand_equal(len(found.ids_NK), group.positions)
        if not group.places:
            continue
        own = np.array([place.own for place in group.places], np.int64)
        mass = masses(found, group.places, common)
        mass[common.alone_V[own]] = UNKNOWN  # there is nothing to take it out of
        own_N[group.at] = np.where(np.isnan(mass), NONE, own)
        row = np.array([place.rows[0] for place in group.places], np.int64)
        for start in range(0, len(row), PROJECT_ROWS):
            part = slice(start, start + PROJECT_ROWS)
            rows = found.rows(torch.from_numpy(row[part]))
            yield project(rows, own[part], mass[part], common, top_k)
    demand_equal(got + sum(len(more.ids_NK) for more in shards), wanted)


def project(
    found: Spread, own_m: NDArray[np.int64], mass_m: Floats, common: Common, top_k: int
) -> Block:
    """The teacher's distributions over cells, the own token behind them, most likely first.

    Args:
        own_m: the student's next token. mass_m: its probability; nan: it stays in its cell.
    """
    cell_U = torch.from_numpy(common.cell_U)
    mass_mC = torch.zeros(len(found.ids_NK), common.cells + 1)
    mass_mC.scatter_add_(1, cell_U[found.ids_NK], found.probs_NK)
    cell_m1 = torch.from_numpy(common.cell_V[own_m])[:, None]
    taken_m1 = torch.from_numpy(np.nan_to_num(mass_m)).float()[:, None]
    taken_m1 = taken_m1.minimum(mass_mC.gather(1, cell_m1))
    mass_mC.scatter_add_(1, cell_m1, -taken_m1)
    mass_mC[:, common.cells] = taken_m1[:, 0]
    probs_mK, best_mK = mass_mC.topk(top_k, dim=-1)
    return Block(best_mK.int().numpy(), probs_mK.numpy(), cell_U[found.drawn_NR].int().numpy())
