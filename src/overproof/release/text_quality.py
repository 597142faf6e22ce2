"""How well a model says what a teacher said of whom only the answers are known.

A teacher behind an endpoint shows no distribution, so no KL to it can be measured. What can be is
the cross-entropy of its held-out answers, in nats a byte of them: it is their entropy, the same for
every model, plus the KL from the distribution that they were drawn from. So of two models the one
with less is closer to what the service says, by just the difference.

Where the service gave its likeliest tokens, KL and agreement are measured on those: over these and
one class for all others, which is a lower bound of the KL.

Shape suffixes: N answer positions, K tokens of a position, V student vocabulary, S answer positions
of the student (first pieces and later ones).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from overproof.core import device

device.prepare()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from torch import Tensor  # noqa: E402

from overproof.core.artifact import Artifact, Json  # noqa: E402
from overproof.core.console import Meter  # noqa: E402
from overproof.core.recipe import Recipe  # noqa: E402
from overproof.core.sections import EvaluateConfig  # noqa: E402
from overproof.release.byte_sums import Sums, estimates  # noqa: E402
from overproof.release.evaluate import PRODUCTS, scores, targets  # noqa: E402
from overproof.release.groups import in_groups  # noqa: E402
from overproof.release.tally import (  # noqa: E402
    STUDENT,
    by_position,
    compared,
)
from overproof.student.examples import StudentExample, respell  # noqa: E402
from overproof.student.losses import Sparse, divergence_of  # noqa: E402
from overproof.student.targets import project  # noqa: E402
from overproof.student.vocabulary import Vocabulary  # noqa: E402
from overproof.teacher.answers import Answers, made_of  # noqa: E402
from overproof.teacher.cache import SignalCache  # noqa: E402
from overproof.teacher.example import Example  # noqa: E402
from overproof.teacher.forward import layers_dtype  # noqa: E402
from overproof.teacher.kept import Spread  # noqa: E402
from overproof.teacher.kept.top_k import TopSignals  # noqa: E402
from overproof.teacher.local import Teacher  # noqa: E402
from overproof.teacher.remote.stage import heldout_file, kept  # noqa: E402
from overproof.teacher.remote.tokens import has_distribution  # noqa: E402


@dataclass(frozen=True)
class Said:
    """A held-out answer.

    Attributes:
        bytes: of its text.
        likely: the service's distributions at its tokens; None: it gave none.
        given: at which of them there is one.
    """

    example: Example
    bytes: int
    likely: Spread | None = None
    given: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Measured:
    """All that a worker needs beside its answers; see `evaluate.Measured`."""

    prefix: tuple[int, ...]
    vocabulary: Vocabulary
    models: Mapping[str, Any]
    length: int


def heldout(samples: Artifact, answers: Answers, base: Teacher, recipe: Recipe) -> list[Said]:
    """The held-out answers, with what the service said was likely.

    Args:
        base: whose tokens they are in.
    """
    sizes = [len(base.text(one.answer).encode()) for one in answers.heldout]
    if kept(recipe) is None:
        return [Said(one, size) for one, size in zip(answers.heldout, sizes, strict=True)]
    cache = SignalCache(samples.path, made_of(samples, recipe), file=heldout_file)
    return list(_with_likely(answers.heldout, sizes, cache))


def _with_likely(
    examples: Sequence[Example], sizes: Sequence[int], cache: SignalCache
) -> Iterator[Said]:
    parts = list(cache.signals())
    signals = TopSignals.joined(parts)
    assert isinstance(signals, TopSignals)
    start = 0
    for example, size in zip(examples, sizes, strict=True):
        own = signals.rows(slice(start, start + len(example.answer)))
        start += len(example.answer)
        yield Said(example, size, own.spread(), has_distribution(own).numpy())


def evaluate_text(
    prefix: Sequence[int],
    said: Sequence[Said],
    vocabulary: Vocabulary,
    models: Mapping[str, Any],
    config: EvaluateConfig,
    *,
    seed: int,
    length: int,
    meter: Meter,
) -> Json:
    """Cross-entropy of each model, and closeness to the likeliest tokens, with intervals.

    The way of `evaluate.evaluate`, without a teacher to run.

    Returns:
        for each model `nats_per_byte`, and where the service gave its likeliest tokens
        `kl_nats_per_token`, `top1_agreement`, `agreement_by_position`; under `differences` the
        student less each other model; and `products`.

    Raises:
        StageError: a worker died.
    """
    measured = Measured(tuple(prefix), vocabulary, models, length)
    whole = in_groups(measure, measured, said, models.values(), meter)
    return summary(whole, config, seed) | {"products": PRODUCTS[layers_dtype(models[STUDENT])]}


def measure(measured: Measured, group: Sequence[Said]) -> dict[str, Sums]:
    """The sums of a group of answers for each model."""
    head = measured.vocabulary.spell(measured.prefix)
    respelled = [respell(one.example, measured.vocabulary) for one in group]
    found = {}
    for name, model in measured.models.items():
        sums = found[name] = Sums()
        each = scores(model, head, respelled, measured.length)
        for score_SV, one, own in zip(each, group, respelled, strict=True):
            _add(sums, score_SV, one, own, measured.vocabulary)
    return found


def _add(
    sums: Sums, score_SV: Tensor, said: Said, own: StudentExample, vocabulary: Vocabulary
) -> None:
    where = np.flatnonzero(targets(own))
    successor = torch.tensor([own.tokens[place + 1] for place in where])
    surprise_S = -score_SV.gather(1, successor[:, None])[:, 0].double()
    sums.nll.append(float(surprise_S.sum()))
    sums.bytes.append(said.bytes)
    if said.likely is None or said.given is None:
        return
    # A later piece belongs to the token that the first one began, and adds its whole surprise.
    first = ~np.array(own.spelled)[where]
    token = np.cumsum(first) - 1
    later = torch.from_numpy(~first & said.given[token])
    given = torch.from_numpy(said.given)
    log_q_NV, likely = score_SV[torch.from_numpy(first)][given], said.likely.rows(given)
    kl_N = _divergence(log_q_NV, likely, vocabulary)
    best = likely.ids_NK[:, 0].numpy()
    same = log_q_NV.numpy().argmax(-1) == vocabulary.student_ids_U[best]
    sums.kl.append(float(kl_N.sum() + surprise_S[later].sum()))
    sums.places.append(int(given.sum()))
    sums.hits.append((same & vocabulary.kept_U[best]).astype(np.float64))


def _divergence(log_q_NV: Tensor, likely: Spread, vocabulary: Vocabulary) -> Tensor:
    """KL over the likeliest tokens and one class for all others, (N,)."""
    blocks = list(project(likely, vocabulary, likely.ids_NK.shape[1]))
    if not blocks:
        return torch.zeros(0, dtype=torch.float64)
    ids = torch.from_numpy(np.concatenate([block.ids_mK for block in blocks])).long()
    probs = torch.from_numpy(np.concatenate([block.probs_mK for block in blocks]))
    found, _ = divergence_of(log_q_NV.double(), Sparse.of(ids, probs.double()))
    return found.clamp_min(0.0)


def summary(whole: Mapping[str, Sums], config: EvaluateConfig, seed: int) -> Json:
    """What was measured of each model, and of the student against each other one, paired."""
    found = estimates(whole, config, seed, "kl_nats_per_token", "top1_agreement")
    return compared(found, config, {name: by_position(sums.hits) for name, sums in whole.items()})
