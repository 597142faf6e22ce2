"""Fewer routed experts a layer: which stay is measured, the others are dropped or merged.

1. How much each expert is used: the sum of the weights that the router gives it, on calibration
   text. Those with most stay.
2. Each of the others belongs to the kept one whose router logits are most like its own, over the
   same text (the grouping of M-SMoE, arXiv 2310.01334).
3. Merged, a kept expert becomes the mean of its group, weighted by use; so does its row of the
   router. Dropped, it stays what it is.
4. A table that routes tokens by their id names the kept expert in the place of the others.

Shared experts are no part of this. What is not done: before averaging, M-SMoE brings the neurons of
experts into one order.

Shape suffixes: N positions, E experts, K experts of a token.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from overproof.core.errors import UsageError
from overproof.core.sections import StudentConfig

COUNTS = ("n_routed_experts", "num_local_experts", "num_experts")  # what configurations call it
TABLE = "tid2eid"  # of DeepSeek V4: token id to experts
EXPERT_ROWS = ("experts.gate_up_proj", "experts.down_proj", "gate.weight")  # a row an expert
BIAS = "gate.e_score_correction_bias"  # added to scores where experts are chosen


@dataclass(frozen=True)
class Use:
    """How a layer's router used its experts on some text.

    Attributes:
        mass_E: sum of the weights given to each expert.
        likeness_EE: cosine of the experts' router logits over the positions.
    """

    mass_E: Tensor
    likeness_EE: Tensor


@dataclass(frozen=True)
class Choice:
    """What becomes of a layer's experts.

    Attributes:
        kept: those that stay, ascending.
        home: of each expert, the place among `kept` of the one that stands for it.
        mass: how much each was used.
    """

    kept: tuple[int, ...]
    home: tuple[int, ...]
    mass: tuple[float, ...]


def count_of(config: Any) -> int | None:
    """Routed experts of each layer; None: the model is no mixture of experts that is known here."""
    found = (getattr(config, name, None) for name in COUNTS)
    return next((int(count) for count in found if count), None)


def set_count(config: Any, count: int) -> None:
    """Write the number of routed experts where this configuration has it."""
    setattr(config, next(name for name in COUNTS if getattr(config, name, None)), count)


def demand(teacher: Any, config: StudentConfig) -> None:
    """Refuse a number of experts that this teacher cannot be cut to.

    Args:
        teacher: its configuration.

    Raises:
        UsageError: it is no mixture of experts, has fewer, or sends each token to more.
    """
    if config.experts is None:
        return
    most = count_of(teacher)
    if most is None:
        raise UsageError(
            "student.experts goes with a mixture of experts",
            details=[f"the teacher is {teacher.model_type}"],
            hint="leave student.experts out",
        )
    least = int(teacher.num_experts_per_tok)
    if not least <= config.experts <= most:
        raise UsageError(
            f"student.experts is {config.experts}",
            details=[f"the teacher has {most}, and sends each token to {least} of them"],
        )


def blocks(model: Any) -> dict[str, Any]:
    """The mixtures of experts of a model by name, in the order of its layers."""
    return {
        name: part
        for name, part in model.named_modules()
        if hasattr(part, "experts") and hasattr(part, "gate") and hasattr(part.gate, "weight")
    }


def known(model: Any) -> bool:
    """Whether the model's experts and routers have the names that are cut here."""
    found, names = blocks(model), {name for name, _ in model.named_parameters()}
    return bool(found) and all(f"{name}.{part}" in names for name in found for part in EXPERT_ROWS)


@contextmanager
def watched(model: Any) -> Iterator[dict[str, list[tuple[Tensor, Tensor, Tensor]]]]:
    """While this lasts, what each router says is noted: logits (N, E), weights, experts (N, K)."""
    said = dict[str, list[tuple[Tensor, Tensor, Tensor]]]()
    handles = []
    for name, block in blocks(model).items():
        seen = said.setdefault(name, [])
        handles.append(
            block.gate.register_forward_hook(
                lambda _module, _given, found, seen=seen: seen.append(found)
            )
        )
    try:
        yield said
    finally:
        for handle in handles:
            handle.remove()


def use_of(said: Sequence[tuple[Tensor, Tensor, Tensor]], valid: Sequence[Tensor]) -> Use:
    """How the experts were used at the valid positions.

    Args:
        said: of one router, call by call. valid: which positions of each call count, (N,).
    """
    count = said[0][0].shape[-1]
    mass_E = torch.zeros(count, dtype=torch.float64)
    products_EE = torch.zeros(count, count, dtype=torch.float64)
    for (logits_NE, weights_NK, experts_NK), valid_N in zip(said, valid, strict=True):
        mass_E.index_add_(0, experts_NK[valid_N].flatten(), weights_NK[valid_N].double().flatten())
        own_NE = logits_NE[valid_N].double()
        products_EE += own_NE.T @ own_NE
    length_E = products_EE.diagonal().sqrt().clamp_min(torch.finfo(torch.float64).tiny)
    return Use(mass_E, products_EE / (length_E[:, None] * length_E[None]))


def choose(use: Use, count: int) -> Choice:
    """Which experts stay, and which of them stands for each of the others."""
    mass = use.mass_E.tolist()
    by_use = sorted(range(len(mass)), key=lambda expert: (-mass[expert], expert))
    kept = sorted(by_use[:count])
    nearest = use.likeness_EE[:, kept].argmax(-1).tolist()
    own = {expert: place for place, expert in enumerate(kept)}
    home = [own.get(expert, nearest[expert]) for expert in range(len(mass))]
    return Choice(tuple(kept), tuple(home), tuple(mass))


def apply(
    state: Mapping[str, Tensor], name: str, choice: Choice, *, merge: bool
) -> dict[str, Tensor]:
    """A block's part of a state, for the experts that stay.

    Args:
        state: of the whole model. name: of the block.
    """
    changed = dict[str, Tensor]()
    for part in (*EXPERT_ROWS, BIAS):
        rows = state.get(f"{name}.{part}")
        if rows is not None:
            kept = list(choice.kept)
            changed[f"{name}.{part}"] = _means(rows, choice) if merge else rows[kept].clone()
    table = state.get(f"{name}.gate.{TABLE}")
    if table is not None:
        changed[f"{name}.gate.{TABLE}"] = torch.tensor(choice.home)[table]
    return changed


def _means(rows_E: Tensor, choice: Choice) -> Tensor:
    """Of each group the mean, weighted by use; what stands alone stays what it is, bit for bit."""
    found = rows_E[list(choice.kept)].clone()
    for place, expert in enumerate(choice.kept):
        group = [one for one, home in enumerate(choice.home) if home == place]
        if len(group) == 1:
            continue
        weight = torch.tensor([choice.mass[one] for one in group], dtype=torch.float64)
        weight = weight / weight.sum() if weight.sum() else torch.full_like(weight, 1 / len(group))
        assert expert in group
        shape = (-1, *[1] * (rows_E.ndim - 1))
        found[place] = (rows_E[group].double() * weight.view(shape)).sum(0).to(rows_E.dtype)
    return found
