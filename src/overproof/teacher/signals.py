"""Keeping the teacher's distribution at each position of its own answers: the logit cache.

Kept a position: the `top_k` most likely tokens with their log-probabilities, and the log of the
mass of all others (the tail), without which a truncated divergence is none.

Shape suffixes: N positions, K kept tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overproof.core import device

device.prepare()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from torch import Tensor  # noqa: E402

from overproof.core.artifact import Artifact, Input, Json, Resource, Work, build  # noqa: E402
from overproof.core.config import Recipe  # noqa: E402
from overproof.core.console import Meter, meter  # noqa: E402
from overproof.core.workers import sharing, spread  # noqa: E402
from overproof.data.pack import longest_first, pack  # noqa: E402
from overproof.teacher.answers import read  # noqa: E402
from overproof.teacher.example import Example  # noqa: E402
from overproof.teacher.forward import logits_at  # noqa: E402
from overproof.teacher.local import Teacher  # noqa: E402

BATCH_SEQUENCES = 4  # their logits, 1,024 x 49,152 in fp32, take 200 MB
ROWS = 16  # positions in fp32 at a time: 3 MB stay near the cache
SHARD_EXAMPLES = 128  # examples a shard; a killed run loses at most one shard a core

Shard = tuple[Path, Sequence[Example]]


@dataclass(frozen=True)
class Signals:
    """The teacher's distributions at the answer positions of many examples, one after another.

    Attributes:
        ids_NK: the most likely tokens, most likely first.
        log_probs_NK: their log-probabilities, nats, fp16.
        tail_N: log of the mass of all other tokens, nats, fp32.
    """

    ids_NK: Tensor
    log_probs_NK: Tensor
    tail_N: Tensor


def answer_mask(examples: Sequence[Example]) -> NDArray[np.bool_]:
    """Over the concatenation of all examples' tokens: is the successor part of the answer?"""
    wanted = np.zeros(sum(len(example.tokens) for example in examples), np.bool_)
    start = 0
    for example in examples:
        wanted[start + example.targets.start : start + example.targets.stop] = True
        start += len(example.tokens)
    return wanted


def answer_logits(
    model: Any,
    prefix: Sequence[int],
    examples: Sequence[Example],
    length: int,
) -> Iterator[tuple[NDArray[np.int64], Tensor]]:
    """Logits at every answer position of the examples, see `forward.logits_at`."""
    texts = [example.tokens for example in examples]
    packed = pack(prefix, texts, length, longest_first(texts))
    return logits_at(model, packed, answer_mask(examples), BATCH_SEQUENCES)


def shard_signals(
    model: Any, prefix: Sequence[int], examples: Sequence[Example], length: int, top_k: int
) -> Signals:
    """Compute the signals of some examples.

    Args:
        model: the teacher; its head and softmax run in the type of its weights, the
            log-probabilities are normalised in fp32.
        length: tokens a packed sequence.
    """
    count = int(answer_mask(examples).sum())
    top_k = min(top_k, model.config.vocab_size)
    ids = torch.zeros(count, top_k, dtype=torch.int32)
    kept = torch.zeros(count, top_k, dtype=torch.float16)
    tail = torch.zeros(count)
    for where, logits_NV in answer_logits(model, prefix, examples, length):
        at = torch.from_numpy(where)
        for rows, logits in zip(at.split(ROWS), logits_NV.split(ROWS), strict=True):
            exact = logits.float()
            top_NK, ids_NK = exact.topk(top_k, dim=-1)
            log_probs_NK = (top_NK - torch.logsumexp(exact, -1, keepdim=True)).half()
            ids[rows], kept[rows] = ids_NK.int(), log_probs_NK
            # The tail is what the stored, rounded log-probabilities leave of 1.
            tail[rows] = torch.log1p(-log_probs_NK.float().exp().sum(-1).clamp_max(1.0))
    return Signals(ids, kept, tail)


def write_signals(
    model: Any,
    prefix: Sequence[int],
    examples: Sequence[Example],
    folder: Path,
    *,
    length: int,
    top_k: int,
    progress: Meter,
) -> None:
    """Write the signals of all examples as shards, one process a core; what is there is kept.

    Raises:
        StageError: a worker died; finished shards are kept.
    """
    shards: list[Shard] = []
    for number, start in enumerate(range(0, len(examples), SHARD_EXAMPLES)):
        part = examples[start : start + SHARD_EXAMPLES]
        path = folder / f"signals-{number:05d}.safetensors"
        if path.exists():
            progress.skip(_tokens(part))
        else:
            shards.append((path, part))
    workers = min(device.cores(), len(shards))
    with sharing():
        model.share_memory()
    shares = [
        (model, tuple(prefix), shards[rank::workers], length, top_k) for rank in range(workers)
    ]
    for tokens in spread(
        _work,
        shares,
        len(shards),
        name="a signals worker",
        hint="free memory, and run the same command again: finished shards are kept",
    ):
        progress.advance(tokens)


def _tokens(examples: Sequence[Example]) -> int:
    return sum(len(example.tokens) for example in examples)


def _work(
    model: Any,
    prefix: tuple[int, ...],
    shards: list[Shard],
    length: int,
    top_k: int,
    results: Any,
) -> None:
    """A worker: one thread, its share of the shards."""
    torch.set_num_threads(1)
    for path, examples in shards:
        signals = shard_signals(model, prefix, examples, length, top_k)
        temporary = path.with_suffix(".tmp")
        save_file(
            {
                "ids": signals.ids_NK,
                "log_probs": signals.log_probs_NK,
                "tail": signals.tail_N,
            },
            temporary,
        )
        temporary.replace(path)
        results.put(_tokens(examples))


class SignalCache:
    """A finished cache: its shards, one at a time, in the order of the examples.

    A long run's signals take gigabytes, a shard ten megabytes.
    """

    def __init__(self, folder: Path) -> None:
        self._shards = sorted(folder.glob("signals-*.safetensors"))

    def __iter__(self) -> Iterator[Signals]:
        for path in self._shards:
            shard = load_file(path)
            yield Signals(shard["ids"], shard["log_probs"], shard["tail"])


def cache(
    load: Callable[[], Teacher], samples: Artifact, recipe: Recipe, resource: Resource, store: Path
) -> Artifact:
    """The stage `signals`: the teacher's distributions over its training answers.

    The cache is bound by its inputs and configuration to teacher, tokenizer, template, data and
    sampler: the samples' digest covers the last three.
    """

    def make(work: Work) -> Json:
        teacher = load()
        answers = read(samples)
        tokens = sum(len(example.tokens) for example in answers.train)
        with meter("signals", tokens, "tokens") as progress:
            write_signals(
                teacher.half,
                answers.prefix,
                answers.train,
                work.folder,
                length=recipe.train.sequence_length,
                top_k=recipe.signals.top_k,
                progress=progress,
            )
            work.measured["tokens_per_second"] = round(progress.rate, 1)
        return {"positions": sum(len(example.answer) for example in answers.train)}

    config = {
        "signals": recipe.signals.model_dump(),
        "sequence_length": recipe.train.sequence_length,
    }
    inputs: dict[str, Input] = {"samples": samples, "teacher": resource}
    return build(store, "signals", inputs=inputs, config=config, make=make, layer="teacher")
