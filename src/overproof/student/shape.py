"""The initial student: its base with fewer layers and a smaller vocabulary, then repaired.

The base is the teacher, unless the recipe names another model with the teacher's tokens.

1. Which layers stay is measured (`importance`).
2. The weights of the kept layers, and the rows of the kept tokens, are copied.
3. Channels of the hidden states, groups of heads, and neurons of each MLP that carry least are
   dropped, down to the numbers asked for (`width`).
4. Each kept layer's down projection is refitted in closed form, so that its output meets the
   teacher's hidden state where the next kept layer takes over (least squares in the spirit of
   ReplaceMe, arXiv 2505.02819, on the existing matrix instead of an added one).

Shape suffixes: R sequences, T tokens, P valid positions, D width, I inner width of the MLP.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from overproof.core import device

device.prepare()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from overproof.core.errors import StageError, UsageError  # noqa: E402
from overproof.core.sections import StudentConfig  # noqa: E402
from overproof.data.pack import Packed, pack  # noqa: E402
from overproof.student import width  # noqa: E402
from overproof.student.stack import USE, Stack, demand_decoder  # noqa: E402
from overproof.student.vocabulary import Vocabulary  # noqa: E402

PROBE_TOKENS, PROBE_GAP = 24, 1e-3  # what is run to check a cut, and what rounding may explain
RIDGE = 0.05  # of the mean diagonal; smaller overfits 10,000 calibration tokens (docs/log.md)


def demand_fit(base: Any, config: StudentConfig) -> None:
    """Refuse a student that cannot be cut out of this model, before any work is done.

    Args:
        base: a model of transformers.

    Raises:
        StageError: the architecture has no plain stack of decoder layers.
        UsageError: larger than it in some direction.
    """
    demand_decoder(base)
    demand_size(base.config, config)
    width.demand_narrow(base, config)


def demand_size(base: Any, config: StudentConfig) -> None:
    """The part of `demand_fit` that follows from the configuration alone.

    Args:
        base: a configuration of transformers.

    Raises:
        UsageError: larger than it in some direction.
    """
    wanted = (
        ("layers", config.layers or 0, getattr(base, "num_hidden_layers", None)),
        ("mlp_width", config.mlp_width or 0, getattr(base, "intermediate_size", None)),
        ("kv_heads", config.kv_heads or 0, getattr(base, "num_key_value_heads", None)),
        ("hidden", config.hidden or 0, getattr(base, "hidden_size", None)),
    )
    wrong = [
        f"student.{name}: got {got}, the model that it is cut from has {most}"
        for name, got, most in wanted
        if isinstance(most, int) and got > most  # not every architecture has it
    ]
    if wrong:
        raise UsageError("the student is larger than the model that it is cut from", details=wrong)


def cut_config(base: Any, kept: Sequence[int]) -> Any:
    """A copy of the base's configuration, for these of its layers."""
    config = copy.deepcopy(base)
    count = config.num_hidden_layers
    for name, value in vars(base).items():
        # Settings layer by layer: the kind of attention, layers without rotary positions.
        if isinstance(value, list) and len(value) == count and not name.endswith("_token_id"):
            setattr(config, name, [value[layer] for layer in kept])
    config.num_hidden_layers = len(kept)
    return config


def cut(base: Any, kept: Sequence[int], vocabulary: Vocabulary) -> Any:
    """A student of the kept layers and tokens, with the base's weights in fp32.

    A byte that the teacher's vocabulary lacks starts from the mean of all embeddings.

    Raises:
        StageError: the cut student does not run as the base's kept layers do; some setting
            of the architecture counts layers in a way that is not known here.
    """
    config = cut_config(base.config, kept)
    config.vocab_size = vocabulary.size
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config, name, None)  # the base's ids; the caller names the student's
    student = type(base)(config).float()
    rows = torch.from_numpy(vocabulary.teacher_ids_V)
    known = (rows >= 0)[:, None]
    with torch.no_grad():
        for new, old in (
            (student.model.embed_tokens, base.model.embed_tokens),
            (student.lm_head, base.lm_head),
        ):
            picked = old.weight[rows.clamp_min(0)]
            new.weight.copy_(torch.where(known, picked, old.weight.mean(0)))
        for new, layer in zip(student.model.layers, kept, strict=True):
            new.load_state_dict(base.model.layers[layer].state_dict())
        student.model.norm.load_state_dict(base.model.norm.state_dict())
    student.tie_weights()
    student.eval()
    known_ids = torch.from_numpy(np.flatnonzero(vocabulary.teacher_ids_V >= 0)[:PROBE_TOKENS])
    _demand_equal(student, base, kept, known_ids, rows[known_ids])
    return student


