"""Builds of the student for other engines, each with a measured parity receipt."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from overproof.core import device

device.prepare()

import torch  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

from overproof.core import artifact  # noqa: E402
from overproof.core.artifact import Artifact, Input, Json, Work  # noqa: E402
from overproof.core.config import ExportConfig  # noqa: E402
from overproof.core.console import meter, note  # noqa: E402
from overproof.core.digest import pretty, sha256_file, sha256_json  # noqa: E402
from overproof.core.disk import write_atomic  # noqa: E402
from overproof.core.errors import StageError, UsageError  # noqa: E402
from overproof.release.engine import DEFAULT_CONTEXT, Engine, version  # noqa: E402
from overproof.release.targets import Target, find  # noqa: E402

KIND = "export"
RECEIPT = "receipt.json"
MAX_TEXTS = 16  # texts compared; more positions of one text share a prefix, and so tell less
MAX_POSITIONS = 128  # positions compared: each costs about 0.17 s at 16k tokens of vocabulary
# Tokens of a text that are compared. Behind them two ends must fit, and what spelling the text
# anew can add: sampled tokens need not be those that its own tokenizer would choose.
MAX_TOKENS = DEFAULT_CONTEXT - 64
DIGITS = 9  # decimals kept in a receipt; fp32 log-probabilities carry about seven
Floats = NDArray[np.float64]
Text = str | Sequence[int]


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


def export(
    student: Artifact,
    config: ExportConfig,
    texts: Sequence[Text],
    *,
    store: Path,
    source: Input | None = None,
) -> Artifact:
    """Build every target, measure each against the model, and write its receipt.

    1. Choose positions of held-out text.
    2. Compute the model's distributions there, from the safetensors in fp32 with torch.
    3. For each target: write the file, and read its tensor types back from it.
    4. Check that the engine cuts the texts into the same tokens.
    5. Compute the build's distributions in the engine, and compare.
    6. Refuse a build that is further away than the recipe allows.

    Args:
        student: folder with `config.json`, `model.safetensors`, `tokenizer.json` at its top.
        texts: held-out conversations, as text with control tokens or as the student's ids; the
            first `MAX_TEXTS` are used.
        store: folder of the run's artifacts.
        source: the artifact that the texts come from.

    Raises:
        UsageError: no usable text, or an unknown target.
        StageError: the architecture or tokenizer has no place in the engine, the engine cuts a
            text differently, or a build is beyond its bound.
    """
    targets = [find(name) for name in config.targets]
    tokenizer = _tokenizer(student.path)
    # 1.
    samples = choose([_ids(tokenizer, text) for text in texts])
    inputs = {"student": student} | ({} if source is None else {"texts": source})
    settings = config.model_dump(mode="json") | {
        "texts_sha256": sha256_json([[*sample.tokens] for sample in samples]),
        "positions": sum(len(sample.positions) for sample in samples),
        "engine": version(),
    }

    def make(work: Work) -> Json:
        # 2.
        wanted = reference(student.path, samples)
        model = _weights_digest(student)
        receipts = {}
        for target in targets:
            receipt = _build(work.folder / target.name, target, student.path, samples, wanted)
            # 6.
            _judge(receipt, config)
            receipt |= {"model_sha256": model, "passed": True}
            receipt |= {"max_kl": config.max_kl, "min_agreement": config.min_agreement}
            write_atomic(work.folder / target.name / RECEIPT, pretty(receipt).encode())
            receipts[target.name] = receipt
        return {"receipts": receipts}

    return artifact.build(store, KIND, inputs=inputs, config=settings, make=make, layer="release")


def write_loaded(target: Target, model: Any, tokenizer: Any, path: Path) -> None:
    """Write a model that is in memory, such as the teacher, to be measured beside the student.

    Args:
        model: of transformers, one that `save_pretrained` takes.
        path: the file to write; its folder must exist.

    Raises:
        StageError: the engine has no place for this architecture or tokenizer.
    """
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        target.write(Path(folder), path)


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


def reference(model: Path, samples: Sequence[Sample]) -> list[Floats]:
    """The saved model's log-probabilities at the samples' positions, fp32 on the CPU.

    Returns:
        one array of shape (positions, vocabulary) for each sample, nats.

    Raises:
        StageError: the folder holds no model.
    """
    try:
        network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise StageError(f"{model} holds no model", details=[str(error).splitlines()[0]]) from error
    found = []
    with torch.inference_mode():
        for sample in samples:
            logits = network(torch.tensor([sample.tokens])).logits[0, list(sample.positions)]
            found.append(torch.log_softmax(logits.double(), -1).numpy())
    return found


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
    path: Path, tokenizer: Tokenizer, samples: Sequence[Sample], wanted: Sequence[Floats]
) -> Parity:
    """Run a GGUF file in its engine and compare it with the model.

    Raises:
        StageError: the engine refuses the file, or cuts a text differently.
    """
    total = sum(len(sample.positions) for sample in samples)
    with Engine(path) as engine, meter(f"parity of {path.parent.name}", total, "positions") as bar:
        found = []
        for sample in samples:
            _check_cut(engine, tokenizer, sample)
            rows = engine.log_probs(sample.tokens, sample.positions)
            found.append(rows.astype(np.float64))
            bar.advance(len(sample.positions))
    return compare(samples, wanted, found)


def _build(
    folder: Path,
    target: Target,
    student: Path,
    samples: Sequence[Sample],
    wanted: Sequence[Floats],
) -> Json:
    """Write one build and measure it; the receipt without its verdict."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    path = folder / target.file
    # 3.
    target.write(student, path)
    # 4. and 5.
    parity = measure(path, _tokenizer(student), samples, wanted)
    note(
        f"  {target.name}: {path.stat().st_size / 1e6:.1f} MB, "
        f"KL {parity.kl_nats_per_token:.2g} nats per token, "
        f"top-1 agreement {parity.top1_agreement:.1%} at {parity.positions} positions"
    )
    return {
        **vars(parity),
        "target": target.name,
        "texts": len(samples),
        "tokenization": "equal",
        "tensor_types": target.tensor_types(path),
        "file": target.file,
        "file_bytes": path.stat().st_size,
        "file_sha256": sha256_file(path),
        "engine": version(),
    }


