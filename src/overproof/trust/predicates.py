"""The predicates of a release: what each kind of statement says, field by field.

SLSA Provenance v1 describes a stage. What SLSA has no field for is said by five predicates of our
own, whose JSON Schemas in `docs/predicates/` are generated from the models here. Models marked
open take further fields, which are signed but not read.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from overproof.core.digest import canonical
from overproof.core.errors import TrustError
from overproof.trust.strict import shown

BASE = "https://overproof.dev"
PROVENANCE = "https://slsa.dev/provenance/v1"
VERSION = 1
MAX_PROBLEMS = 8  # lines of a message about one predicate

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", description="64 lowercase hex digits")]
Count = Annotated[int, Field(ge=0)]
ReleaseName = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}$", description="name of the release")
]


class Closed(BaseModel):
    """No field but those named."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, alias_generator=to_camel, populate_by_name=True
    )


class Exact(BaseModel):
    """No field but those named, names as they stand here."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Open(BaseModel):
    """At least the fields named."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)


# --- SLSA Provenance v1, as far as a stage uses it ----------------------------------------------


class DigestSet(Closed):
    """in-toto DigestSet with the one algorithm in use."""

    sha256: Sha256


class DependencyNotes(Closed):
    """Annotations of a dependency."""

    kind: str
    name: str


class Dependency(Closed):
    """One input of a stage: an artifact by its manifest digest, or a resource with its URI."""

    name: str
    uri: str | None = None
    digest: DigestSet
    annotations: DependencyNotes


class BuildDefinition(Closed):
    """What was asked for."""

    build_type: str
    external_parameters: dict[str, Any]
    internal_parameters: Annotated[dict[str, Any], Field(max_length=0)]
    resolved_dependencies: tuple[Dependency, ...]


class Builder(Closed):
    """Who ran the stage."""

    id: Literal["https://overproof.dev/builder/local/v1"]
    version: dict[str, str]


class Metadata(Closed):
    """Which run it was."""

    invocation_id: str
    started_on: str
    finished_on: str


class Byproduct(Closed):
    """Facts, or file sizes: a named JSON object with its digest."""

    name: Literal["facts", "files"]
    digest: DigestSet
    annotations: dict[str, Any]


class RunDetails(Closed):
    """What happened."""

    builder: Builder
    metadata: Metadata
    byproducts: tuple[Byproduct, ...]


class Provenance(Closed):
    """SLSA Provenance v1 of one stage."""

    build_definition: BuildDefinition
    run_details: RunDetails


# --- predicates of our own ----------------------------------------------------------------------


class Named(Exact):
    """A thing by name and digest."""

    name: str
    sha256: Sha256


class RecordTree(Open):
    """Size and head of a record tree."""

    size: Count
    head: Sha256


class Certificate(Open):
    """What is known of a dataset's records: checks, licences, origins, and the record tree."""

    records: Count = Field(description="records read")
    accepted: Count = Field(description="records kept")
    rejected: Count = Field(description="records left out, each with a reason")
    licences: dict[str, Count] = Field(description="SPDX expression to number of kept records")
    origins: dict[str, Any]
    tree: RecordTree
    source: Open = Field(description="what was certified: at least `name` and `sha256`")
    checks: tuple[Any, ...]


class TermsRow(Open):
    """The row of the terms table that decided."""

    family: str
    artefact: str
    document: str
    effective: str
    clause: str
    quote: str
    source: str
    retrieved: str


class Obligation(Open):
    """One thing that the terms demand of the release."""

    id: str
    kind: str = Field(description="name_prefix, notice, license_copy, card_text, ...")
    value: str
    done: bool


class TermsVerdict(Open):
    """Whether the teacher's terms permit this use, by which clause, under which obligations."""

    teacher: Named
    channel: str = Field(description="weights, api or consumer")
    use: str = Field(description="what was judged, such as train-released-student")
    verdict: Literal["allow", "allow_with", "deny", "needs_approval", "unknown"]
    row: TermsRow | None
    obligations: tuple[Obligation, ...]


class RemoteTeacher(Open):
    """Who answered behind an endpoint: the service's word, as it came; nobody saw its weights."""

    teacher: Named = Field(description="what was asked for; the digest is that of name and URL")
    asked: str = Field(description="model that the requests named")
    origin: str = Field(description="scheme, host and port of the endpoint")
    channel: Literal["api"]
    operator: Literal["vendor", "own"] = Field(description="whose server it is, as the signer says")
    answered: dict[str, Count] = Field(
        min_length=1, max_length=1, description="the id in the answers, and how many came"
    )
    fingerprints: dict[str, Count] = Field(description="system fingerprints, and answers of each")
    first: str = Field(description="when the first answer came, UTC, by the asker's clock")
    last: str = Field(description="when the last one came")
    answers: Count
    left_out: Count = Field(description="answers that nothing was learned from")
    prompt_tokens: Count = Field(description="as the service counted")
    answer_tokens: Count
    weights: Literal["unknown"] = Field(description="nobody but the service can know them")


