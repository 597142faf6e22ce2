"""What a release reports about itself: the facts behind `report.json`, the page and the card."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

Json = dict[str, Any]

# Characters that would damage a page: C0 and C1 controls (tab and line feed stay), halves of
# surrogate pairs (no UTF-8 form), and the controls that reorder text on a screen (UAX 9).
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


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
        nats_per_byte: cross-entropy of the teacher's answers, where only these are known of it, or
            its tokens are others.
        common_kl_nats_per_place, common_top1_agreement: of a student with other tokens, over what
            both vocabularies have in common, at the places where both sides have a boundary.
    """

    kl_nats_per_token: Interval | None = None
    top1_agreement: Interval | None = None
    perplexity: Interval | None = None
    pass_at_1: Interval | None = None
    nats_per_byte: Interval | None = None
    common_kl_nats_per_place: Interval | None = None
    common_top1_agreement: Interval | None = None


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
    """As `Speeds`. The control arm and the untrained student have the student's shape."""

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


@dataclass(frozen=True)
class Training:
    """The student's run, and the control arm's where there is one."""

    student: Run
    control: Run | None = None


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


Positions = tuple[tuple[int, float, int], ...]  # position in the answer, agreement, answers


@dataclass(frozen=True)
class AgreementByPosition:
    """Top-1 agreement at each position of the answer, from 0, and how many answers reach it."""

    student: Positions
    control: Positions = ()
    untrained: Positions = ()


@dataclass(frozen=True)
class Answer:
    """One held-out prompt and what each model wrote."""

    prompt: str
    teacher: str
    student: str
    control: str | None = None


@dataclass(frozen=True)
class Receipt:
    """How far a build differs from the trained model, and how far it may.

    Field names are those of the `parity-receipt` predicate.

    Attributes:
        kl_nats_per_token: mean KL(model || build); `max_kl` bounds it.
        max_abs_delta_logprob, mean_abs_delta_logprob: of the tokens of the text, nats.
    """

    target: str
    kl_nats_per_token: float
    top1_agreement: float
    max_abs_delta_logprob: float
    mean_abs_delta_logprob: float
    max_kl: float
    min_agreement: float
    positions: int | None = None
    file: str | None = None
    file_bytes: int | None = None
    engine: str | None = None

    @property
    def passed(self) -> bool:
        """Whether the build keeps its bounds."""
        return self.kl_nats_per_token <= self.max_kl and self.top1_agreement >= self.min_agreement


@dataclass(frozen=True)
class Remote:
    """What is known of a teacher behind an endpoint: its own word, and when it was given.

    Attributes:
        answered: the id in its answers, and how many came.
        operator: `vendor` or `own`: whose server it is, as the recipe says.
        first, last: when answers came, UTC.
        spent: what asking took, in words.
    """

    answered: Mapping[str, int]
    fingerprints: Mapping[str, int]
    operator: str
    first: str
    last: str
    left_out: int
    spent: str


@dataclass(frozen=True)
class TeacherModel:
    """A model that was learnt from, or that the student was cut from.

    Attributes:
        uri: where its weights came from, or where it was asked.
        sha256: digest of its weights; None: nobody here has seen them.
        licence: SPDX expression, None where unknown.
        hub: its name on the Hugging Face hub, where it has one.
        remote: of a teacher behind an endpoint.
    """

    name: str
    uri: str
    sha256: str | None
    licence: str | None = None
    hub: str | None = None
    remote: Remote | None = None

    @property
    def has_licence(self) -> bool:
        """Whether its terms are a licence of weights; those of a vendor's service are none."""
        return self.remote is None or self.remote.operator == "own"


@dataclass(frozen=True)
class Dataset:
    """A certified data set.

    Attributes:
        licences: SPDX expression to number of accepted records.
        reasons: why records were rejected, and how many.
        head: root of the record tree, 64 hex digits.
        used: records drawn from it.
    """

    name: str
    records: int
    accepted: int
    rejected: int
    licences: Mapping[str, int]
    head: str
    reasons: Mapping[str, int] = dataclasses.field(default_factory=dict)
    used: int | None = None
    hub: str | None = None


@dataclass(frozen=True)
class Proof:
    """Who signs the release, and how to check it.

    Attributes:
        signer: SHA-256 of the public key file, 64 hex digits.
        statements: number of signed statements.
        command: the one command that verifies the release.
    """

    signer: str
    statements: int
    command: str


@dataclass(frozen=True)
class Stage:
    """A finished stage: how long it took, and the digest of its manifest."""

    name: str
    seconds: float
    sha256: str


@dataclass(frozen=True)
class ReportFacts:
    """Everything that the report shows. Nothing here is computed from something else here.

    Attributes:
        name: of the released model.
        system: system message that every prompt carries, None for none.
        shots: answered questions that the teacher was shown before each prompt.
        teacher, student, untrained, control: quality on the held-out prompts. `untrained` is the
            student before training, `control` the same student trained by plain cross-entropy.
        differences: the student less `untrained` and less `control`, paired prompt by prompt; and
            less the teacher in the problems solved, where they were measured.
        method: how the student was made, one string a paragraph.
        terms: the terms-verdict predicate.
        speed: None where no build was made.
        machine: on which speed was measured, or else the student was trained: processor, cores,
            versions; label to value.
        limits: what the reader must not conclude, one sentence each.
        recipe: the recipe as run.
        elsewhere: a sentence for each stage that was made on another machine or other versions.
        base_model: what the student was cut from; None: the teacher. base_terms: its terms-verdict
            predicate.
        costs: predicted against actual, where the recipe has a budget.
    """

    name: str
    system: str | None
    shots: int
    overproof: str
    teacher_model: TeacherModel
    teacher: Arm
    student: Arm
    untrained: Arm
    control: Arm | None
    differences: Mapping[str, Arm]
    evaluation: Evaluation
    speed: Speeds | None
    sizes: Sizes
    training: Training
    importance: Importance
    method: tuple[str, ...]
    agreement_by_position: AgreementByPosition
    answers: tuple[Answer, ...]
    receipts: tuple[Receipt, ...]
    dataset: Dataset
    heldout: Dataset | None
    terms: Json
    proof: Proof
    stages: tuple[Stage, ...]
    machine: Mapping[str, str | int | float]
    limits: tuple[str, ...] = ()
    recipe: Json = dataclasses.field(default_factory=dict)
    elsewhere: tuple[str, ...] = ()
    base_model: TeacherModel | None = None
    base_terms: Json | None = None
    costs: Costs | None = None

    @property
    def larger(self) -> str:
        """What the student's size and speed are compared with, in a word: see `Sizes`."""
        return "teacher" if self.teacher_model.remote is None else "base"


Thing = TypeVar("Thing")


def _either(first: Thing | None, second: Thing | None) -> Thing:
    found = first if first is not None else second
    assert found is not None
    return found


def clean(text: str) -> str:
    """The text with characters that cannot be shown or encoded replaced by U+FFFD."""
    return UNPRINTABLE.sub(REPLACEMENT, text)


def plain(value: Any) -> Any:
    """A fact as JSON: dataclasses by field, numbers that JSON lacks as null, texts cleaned."""
    if isinstance(value, Receipt):
        return {**_fields(value), "passed": value.passed}
    if dataclasses.is_dataclass(value):
        return _fields(value)
    if isinstance(value, Mapping):
        return {clean(str(key)): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return clean(value) if isinstance(value, str) else value


def _fields(value: Any) -> Json:
    return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
