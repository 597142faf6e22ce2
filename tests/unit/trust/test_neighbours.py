"""What the terms gate and certify write is what verify reads: no field gets lost between them."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date
from pathlib import Path

import trust_release

from overproof.data import certify, dataset
from overproof.policy import gate, obligations
from overproof.trust.attest import attest
from overproof.trust.verify import verify

NAME = "support-flash"


def test_gate_and_certify_fit(tmp_path: Path) -> None:
    made = trust_release.make(tmp_path)
    # A dataset by `certify`.
    rows = [{"prompt": f"Where is parcel number {word}?"} for word in ("one", "two", "three")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = certify.Config(
        file=tmp_path / "rows.jsonl", licence="CC0-1.0", origin="test", out=tmp_path / "store/data"
    )
    data = certify.run(config)
    # Terms by the gate, carried out as policy does.
    teacher = replace(trust_release.TEACHER, name="meta-llama/Llama-3.1-8B-Instruct")
    decision = gate.decide(
        [gate.Teacher(teacher.name, teacher.sha256)], channel="weights", on=date(2026, 11, 24)
    )
    keys = {"LicenseRef-scancode-llama-3.1-license-2024": "Llama 3.1 licence. " * 50}
    plan = obligations.carry_out(decision, NAME, keys).require()
    for name, text in plan.files.items():
        trust_release.write(made.release / name, text.encode())
    card = "\n".join([f"# {plan.name}", *plan.card_lines])
    (made.release / "README.md").write_text(card, encoding="utf-8")
    assert obligations.recheck(made.release, plan.name, plan.obligations) == []
    # A chain over both.
    store = tmp_path / "store"
    signals = trust_release.artifact(
        store, "signals", "signals2", {"teacher": teacher, "data": data.artifact}, {"s": b"s"}, {}
    )
    weights = {"model.safetensors": b"student weights", "config.json": b'{"layers":2}'}
    student = trust_release.artifact(
        store, "student", "student2", {"signals": signals}, weights, {"loss": 0.5}
    )
    (made.release / "export/gguf-q8_0/model.gguf").unlink()
    (made.release / "export/gguf-q8_0").rmdir()
    (made.release / "export").rmdir()
    done = [item.id for item in plan.obligations]
    attest(
        made.release,
        artifacts=[data.artifact, signals, student],
        predicates=[
            ("certificate", data.artifact, dataset.certificate(data.artifact)),
            *(("terms-verdict", signals, item) for item in decision.predicates(done)),
        ],
        signer=made.key,
        name=plan.name,
    )
    verdict = verify(made.release, made.key.public)
    assert verdict.exit_code == 0
    levels = {claim.claim: claim for claim in verdict.claims}
    assert levels["obligations shown in the release"].evidence == str(len(done))