@torch.inference_mode()
def _demand_equal(
    student: Any, base: Any, kept: Sequence[int], ids: Tensor, teacher_ids: Tensor
) -> None:
    """The student's own pass over some tokens must equal one through the base's kept layers."""
    batch = pack((), [ids.tolist()], len(ids))
    theirs = Stack(base, batch, teacher_ids[None])
    wanted = base.model.norm(theirs.through(theirs.embedded, kept))
    got = student.model(input_ids=ids[None], use_cache=False).last_hidden_state
    gap = float((got - wanted).norm() / wanted.norm())
    if not gap <= PROBE_GAP:  # a NaN is refused too
        raise StageError(
            f"{type(base).__name__} cannot be cut into a student",
            details=[f"the cut student's states differ by {gap:.2g} from the kept layers' own"],
            hint=USE,
        )


@dataclass(frozen=True)
class Narrowed:
    """What narrowing left of a student's width.

    Attributes:
        channels: of the hidden states, those of the base that stay; None: all.
        groups: of each layer, the groups of heads that stay; None: all.
        mlp_width: neurons that each MLP is to keep; None: all.
    """

    channels: Tensor | None = None
    groups: tuple[Tensor, ...] | None = None
    mlp_width: int | None = None

    @property
    def whole(self) -> bool:
        """Nothing is dropped."""
        return self.channels is None and self.groups is None and self.mlp_width is None


WHOLE = Narrowed()


def narrow(
    student: Any,
    base: Any,
    kept: Sequence[int],
    batch: Packed,
    vocabulary: Vocabulary,
    config: StudentConfig,
) -> Narrowed:
    """Drop groups of heads and hidden channels of a student that was just cut.

    Args:
        base: in the type to run it in; see `cut` for the others.
        batch: calibration text in the student's tokens.

    Returns:
        what was left, for `repair`, which narrows the MLPs.
    """
    whole = base.config
    groups_wanted = config.kv_heads not in (None, whole.num_key_value_heads)
    channels_wanted = config.hidden not in (None, whole.hidden_size)
    mlp_width = config.mlp_width if config.mlp_width != whole.intermediate_size else None
    if not (groups_wanted or channels_wanted):
        return Narrowed(mlp_width=mlp_width)
    carried = width.measure(base, batch, _teacher_ids(batch, vocabulary))
    groups = channels = None
    if groups_wanted:
        scores_LG = carried.groups_LG[list(kept)]
        groups = tuple(width.largest(row, int(config.kv_heads or 0)) for row in scores_LG)
        width.drop_groups(student, groups)
    if channels_wanted:
        channels = width.largest(carried.channels_D, int(config.hidden or 0))
        width.drop_channels(student, channels, width.norm_ratios(student, batch, channels))
    return Narrowed(channels, groups, mlp_width)


def _teacher_ids(batch: Packed, vocabulary: Vocabulary) -> Tensor:
    """A batch in the student's tokens, in the teacher's; token 0 for a byte that it lacks."""
    rows = torch.from_numpy(vocabulary.teacher_ids_V).clamp_min(0)
    return rows[torch.from_numpy(batch.tokens_RT)]


@torch.inference_mode()
def repair(
    student: Any,
    base: Any,
    kept: Sequence[int],
    batch: Packed,
    vocabulary: Vocabulary,
    progress: Callable[[int], None],
    narrowed: Narrowed = WHOLE,
) -> list[float]:
    """Narrow each MLP, and refit its down projection so that the states meet the base's.

    For layer i the target is the base's state where kept layer i + 1 begins; what the
    student's own earlier layers got wrong is part of the problem that layer i solves. Layers
    before the first gap are left as they are, bit for bit: there is nothing to repair.

    Args:
        base: in the type to run it in; bf16 is exact enough for a target.
        batch: calibration text in the student's tokens.
        progress: called with 1 after each layer.

    Returns:
        relative distance between the states after each layer.
    """
    theirs = Stack(base, batch, _teacher_ids(batch, vocabulary))
    ours = Stack(student, batch)
    valid = torch.from_numpy(batch.segments_RT >= 0)
    every = torch.arange(base.config.hidden_size)
    channels = every if narrowed.channels is None else narrowed.channels
    target, state = theirs.embedded, ours.embedded
    done, errors, whole = 0, [], narrowed.whole
    for index, layer in enumerate(student.model.layers):
        stop = kept[index + 1] if index + 1 < len(kept) else len(base.model.layers)
        target = theirs.through(target, range(done, stop))
        whole = whole and (kept[index], stop) == (index, index + 1)
        done = stop
        inner, out = _inner(layer, ours, state)
        before = out - layer.mlp.down_proj(inner)  # all that the layer does without its MLP
        if narrowed.mlp_width is not None:
            inner = width.narrow_mlp(layer.mlp, inner, valid, narrowed.mlp_width)
        wanted = target[valid][:, channels].float()
        if not whole:
            _refit(layer.mlp.down_proj, inner[valid], wanted - before[valid], wanted)
        state = before + layer.mlp.down_proj(inner)
        gap_P = (state[valid] - wanted).norm(dim=-1) / wanted.norm(dim=-1)
        errors.append(float(gap_P.mean()))
        progress(1)
    if narrowed.mlp_width is not None:
        student.config.intermediate_size = narrowed.mlp_width
    return errors


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
