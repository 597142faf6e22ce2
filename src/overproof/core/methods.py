"""Sections of the recipe that name a method: where a teacher of one's own comes from, what is kept
of the teacher, what is made small, and whose text is learned from."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from overproof.core.section import Fraction, Positive, Section

Share = Annotated[float, Field(gt=0.0, lt=1.0)]
LEAST_POWER = 0.01
ALMOST = 1e-9  # so that a product like 0.29 * 100 is the whole number that it stands for
Power = Annotated[float, Field(ge=0.0, le=4.0)]


class Scratch(Section):
    """A teacher of one's own, trained on certified records before it teaches."""

    configuration: str = Field(
        description="its shape: a JSON file of `model_type` and settings, as transformers writes "
        "config.json; as given, then beside the recipe, then as shipped"
    )
    data: str = Field(description="what it is trained on: records, certified as `data.train` is")
    vocabulary: int = Field(
        2048, ge=300, description="tokens of its byte-level BPE, made from the same records"
    )
    steps: Positive = Field(description="optimizer steps")
    sequences: Positive = Field(16, description="records a step")
    sequence_length: Positive = Field(128, description="tokens of a record that are learned")
    learning_rate: float = Field(1e-3, gt=0.0, description="after warm-up, before decay")


class _Signals(Section):
    """What every kind of cache has."""

    prompts: bool = Field(
        True,
        description="kept inside the prompts too: the student follows the teacher there as well, "
        "and learns more from the same text",
    )
    temperature: float = Field(
        1.0,
        ge=0.05,
        le=100.0,
        allow_inf_nan=False,
        description="of the kept distributions and of the student's while it learns from them; the "
        "loss is multiplied by its square",
    )
    while_sampling: bool = Field(
        True,
        description="kept while the answers are drawn; false: by a pass of its own over them, and "
        "other signals draw no answer anew",
    )


class Sampled(_Signals):
    """Tokens drawn from the whole distribution: right in the mean, fewest bytes."""

    kind: Literal["sampled"]
    draws: int = Field(50, ge=1, le=255, description="tokens drawn a position")


class TopK(_Signals):
    """The most likely tokens exactly, the rest as a tail."""

    kind: Literal["top-k"]
    top_k: Positive = Field(32, description="log-probabilities kept a position")
    tail_draws: int = Field(
        32,
        ge=0,
        description="tokens drawn from the tail a position, which stand for all of it; 0: training "
        "knows the tail's mass alone",
    )


class Exact(_Signals):
    """The last hidden states, from which training makes the whole distribution again."""

    kind: Literal["exact"]


class Text(Section):
    """Nothing but the text (sequence-level distillation): what an endpoint is sure to give."""

    kind: Literal["text"]

    @property
    def prompts(self) -> bool:
        """The prompts are not the teacher's text."""
        return False

    @property
    def temperature(self) -> float:
        """Of a distribution on one token."""
        return 1.0


Cached = Sampled | TopK | Exact
Signals = Annotated[Cached | Text, Field(discriminator="kind")]


class ForwardKl(Section):
    """KL(teacher||student): covers all that the teacher says. The only one for sampled signals."""

    kind: Literal["forward-kl"] = "forward-kl"


class ReverseKl(Section):
    """KL(student||teacher): says nothing that the teacher would not."""

    kind: Literal["reverse-kl"]


class Jsd(Section):
    """Generalised Jensen-Shannon divergence between the two and their mixture."""

    kind: Literal["jsd"]
    beta: Share = Field(0.5, description="the teacher's share of the mixture")


class SkewKl(Section):
    """KL(teacher||mixture): forward KL that a student cannot make infinite."""

    kind: Literal["skew-kl"]
    alpha: Share = Field(0.1, description="the teacher's share of the mixture")


class SkewReverseKl(Section):
    """KL(student||mixture): reverse KL that a sharp teacher cannot make infinite."""

    kind: Literal["skew-reverse-kl"]
    alpha: Share = Field(0.1, description="the student's share of the mixture")


