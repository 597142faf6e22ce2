"""Hidden states of the student drawn towards the teacher's, through a projection that is learned.

The states are the last ones, behind the final norm, which signals of the kind `exact` hold: no
further pass of the teacher. The projection (TinyBERT, arXiv 1909.10351, equation 8) starts as the
identity where the widths agree, is trained with the student, and is taken away at the end.

Shape suffixes: N positions, D the student's width, E the teacher's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from overproof.student.losses import Dense, Target

PROJECTION = "hidden_projection"
WEIGHT = f"{PROJECTION}.weight"  # the parameter's name


def attach(student: Any, width: int, seed: int) -> None:
    """Give the student a projection to the teacher's width, as the last of its parameters."""
    own = student.config.hidden_size
    projection = nn.Linear(own, width, bias=False)
    with torch.no_grad():
        if own == width:
            nn.init.eye_(projection.weight)
        else:
            draws = torch.Generator().manual_seed(seed)
            nn.init.orthogonal_(projection.weight, generator=draws)
    student.add_module(PROJECTION, projection)


def detach(student: Any) -> None:
    """Take the projection away; nothing where there is none."""
    if hasattr(student, PROJECTION):
        delattr(student, PROJECTION)


def distance(hidden_ND: Tensor, projection_ED: Tensor, target: Target, weight_N: Tensor) -> Tensor:
    """Weighted sum of the squared distances to the teacher's states, each by the state's square.

    By the square, so that a token counts by its weight and not by the length of its state; not by
    the angle alone, for the head's logits grow with the length too.

    Args:
        target: the teacher's states; a position whose target is a token alone counts for nothing.
        weight_N: weight of each position.

    Returns:
        a scalar, no unit; 0 where all states are the teacher's.
    """
    assert isinstance(target, Dense)  # the recipe demands signals of the kind `exact`
    projected_NE = hidden_ND @ projection_ED.T
    precise = torch.promote_types(torch.float32, projected_NE.dtype)
    states_NE = target.hidden_NE.to(precise)
    error_N = (projected_NE.to(precise) - states_NE).square().sum(-1)
    size_N = states_NE.square().sum(-1).clamp_min(torch.finfo(precise).tiny)
    weight_N = weight_N.to(precise)
    if target.next_N is not None:
        weight_N = weight_N * (target.next_N < 0)
    return (error_N / size_N * weight_N).sum()
