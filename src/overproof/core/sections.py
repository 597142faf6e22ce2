"""Sections of the recipe: one a stage. Those that name a method are in `core.methods`."""

from __future__ import annotations

import re
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from overproof.core.endpoint import Endpoint
from overproof.core.methods import (
    ForwardKl,
    Hidden,
    Lora,
    Objective,
    OnPolicy,
    Quantize,
    Scratch,
)
from overproof.core.section import Fraction, Positive, Section

OWN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class DataConfig(Section):
    """Where the prompts come from and what is demanded of them."""

    train: str = Field(
        description="JSONL or Parquet file; as given, then beside the recipe, then as shipped"
    )
    heldout: str = Field(description="the same for the held-out split, never trained on")
    licence: str | None = Field(None, description="SPDX expression for records that name none")
    origin: str | None = Field(None, description="origin for records that name none")
    personal_data: Literal["reject", "warn"] = Field("reject", description="what a finding does")
    max_record_bytes: Positive = Field(65_536, description="longest canonical record, bytes")


class Shot(Section):
    """A question and its answer, shown to the teacher as a turn that has been."""

    prompt: str = Field(min_length=1, description="what was asked")
    answer: str = Field(min_length=1, description="what was answered, in the form that is wanted")


class OtherTeacher(Section):
    """A teacher beside the first, in the same tokens and with the same chat template."""

    model: str = Field(description="as `teacher.model`, of weights that are here")
    records: dict[str, tuple[str, ...]] | None = Field(
        None,
        min_length=1,
        description="field of the records to its values: those that have one of the values in each "
        "field are answered by this teacher, and by no teacher without `records`; by default it "
        "has a share in all that nobody claims",
    )
    weight: float = Field(
        1.0,
        gt=0.0,
        allow_inf_nan=False,
        description="its share among those that may answer a record is its weight in theirs",
    )


class TeacherConfig(Section):
    """The model to learn from."""

    model: str = Field(
        description="builtin:NAME, a folder or .gguf file under the model's own name, or a hub "
        "name; with an endpoint: the name that it is asked for"
    )
    channel: Literal["weights", "api"] = Field(
        "weights", description="how the model is used, which its terms may depend on"
    )
    system: str | None = Field(None, description="system message put before every prompt")
    shots: tuple[Shot, ...] = Field(
        (),
        description="few-shot: turns shown to the teacher before every prompt, and not to the "
        "student, which learns to do without them",
    )
    endpoint: Endpoint | None = None
    scratch: Scratch | None = None
    weight: float = Field(
        1.0, gt=0.0, allow_inf_nan=False, description="of the first teacher, beside others"
    )
    others: tuple[OtherTeacher, ...] = Field(
        (), description="more teachers; the first answers what no other claims"
    )

    @property
    def routing(self) -> list[dict[str, Any]]:
        """Which records go to which teacher, without the models' names."""
        return [
            {"records": None, "weight": self.weight},
            *(other.model_dump(exclude={"model"}) for other in self.others),
        ]

    @model_validator(mode="after")
    def _a_service_is_an_api(self) -> Self:
        if self.endpoint and self.channel != "api":
            raise ValueError("an endpoint needs channel: api; its terms are those of a service")
        if self.endpoint and self.scratch:
            raise ValueError("a teacher is behind an endpoint or trained from scratch, not both")
        return self

    @model_validator(mode="after")
    def _others_are_beside_weights(self) -> Self:
        if self.others and (self.endpoint or self.scratch):
            where = "behind an endpoint" if self.endpoint else "trained from scratch"
            raise ValueError(
                f"others go with a teacher whose weights are here, not with one {where}"
            )
        return self

    @model_validator(mode="after")
    def _own_has_a_name(self) -> Self:
        if self.scratch and not OWN_NAME.fullmatch(self.model):
            raise ValueError(
                f"with scratch, model is a name of your own, not a path or a hub name: got "
                f"`{self.model}`, wanted letters, digits, `.`, `_` and `-`"
            )
        return self


