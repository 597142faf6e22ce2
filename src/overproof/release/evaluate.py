"""How near the student is to its teacher on prompts that neither training nor choice has seen.

Everything is counted at the teacher's tokens. Where the student lacks a token and spells it in
pieces, the first piece is compared with the teacher's distribution mapped to first pieces, and
the later pieces add their whole surprise to the divergence wherever the teacher drew the token.

Shape suffixes: N answer positions of the teacher, U teacher vocabulary, V student vocabulary,
S answer positions of the student (first pieces and later ones).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from overproof.core import device

device.prepare()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from torch import Tensor  # noqa: E402

from overproof.core.console import Meter  # noqa: E402
from overproof.core.sections import EvaluateConfig  # noqa: E402
from overproof.release.groups import in_groups  # noqa: E402
from overproof.release.tally import TEACHER, Tally, summary  # noqa: E402
from overproof.student.examples import NO_TARGET, StudentExample, respell  # noqa: E402
from overproof.student.vocabulary import Vocabulary  # noqa: E402
from overproof.teacher.example import Example  # noqa: E402
from overproof.teacher.forward import laid, layers_dtype, logits_at, mixed  # noqa: E402
from overproof.teacher.signals import target_logits  # noqa: E402

PRODUCTS = {torch.bfloat16: "bf16", torch.float32: "fp32"}
SEQUENCES = 8  # packed sequences that go through a model together
Json = dict[str, Any]


@dataclass(frozen=True)
class Measured:
    """What is compared, and how: all that a worker needs beside its examples.

    Attributes:
        prefix: tokens that every example starts with for the teacher.
        student_prefix: for the models; both in the teacher's vocabulary.
        models: name to model in the student's vocabulary.
        length: tokens a packed sequence.
    """

    teacher: Any
    prefix: tuple[int, ...]
    student_prefix: tuple[int, ...]
    vocabulary: Vocabulary
    models: Mapping[str, Any]
    length: int


def evaluate(
    teachers: Iterable[tuple[Any, Sequence[Example]]],
    prefix: Sequence[int],
    student_prefix: Sequence[int],
    vocabulary: Vocabulary,
    models: Mapping[str, Any],
    config: EvaluateConfig,
    *,
    seed: int,
    length: int,
    meter: Meter,
) -> Json:
    """Divergence, agreement and perplexity of each model, with intervals.

    1. Each teacher's examples give sums.
    2. The bootstrap resamples examples; of several teachers, those of each alone too.

    Args:
        teachers: each with the examples that it answered; taken one after the other.
        models: name to model in the student's vocabulary.
        length: tokens a packed sequence.
        meter: counts examples.

    Returns:
        what `tally.summary` says, and under `products` the type that the layers multiplied in; of
        several teachers, under `teachers`, what it says of the examples of each.

    Raises:
        StageError: a worker died.
    """
    if not config.exact:
        models = {name: mixed(model) for name, model in models.items()}
    # 1.
    each, products = list[dict[str, Tally]](), ""
    for given, examples in teachers:
        teacher = given if config.exact else mixed(given)
        products = PRODUCTS[layers_dtype(teacher)]
        measured = Measured(
            teacher, tuple(prefix), tuple(student_prefix), vocabulary, models, length
        )
        shared = (teacher, *models.values())
        each.append(in_groups(measure, measured, examples, shared, meter))
    # 2.
    whole = {name: Tally() for name in (TEACHER, *models)}
    for part in each:
        for name, tally in part.items():
            whole[name].extend(tally)
    result = summary(whole, config, seed) | {"products": products}
    if len(each) > 1:
        result["teachers"] = [summary(part, config, seed) for part in each]
    return result


def measure(measured: Measured, group: Sequence[Example]) -> dict[str, Tally]:
    """The sums of a group of examples for the teacher and each model.

    1. The teacher's full distributions; head and softmax in fp32.
    2. Each model's log-probabilities at the same places.
    """
    # 1.
    truth_NU = read_teacher(measured.teacher, measured.prefix, group, measured.length)
    tallies = {TEACHER: _tally_teacher(truth_NU, group)}
    truth = _Truth.of(truth_NU, measured.vocabulary)
    head = measured.vocabulary.spell(measured.student_prefix)
    respelled = [respell(example, measured.vocabulary) for example in group]
    for name, model in measured.models.items():
        # 2.
        found = scores(model, head, respelled, measured.length)
        tallies[name] = _tally(found, truth, measured.vocabulary, group, respelled)
    return tallies


@torch.inference_mode()
def read_teacher(
    teacher: Any, prefix: Sequence[int], group: Sequence[Example], length: int
) -> Tensor:
    """The teacher's log-probabilities at every answer position, (N, U)."""
    count = sum(len(example.answer) for example in group)
    found = torch.empty(count, teacher.config.vocab_size)
    length = _fit(prefix, [example.tokens for example in group], length)
    for where, logits, _ in target_logits(teacher, prefix, group, length):
        found[torch.from_numpy(where)] = torch.log_softmax(logits.float(), dim=-1)
    return found


