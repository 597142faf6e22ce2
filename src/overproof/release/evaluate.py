"""How near the student is to its teacher on prompts that neither training nor choice has seen.

Everything is counted at the teacher's tokens. Where the student lacks a token and spells it in
pieces, the first piece is compared with the teacher's distribution mapped to first pieces, and
the later pieces add their whole surprise to the divergence: an upper bound, never a gift.

Shape suffixes: N answer positions of the teacher, U teacher vocabulary, V student vocabulary,
S answer positions of the student (first pieces and later ones).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from overproof.core import device

device.prepare()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from torch import Tensor  # noqa: E402

from overproof.core.config import EvaluateConfig  # noqa: E402
from overproof.core.console import Meter  # noqa: E402
from overproof.data.pack import pack  # noqa: E402
from overproof.student.examples import NO_TARGET, StudentExample, respell  # noqa: E402
from overproof.student.vocabulary import Vocabulary  # noqa: E402
from overproof.teacher.example import Example  # noqa: E402
from overproof.teacher.signals import answer_logits, model_inputs  # noqa: E402

GROUP = 24  # examples scored together: bounds the memory of the teacher's full distributions
Floats = NDArray[np.float64]
Json = dict[str, Any]


@dataclass
class Tally:
    """Sums of one model, one row an example.

    Attributes:
        kl, agreement, nll: sums over the example's answer tokens, nats and counts.
        tokens: answer tokens of the example.
        hits: agreement at each answer token, for the curve by position.
    """

    kl: list[float] = field(default_factory=list)
    agreement: list[float] = field(default_factory=list)
    nll: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    hits: list[Floats] = field(default_factory=list)


def evaluate(
    teacher: Any,
    prefix: Sequence[int],
    examples: Sequence[Example],
    vocabulary: Vocabulary,
    models: Mapping[str, Any],
    config: EvaluateConfig,
    *,
    seed: int,
    length: int,
    meter: Meter,
) -> Json:
    """Divergence, agreement and perplexity of each model, with intervals.

    1. The teacher's full distributions, in fp32, for a group of examples.
    2. Each model's log-probabilities at the same places.
    3. Sums an example; the bootstrap resamples examples, since tokens of one answer are not
       independent.

    Args:
        models: name to model in the student's vocabulary.
        length: tokens a packed sequence.
        meter: counts examples, once a model.

    Returns:
        for `teacher` and each model `kl_nats_per_token`, `top1_agreement`, `perplexity` as
        value, low, high; and `agreement_by_position`.
    """
    tallies = {name: Tally() for name in ("teacher", *models)}
    head = [piece for token in prefix for piece in vocabulary.pieces(token)]
    for start in range(0, len(examples), GROUP):
        group = examples[start : start + GROUP]
        # 1.
        truth = _truth(teacher, prefix, group, length)
        _tally_teacher(tallies["teacher"], truth, group)
        target_NV = _project(truth, vocabulary)
        respelled = [respell(example, vocabulary) for example in group]
        for name, model in models.items():
            # 2.
            scores = _scores(model, head, respelled, length)
            _tally(tallies[name], scores, truth, target_NV, vocabulary, group, respelled)
            meter.advance(len(group))
    # 3.
    return {
        name: _summary(tally, config, seed) | {"agreement_by_position": _by_position(tally)}
        for name, tally in tallies.items()
    }


@torch.inference_mode()
def _truth(teacher: Any, prefix: Sequence[int], group: Sequence[Example], length: int) -> Tensor:
    """The teacher's log-probabilities at every answer position, (N, U)."""
    count = sum(len(example.answer) for example in group)
    found = torch.empty(count, teacher.config.vocab_size)
    for where, logits in answer_logits(teacher, prefix, group, length):
        found[torch.from_numpy(where)] = torch.log_softmax(logits.float(), dim=-1)
    return found


def _project(truth_NU: Tensor, vocabulary: Vocabulary) -> Tensor:
    """The teacher's probabilities over what the student says next, (N, V)."""
    # A tokenizer may know more tokens than the model has rows, never fewer.
    columns = torch.from_numpy(vocabulary.student_ids_U)[: truth_NU.shape[1]]
    target = torch.zeros(len(truth_NU), vocabulary.size)
    return target.index_add_(1, columns, truth_NU.exp())


def _tally_teacher(tally: Tally, truth_NU: Tensor, group: Sequence[Example]) -> None:
    actual = torch.tensor([token for example in group for token in example.answer])
    nll = -truth_NU.gather(1, actual[:, None])[:, 0].double().numpy()
    start = 0
    for example in group:
        size = len(example.answer)
        tally.kl.append(0.0)
        tally.agreement.append(float(size))
        tally.nll.append(float(nll[start : start + size].sum()))
        tally.tokens.append(size)
        tally.hits.append(np.ones(size))
        start += size


