"""Drawing tokens in proportion to their probability, with less scatter than one by one.

Shape suffixes: P positions, R draws of each, V vocabulary, S blocks of it, B tokens of a block.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 64  # tokens whose mass is summed first: a draw looks into one block only


def draw(mass_PV: Tensor, offset_P: Tensor, count: int) -> Tensor:
    """Draw tokens in proportion to their mass, by systematic sampling.

    The masses of a position lie end to end, and `count` points at equal distances are laid over
    them, the first at the offset: a token's expected number is exactly its share of the count, and
    the actual one differs from it by less than one (Madow 1949, doi 10.1214/aoms/1177729988).

    Args:
        offset_P: uniform numbers in [0, 1).

    Returns:
        tokens of mass above 0, where there are any, (P, count), in ascending order.
    """
    if not count:
        return torch.zeros(len(mass_PV), 0, dtype=torch.long)
    missing = -mass_PV.shape[1] % BLOCK
    blocks_PSB = F.pad(mass_PV, (0, missing)).unflatten(1, (-1, BLOCK))
    sums_PS = blocks_PSB.sum(-1)
    ends_PS = sums_PS.cumsum(-1)
    points_PR = (offset_P.float()[:, None] + torch.arange(count)) / count * ends_PS[:, -1:]
    # In fp32 the last point can be the end itself, behind which no token lies.
    points_PR = points_PR.minimum(torch.nextafter(ends_PS[:, -1:], torch.zeros(())))
    block_PR = torch.searchsorted(ends_PS, points_PR, right=True).clamp_max(ends_PS.shape[1] - 1)
    before_PR = (ends_PS - sums_PS).gather(1, block_PR)
    inside_PRB = blocks_PSB[torch.arange(len(mass_PV))[:, None], block_PR]
    passed_PRB = inside_PRB.cumsum(-1) <= (points_PR - before_PR)[..., None]
    place_PR = passed_PRB.sum(-1).clamp_max(BLOCK - 1)
    # Rounding can lead to a token beside the one meant, which may have no mass.
    nothing_PR = inside_PRB.gather(-1, place_PR[..., None])[..., 0] == 0
    place_PR = torch.where(nothing_PR, inside_PRB.argmax(-1), place_PR)
    return (block_PR * BLOCK + place_PR).clamp_max(mass_PV.shape[1] - 1)