def _project(truth_NU: Tensor, vocabulary: Vocabulary) -> Tensor:
    """The teacher's probabilities over what the student says next, (N, V)."""
    # A tokenizer may know more tokens than the model has rows, never fewer.
    columns = torch.from_numpy(vocabulary.student_ids_U)[: truth_NU.shape[1]]
    target = torch.zeros(len(truth_NU), vocabulary.size)
    # Row by row: `index_add_` goes column by column, a cache miss each.
    return target.scatter_add_(1, columns.expand_as(truth_NU), truth_NU.exp())


@dataclass(frozen=True)
class _Truth:
    """What every model is compared with.

    Attributes:
        target_NV: the teacher's probabilities over what the student says next.
        entropy_N: theirs, nats.
        best_N: the teacher's most likely token.
    """

    target_NV: Tensor
    entropy_N: Tensor
    best_N: NDArray[np.int64]

    @classmethod
    def of(cls, truth_NU: Tensor, vocabulary: Vocabulary) -> _Truth:
        target_NV = _project(truth_NU, vocabulary)
        entropy_N = -torch.xlogy(target_NV, target_NV).sum(-1).double()
        return cls(target_NV, entropy_N, truth_NU.numpy().argmax(-1))  # NumPy's is the faster


def _tally_teacher(truth_NU: Tensor, group: Sequence[Example]) -> Tally:
    actual = torch.tensor([token for example in group for token in example.answer])
    nll_N = -truth_NU.gather(1, actual[:, None])[:, 0].double()
    tally = Tally()
    for nll in nll_N.split([len(example.answer) for example in group]):
        tally.add(0.0, float(nll.sum()), np.ones(len(nll)))
    return tally


def scores(
    model: Any, head: Sequence[int], respelled: Sequence[StudentExample], length: int
) -> list[Tensor]:
    """Each example's log-probabilities at its places with a target, in order, (S, V)."""
    texts = [one.tokens for one in respelled]
    packed = laid(model, head, texts, _fit(head, texts, length))
    sizes = [int(targets(one).sum()) for one in respelled]
    wanted = np.concatenate([targets(one) for one in respelled])
    rows = torch.empty(sum(sizes), model.config.vocab_size)
    for where, logits, _ in logits_at(model, packed, wanted, SEQUENCES):
        rows[torch.from_numpy(where)] = torch.log_softmax(logits.float(), dim=-1)
    return list(rows.split(sizes))


def _fit(head: Sequence[int], texts: Sequence[Sequence[int]], length: int) -> int:
    """A sequence's length, more than was asked for where need be: nothing is cut or left out."""
    return max(length, len(head) + max(map(len, texts)))


def targets(one: StudentExample) -> NDArray[np.bool_]:
    """Its places with a target: before the answer's tokens, and inside those that it spells."""
    first: NDArray[np.bool_] = np.array(one.teacher_positions) != NO_TARGET
    return first | np.array(one.spelled, np.bool_)


def _tally(
    each: Sequence[Tensor],
    truth: _Truth,
    vocabulary: Vocabulary,
    group: Sequence[Example],
    respelled: Sequence[StudentExample],
) -> Tally:
    tally = Tally()
    start = 0
    for score_SV, example, one in zip(each, group, respelled, strict=True):
        where = np.flatnonzero(targets(one))
        first = torch.from_numpy(~np.array(one.spelled)[where])
        successor = torch.tensor([one.tokens[place + 1] for place in where])
        surprise_S = -score_SV.gather(1, successor[:, None])[:, 0].double()
        rows = slice(start, start + len(example.answer))
        log_q_NV = score_SV[first]
        crossed_N = -(truth.target_NV[rows] * log_q_NV).sum(-1).double()
        kl = (crossed_N - truth.entropy_N[rows]).clamp_min(0.0)
        # A token that the student lacks counts as missed, even if its first piece is right.
        best = truth.best_N[rows]
        hits = (log_q_NV.numpy().argmax(-1) == vocabulary.student_ids_U[best]) & vocabulary.kept_U[
            best
        ]
        tally.add(
            float(kl.sum() + surprise_S[~first].sum()),
            float(surprise_S.sum()),
            hits.astype(np.float64),
        )
        start += len(example.answer)
    return tally