class AlphaBeta(Section):
    """The alpha-beta divergence: (1, 0) is forward KL, (0, 1) reverse KL; one may be 0."""

    kind: Literal["alpha-beta"]
    alpha: Power = Field(description="larger: large errors count more")
    beta: Power = Field(description="larger: what the student is sure of counts more")

    @model_validator(mode="after")
    def _not_both_zero(self) -> Self:
        if not self.alpha + self.beta:
            raise ValueError("alpha and beta are both 0; one must be above")
        # Between, the limit's formula is not used yet and the general one has lost its digits.
        if any(0 < power < LEAST_POWER for power in (self.alpha, self.beta)):
            raise ValueError(f"alpha and beta are 0, or {LEAST_POWER} at least")
        return self


Divergence = Annotated[
    ForwardKl | ReverseKl | Jsd | SkewKl | SkewReverseKl | AlphaBeta, Field(discriminator="kind")
]


class CrossEntropy(Section):
    """Of the teacher's text alone: sequence-level distillation. With `sample.verified` the student
    may come to solve more than its teacher, whose distributions also hold its mistakes."""

    kind: Literal["cross-entropy"]


Objective = Annotated[
    ForwardKl | ReverseKl | Jsd | SkewKl | SkewReverseKl | AlphaBeta | CrossEntropy,
    Field(discriminator="kind"),
]


class OnPolicy(Section):
    """Learning from what the student itself says, each token judged by the teacher."""

    fraction: float = Field(
        0.5,
        gt=0.0,
        le=1.0,
        description="of the steps after the warm start; the others learn from the teacher's text",
    )
    warm_start: Fraction = Field(
        0.5,
        description="fraction of all steps that come first and learn from the teacher's text "
        "alone: a student that cannot speak yet has nothing to be judged",
    )
    ahead: int = Field(
        4,
        ge=1,
        le=64,
        description="on-policy steps whose answers are drawn at once; 1: each step from the "
        "weights of the moment, which takes longer",
    )
    temperature: float = Field(1.0, gt=0.0, description="of the student's draws")
    top_p: Fraction = Field(1.0, description="draw from the tokens that reach this mass")
    divergence: Divergence = ReverseKl(kind="reverse-kl")

    def number(self, step: int, steps: int) -> int | None:
        """Which on-policy step a step is, from 0; None: it learns from the teacher's text.

        Args:
            steps: of the whole training.
        """
        since = step - math.ceil(self.warm_start * steps - ALMOST)
        if since < 0:
            return None
        before, after = (math.floor(self.fraction * n + ALMOST) for n in (since, since + 1))
        return before if after > before else None


class Hidden(Section):
    """The student's last hidden states drawn towards the teacher's, beside the divergence."""

    weight: float = Field(
        1.0,
        gt=0.0,
        allow_inf_nan=False,
        description="of the mean squared distance, each position's by the square of the teacher's "
        "state, beside the divergence in nats",
    )


class Lora(Section):
    """Learning by low-rank adapters, which are merged into the weights in the end."""

    rank: Positive = Field(16, description="of each adapter's two matrices")
    alpha: float = Field(
        32.0,
        gt=0.0,
        allow_inf_nan=False,
        description="by which, over the rank, an adapter's product is multiplied",
    )
    targets: tuple[str, ...] = Field(
        (),
        description="last names of the linear layers that have one, such as q_proj; all before the "
        "head by default",
    )
    dropout: Literal[0] = Field(
        0, description="none: a run that was stopped goes on to the same bits"
    )


class Quantize(Section):
    """Computing, in the last steps, with the weights that a build of few bits will have."""

    format: Literal["q4_0", "q8_0"] = Field("q4_0", description="of the build, gguf-FORMAT")
    start: float = Field(
        0.5,
        ge=0.0,
        lt=1.0,
        description="fraction of all steps that come first and compute with the weights as they "
        "are",
    )

    def on(self, step: int, steps: int) -> bool:
        """Whether a step computes with the build's weights; the last one always does.

        Args:
            steps: of the whole training.
        """
        return step >= min(math.floor(self.start * steps + ALMOST), steps - 1)
