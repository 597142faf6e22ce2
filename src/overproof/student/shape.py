"""The initial student: the teacher with fewer layers and a smaller vocabulary, then repaired.

1. Layers are dropped one by one, each time the one whose loss costs least (measured by the
   divergence from the intact teacher on its own text), or by other rules to compare with.
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
from dataclasses import dataclass
from typing import Any

from overproof.core import device

device.prepare()

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from overproof.core.config import StudentConfig  # noqa: E402
from overproof.core.console import Meter  # noqa: E402
from overproof.core.errors import StageError, UsageError  # noqa: E402
from overproof.data.pack import Packed  # noqa: E402
from overproof.student.losses import bucket_kl  # noqa: E402
from overproof.student.vocabulary import Vocabulary  # noqa: E402
from overproof.teacher.signals import model_inputs  # noqa: E402

RIDGE = 0.05  # of the mean diagonal; smaller overfits 10,000 calibration tokens (docs/log.md)
PARTS = ("embed_tokens", "layers", "norm", "rotary_emb")


@dataclass(frozen=True)
class Removal:
    """One step of the measurement: the layer dropped, and the divergence after it in nats."""

    layer: int
    kl: float


@dataclass(frozen=True)
class Calibration:
    """Teacher text to measure on.

    Attributes:
        batch: packed sequences in the teacher's tokens.
        picked: which places have a target, (R, T).
        ids_PK, probs_PK: the teacher's own distribution there.
    """

    batch: Packed
    picked: Tensor
    ids_PK: Tensor
    probs_PK: Tensor


def require_decoder(model: Any) -> None:
    """Refuse a model whose parts are not where this module looks for them.

    Raises:
        StageError: the architecture has no plain stack of decoder layers.
    """
    body: Any = getattr(model, "model", None)
    missing = [part for part in PARTS if not hasattr(body, part)]
    if (
        missing
        or not hasattr(body.layers[0], "mlp")
        or not hasattr(body.layers[0].mlp, "down_proj")
    ):
        raise StageError(
            f"{type(model).__name__} cannot be cut into a student",
            details=[f"missing: {', '.join(missing) or 'mlp.down_proj'}"],
            hint="use a teacher built as a stack of decoder layers: Llama, Qwen, Mistral, SmolLM",
        )


def choose_layers(
    teacher: Any, config: StudentConfig, calibration: Calibration, meter: Meter
) -> tuple[list[int], list[Removal]]:
    """Which layers stay, and the measurement that says so.

    Raises:
        UsageError: more layers are wanted than the teacher has.
    """
    total = len(teacher.model.layers)
    if config.layers > total:
        raise UsageError(
            f"student.layers is {config.layers}", details=[f"the teacher has {total} layers"]
        )
    if config.importance == "even":
        span = max(config.layers - 1, 1)
        return [round(i * (total - 1) / span) for i in range(config.layers)], []
    if config.importance == "angular":
        return _by_angle(teacher, config.layers, calibration)
    return _greedy(teacher, config.layers, calibration, meter)


@torch.inference_mode()
def _greedy(
    teacher: Any, keep: int, calibration: Calibration, meter: Meter
) -> tuple[list[int], list[Removal]]:
    """Drop the layer that costs least, again and again; what lies before a layer is reused."""
    run = _Stack(teacher, calibration.batch)
    kept = list(range(len(teacher.model.layers)))
    removals: list[Removal] = []
    while len(kept) > keep:
        best: Removal | None = None
        hidden = run.embedded
        for index, layer in enumerate(kept):
            kl = _divergence(teacher, run.through(hidden, kept[index + 1 :]), calibration)
            if best is None or kl < best.kl:
                best = Removal(layer, kl)
            hidden = run.through(hidden, [layer])
            meter.advance(1)
        if best is None:
            break
        kept.remove(best.layer)
        removals.append(best)
    return kept, removals


@torch.inference_mode()
def _by_angle(teacher: Any, keep: int, calibration: Calibration) -> tuple[list[int], list[Removal]]:
    """Drop the block with the least angle between what enters and leaves it (arXiv 2403.17887)."""
    run = _Stack(teacher, calibration.batch)
    total = len(teacher.model.layers)
    states = [run.embedded]
    for layer in range(total):
        states.append(run.through(states[-1], [layer]))
    valid = torch.from_numpy(calibration.batch.segments_RT >= 0)
    drop = total - keep

    def angle(start: int) -> float:
        cosine = torch.cosine_similarity(
            states[start][valid].float(), states[start + drop][valid].float(), dim=-1
        )
        return float(torch.arccos(cosine.clamp(-1, 1)).mean())

    start = min(range(1, keep + 1), key=angle)
    kept = [layer for layer in range(total) if not start <= layer < start + drop]
    kl = _divergence(teacher, run.through(run.embedded, kept), calibration)
    return kept, [Removal(layer, kl) for layer in range(start, start + drop)]


def _divergence(teacher: Any, hidden_RTD: Tensor, calibration: Calibration) -> float:
    logits = teacher.lm_head(teacher.model.norm(hidden_RTD)[calibration.picked]).float()
    loss_P, _ = bucket_kl(logits, calibration.ids_PK, calibration.probs_PK)
    return float(loss_P.mean())


class _Stack:
    """A model's layers, run one at a time on fixed inputs."""

    def __init__(self, model: Any, batch: Packed, ids: Tensor | None = None) -> None:
        self.body = model.model
        inputs: dict[str, Any] = model_inputs(batch, model.dtype)
        self.mask = inputs["attention_mask"]
        self.embedded: Tensor = self.body.embed_tokens(inputs["input_ids"] if ids is None else ids)
        self.angles = self.body.rotary_emb(self.embedded, inputs["position_ids"])

    def through(self, hidden: Tensor, layers: Sequence[int]) -> Tensor:
        for layer in layers:
            hidden = self.apply(self.body.layers[layer], hidden)
        return hidden

    def apply(self, layer: Any, hidden: Tensor) -> Tensor:
        out = layer(hidden, attention_mask=self.mask, position_embeddings=self.angles)
        result: Tensor = out[0] if isinstance(out, tuple) else out
        return result