def _judge(receipt: Json, config: ExportConfig) -> None:
    kl, agreement = receipt["kl_nats_per_token"], receipt["top1_agreement"]
    if kl <= config.max_kl and agreement >= config.min_agreement:
        return
    raise StageError(
        f"the build {receipt['target']} is too far from the model",
        details=[
            f"KL(model || build): got {kl:.6g} nats per token, wanted at most {config.max_kl:g}",
            f"top-1 agreement: got {agreement:.2%}, wanted at least {config.min_agreement:.2%}",
            f"at {receipt['positions']} positions of {receipt['texts']} held-out texts",
        ],
        hint="leave the target out of export.targets, or set export.max_kl or "
        "export.min_agreement if that distance is acceptable",
    )


def _check_cut(engine: Engine, tokenizer: Tokenizer, sample: Sample) -> None:
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


def _weights_digest(student: Artifact) -> str:
    return sha256_json(
        [
            {"name": entry["name"], "sha256": entry["sha256"]}
            for entry in student.manifest["files"]
            if entry["name"].endswith(".safetensors")
        ]
    )


def _tokenizer(model: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(model / "tokenizer.json"))
    except Exception as error:  # tokenizers raises plain Exception
        raise StageError(f"{model} has no readable tokenizer.json", details=[str(error)]) from error


def _ids(tokenizer: Tokenizer, text: Text) -> list[int]:
    if isinstance(text, str):
        return list(tokenizer.encode(text, add_special_tokens=False).ids)
    return list(text)
