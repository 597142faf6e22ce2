"""Builds of the student for other engines, each with a measured parity receipt."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from overproof.core import device

device.prepare()

import torch  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

from overproof.core import artifact  # noqa: E402
from overproof.core.artifact import Artifact, Input, Json, Work  # noqa: E402
from overproof.core.console import note  # noqa: E402
from overproof.core.digest import pretty, sha256_file, sha256_json  # noqa: E402
from overproof.core.disk import write_atomic  # noqa: E402
from overproof.core.errors import StageError  # noqa: E402
from overproof.core.sections import ExportConfig  # noqa: E402
from overproof.release.engine import version  # noqa: E402
from overproof.release.parity import (  # noqa: E402
    Floats,
    Parity,
    Sample,
    choose,
    measure,
    read_tokenizer,
)
from overproof.release.targets import Target, find  # noqa: E402

KIND = "export"
RECEIPT = "receipt.json"
TOKENIZER = "tokenizer.json"
Text = str | Sequence[int]


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
    3. Write each target's file; its tensor types are read back from it.
    4. Text by text: check that the engine cuts it into the same tokens.
    5. Compute the build's distributions there in the engine, and compare.
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
    tokenizer = read_tokenizer(student.path / TOKENIZER)
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
        # 3.
        files = {target.name: _write(work.folder, target, student.path) for target in targets}
        # 4. and 5.
        found = measure(files, student.path / TOKENIZER, samples, wanted)
        model = _weights_digest(student)
        receipts = {}
        for target in targets:
            receipt = _receipt(target, files[target.name], found[target.name], config)
            receipts[target.name] = receipt | {"texts": len(samples), "model_sha256": model}
            write_atomic(
                files[target.name].with_name(RECEIPT), pretty(receipts[target.name]).encode()
            )
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


def _write(folder: Path, target: Target, student: Path) -> Path:
    file = folder / target.name / target.file
    shutil.rmtree(file.parent, ignore_errors=True)
    file.parent.mkdir()
    target.write(student, file)
    return file


def _receipt(target: Target, file: Path, parity: Parity, config: ExportConfig) -> Json:
    """The receipt of a build.

    Raises:
        StageError: it is further away than the recipe allows.
    """
    note(
        f"  {target.name}: {file.stat().st_size / 1e6:.1f} MB, "
        f"KL {parity.kl_nats_per_token:.2g} nats per token, "
        f"top-1 agreement {parity.top1_agreement:.1%} at {parity.positions} positions"
    )
    max_kl, min_agreement = config.bound(target.name)
    _judge(target, parity, max_kl, min_agreement)
    return {
        **vars(parity),
        "max_kl": max_kl,
        "min_agreement": min_agreement,
        "passed": True,
        "target": target.name,
        "tokenization": "equal",
        "tensor_types": target.tensor_types(file),
        "file": target.file,
        "file_bytes": file.stat().st_size,
        "file_sha256": sha256_file(file),
        "engine": version(),
    }


def _judge(target: Target, parity: Parity, max_kl: float, min_agreement: float) -> None:
    kl, agreement = parity.kl_nats_per_token, parity.top1_agreement
    if kl <= max_kl and agreement >= min_agreement:
        return
    fields = "export.q4_0" if target.name == "gguf-q4_0" else "export"
    raise StageError(
        f"the build {target.name} is too far from the model",
        details=[
            f"KL(model || build): got {kl:.6g} nats per token, wanted at most {max_kl:g}",
            f"top-1 agreement: got {agreement:.2%}, wanted at least {min_agreement:.2%}",
            f"at {parity.positions} positions of held-out text",
        ],
        hint=f"leave the target out of export.targets, or set {fields}.max_kl or "
        f"{fields}.min_agreement if that distance is acceptable",
    )


def _weights_digest(student: Artifact) -> str:
    return sha256_json(
        [
            {"name": entry["name"], "sha256": entry["sha256"]}
            for entry in student.manifest["files"]
            if entry["name"].endswith(".safetensors")
        ]
    )


def _ids(tokenizer: Tokenizer, text: Text) -> list[int]:
    if isinstance(text, str):
        return list(tokenizer.encode(text, add_special_tokens=False).ids)
    return list(text)
