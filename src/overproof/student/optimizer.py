"""Which optimizer updates which parameter, and the learning rate over the steps."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor
from torch.optim import AdamW, Muon, Optimizer

from overproof.core.errors import StageError
from overproof.core.sections import TrainConfig

BETAS = (0.9, 0.95)  # the usual choice for language models (arXiv 2005.14165, appendix B)


def rate(config: TrainConfig, step: int) -> float:
    """Learning rate of a step (from 0): linear warm-up, constant, linear decay (WSD)."""
    warm = max(1.0, config.warmup * config.steps)
    fall = max(1.0, config.decay * config.steps)
    return config.learning_rate * min(1.0, (step + 1) / warm, (config.steps - step) / fall)


def optimizers(config: TrainConfig, named: Sequence[tuple[str, Tensor]]) -> list[Optimizer]:
    """Muon for the matrices inside the layers, AdamW for all else.

    Muon's updates are scaled to AdamW's size, so that one learning rate serves both
    (arXiv 2502.16982, section 2.2).
    """
    matrices = [p for name, p in named if config.optimizer == "muon" and _is_matrix(name, p)]
    chosen = {id(p) for p in matrices}
    others = [p for _, p in named if id(p) not in chosen]
    made: list[Optimizer] = []
    if others:
        made.append(
            AdamW(
                others,
                lr=config.learning_rate,
                betas=BETAS,
                weight_decay=config.weight_decay,
                fused=True,
            )
        )
    if matrices:
        made.append(
            Muon(
                matrices,
                lr=config.learning_rate,
                weight_decay=config.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    return made


def _is_matrix(name: str, parameter: Tensor) -> bool:
    return parameter.ndim == 2 and "layers." in name


def set_rate(made: Sequence[Optimizer], value: float) -> None:
    """Give every parameter group this learning rate."""
    for optimizer in made:
        for group in optimizer.param_groups:
            group["lr"] = value


def clip_factor(square_norm: float, limit: float) -> float:
    """Factor that brings a gradient of this squared norm down to `limit`; 1 if it is smaller.

    Raises:
        StageError: the norm is no number; a step along it would spoil weights and optimizer.
    """
    if not math.isfinite(square_norm):
        raise StageError(
            "training diverged: the gradient is not finite",
            hint="lower train.learning_rate or raise train.warmup",
        )
    return min(1.0, limit / (math.sqrt(square_norm) + 1e-6))
