"""The initial student: the teacher with fewer layers and a smaller vocabulary, then repaired.

1. Which layers stay is measured (`importance`).
2. The weights of the kept layers, and the rows of the kept tokens, are copied.
3. The neurons of each MLP that carry least are dropped, down to the width asked for.
4. Each kept layer's down projection is refitted in closed form, so that its output meets the
   teacher's hidden state where the next kept layer takes over (least squares in the spirit of
   ReplaceMe, arXiv 2505.02819, on the existing matrix instead of an added one).

Shape suffixes: R sequences, T tokens, P valid positions, D width, I inner width of the MLP.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

from overproof.core import device

device.prepare()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from overproof.core.config import StudentConfig  # noqa: E402
from overproof.core.errors import StageError, UsageError  # noqa: E402
from overproof.data.pack import Packed, pack  # noqa: E402
from overproof.student.stack import USE, Stack, demand_decoder  # noqa: E402
from overproof.student.vocabulary import Vocabulary  # noqa: E402

PROBE_TOKENS, PROBE_GAP = 24, 1e-3  # what is run to check a cut, and what rounding may explain
RIDGE = 0.05  # of the mean diagonal; smaller overfits 10,000 calibration tokens (docs/log.md)


def demand_fit(teacher: Any, config: StudentConfig) -> None:
    """Refuse a student that cannot be cut out of this teacher, before any work is done.

    Args:
        teacher: a model of transformers.

    Raises:
        StageError: the architecture has no plain stack of decoder layers.
        UsageError: more layers or wider MLPs than the teacher has.
    """
    demand_decoder(teacher)
    demand_size(teacher.config, config)


def demand_size(teacher: Any, config: StudentConfig) -> None:
    """The part of `demand_fit` that follows from the configuration alone.

    Args:
        teacher: a configuration of transformers.

    Raises:
        UsageError: more layers or wider MLPs than the teacher has.
    """
    wanted = (
        ("layers", config.layers, getattr(teacher, "num_hidden_layers", None)),
        ("mlp_width", config.mlp_width or 0, getattr(teacher, "intermediate_size", None)),
    )
    wrong = [
        f"student.{name}: got {got}, the teacher has {most}"
        for name, got, most in wanted
        if isinstance(most, int) and got > most  # not every architecture has it
    ]
    if wrong:
        raise UsageError("the student is larger than its teacher", details=wrong)


def cut_config(teacher: Any, kept: Sequence[int]) -> Any:
    """A copy of the teacher's configuration, for these of its layers."""
    config = copy.deepcopy(teacher)
    count = config.num_hidden_layers
    for name, value in vars(teacher).items():
        # Settings layer by layer: the kind of attention, layers without rotary positions.
        if isinstance(value, list) and len(value) == count and not name.endswith("_token_id"):
            setattr(config, name, [value[layer] for layer in kept])
    config.num_hidden_layers = len(kept)
    return config


def cut(teacher: Any, kept: Sequence[int], vocabulary: Vocabulary) -> Any:
    """A student of the kept layers and tokens, with the teacher's weights in fp32.

    A byte that the teacher's vocabulary lacks starts from the mean of all embeddings.

    Raises:
        StageError: the cut student does not run as the teacher's kept layers do; some setting
            of the architecture counts layers in a way that is not known here.
    """
    config = cut_config(teacher.config, kept)
    config.vocab_size = vocabulary.size
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config, name, None)  # the teacher's ids; the caller names the student's
    student = type(teacher)(config).float()
    rows = torch.from_numpy(vocabulary.teacher_ids_V)
    known = (rows >= 0)[:, None]
    with torch.no_grad():
        for new, old in (
            (student.model.embed_tokens, teacher.model.embed_tokens),
            (student.lm_head, teacher.lm_head),
        ):
            picked = old.weight[rows.clamp_min(0)]
            new.weight.copy_(torch.where(known, picked, old.weight.mean(0)))
        for new, layer in zip(student.model.layers, kept, strict=True):
            new.load_state_dict(teacher.model.layers[layer].state_dict())
        student.model.norm.load_state_dict(teacher.model.norm.state_dict())
    student.tie_weights()
    student.eval()
    known_ids = torch.from_numpy(np.flatnonzero(vocabulary.teacher_ids_V >= 0)[:PROBE_TOKENS])
    _demand_equal(student, teacher, kept, known_ids, rows[known_ids])
    return student


