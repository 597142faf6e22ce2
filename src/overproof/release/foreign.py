"""How near a student is to a teacher whose tokens are others, on held-out prompts.

Nothing is the next token of both, so the measures of `evaluate` have no meaning. Two have:

1. The cross-entropy of the teacher's answers, in nats a byte of their text, which is the same text
   for both. Of a student it counts one way of writing the text, the tokenizer's own.
2. At the places where both sides have a boundary, KL and top-1 agreement over the cells that both
   vocabularies have in common (`student.common`): exact for both sides, and a lower bound of the
   KL over what the text goes on with.

Shape suffixes: N places of the teacher, U its vocabulary; S answer places of the student, V its
vocabulary; P shared places, C cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from overproof.core import device

device.prepare()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from torch import Tensor  # noqa: E402

from overproof.core.artifact import Json  # noqa: E402
from overproof.core.console import Meter  # noqa: E402
from overproof.core.sections import EvaluateConfig  # noqa: E402
from overproof.release.byte_sums import Sums, estimates  # noqa: E402
from overproof.release.evaluate import PRODUCTS, read_teacher, scores  # noqa: E402
from overproof.release.groups import in_groups  # noqa: E402
from overproof.release.tally import (  # noqa: E402
    TEACHER,
    compared,
)
from overproof.student.across import Aligned, Place, align  # noqa: E402
from overproof.student.common import Common  # noqa: E402
from overproof.student.retokenise import Both  # noqa: E402
from overproof.student.vocabulary import Vocabulary  # noqa: E402
from overproof.teacher.example import Example  # noqa: E402
from overproof.teacher.forward import layers_dtype, mixed  # noqa: E402

KL, AGREEMENT = "common_kl_nats_per_place", "common_top1_agreement"
Floats = NDArray[np.float64]


class Pair(NamedTuple):
    """A held-out conversation: the teacher's, and the same in the base's tokens."""

    heard: Example
    told: Example


@dataclass(frozen=True)
class Measured:
    """All that a worker needs beside its conversations; see `evaluate.Measured`."""

    teacher: Any
    both: Both
    common: Common
    vocabulary: Vocabulary
    models: Mapping[str, Any]
    length: int


def evaluate_foreign(
    teacher: Any,
    both: Both,
    vocabulary: Vocabulary,
    models: Mapping[str, Any],
    config: EvaluateConfig,
    *,
    seed: int,
    length: int,
    meter: Meter,
) -> Json:
    """Cross-entropy, KL and agreement of each model, with intervals; the way of `evaluate`.

    Returns:
        for the teacher and each model `nats_per_byte`, for each model `common_kl_nats_per_place`
        and `common_top1_agreement` too; under `differences` the student less each other model; and
        `products`.

    Raises:
        StageError: a worker died.
    """
    if not config.exact:
        teacher, models = mixed(teacher), {name: mixed(model) for name, model in models.items()}
    common = Common.of(both.teacher, both.student)
    measured = Measured(teacher, both, common, vocabulary, models, length)
    pairs = list(map(Pair, both.heard.heldout, both.told.heldout))
    whole = in_groups(measure, measured, pairs, (teacher, *models.values()), meter)
    return summary(whole, config, seed) | {"products": PRODUCTS[layers_dtype(teacher)]}


def measure(measured: Measured, group: Sequence[Pair]) -> dict[str, Sums]:
    """The sums of a group of conversations for the teacher and each model.

    1. The teacher's distributions at its own tokens.
    2. Where each conversation's two texts have a boundary in common.
    3. Each model's distributions at its tokens.
    """
    both, vocabulary = measured.both, measured.vocabulary
    # 1.
    heard = [pair.heard for pair in group]
    log_p_NU = read_teacher(measured.teacher, both.heard.prefix, heard, measured.length)
    each = log_p_NU.split([len(one.answer) for one in heard])
    # 2.
    aligned = [align(pair.heard, pair.told, "", both, vocabulary, prompts=False) for pair in group]
    shared = [_shared(one, measured.common) for one in aligned]
    sizes = [len(both.student.text(one.student.tokens[one.learned[0] + 1 :])) for one in aligned]
    found = {TEACHER: _of_the_teacher(each, heard, sizes)}
    # 3.
    head = vocabulary.spell(both.told.student_prefix)
    students = [one.student for one in aligned]
    for name, model in measured.models.items():
        sums = found[name] = Sums()
        said = scores(model, head, students, measured.length)
        rows = zip(said, each, aligned, shared, sizes, strict=True)
        for log_q_SV, log_p, one, places, size in rows:
            _add(sums, log_q_SV, log_p, one, places, size, measured.common)
    return found


def _shared(one: Aligned, common: Common) -> list[Place]:
    """Places where the next tokens of both sides lie in one cell."""
    return [
        place for place in one.places if common.cell_U[place.said[0]] == common.cell_V[place.own]
    ]


def _of_the_teacher(each: Sequence[Tensor], heard: Sequence[Example], sizes: Sequence[int]) -> Sums:
    sums = Sums()
    for log_p, example, size in zip(each, heard, sizes, strict=True):
        said = torch.tensor(example.answer)[:, None]
        sums.nll.append(-float(log_p.gather(1, said).double().sum()))
        sums.bytes.append(size)
    return sums


def _add(
    sums: Sums,
    log_q_SV: Tensor,
    log_p_NU: Tensor,
    one: Aligned,
    places: Sequence[Place],
    size: int,
    common: Common,
) -> None:
    first = one.learned[0]
    successor = torch.tensor(one.student.tokens[first + 1 :])
    sums.nll.append(-float(log_q_SV.gather(1, successor[:, None]).double().sum()))
    sums.bytes.append(size)
    p_PC = _in_cells(log_p_NU[[place.rows[0] for place in places]], common.cell_U, common.cells)
    q_PC = _in_cells(log_q_SV[[place.at - first for place in places]], common.cell_V, common.cells)
    tiny = torch.finfo(q_PC.dtype).tiny
    kl_P = (torch.xlogy(p_PC, p_PC) - p_PC * q_PC.clamp_min(tiny).log()).sum(-1)
    sums.kl.append(float(kl_P.clamp_min(0.0).sum()))
    sums.hits.append((p_PC.argmax(-1) == q_PC.argmax(-1)).double().numpy())
    sums.places.append(len(places))


def _in_cells(log_p_PT: Tensor, cell_T: NDArray[np.int64], cells: int) -> Tensor:
    """Probabilities of tokens as those of cells, (P, C), fp64."""
    columns = torch.from_numpy(cell_T[: log_p_PT.shape[1]]).expand_as(log_p_PT)
    mass = torch.zeros(len(log_p_PT), cells, dtype=torch.float64)
    return mass.scatter_add_(1, columns, log_p_PT.double().exp())


def summary(whole: Mapping[str, Sums], config: EvaluateConfig, seed: int) -> Json:
    """What was measured of each model, and of the student against each other one, paired."""
    return compared(estimates(whole, config, seed, KL, AGREEMENT), config)
