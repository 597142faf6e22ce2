"""The logit cache: the teacher's distribution at each position of its answers and of prompts.

Kept while the answers are drawn, where the teacher computes it anyway; or by a pass of its own
over finished answers.

Shape suffixes: N positions, K kept tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from overproof.core import device

device.prepare()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

from overproof.core.artifact import Artifact, Input, Json, Work, build  # noqa: E402
from overproof.core.console import Meter, meter  # noqa: E402
from overproof.core.digest import sha256_json  # noqa: E402
from overproof.core.disk import link_or_copy  # noqa: E402
from overproof.core.errors import UsageError  # noqa: E402
from overproof.core.methods import Text  # noqa: E402
from overproof.core.recipe import Recipe  # noqa: E402
from overproof.core.workers import spread  # noqa: E402
from overproof.teacher.answers import Answers, made_of, read  # noqa: E402
from overproof.teacher.cache import (  # noqa: E402
    SHARD_EXAMPLES,
    cache_files,
    describe,
    shard_file,
    write_shard,
)
from overproof.teacher.example import Example  # noqa: E402
from overproof.teacher.forward import Read, head_of, laid, logits_at, share  # noqa: E402
from overproof.teacher.kept import Kept, Signals, exact, kept_of  # noqa: E402
from overproof.teacher.routing import Load, by_teacher  # noqa: E402

BATCH_SEQUENCES = 4  # their logits, 1,024 x 49,152 in fp32, take 200 MB

Shard = tuple[Path, Sequence[Example]]


def target_mask(examples: Sequence[Example], *, prompts: bool = False) -> NDArray[np.bool_]:
    """Over the concatenation of all examples' tokens: which are targets, see `Example.targets`."""
    wanted = np.zeros(sum(len(example.tokens) for example in examples), np.bool_)
    start = 0
    for example in examples:
        targets = example.targets(prompt=prompts)
        wanted[start + targets.start : start + targets.stop] = True
        start += len(example.tokens)
    return wanted


def answer_rows(examples: Sequence[Example]) -> NDArray[np.bool_]:
    """Over the signals of prompts and answers: which are an answer's?"""
    return target_mask(examples)[target_mask(examples, prompts=True)]


def target_logits(
    model: Any,
    prefix: Sequence[int],
    examples: Sequence[Example],
    length: int,
    *,
    prompts: bool = False,
) -> Iterator[Read]:
    """Logits at every target of the examples, see `Example.targets` and `forward.logits_at`."""
    texts = [example.tokens for example in examples]
    packed = laid(model, prefix, texts, length)
    return logits_at(model, packed, target_mask(examples, prompts=prompts), BATCH_SEQUENCES)


def shard_signals(
    model: Any, prefix: Sequence[int], examples: Sequence[Example], length: int, kept: Kept
) -> Signals:
    """Compute the signals of some examples; which tokens are drawn follows from these alone.

    Args:
        model: the teacher; its head and softmax run in the type of its weights, the
            log-probabilities are normalised in fp32.
        length: tokens a packed sequence.
    """
    count = sum(len(example.targets(prompt=kept.prompts)) for example in examples)
    kept = kept.within(model.config.vocab_size)
    found = kept.empty(count, model.config.hidden_size)
    seed = int(sha256_json([[one.key, *one.answer] for one in examples])[:15], 16)
    offset_N = torch.from_numpy(np.random.Generator(np.random.Philox(seed)).random(count))
    for batch in target_logits(model, prefix, examples, length, prompts=kept.prompts):
        at = torch.from_numpy(batch.where)
        for part in exact(batch.logits_PV, batch.hidden_PD):
            rows = at[part.where]
            found.put(rows, kept.take(part, offset_N[rows]))
    return found


def write_signals(
    model: Any,
    prefix: Sequence[int],
    examples: Sequence[Example],
    folder: Path,
    *,
    length: int,
    kept: Kept,
    progress: Meter,
    first: int = 0,
) -> int:
    """Write the signals of examples as shards, one process a core; what is there is kept.

    A killed run loses at most one shard a core.

    Args:
        first: number of the first shard.

    Returns:
        the number that follows the last shard's.

    Raises:
        StageError: a worker died; finished shards are kept.
    """
    shards: list[Shard] = []
    starts = range(0, len(examples), SHARD_EXAMPLES)
    for number, start in enumerate(starts):
        part = examples[start : start + SHARD_EXAMPLES]
        path = shard_file(folder, first + number)
        if path.exists():
            progress.skip(_tokens(part))
        else:
            shards.append((path, part))
    workers = min(device.cores(), len(shards))
    share(model)
    shares = [
        (model, tuple(prefix), shards[rank::workers], length, kept) for rank in range(workers)
    ]
    for tokens in spread(
        _work,
        shares,
        len(shards),
        name="a signals worker",
        hint="free memory, and run the same command again: finished shards are kept",
    ):
        progress.advance(tokens)
    return first + len(starts)


def _tokens(examples: Sequence[Example]) -> int:
    return sum(len(example.tokens) for example in examples)


def _work(
    model: Any,
    prefix: tuple[int, ...],
    shards: list[Shard],
    length: int,
    kept: Kept,
    results: Any,
) -> None:
    """A worker: one thread, its share of the shards."""
    torch.set_num_threads(1)
    for path, examples in shards:
        write_shard(path, kept, shard_signals(model, prefix, examples, length, kept))
        results.put(_tokens(examples))


def cache(
    load: Load, samples: Artifact, recipe: Recipe, teachers: Mapping[str, Input], store: Path
) -> Artifact:
    """The stage `signals`: the teacher's distributions over prompts and its training answers.

    Those that were kept while the answers were drawn are taken over as they are. Otherwise each
    teacher reads its answers once more.

    The cache says what it is bound to: teacher, tokenizer, template, texts and sampler.

    Raises:
        UsageError: the recipe asks for none.
    """
    chosen = recipe.signals
    if isinstance(chosen, Text):
        raise UsageError("signals.kind `text` has no distributions to cache")

    def make(work: Work) -> Json:
        answers = read(samples)
        drawn = cache_files(samples.path)
        for file in drawn:
            link_or_copy(file, work.folder / file.name)
        if not drawn:
            own_pass(work, answers)
        prompts = recipe.signals.prompts
        counts = (len(example.targets(prompt=prompts)) for example in answers.train)
        return {"positions": sum(counts)}

    def own_pass(work: Work, answers: Answers) -> None:
        tokens = sum(len(example.tokens) for example in answers.train)
        number = 0
        with meter("signals", tokens, "tokens") as progress:
            for which, examples in by_teacher(answers.train):
                model = load(which).half
                kept = kept_of(chosen).within(model.config.vocab_size)
                if not number:
                    describe(work.folder, kept, made_of(samples, recipe), head_of(model).weight)
                number = write_signals(
                    model,
                    answers.prefix,
                    examples,
                    work.folder,
                    length=recipe.train.sequence_length,
                    kept=kept,
                    progress=progress,
                    first=number,
                )
            work.measured["tokens_per_second"] = round(progress.rate, 1)

    config = {
        "signals": recipe.signals.model_dump(),
        "sequence_length": recipe.train.sequence_length,
    }
    inputs: dict[str, Input] = {"samples": samples, **teachers}
    return build(store, "signals", inputs=inputs, config=config, make=make, layer="teacher")