class Interval(Open):
    """A measured value with its confidence interval."""

    value: float
    low: float
    high: float


class Arm(Open):
    """One model's quality on the held-out prompts."""

    kl_nats_per_token: Interval | None = None
    top1_agreement: Interval | None = None
    perplexity: Interval | None = None
    nats_per_byte: Interval | None = Field(
        None,
        description="cross-entropy of the teacher's answers, where only these are known, or the "
        "student has other tokens",
    )
    common_kl_nats_per_place: Interval | None = Field(
        None,
        description="KL(teacher || model) over what the two vocabularies have in common, where the "
        "student has other tokens",
    )
    common_top1_agreement: Interval | None = Field(
        None, description="share of those places where both find the same most likely"
    )
    pass_at_1: Interval | None = Field(
        None, description="share of held-out problems that one answer solves, where records say how"
    )


class Seeds(Open):
    """The arms trained several times in other orders of the data, and measured alike."""

    count: Count = Field(description="how often each was trained")
    arms: dict[str, Arm] = Field(description="means by name, with intervals over seeds")
    differences: dict[str, Arm] = Field(
        description="the student less the model named, paired seed by seed"
    )


class Evaluation(Open):
    """Quality of the student against teacher, untrained student and control arms.

    Control arms beside that of equal steps stand under the names of their stages.
    """

    student: Arm
    teacher: Arm | None = None
    untrained: Arm | None = None
    control: Arm | None = None
    products: str | None = Field(
        None, description="type in which the models' layers multiplied, bf16 or fp32"
    )
    differences: dict[str, Arm] = Field(
        {}, description="the student less the model named, paired prompt by prompt"
    )
    seeds: Seeds | None = Field(None, description="where the arms were trained several times")


class ParityReceipt(Open):
    """How far a build differs from the trained model, and how far it may."""

    target: str = Field(description="name of the build: its folder in export/, such as gguf-q8_0")
    kl_nats_per_token: float = Field(description="mean KL(model || build)")
    top1_agreement: float
    max_abs_delta_logprob: float
    mean_abs_delta_logprob: float
    max_kl: float = Field(description="bound on kl_nats_per_token")
    min_agreement: float = Field(description="bound on top1_agreement")


class DatasetHead(Exact):
    """A dataset's manifest digest with the size and head of its record tree."""

    name: str
    sha256: Sha256
    size: Count
    head: Sha256


class Release(Exact):
    """Ties everything together: files are the statement's subjects, stages the chain's members."""

    name: ReleaseName
    overproof: str = Field(description="version that made the release")
    signer: str = Field(description="signer's public key, PEM; proves nothing unless pinned")
    log: str = Field(description="vkey of the log of this release's statements")
    files: Count = Field(description="number of subjects")
    stages: tuple[Named, ...] = Field(description="stage name and manifest digest")
    datasets: tuple[DatasetHead, ...]
    facts: dict[str, Any]


OWN: dict[str, type[BaseModel]] = {
    "certificate": Certificate,
    "terms-verdict": TermsVerdict,
    "remote-teacher": RemoteTeacher,
    "evaluation": Evaluation,
    "parity-receipt": ParityReceipt,
    "release": Release,
}

Model = TypeVar("Model", bound=BaseModel)


def type_uri(short: str) -> str:
    """Predicate type of one of our own predicates."""
    return f"{BASE}/{short}/v{VERSION}"


MODELS: dict[str, type[BaseModel]] = {
    PROVENANCE: Provenance,
    **{type_uri(short): model for short, model in OWN.items()},
}


def read(model: type[Model], predicate: Any, what: str) -> Model:
    """Read a predicate; `what` names it in messages.

    Raises:
        TrustError: a field is missing, unknown (in a closed model) or of another type.
    """
    try:
        # From JSON text: only there do strict models take an array for a tuple.
        return model.model_validate_json(canonical(predicate))
    except ValidationError as error:
        problems = [
            f"{shown('.'.join(map(str, row['loc'])))}: {row['msg']}" for row in error.errors()
        ]
        raise TrustError(
            f"{what} does not fit its schema",
            details=problems[:MAX_PROBLEMS],
            hint="the schemas are in docs/predicates/",
        ) from None


def schema(short: str) -> dict[str, Any]:
    """JSON Schema of one of our own predicates, as published in `docs/predicates/`."""
    body = OWN[short].model_json_schema(by_alias=True)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"{type_uri(short)}/schema.json",
        **json.loads(json.dumps(body)),
    }
