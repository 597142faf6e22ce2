"""The recipe: one YAML file, validated by frozen models, unknown keys refused by name."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Self, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from overproof.core.endpoint import Endpoint, demand_given
from overproof.core.errors import UsageError
from overproof.core.methods import (
    CrossEntropy,
    Exact,
    ForwardKl,
    Hidden,
    Objective,
    OnPolicy,
    Quantize,
    Sampled,
    Scratch,
    Signals,
    Text,
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

    @model_validator(mode="after")
    def _a_service_is_an_api(self) -> Self:
        if self.endpoint and self.channel != "api":
            raise ValueError("an endpoint needs channel: api; its terms are those of a service")
        if self.endpoint and self.scratch:
            raise ValueError("a teacher is behind an endpoint or trained from scratch, not both")
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
        description="model that the student is cut from, named as a teacher is, with the teacher's "
        "tokens; the teacher by default, required with teacher.endpoint. With all its layers kept "
        "it is the student itself",
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


class TrainConfig(Section):
    """How the student learns."""

    steps: Positive = Field(description="optimizer steps, of each arm")
    divergence: Objective = ForwardKl()
    on_policy: OnPolicy | None = None
    hidden: Hidden | None = None
    quantize: Quantize | None = None
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
    control: bool = Field(
        True,
        description="train the control arm too, for equal steps: cross-entropy on the same text, "
        "or where the student has that, on the answers before they were checked",
    )

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
        if self.by_text and self.train.control and not self.sample.verified:
            raise ValueError(
                "train.divergence.kind `cross-entropy` is what the control arm has: set "
                "train.control: false, or choose the answers with sample.verified: true"
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


def resource_folders() -> list[Path]:
    """Folders that hold `recipes/` and `datasets/`: the installed package, then the checkout."""
    package = Path(__file__).resolve().parents[1]
    return [package / "share", package.parents[1]]


def find_recipe(name: str) -> Path:
    """A recipe by path, or by the name of one that ships with Overproof.

    Raises:
        UsageError: there is none; the message lists those that exist.
    """
    path = Path(name)
    if path.suffix in {".yaml", ".yml"} or path.is_file():
        if path.is_file():
            return path
        raise UsageError(f"no recipe at {path}")
    known: dict[str, Path] = {}
    for folder in reversed(resource_folders()):
        known |= {file.stem: file for file in sorted((folder / "recipes").glob("*.yaml"))}
    if name in known:
        return known[name]
    raise UsageError(
        f"no recipe named {name!r}",
        details=[f"known: {', '.join(sorted(known)) or 'none'}"],
        hint=_nearest(name, known) or "give a path to a .yaml file",
    )


def find_data(name: str, recipe: Path | None) -> Path:
    """A data file: as given, beside the recipe, or among those that ship with Overproof.

    Raises:
        UsageError: there is none; the message lists the places that were tried.
    """
    bases = [Path(), *([recipe.parent] if recipe else []), *resource_folders()]
    tried = [base / name for base in bases]
    for path in tried:
        if path.is_file():
            return path
    raise UsageError(f"no data file {name!r}", details=[f"tried {path}" for path in tried])


class _Loader(yaml.SafeLoader):
    """YAML in which no key stands twice; PyYAML lets the last one win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """See `yaml.SafeLoader`."""
        counts = Counter(key.value for key, _ in node.value)
        twice = [name for name, count in counts.items() if count > 1]
        if twice:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {twice[0]!r} stands twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read, override and validate a recipe.

    Args:
        path: the YAML file.
        overrides: `a.b=value` texts; values are read as YAML.

    Raises:
        UsageError: no YAML, an unknown key (the nearest known one is named), a wrong value.
    """
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 - a safe loader
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not YAML", details=str(error).splitlines()) from error
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    if not isinstance(raw, dict):
        raise UsageError(f"{path} holds {type(raw).__name__}, wanted a mapping of sections")
    return _validated(raw, overrides, str(path))


def with_overrides(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """Another recipe, as `--set` makes it of this one.

    Raises:
        UsageError: an unknown key, a wrong value.
    """
    return _validated(recipe.model_dump(mode="json"), overrides, recipe.name)


def _validated(raw: dict[str, Any], overrides: Sequence[str], name: str) -> Recipe:
    for override in overrides:
        _apply(raw, override)
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        raise _explain(error, name) from error


def _apply(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise UsageError(f"--set {override!r} has no value", hint="write it as section.field=value")
    node = raw
    for part in parts[:-1]:
        if node.get(part) is None:  # a section that is left out
            node[part] = {}
        node = node[part]
        if not isinstance(node, dict):
            raise UsageError(f"--set {override!r}: {part!r} is no section")
    try:
        node[parts[-1]] = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"--set {override!r}: the value is not YAML") from error


def _explain(error: ValidationError, name: str) -> UsageError:
    lines, hint = [], None
    for row in error.errors():
        place, section = _follow(row["loc"])
        if row["type"] == "extra_forbidden":
            lines.append(f"{place}: unknown key")
            hint = hint or _nearest(str(row["loc"][-1]), section.model_fields)
        elif row["type"] == "missing":
            lines.append(f"{place}: missing")
        elif row["type"] == "value_error":  # fields or sections that do not go together
            message = row["msg"].removeprefix("Value error, ")
            lines.append(f"{place}: {message}" if place else message)
        else:
            lines.append(f"{place}: got {row['input']!r}; {row['msg'][0].lower()}{row['msg'][1:]}")
    return UsageError(
        f"recipe {name} is not valid",
        details=lines,
        hint=hint or "overproof distill --print-schema lists every key",
    )


def _follow(place: Iterable[str | int]) -> tuple[str, type[BaseModel]]:
    """A place in the recipe as it is written there, and the section that it lies in.

    Where a section has kinds, pydantic's place names the kind after the section.
    """
    model: type[BaseModel] = Recipe
    shown, kinds = list[str](), dict[str, type[BaseModel]]()
    for part in map(str, place):
        if part in kinds:
            model = kinds[part]
            continue
        shown.append(part)
        field = model.model_fields.get(part)
        sections = _sections(field.annotation) if field else []
        kinds = {
            get_args(one.model_fields["kind"].annotation)[0]: one
            for one in sections
            if "kind" in one.model_fields
        }
        if sections and not kinds:
            (model,) = sections
    return ".".join(shown), model


def _sections(annotation: Any) -> list[type[BaseModel]]:
    """Those that a field may hold: one, one or none, or one of several kinds."""
    options = get_args(annotation) or (annotation,)
    return [one for one in options if isinstance(one, type) and issubclass(one, BaseModel)]


def _nearest(name: str, known: Iterable[str]) -> str | None:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else None
