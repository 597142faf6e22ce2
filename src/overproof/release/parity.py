"""How far builds are from the model: the same places of held-out text in each, on all cores.

Nearly all of the time goes into the engine's printing of whole distributions, one thread each, so
the texts of all builds are spread over one process a core.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from overproof.core import device
from overproof.core.console import meter
from overproof.core.errors import StageError, UsageError
from overproof.core.workers import spread
from overproof.release.engine import DEFAULT_CONTEXT, Engine

MAX_TEXTS = 16  # texts compared; more positions of one text share a prefix, and so tell less
MAX_POSITIONS = 128  # positions compared: each costs about 0.17 s at 16k tokens of vocabulary
# Tokens of a text that are compared. Behind them two ends must fit, and what spelling the text
# anew can add: sampled tokens need not be those that its own tokenizer would choose.
MAX_TOKENS = DEFAULT_CONTEXT - 64
DIGITS = 9  # decimals kept in a receipt; fp32 log-probabilities carry about seven
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Sample:
    """A held-out text and the places at which model and build are compared.

    Attributes:
        tokens: ids in the student's vocabulary.
        positions: i compares the distributions over what follows `tokens[: i + 1]`.
    """

    tokens: tuple[int, ...]
    positions: tuple[int, ...]


@dataclass(frozen=True)
class Parity:
    """How far a build's distributions are from the model's.

    Attributes:
        kl_nats_per_token: mean KL(model || build).
        top1_agreement: share of positions with the same most likely token.
        max_abs_delta_logprob: largest change of the log-probability of the text's own token, nats.
        mean_abs_delta_logprob: mean of the same.
        positions: number of positions compared.
    """

    kl_nats_per_token: float
    top1_agreement: float
    max_abs_delta_logprob: float
    mean_abs_delta_logprob: float
    positions: int


def choose(texts: Sequence[Sequence[int]]) -> list[Sample]:
    """Spread `MAX_POSITIONS` positions evenly over the first `MAX_TEXTS` texts.

    The common beginning of all texts (a system message) is left out: its positions would be
    compared once for each text and say the same each time.

    Raises:
        UsageError: no text has two tokens.
    """
    usable = [tuple(map(int, text))[:MAX_TOKENS] for text in texts if len(text) > 1]
    usable = list(dict.fromkeys(usable))[:MAX_TEXTS]
    if not usable:
        raise UsageError(
            "no held-out text to compare builds on",
            details=[f"got {len(texts)} texts, none of two tokens or more"],
        )
    start = _common(usable) if len(usable) > 1 else 0
    found = []
    for tokens in usable:
        # The last position predicts nothing that the text has; the first after the common
        # beginning is predicted from that beginning.
        first, last = min(max(start - 1, 0), len(tokens) - 2), len(tokens) - 2
        wanted = min(MAX_POSITIONS // len(usable), last - first + 1)
        places = np.unique(np.linspace(first, last, wanted).round().astype(int))
        found.append(Sample(tokens, tuple(int(place) for place in places)))
    return found


def _common(texts: Sequence[tuple[int, ...]]) -> int:
    """Length of the beginning that all texts share."""
    low, high = min(texts), max(texts)
    return next(
        (place for place, (a, b) in enumerate(zip(low, high, strict=False)) if a != b),
        min(len(low), len(high)),
    )


def compare(samples: Sequence[Sample], model: Sequence[Floats], build: Sequence[Floats]) -> Parity:
    """Compare distributions at the samples' positions.

    Args:
        model: log-probabilities of shape (positions, vocabulary) for each sample, nats.
        build: the same of the build.
    """
    p = np.concatenate([np.asarray(rows, np.float64) for rows in model])
    q = np.concatenate([np.asarray(rows, np.float64) for rows in build])
    said = [sample.tokens[place + 1] for sample in samples for place in sample.positions]
    row = np.arange(len(said))
    delta = np.abs(p[row, said] - q[row, said])
    kl = (np.exp(p) * (p - q)).sum(-1)
    return Parity(
        kl_nats_per_token=round(float(kl.mean()), DIGITS),
        top1_agreement=round(float((p.argmax(-1) == q.argmax(-1)).mean()), DIGITS),
        max_abs_delta_logprob=round(float(delta.max()), DIGITS),
        mean_abs_delta_logprob=round(float(delta.mean()), DIGITS),
        positions=len(said),
    )


def measure(
    builds: Mapping[str, Path],
    tokenizer: Path,
    samples: Sequence[Sample],
    wanted: Sequence[Floats],
) -> dict[str, Parity]:
    """Run GGUF files in their engine and compare them with the model.

    Args:
        builds: name and file of each.
        tokenizer: the model's `tokenizer.json`.
        wanted: the model's log-probabilities, see `compare`.

    Raises:
        StageError: the engine refuses a file, or cuts a text differently.
    """
    tasks = [(name, index) for name in builds for index in range(len(samples))]
    workers = max(1, min(device.cores(), len(tasks)))
    shares = [
        (dict(builds), tokenizer, samples, [tasks[at] for at in part])
        for part in np.array_split(np.arange(len(tasks)), workers)
    ]
    total = len(builds) * sum(len(sample.positions) for sample in samples)
    found: dict[tuple[str, int], Floats] = {}
    with meter("parity of builds", total, "positions") as bar:
        for task, rows in spread(
            _work,
            shares,
            len(tasks),
            name="a process that compares builds",
            hint="free memory, and run the same command again",
        ):
            found[task] = rows.astype(np.float64)
            bar.advance(len(rows))
    order = range(len(samples))
    return {
        name: compare(samples, wanted, [found[name, index] for index in order]) for name in builds
    }


def _work(
    builds: Mapping[str, Path],
    tokenizer: Path,
    samples: Sequence[Sample],
    tasks: Sequence[tuple[str, int]],
    results: Any,
) -> None:
    """A worker: one thread, its share of the texts, one build after another."""
    cut = read_tokenizer(tokenizer)
    for name, own in groupby(tasks, key=lambda task: task[0]):
        with Engine(builds[name], threads=1) as engine:
            for task in own:
                sample = samples[task[1]]
                check_cut(engine, cut, sample)
                results.put((task, engine.log_probs(sample.tokens, sample.positions)))


def check_cut(engine: Engine, tokenizer: Tokenizer, sample: Sample) -> None:
    """Check that the engine cuts a text into the same tokens.

    Sampled text may be spelled in tokens that its own tokenizer would not choose: both get the
    text, not the sample's ids.
    """
    text = tokenizer.decode(list(sample.tokens), skip_special_tokens=False)
    tokens = tokenizer.encode(text, add_special_tokens=False).ids
    place = engine.first_difference(text, tokens)
    if place is not None:
        before = tokenizer.decode(tokens[:place], skip_special_tokens=False)[-40:]
        raise StageError(
            f"the engine cuts text differently from the model's tokenizer: {engine.file}",
            details=[f"token {place} of {len(tokens)}, after {before!r}"],
        )


def read_tokenizer(file: Path) -> Tokenizer:
    """Read a `tokenizer.json`.

    Raises:
        StageError: it is not there, or not one.
    """
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises plain Exception
        raise StageError(f"no readable tokenizer at {file}", details=[str(error)]) from error
