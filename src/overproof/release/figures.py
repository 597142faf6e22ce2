"""What was measured, as the report shows it: quality, speed, cost, training.

Nothing here is computed from something else here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TypeVar


@dataclass(frozen=True)
class Interval:
    """A measured value with its confidence interval, all in the unit of the field that holds it."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Arm:
    """One model on the held-out prompts; None where a number has no meaning.

    Attributes:
        kl_nats_per_token: forward KL(teacher || model) on the teacher's answers.
        top1_agreement: share of positions where its most likely token is the teacher's, 0 to 1.
        perplexity: of the teacher's answers under this model.
        pass_at_1: share of held-out problems that one answer of it solves, 0 to 1.
        nats_per_byte: cross-entropy of the teacher's answers, where only these are known of it.
    """

    kl_nats_per_token: Interval | None = None
    top1_agreement: Interval | None = None
    perplexity: Interval | None = None
    pass_at_1: Interval | None = None
    nats_per_byte: Interval | None = None

    @classmethod
    def of(cls, numbers: Mapping[str, Mapping[str, float]]) -> Arm:
        """Those of the numbers of an evaluation that it has a place for."""
        names = (field.name for field in fields(cls))
        return cls(**{name: Interval(**numbers[name]) for name in names if name in numbers})


@dataclass(frozen=True)
class Evaluation:
    """How quality was measured.

    Attributes:
        prompts: held-out prompts, the unit that is resampled.
        tokens: positions of the teacher's answers.
        resamples: bootstrap resamples.
        confidence: of every interval, 0 to 1.
        products: the type in which the models' layers multiplied, `bf16` or `fp32`.
        temperature, top_p: that the teacher's answers were drawn with.
        top_k: the same; None where they were drawn from all tokens.
        solving: the student learned to solve problems, and not to be like its teacher.
    """

    prompts: int
    tokens: int
    resamples: int
    confidence: float
    products: str
    temperature: float
    top_p: float
    top_k: int | None = None
    solving: bool = False

    @property
    def as_is(self) -> bool:
        """Whether the answers are draws from the teacher's own distribution."""
        return self.temperature == 1 and self.top_p == 1 and self.top_k is None


@dataclass(frozen=True)
class Speed:
    """One model in one engine.

    Attributes:
        peak_memory_bytes: growth of the process's resident memory by loading and running the file.
        file_bytes: size of the model file.
        engine: name and version.
        type: number type of the weights, such as `q8_0`.
        threads: the number that decoded fastest here.
    """

    decode_tokens_per_second: float
    prefill_tokens_per_second: float
    peak_memory_bytes: int
    file_bytes: int
    engine: str
    type: str
    threads: int


@dataclass(frozen=True)
class Speeds:
    """The teacher and the student, in the same engine and type.

    Attributes:
        teacher: None: it is not here, and `base`, which the student was cut from, takes its place.
    """

    teacher: Speed | None
    student: Speed
    base: Speed | None = None

    @property
    def larger(self) -> Speed:
        """That of the teacher, or of the base in its place."""
        return _either(self.teacher, self.base)


@dataclass(frozen=True)
class Size:
    """The shape of a model; None for what is not known.

    Attributes:
        hidden: channels of its states. heads: of queries; kv_heads: of keys and values.
        mlp_width: inner width of its MLPs.
    """

    parameters: int
    layers: int | None = None
    vocabulary: int | None = None
    hidden: int | None = None
    heads: int | None = None
    kv_heads: int | None = None
    mlp_width: int | None = None


@dataclass(frozen=True)
class Cost:
    """What a student costs to run, predicted or measured.

    Attributes:
        latency_ms: a decoded token.
    """

    latency_ms: float
    memory_bytes: float
    parameters: int


@dataclass(frozen=True)
class Costs:
    """What the budget limited, what was predicted for the shape that was chosen, what came out.

    Attributes:
        limits: of latency in ms, memory in bytes, parameters; None for no limit.
        hardware: that the prediction is of; None: parameters alone were limited.
        predicted: None where nothing was measured to predict from.
        same: whether the actual numbers are of that hardware's processor and cores.
    """

    latency_ms: float | None
    memory_bytes: float | None
    parameters: int | None
    hardware: str | None
    predicted: Cost | None
    actual: Cost
    same: bool


@dataclass(frozen=True)
class Sizes:
    """As `Speeds`. Control arms and the untrained student have the student's shape."""

    teacher: Size | None
    student: Size
    base: Size | None = None

    @property
    def larger(self) -> Size:
        """That of the teacher, or of the base in its place."""
        return _either(self.teacher, self.base)


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        objective: what was minimised, in words.
        tokens: that went through the model, padding left out.
        losses: step and loss, nats per token.
    """

    objective: str
    steps: int
    tokens: int
    seconds: float
    tokens_per_second: float
    losses: tuple[tuple[int, float], ...]


Positions = tuple[tuple[int, float, int], ...]  # position in the answer, agreement, answers


@dataclass(frozen=True)
class Control:
    """A control arm: the student's start, trained by cross-entropy.

    Attributes:
        name: of its stage.
        equal: what it had as much of as the student: `steps`, `time` or `time-with-signals`.
        quality: on the held-out prompts.
        run: its training.
        by_position: top-1 agreement at each position of the answer.
    """

    name: str
    equal: str
    quality: Arm
    run: Run
    by_position: Positions = ()

    @property
    def words(self) -> str:
        """What it is called in a sentence."""
        return f"control arm{OF_EQUAL[self.equal]}"


OF_EQUAL = {
    "steps": "",
    "time": " of equal time",
    "time-with-signals": " of equal time, signals counted",
}


@dataclass(frozen=True)
class Seeds:
    """The arms trained several times, in other orders, and measured on the same prompts.

    Intervals are of the mean over seeds, by Student's t.

    Attributes:
        count: how often each was trained.
        arms: quality by name, `student` among them.
        differences: the student less the model named, paired seed by seed.
    """

    count: int
    arms: Mapping[str, Arm]
    differences: Mapping[str, Arm]


@dataclass(frozen=True)
class Layer:
    """A layer of the teacher.

    Attributes:
        layer: its number, from 0.
        kept: whether the student has it.
        score: what was measured, in the unit that `Importance.score` names.
        order: when it was dropped, from 1; None for kept layers and rules without an order.
    """

    layer: int
    kept: bool
    score: float | None = None
    order: int | None = None


@dataclass(frozen=True)
class Importance:
    """How the layers were chosen.

    Attributes:
        method: the rule, such as `greedy-kl`.
        score: what the numbers are, with unit; a label for the axis.
    """

    method: str
    score: str
    layers: tuple[Layer, ...]


@dataclass(frozen=True)
class AgreementByPosition:
    """Top-1 agreement at each position of the answer, from 0, and how many answers reach it."""

    student: Positions
    untrained: Positions = ()


Thing = TypeVar("Thing")


def _either(first: Thing | None, second: Thing | None) -> Thing:
    found = first if first is not None else second
    assert found is not None
    return found