@torch.inference_mode()
def _scores(
    model: Any, head: Sequence[int], respelled: Sequence[StudentExample], length: int
) -> list[Tensor]:
    """Each example's log-probabilities at its places with a target, in order, (S, V)."""
    packed = pack(head, [one.tokens for one in respelled], _fit(head, respelled, length))
    wanted = np.concatenate([_targets(one) for one in respelled])
    number = np.cumsum(wanted) - 1
    rows: Tensor | None = None
    for start in range(0, len(packed.tokens_RT), 8):
        batch = packed.rows(slice(start, start + 8))
        picked = (batch.source_RT >= 0) & wanted[batch.source_RT]
        hidden = model.model(**model_inputs(batch, model.dtype)).last_hidden_state
        logits = model.lm_head(hidden[torch.from_numpy(picked)]).float()
        if rows is None:
            rows = torch.empty(int(wanted.sum()), logits.shape[1])
        rows[torch.from_numpy(number[batch.source_RT[picked]])] = torch.log_softmax(logits, -1)
    sizes = [int(_targets(one).sum()) for one in respelled]
    return list(rows.split(sizes)) if rows is not None else []


def _fit(head: Sequence[int], respelled: Sequence[StudentExample], length: int) -> int:
    """A spelling can be longer than the teacher's text; nothing held out is cut or left out."""
    return max(length, len(head) + max(len(one.tokens) for one in respelled))


def _targets(one: StudentExample) -> NDArray[np.bool_]:
    targets: NDArray[np.bool_] = np.array(one.teacher_positions) != NO_TARGET
    return targets | np.array(one.spelled, np.bool_)


def _tally(
    tally: Tally,
    scores: Sequence[Tensor],
    truth_NU: Tensor,
    target_NV: Tensor,
    vocabulary: Vocabulary,
    group: Sequence[Example],
    respelled: Sequence[StudentExample],
) -> None:
    best_N = truth_NU.argmax(-1).numpy()
    start = 0
    for score_SV, example, one in zip(scores, group, respelled, strict=True):
        where = np.flatnonzero(_targets(one))
        first = torch.from_numpy(~np.array(one.spelled)[where])
        successor = torch.tensor([one.tokens[place + 1] for place in where])
        surprise_S = -score_SV.gather(1, successor[:, None])[:, 0].double()
        rows = slice(start, start + len(example.answer))
        p_NV, log_q_NV = target_NV[rows], score_SV[first]
        kl = (torch.xlogy(p_NV, p_NV) - p_NV * log_q_NV).sum(-1).double().clamp_min(0.0)
        # A token that the student lacks counts as missed, even if its first piece is right.
        best = best_N[rows]
        hits = (log_q_NV.argmax(-1).numpy() == vocabulary.student_ids_U[best]) & vocabulary.kept_U[
            best
        ]
        tally.kl.append(float(kl.sum() + surprise_S[~first].sum()))
        tally.agreement.append(float(hits.sum()))
        tally.nll.append(float(surprise_S.sum()))
        tally.tokens.append(len(example.answer))
        tally.hits.append(hits.astype(np.float64))
        start += len(example.answer)


def _summary(tally: Tally, config: EvaluateConfig, seed: int) -> Json:
    tokens = np.array(tally.tokens, np.float64)
    draws = np.random.default_rng(seed).integers(0, len(tokens), (config.bootstrap, len(tokens)))
    nll = interval(np.array(tally.nll), tokens, draws, config.confidence)
    return {
        "kl_nats_per_token": interval(np.array(tally.kl), tokens, draws, config.confidence),
        "top1_agreement": interval(np.array(tally.agreement), tokens, draws, config.confidence),
        "perplexity": {name: math.exp(value) for name, value in nll.items()},
    }


def interval(sums: Floats, tokens: Floats, draws: NDArray[np.int64], confidence: float) -> Json:
    """A mean a token with its percentile bootstrap interval (Efron 1979).

    Args:
        sums, tokens: of each example.
        draws: (resamples, examples) indices of examples, with repetition.
        confidence: such as 0.95.
    """
    means = sums[draws].sum(1) / tokens[draws].sum(1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return {"value": float(sums.sum() / tokens.sum()), "low": float(low), "high": float(high)}


def _by_position(tally: Tally) -> list[list[float]]:
    """Position in the answer, agreement there, number of answers that reach it."""
    longest = max(map(len, tally.hits), default=0)
    rows = []
    for position in range(longest):
        hits = [hits[position] for hits in tally.hits if len(hits) > position]
        rows.append([position, float(np.mean(hits)), len(hits)])
    return rows
