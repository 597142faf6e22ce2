"""A small synthetic release: real artifacts made by `core.artifact.build`, tiny files."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from overproof.core import contract
from overproof.core.artifact import Artifact, Resource, Work, build
from overproof.core.digest import pretty
from overproof.trust.attest import Predicate, attest
from overproof.trust.keys import PrivateKey
from overproof.trust.merkle import SortedTree

NAME = "Llama-Support-Flash"
TIMES = {
    "started": "2026-11-24T10:00:00Z",
    "finished": "2026-11-24T10:00:07Z",
    "seconds": 7.0,
    "measured": {},
}
TEACHER = Resource("teacher", "tiny-llama", "file:tiny-llama.gguf", "11" * 32)
CODE = Resource("code", "overproof", "pkg:pypi/overproof@0.1.0", "22" * 32)
USE_POLICY = "https://example.org/use-policy"
NOTICE_LINE = "Contains or derives from tiny-llama, licensed under the Apache License 2.0."


def signing_key(seed: bytes = b"vectors") -> PrivateKey:
    """A key that is the same in every run; for tests only, as everybody can compute it."""
    scalar = int.from_bytes(hashlib.sha256(seed).digest(), "big")
    return PrivateKey(ec.derive_private_key(scalar >> 1, ec.SECP256R1()))


def artifact(
    store: Path, kind: str, name: str, inputs: dict[str, Any], files: dict[str, bytes], facts: Any
) -> Artifact:
    def make(work: Work) -> dict[str, Any]:
        for file, data in files.items():
            (work.folder / file).parent.mkdir(parents=True, exist_ok=True)
            (work.folder / file).write_bytes(data)
        return dict(facts)

    made = build(store, kind, inputs=inputs, config={"seed": 0}, make=make, name=name)
    return replace(made, manifest={**made.manifest, "times": TIMES})


@dataclass(frozen=True)
class Synthetic:
    """What `attest` takes, and where the release is."""

    release: Path
    artifacts: tuple[Artifact, ...]
    predicates: tuple[Predicate, ...]
    key: PrivateKey

    def named(self, name: str) -> Artifact:
        return next(item for item in self.artifacts if item.path.name == name)

    def attest(self) -> list[Path]:
        return attest(
            self.release,
            artifacts=self.artifacts,
            predicates=self.predicates,
            signer=self.key,
            name=NAME,
            facts={"note": "synthetic"},
        )


def certificate(source: Resource, keys: list[bytes]) -> dict[str, Any]:
    tree = SortedTree(keys)
    return {
        "format": "overproof-certificate/1",
        "source": {"name": source.name, "sha256": source.sha256, "bytes": 10},
        "records": len(keys) + 1,
        "accepted": len(keys),
        "rejected": 1,
        "licences": {"CC0-1.0": len(keys) - 1, "MIT OR Apache-2.0": 1},
        "origins": {"synthetic": len(keys)},
        "checks": [{"name": "length", "action": "reject", "findings": {}}],
        "tree": {"size": tree.size, "head": tree.head},
    }


def terms() -> dict[str, Any]:
    return {
        "teacher": {"name": TEACHER.name, "sha256": TEACHER.sha256},
        "channel": "weights",
        "use": "train-released-student",
        "on": "2026-11-24",
        "verdict": "allow_with",
        "row": {
            "family": "Llama 3.1",
            "artefact": "Llama 3.1 weights",
            "document": "Llama 3.1 Community License Agreement",
            "effective": "2024-07-23",
            "clause": "1.b.i",
            "quote": "include 'Llama' at the beginning",
            "source": "gh:meta-llama/llama-models@47401a8",
            "retrieved": "2026-11-24",
        },
        "obligations": [
            {"id": "name", "kind": "name_prefix", "value": "Llama", "done": True},
            {"id": "notice", "kind": "notice", "value": NOTICE_LINE, "done": True},
            {"id": "licence", "kind": "license_copy", "value": "Apache-2.0", "done": True},
            {"id": "card", "kind": "card_text", "value": "Built with Llama", "done": True},
            {"id": "policy", "kind": "acceptable_use", "value": USE_POLICY, "done": True},
            {"id": "users", "kind": "user_limit", "value": "700000000", "done": True},
        ],
    }


EVALUATION = {
    "student": {"kl_nats_per_token": {"value": 0.5, "low": 0.45, "high": 0.55}},
    "control": {"kl_nats_per_token": {"value": 0.9, "low": 0.85, "high": 0.95}},
}
PARITY = {
    "target": "gguf-q8_0",
    "kl_nats_per_token": 0.004,
    "top1_agreement": 0.991,
    "max_abs_delta_logprob": 0.2,
    "mean_abs_delta_logprob": 0.01,
    "max_kl": 0.02,
    "min_agreement": 0.95,
}


def make(folder: Path) -> Synthetic:
    """Make artifacts, release files and predicates; nothing is signed yet."""
    store, release = folder / "store", folder / "release"
    keys = [hashlib.sha256(b"record %d" % i).digest() for i in range(5)]
    source = Resource("source", "train.jsonl", "file:train.jsonl", "33" * 32)
    weights = {"model.safetensors": b"student weights", "config.json": b'{"layers":2}'}
    certified = certificate(source, keys)
    files = {
        "records.jsonl": b"{}\n",
        "keys.bin": b"".join(keys),
        "certificate.json": pretty(certified).encode(),
    }
    train = artifact(store, "dataset", "train", {"source": source}, files, {"accepted": 5})
    inputs = {"teacher": TEACHER, "data": train, "code": CODE}
    files = {"shard-0.safetensors": b"signals"}
    signals = artifact(store, "signals", "signals", inputs, files, {"tokens": 3})
    inputs = {"signals": signals, "teacher": TEACHER}
    student = artifact(store, "student", "student", inputs, weights, {"loss": 0.25})
    other = {**weights, "model.safetensors": b"control weights"}
    control = artifact(store, "student", "control", inputs, other, {"loss": 0.75})
    files = {"gguf-q8_0/model.gguf": b"GGUF build"}
    build_ = artifact(store, "export", "export", {"student": student}, files, PARITY)
    fill(release, weights)
    write(release / "proof/dataset/certificate.json", json.dumps(certified).encode())
    return Synthetic(
        release,
        (train, signals, student, control, build_),
        (
            ("certificate", train, certified),
            ("terms-verdict", signals, terms()),
            ("evaluation", student, EVALUATION),
            ("parity-receipt", build_, PARITY),
        ),
        signing_key(),
    )


REMOTE = Resource(contract.REMOTE, "big-model", "https://api.example.org", "44" * 32)
ANSWERED = {
    "asked": "big-model",
    "origin": "https://api.example.org",
    "channel": "api",
    "operator": "vendor",
    "answered": {"big-model-2026-10-01": 3},
    "fingerprints": {"fp_1": 2, "none": 1},
    "first": "2026-11-24T09:00:00Z",
    "last": "2026-11-24T09:10:00Z",
    "answers": 3,
    "left_out": 0,
    "prompt_tokens": 90,
    "answer_tokens": 60,
    "weights": "unknown",
}


def make_remote(folder: Path, facts: dict[str, Any] = ANSWERED) -> Synthetic:
    """The same, of a student whose teacher was asked at an endpoint; its base is `TEACHER`."""
    made, store = make(folder), folder / "store"
    base = replace(TEACHER, kind=contract.BASE)
    inputs = {"teacher": REMOTE, "base": base, "data": made.named("train")}
    samples = artifact(store, "samples", "samples", inputs, {"a": b"b"}, {"remote": facts})
    weights = {"model.safetensors": b"student weights", "config.json": b'{"layers":2}'}
    student = artifact(store, "student", "student", {"samples": samples}, weights, {"loss": 0.25})
    files = {"gguf-q8_0/model.gguf": b"GGUF build"}
    build_ = artifact(store, "export", "export", {"student": student}, files, PARITY)
    name = {"name": REMOTE.name, "sha256": REMOTE.sha256}
    of_it = {**terms(), "teacher": name, "channel": "api", "obligations": []}
    measured = {"student": {"nats_per_byte": {"value": 0.9, "low": 0.8, "high": 1.0}}}
    said = {"teacher": name, **facts}
    return replace(
        made,
        artifacts=(made.named("train"), samples, student, build_),
        predicates=(
            made.predicates[0],
            ("terms-verdict", samples, of_it),
            ("terms-verdict", samples, terms()),
            ("remote-teacher", samples, said),
            ("evaluation", student, measured),
            ("parity-receipt", build_, PARITY),
        ),
    )


def fill(release: Path, weights: dict[str, bytes]) -> None:
    """The files of a release, `proof/` but for NOTICE and licence left out."""
    for name, data in weights.items():
        write(release / "model" / name, data)
    write(release / "export/gguf-q8_0/model.gguf", b"GGUF build")
    write(release / "report.json", b"{}\n")
    limit = "Whoever has more than 700,000,000 monthly active users needs a licence."
    shared = f"Use it by {USE_POLICY}\n{limit}\n"
    write(release / "README.md", f"# {NAME}\nBuilt with\nLlama\n{shared}".encode())
    write(release / "proof/NOTICE", f"{NOTICE_LINE}\n{shared}".encode())
    write(
        release / "proof/licences/Apache-2.0.txt",
        b"Apache License ...\n" + b"Terms and conditions. " * 30,
    )


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def copy(release: Path, to: Path) -> Path:
    """A copy to damage."""
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(release, to)
    return to
