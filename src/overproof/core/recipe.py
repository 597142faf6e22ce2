"""The recipe: all sections, and what of one goes with what of another."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from overproof.core.endpoint import demand_given
from overproof.core.methods import CrossEntropy, Exact, ForwardKl, Sampled, Signals, Text
from overproof.core.section import Section
from overproof.core.sections import (
    DataConfig,
    EvaluateConfig,
    ExportConfig,
    SampleConfig,
    StudentConfig,
    TeacherConfig,
    TrainConfig,
)


class Recipe(Section):
    """One distillation, from records to release."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$", description="of the recipe")
    seed: int = Field(0, ge=0, lt=2**31, description="of every draw of the run")
    data: DataConfig
    teacher: TeacherConfig
    sample: SampleConfig
    signals: Signals = Sampled(kind="sampled")
    student: StudentConfig
    train: TrainConfig
    evaluate: EvaluateConfig = EvaluateConfig()
    export: ExportConfig = ExportConfig()

    @model_validator(mode="after")
    def _own_teacher_is_the_base(self) -> Self:
        if self.teacher.scratch and self.student.base is not None:
            raise ValueError(
                "student.base goes with a teacher that others made; one of your own "
                "(teacher.scratch) is what its student is cut from"
            )
        if self.student.budget and (self.teacher.scratch or not self.export.targets):
            raise ValueError(
                "student.budget chooses among shapes that llama.cpp runs: it goes with a teacher "
                "that others made, and with builds in export.targets"
            )
        return self

    @model_validator(mode="after")
    def _quantised_for_a_build(self) -> Self:
        quantize = self.train.quantize
        if quantize and f"gguf-{quantize.format}" not in self.export.targets:
            raise ValueError(
                f"train.quantize is for the build gguf-{quantize.format}, which export.targets "
                "lacks: add it there"
            )
        return self

    @model_validator(mode="after")
    def _states_are_kept(self) -> Self:
        if self.train.hidden is None:
            return self
        if not isinstance(self.signals, Exact):
            raise ValueError(
                "train.hidden needs the teacher's hidden states: take signals.kind `exact`, got "
                f"`{self.signals.kind}`"
            )
        if self.by_text:
            raise ValueError(
                "train.hidden goes with a divergence to the teacher's distributions; "
                "`cross-entropy` learns from the text alone"
            )
        return self

    @model_validator(mode="after")
    def _one_head_at_a_time(self) -> Self:
        if self.teacher.others and (isinstance(self.signals, Exact) or self.train.on_policy):
            what = "train.on_policy" if self.train.on_policy else "signals.kind `exact`"
            raise ValueError(
                f"{what} makes distributions with one teacher's head, and teacher.others names "
                "more: take signals.kind `sampled` or `top-k`, off-policy"
            )
        return self

    @model_validator(mode="after")
    def _draws_give_forward_kl(self) -> Self:
        given = self.train.divergence
        if isinstance(self.signals, Sampled) and not isinstance(given, ForwardKl | CrossEntropy):
            raise ValueError(
                f"signals.kind `sampled` goes with train.divergence.kind `forward-kl` alone, got "
                f"`{given.kind}`: draws give its gradient in the mean, and no other's; take "
                "signals.kind `exact` or `top-k`"
            )
        return self

    @model_validator(mode="after")
    def _text_is_learned_as_text(self) -> Self:
        if isinstance(self.signals, Text) and not self.by_text:
            raise ValueError(
                "signals.kind `text` keeps none of the teacher's distributions: set "
                f"train.divergence.kind `cross-entropy`, got `{self.train.divergence.kind}`"
            )
        return self

    @model_validator(mode="after")
    def _an_endpoint_gives_text(self) -> Self:
        if self.teacher.endpoint is not None:
            demand_given(self.student.base, self.signals, self.train.on_policy)
        return self

    @model_validator(mode="after")
    def _control_is_another(self) -> Self:
        if not (self.by_text and self.train.controls):
            return self
        if not self.sample.verified:
            raise ValueError(
                "train.divergence.kind `cross-entropy` is what a control arm has: set "
                "train.controls: [], or choose the answers with sample.verified: true"
            )
        if len(self.train.controls) > 1:
            raise ValueError(
                "train.divergence.kind `cross-entropy` takes a control arm as long a step as the "
                "student: in train.controls leave equal: steps alone"
            )
        return self

    @model_validator(mode="after")
    def _signals_have_a_time(self) -> Self:
        counted = any(one.equal == "time-with-signals" for one in self.train.controls)
        if counted and (isinstance(self.signals, Text) or self.signals.while_sampling):
            raise ValueError(
                "train.controls equal: time-with-signals counts a pass of the teacher for the "
                "signals alone: set signals.while_sampling: false, or take equal: time"
            )
        return self

    @property
    def by_text(self) -> bool:
        """Whether the student learns from the teacher's text alone."""
        return isinstance(self.train.divergence, CrossEntropy)

    @property
    def solving(self) -> bool:
        """Whether the student learns to solve problems, and not to be like its teacher."""
        return self.by_text and self.sample.verified