@torch.inference_mode()
def _demand_equal(
    student: Any, teacher: Any, kept: Sequence[int], ids: Tensor, teacher_ids: Tensor
) -> None:
    """The student's own pass over some tokens must equal one through the teacher's kept layers."""
    batch = pack((), [ids.tolist()], len(ids))
    theirs = Stack(teacher, batch, teacher_ids[None])
    wanted = teacher.model.norm(theirs.through(theirs.embedded, kept))
    got = student.model(input_ids=ids[None], use_cache=False).last_hidden_state
    gap = float((got - wanted).norm() / wanted.norm())
    if not gap <= PROBE_GAP:  # a NaN is refused too
        raise StageError(
            f"{type(teacher).__name__} cannot be cut into a student",
            details=[f"the cut student's states differ by {gap:.2g} from the kept layers' own"],
            hint=USE,
        )


@torch.inference_mode()
def repair(
    student: Any,
    teacher: Any,
    kept: Sequence[int],
    batch: Packed,
    vocabulary: Vocabulary,
    progress: Callable[[int], None],
    width: int | None = None,
) -> list[float]:
    """Narrow each MLP, and refit its down projection so that the states meet the teacher's.

    For layer i the target is the teacher's state where kept layer i + 1 begins; what the
    student's own earlier layers got wrong is part of the problem that layer i solves.

    Args:
        teacher: in the type to run it in; bf16 is exact enough for a target.
        batch: calibration text in the student's tokens.
        progress: called with 1 after each layer.
        width: neurons that each MLP keeps; None for all.

    Returns:
        relative distance between the states after each layer.
    """
    rows = torch.from_numpy(vocabulary.teacher_ids_V).clamp_min(0)
    tokens = torch.from_numpy(batch.tokens_RT)
    theirs = Stack(teacher, batch, rows[tokens])
    ours = Stack(student, batch)
    valid = torch.from_numpy(batch.segments_RT >= 0)
    target, state = theirs.embedded, ours.embedded
    done, errors = 0, []
    for index, layer in enumerate(student.model.layers):
        stop = kept[index + 1] if index + 1 < len(kept) else len(teacher.model.layers)
        target = theirs.through(target, range(done, stop))
        done = stop
        inner, out = _inner(layer, ours, state)
        before = out - layer.mlp.down_proj(inner)  # all that the layer does without its MLP
        if width is not None:
            inner = _narrow(layer.mlp, inner, valid, width)
        wanted = target[valid].float()
        _refit(layer.mlp.down_proj, inner[valid], wanted - before[valid], wanted)
        state = before + layer.mlp.down_proj(inner)
        gap_P = (state[valid] - wanted).norm(dim=-1) / wanted.norm(dim=-1)
        errors.append(float(gap_P.mean()))
        progress(1)
    if width is not None:
        student.config.intermediate_size = width
    return errors


def _narrow(mlp: Any, inner_RTI: Tensor, valid: Tensor, width: int) -> Tensor:
    """Keep the neurons that add most to the output: mean square activation times weight norm.

    Returns:
        the activations of the kept neurons.
    """
    energy_I = inner_RTI[valid].square().mean(0) * mlp.down_proj.weight.square().sum(0)
    kept = energy_I.topk(width).indices.sort().values
    for name, axis in (("gate_proj", 0), ("up_proj", 0), ("down_proj", 1)):
        weight = getattr(mlp, name).weight.index_select(axis, kept).clone()
        new = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        new.weight = torch.nn.Parameter(weight)
        setattr(mlp, name, new)
    return inner_RTI[..., kept]


def _inner(layer: Any, stack: Stack, state_RTD: Tensor) -> tuple[Tensor, Tensor]:
    """What enters the layer's down projection, and what leaves the layer."""
    seen: list[Tensor] = []
    handle = layer.mlp.down_proj.register_forward_pre_hook(
        lambda _module, arguments: seen.append(arguments[0])
    )
    out_RTD = stack.apply(layer, state_RTD)
    handle.remove()
    return seen[0], out_RTD


def _refit(down: Any, inner_PI: Tensor, wanted_PD: Tensor, state_PD: Tensor) -> None:
    """Ridge regression of what is missing on the MLP's activations, added to `down`.

    A few positions have states a hundred times longer than the rest; relative error counts.
    """
    scale_P1 = 1.0 / state_PD.norm(dim=-1, keepdim=True)
    missing_PD = (wanted_PD - down(inner_PI)) * scale_P1
    inner_PI = inner_PI * scale_P1
    gram_II = inner_PI.T @ inner_PI
    gram_II.diagonal().add_(RIDGE * gram_II.diagonal().mean())
    change_ID = torch.linalg.solve(gram_II, inner_PI.T @ missing_PD)
    down.weight.add_(change_ID.T)