class SampleConfig(Section):
    """How the teacher's answers are drawn."""

    prompts: Positive = Field(
        description="training prompts to answer at most, drawn by seed; all if there are fewer"
    )
    answers: Positive = Field(1, description="answers drawn to each training prompt")
    heldout_prompts: Positive = Field(200, description="the same of the held-out split")
    words: Positive | None = Field(
        None,
        description="only so many words of each prompt are shown, for a teacher that goes on with "
        "text and answers nothing; all of them by default",
    )
    temperature: float = Field(
        0.7, gt=0.0, description="of the draws; that of the signals is their own"
    )
    top_p: Fraction = Field(1.0, description="draw from the tokens that reach this mass")
    top_k: Positive = Field(64, description="draw from this many most likely tokens")
    max_new_tokens: Positive = Field(96, description="longest answer, tokens")
    batch: Positive = Field(96, description="rows decoded together by each core")
    verified: bool = Field(
        False, description="train only on answers that pass the check of their record"
    )
    shortest: Positive | None = Field(
        None, description="of a prompt's right answers keep this many, the shortest; all by default"
    )

    @model_validator(mode="after")
    def _shortest_of_the_right(self) -> Self:
        if self.shortest is not None and not self.verified:
            raise ValueError("shortest chooses among right answers: it needs verified: true")
        return self


class Budget(Section):
    """What the student may cost; what the recipe's shape leaves out is chosen to fit."""

    latency_ms: float | None = Field(
        None, ge=0.0, description="a decoded token, milliseconds: Q8_0 in llama.cpp, one stream"
    )
    memory_mb: float | None = Field(
        None, ge=0.0, description="peak of the engine's process at a context of 512 tokens, MB"
    )
    parameters: int | None = Field(None, ge=0, description="of the student, a tied head once")
    hardware: str | None = Field(
        None,
        description="file of `overproof plan --measure`, as given or beside the recipe: what "
        "latency and memory are predicted from",
    )

    @model_validator(mode="after")
    def _limits_something(self) -> Self:
        if (self.latency_ms, self.memory_mb, self.parameters) == (None, None, None):
            raise ValueError("it limits nothing: give latency_ms, memory_mb or parameters")
        return self


class StudentConfig(Section):
    """The shape of the flash model, and the model that it is cut from."""

    name: str = Field(description="name of the released model; terms may demand a prefix")
    base: str | None = Field(
        None,
        description="model that the student is cut from, named as a teacher is; the teacher by "
        "default, required with teacher.endpoint. With all its layers kept it is the student "
        "itself; it may have other tokens than the teacher, see docs/tokenizers.md",
    )
    layers: Positive | None = Field(None, description="decoder layers kept, all by default")
    mlp_width: Positive | None = Field(
        None, description="inner width of each MLP, all by default; a multiple of 64 runs fastest"
    )
    kv_heads: Positive | None = Field(
        None,
        description="groups of attention heads kept in each layer, each a key-value head with the "
        "query heads that share it; all by default",
    )
    hidden: Positive | None = Field(
        None,
        description="channels of the hidden states kept, all by default; a multiple of 64 runs "
        "fastest",
    )
    vocabulary: Positive = Field(description="tokens kept, byte fallback included")
    experts: Positive | None = Field(
        None,
        description="routed experts kept in each layer of a mixture of experts, all by default",
    )
    spare_experts: Literal["drop", "merge"] = Field(
        "drop", description="what becomes of the others: left out, or averaged into the nearest"
    )
    budget: Budget | None = None
    importance: Literal["greedy-kl", "angular", "even"] = Field(
        "greedy-kl", description="how the layers to drop are chosen"
    )
    calibration_tokens: Positive = Field(
        1024, description="teacher text used to measure importance"
    )


class Control(Section):
    """An arm that the student is compared with: its start, by cross-entropy on the same text."""

    equal: Literal["steps", "time", "time-with-signals"] = Field(
        "steps",
        description="what it has as much of as the student: optimizer steps; seconds of training; "
        "those and the seconds of the stage `signals`",
    )


