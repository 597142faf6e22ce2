"""What one process computes of a training step, whoever holds the weights.

Shape suffixes: R sequences, T tokens, D model width, N positions, K kept tokens.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from overproof.core.errors import StageError
from overproof.core.sections import TrainConfig
from overproof.data.pack import Packed
from overproof.student import hidden
from overproof.student.body import Body
from overproof.student.divergences import Divergence
from overproof.student.examples import TrainSet
from overproof.student.losses import chunked_divergence, divergence_of
from overproof.teacher.forward import head_of, inputs_of

PLACES = 128  # positions of a loss come in multiples of this
SHOWN = 5  # records named when a loss is not finite


class Part(NamedTuple):
    """One worker's part of a step.

    Attributes:
        batch: its sequences. data: the set that they are of. divergence: what is made small.
        said: SHA-256 of what the student said, where it is the student's own text.
    """

    batch: Packed
    data: TrainSet
    divergence: Divergence
    said: str | None = None

    @property
    def weight(self) -> float:
        """Sum of the weights of its positions."""
        predicted = self.batch.source_RT[self.batch.predicts_RT]
        return float(self.data.weight_N[predicted].sum())

    @property
    def tokens(self) -> int:
        """That go through the student, padding left out."""
        return int((self.batch.segments_RT >= 0).sum())


def part_of(batch: Packed, data: TrainSet, divergence: Divergence, rank: int, workers: int) -> Part:
    """A worker's share of a step's sequences of the teacher's text."""
    # Equal shapes in every step: kept memory of another size is of no use to the next.
    # One example a row leaves too much of it empty for that.
    mine = batch.rows(slice(rank, None, workers), whole=not data.alone)
    return Part(mine, data, divergence)


class Found(NamedTuple):
    """The loss of a part.

    Attributes:
        loss: the divergence alone, so that losses can be compared. whole: what is made small.
        hidden_RTD: last hidden states.
        place, source, weight: see `targets`.
    """

    loss: Tensor
    whole: Tensor
    hidden_RTD: Tensor
    place: NDArray[np.int64]
    source: NDArray[np.int64]
    weight: NDArray[np.float32]


def loss_of(
    model: Any, body: Body, part: Part, total: float, config: TrainConfig, compute: torch.dtype
) -> Found:
    """The loss of a part, weighted by the whole step.

    Args:
        total: sum of the weights of the step.
        compute: type of the head's products.
    """
    data = part.data
    place, source, weight = targets(part.batch, data)
    hidden_RTD = body.states(inputs_of(model, part.batch))
    hidden_ND = hidden_RTD.flatten(0, 1)[torch.from_numpy(place)]
    target = data.targets.at(source).to(hidden_ND.device)
    share_N = (torch.from_numpy(weight) / total).to(hidden_ND.device)
    loss = chunked_divergence(
        hidden_ND,
        head_of(model).weight,
        target,
        share_N,
        divergence=part.divergence,
        temperature=data.temperature,
        compute=compute,
    )
    whole = loss
    if config.hidden:
        projection_ED = model.get_parameter(hidden.WEIGHT)
        apart = hidden.distance(hidden_ND, projection_ED, target, share_N)
        whole = loss + config.hidden.weight * apart
    return Found(loss, whole, hidden_RTD, place, source, weight)


def diverged(model: Any, part: Part, found: Found, step: int) -> StageError:
    """Which records made a loss that is not finite; each position's is computed again alone."""
    data, learned = part.data, found.weight > 0
    place, source = found.place[learned], found.source[learned]
    states_ND = found.hidden_RTD.detach().flatten(0, 1)[torch.from_numpy(place)]
    head_VD = head_of(model).weight.detach()
    wrong = []
    for at in range(0, len(source), PLACES):
        few = slice(at, at + PLACES)
        logits = (states_ND[few] @ head_VD.T).float()
        logits /= data.temperature
        target = data.targets.at(source[few]).to(logits.device)
        each_N, _ = divergence_of(logits, target, part.divergence)
        wrong.append(source[few][~torch.isfinite(each_N).cpu().numpy()])
    records = data.records(np.concatenate(wrong)) or data.records(source)
    return StageError(
        f"training diverged at step {step}: the loss is not finite",
        details=[f"record {key}" for key in records[:SHOWN]]
        + [f"and {len(records) - SHOWN} more"] * (len(records) > SHOWN),
        hint="look at these records' answers, or lower train.learning_rate: training then "
        "begins anew, from the same answers and signals",
    )


def targets(
    batch: Packed, data: TrainSet
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Places of the batch (R * T) that have a target, its position in `data`, and its weight.

    Filled up to a multiple of `PLACES` with places of weight 0.
    """
    place = np.flatnonzero(batch.predicts_RT)
    source = batch.source_RT.ravel()[place]
    weight = np.ascontiguousarray(data.weight_N[source])
    used = weight > 0
    place, source, weight = place[used], source[used], weight[used]
    missing = -len(place) % PLACES
    return (
        np.pad(place, (0, missing)),
        np.pad(source, (0, missing)),
        np.pad(weight, (0, missing)),
    )
