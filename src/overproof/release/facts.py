"""What a release reports about itself: the facts behind `report.json`, the page and the card."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from overproof.release.figures import (
    AgreementByPosition,
    Arm,
    Control,
    Costs,
    Evaluation,
    Importance,
    Run,
    Seeds,
    Sizes,
    Speeds,
)

Json = dict[str, Any]

# Characters that would damage a page: C0 and C1 controls (tab and line feed stay), halves of
# surrogate pairs (no UTF-8 form), and the controls that reorder text on a screen (UAX 9).
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class Answer:
    """One held-out prompt and what each model wrote.

    Attributes:
        controls: of the control arms, in their order.
    """

    prompt: str
    teacher: str
    student: str
    controls: tuple[str, ...] = ()


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
class Share:
    """What one of several teachers gave.

    Attributes:
        terms: its terms-verdict predicate. asked: of which records, in words.
        answers: to train on. prompts: held-out ones that it answered.
        student: measured against it on these; None: it answered none.
    """

    model: TeacherModel
    terms: Json
    asked: str
    answers: int
    prompts: int
    student: Arm | None


@dataclass(frozen=True)
class ReportFacts:
    """Everything that the report shows. Nothing here is computed from something else here.

    Attributes:
        name: of the released model.
        system: system message that every prompt carries, None for none.
        shots: answered questions that the teacher was shown before each prompt.
        teacher, student, untrained: quality on the held-out prompts. `untrained` is the student
            before training.
        controls: the same student trained by plain cross-entropy.
        differences: the student less `untrained` and less each control arm by its name, paired
            prompt by prompt; and less the teacher in the problems solved, where they were measured.
        seeds: the same over several trainings, where the recipe asks for them.
        method: how the student was made, one string a paragraph.
        terms: the terms-verdict predicate.
        speed: None where no build was made.
        machine: on which speed was measured, or else the student was trained: processor, cores,
            versions; label to value.
        limits: what the reader must not conclude, one sentence each.
        recipe: the recipe as run.
        elsewhere: a sentence for each stage that was made on another machine or other versions.
        training: the student's run.
        base_model: what the student was cut from; None: the teacher. base_terms: its terms-verdict
            predicate.
        costs: predicted against actual, where the recipe has a budget.
        teachers: where there are several, what each gave, the first among them.
    """

    name: str
    system: str | None
    shots: int
    overproof: str
    teacher_model: TeacherModel
    teacher: Arm
    student: Arm
    untrained: Arm
    controls: tuple[Control, ...]
    differences: Mapping[str, Arm]
    evaluation: Evaluation
    speed: Speeds | None
    sizes: Sizes
    training: Run
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
    teachers: tuple[Share, ...] = ()
    seeds: Seeds | None = None

    @property
    def larger(self) -> str:
        """What the student's size and speed are compared with, in a word: see `Sizes`."""
        return "teacher" if self.teacher_model.remote is None else "base"


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