class TrainConfig(Section):
    """How the student learns."""

    steps: Positive = Field(description="optimizer steps, of each arm")
    divergence: Objective = ForwardKl()
    on_policy: OnPolicy | None = None
    hidden: Hidden | None = None
    quantize: Quantize | None = None
    lora: Lora | None = None
    sequences: Positive = Field(8, description="packed sequences a step")
    sequence_length: Positive = Field(256, description="tokens a packed sequence")
    learning_rate: float = Field(4e-4, gt=0.0, description="after warm-up, before decay")
    warmup: Fraction = Field(0.05, description="fraction of the steps")
    decay: Fraction = Field(0.5, description="fraction of the steps, linear to zero at the end")
    weight_decay: float = Field(0.0, ge=0.0, description="decoupled, as in AdamW")
    clip: float = Field(1.0, gt=0.0, description="largest gradient norm")
    optimizer: Literal["muon", "adamw"] = Field(
        "adamw", description="muon: for the matrices of the layers, adamw for all else"
    )
    checkpoint_seconds: Positive = Field(
        60, description="between checkpoints; a kill loses this much and the step under way"
    )
    digest_steps: Positive = Field(
        100, description="steps between digests of the weights in the step log"
    )
    controls: tuple[Control, ...] = Field(
        (Control(),),
        description="control arms: the same student by cross-entropy on the teacher's text "
        "(sequence-level distillation), or where the student has that, on the answers before they "
        "were checked; []: none",
    )
    seeds: Positive = Field(
        1,
        description="times that the student and each control arm are trained, each time in another "
        "order; the first student is released",
    )

    @model_validator(mode="after")
    def _adapters_alone(self) -> Self:
        if self.lora and self.quantize:
            raise ValueError(
                "lora and quantize do not go together: what is rounded is the sum of adapters and "
                "frozen weights, and the adapters beside the release would not give it back; leave "
                "one of the two out"
            )
        if self.lora and self.optimizer == "muon":
            raise ValueError(
                "lora goes with optimizer: adamw: muon makes updates of full rank out of whole "
                "matrices, and an adapter's two are factors of one"
            )
        return self

    @model_validator(mode="after")
    def _controls_differ(self) -> Self:
        equal = [one.equal for one in self.controls]
        if len(set(equal)) < len(equal):
            raise ValueError(f"controls names an arm twice: got equal: {', '.join(equal)}")
        if equal and "steps" not in equal:
            raise ValueError(
                f"controls has equal: {equal[0]} alone; add {{equal: steps}}, whose pace says how "
                "many steps fit that time"
            )
        return self

    @model_validator(mode="after")
    def _on_policy_is_seen(self) -> Self:
        if self.on_policy and not self.own_steps:
            raise ValueError(
                f"on_policy has no step of its own among {self.steps}: lower its warm_start or "
                "raise its fraction"
            )
        return self

    def own_step(self, step: int) -> int | None:
        """See `OnPolicy.number`; None also where nothing is on-policy."""
        return self.on_policy.number(step, self.steps) if self.on_policy else None

    def quantized(self, step: int) -> bool:
        """See `Quantize.on`; False also where nothing is quantised."""
        return self.quantize is not None and self.quantize.on(step, self.steps)

    @property
    def trainings(self) -> int:
        """How often something is trained: each arm, with each seed."""
        return self.seeds * (1 + len(self.controls))

    @property
    def own_steps(self) -> int:
        """Steps that learn from what the student says."""
        return sum(self.own_step(step) is not None for step in range(self.steps))


class EvaluateConfig(Section):
    """What is measured on the held-out prompts."""

    bootstrap: Positive = Field(1000, description="resamples of the held-out prompts")
    confidence: Fraction = Field(0.95, description="mass of the intervals")
    answers: int = Field(6, ge=0, description="held-out prompts shown in the report, answers too")
    attempts: Positive = Field(
        4, description="answers to each held-out problem, where all records have a check: pass@1"
    )
    exact: bool = Field(
        False, description="every product in fp32, also where bf16 is faster; about twice the time"
    )


class FourBits(Section):
    """How far a build in 4 bits may differ."""

    max_kl: float = Field(0.02, gt=0.0, description="as `export.max_kl`")
    min_agreement: Fraction = Field(0.85, description="as `export.min_agreement`")


class ExportConfig(Section):
    """Which builds are made, and how far each may differ from the trained model."""

    targets: tuple[Literal["gguf-q8_0", "gguf-q4_0", "gguf-f16"], ...] = Field(
        ("gguf-q8_0", "gguf-f16"),
        description="builds to make, gguf-q8_0 among them, whose speed is measured; []: none, for "
        "an architecture that no engine here runs",
    )
    max_kl: float = Field(0.02, gt=0.0, description="mean KL(model||build) allowed, nats per token")
    min_agreement: Fraction = Field(0.85, description="top-1 agreement demanded")
    q4_0: FourBits = FourBits()

    def bound(self, target: str) -> tuple[float, float]:
        """`max_kl` and `min_agreement` of a target."""
        bound = self.q4_0 if target == "gguf-q4_0" else self
        return bound.max_kl, bound.min_agreement