def cut(teacher: Any, kept: Sequence[int], vocabulary: Vocabulary) -> Any:
    """A student of the kept layers and tokens, with the teacher's weights in fp32.

    A byte that the teacher's vocabulary lacks starts from the mean of all embeddings.
    """
    config = copy.deepcopy(teacher.config)
    config.num_hidden_layers = len(kept)
    config.vocab_size = vocabulary.size
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[layer] for layer in kept]
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        old = getattr(config, name, None)
        if isinstance(old, int):
            setattr(config, name, int(vocabulary.student_ids_U[old]))
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
    return student.eval()


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
        batch: calibration text in the student's tokens.
        progress: called with 1 after each layer.
        width: neurons that each MLP keeps; None for all.

    Returns:
        relative distance between the states after each layer.
    """
    rows = torch.from_numpy(vocabulary.teacher_ids_V).clamp_min(0)
    tokens = torch.from_numpy(batch.tokens_RT)
    theirs = _Stack(teacher, batch, rows[tokens])
    ours = _Stack(student, batch)
    valid = torch.from_numpy(batch.segments_RT >= 0)
    target, state = theirs.embedded, ours.embedded
    done, errors = 0, []
    for index, layer in enumerate(student.model.layers):
        stop = kept[index + 1] if index + 1 < len(kept) else len(teacher.model.layers)
        target = theirs.through(target, range(done, stop))
        done = stop
        if width is not None:
            _narrow(layer.mlp, _inner(layer, ours, state)[0][valid], width)
        _refit(layer, ours, state, target, valid)
        state = ours.apply(layer, state)
        gap = (state - target)[valid].norm(dim=-1) / target[valid].norm(dim=-1)
        errors.append(float(gap.mean()))
        progress(1)
    if width is not None:
        student.config.intermediate_size = width
    return errors


def _narrow(mlp: Any, inner_PI: Tensor, width: int) -> None:
    """Keep the neurons that add most to the output: mean square activation times weight norm."""
    energy_I = inner_PI.square().mean(0) * mlp.down_proj.weight.square().sum(0)
    kept = energy_I.topk(width).indices.sort().values
    for name, axis in (("gate_proj", 0), ("up_proj", 0), ("down_proj", 1)):
        old = getattr(mlp, name)
        weight = old.weight.index_select(axis, kept).clone()
        new = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        new.weight = torch.nn.Parameter(weight)
        setattr(mlp, name, new)


def _inner(layer: Any, stack: _Stack, state: Tensor) -> tuple[Tensor, Tensor]:
    """What enters the layer's down projection, and what leaves the layer."""
    seen: list[Tensor] = []
    handle = layer.mlp.down_proj.register_forward_pre_hook(
        lambda _module, arguments: seen.append(arguments[0])
    )
    out = stack.apply(layer, state)
    handle.remove()
    return seen[0], out


def _refit(layer: Any, stack: _Stack, state: Tensor, target: Tensor, valid: Tensor) -> None:
    """Ridge regression of what is missing on the MLP's activations, added to down_proj."""
    inner, out = _inner(layer, stack, state)
    # A few positions have states a hundred times longer than the rest; relative error counts.
    scale_P1 = 1.0 / target[valid].norm(dim=-1, keepdim=True)
    inner_PI = inner[valid] * scale_P1
    missing_PD = (target - out)[valid] * scale_P1
    gram_II = inner_PI.T @ inner_PI
    gram_II.diagonal().add_(RIDGE * gram_II.diagonal().mean())
    change_ID = torch.linalg.solve(gram_II, inner_PI.T @ missing_PD)
    layer.mlp.down_proj.weight.add_(change_ID.T)
