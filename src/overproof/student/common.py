"""What two vocabularies have in common, as cells that both can tell the probability of.

Each token of either side belongs to one common token: the one that its text begins with, when each
side in turn says which of its tokens comes first in it. A cell is a common token with all that
belong to it. Where both sides have a boundary, the teacher's next token lies in the cell in which
the student's lies, whatever the text goes on with: so the mass of a cell is the same event on both
sides, though not one of their tokens may be.

    teacher   " straw" "berry"            cell " straw": teacher " straw", student " straw",
    student   " strawberry"                              " strawberry"

Inside a cell the student's own token has a probability that the teacher knows by the chain rule:
that of all teacher tokens of its span, if none follows with which a longer student token goes on.

Shape suffixes: U teacher vocabulary, V student vocabulary.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from overproof.student.align import Side

Ints = NDArray[np.int64]
NONE = -1


@dataclass(frozen=True)
class Common:
    """The cells of two vocabularies.

    Attributes:
        cells: how many there are.
        cell_U, cell_V: of each token. Control tokens are in the cell of the end: no text follows.
        first_U: the student token that a teacher token's text begins with.
        longer_U: whether its text goes on behind that.
        same_V: the teacher token of the same text; -1: there is none.
        alone_V: whether no other student token is in its cell.
        further: teacher tokens with which a student token goes on, by those that it begins with.
    """

    cells: int
    cell_U: Ints
    cell_V: Ints
    first_U: Ints
    longer_U: NDArray[np.bool_]
    same_V: Ints
    alone_V: NDArray[np.bool_]
    further: Mapping[tuple[int, ...], frozenset[int]]

    @classmethod
    def of(cls, teacher: Side, student: Side) -> Common:
        """The cells.

        1. For each token of either side, the first token of the other side in its text.
        2. From student token to teacher token and back, until both are the same: the common one.
        3. Number those, and note what the student joins that the teacher cuts.
        """
        # 1.
        first_U = np.full(teacher.rows, student.ends[0])
        longer_U = np.zeros(teacher.rows, np.bool_)
        for number, raw in teacher.bytes_of.items():
            # A whole tokenizer may lack bytes that are in no text; a trimmed one has them all.
            if number not in teacher.ends and (pieces := student.pieces(raw)):
                first_U[number] = pieces[0]
                longer_U[number] = len(student.bytes_of[pieces[0]]) < len(raw)
        chains = {
            number: teacher.pieces(raw)
            for number, raw in student.bytes_of.items()
            if raw and number not in student.ends
        }
        # 2.
        root_V = np.arange(student.rows)
        root_V[[number for number in range(student.rows) if number not in chains]] = student.ends[0]
        for number, chain in chains.items():
            if chain:
                root_V[number] = first_U[chain[0]]
        while not np.array_equal(root_V[root_V], root_V):
            root_V = root_V[root_V]
        # 3.
        roots, cell_V = np.unique(root_V, return_inverse=True)
        same_V = np.full(student.rows, NONE)
        for number, chain in chains.items():
            same_V[number] = chain[0] if len(chain) == 1 else NONE
        alone_V = np.bincount(cell_V)[cell_V] == 1
        return cls(
            len(roots), cell_V[first_U], cell_V, first_U, longer_U, same_V, alone_V,
            _further(chains),
        )  # fmt: skip


def _further(chains: Mapping[int, tuple[int, ...]]) -> Mapping[tuple[int, ...], frozenset[int]]:
    found = defaultdict[tuple[int, ...], set[int]](set)
    for chain in chains.values():
        for size in range(1, len(chain)):
            found[chain[:size]].add(chain[size])
    return {begun: frozenset(more) for begun, more in found.items()}
