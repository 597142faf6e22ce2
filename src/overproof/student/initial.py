"""The initial student as an artifact: choose, cut, repair, save; and load it again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from overproof.core import device

device.prepare()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402
from torch import Tensor  # noqa: E402
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast  # noqa: E402

from overproof.core.artifact import Artifact, Input, Json, Resource, Work, build  # noqa: E402
from overproof.core.console import meter  # noqa: E402
from overproof.core.contract import BASE  # noqa: E402
from overproof.core.digest import pretty  # noqa: E402
from overproof.core.recipe import Recipe  # noqa: E402
from overproof.core.sections import SampleConfig, StudentConfig  # noqa: E402
from overproof.data.pack import pack  # noqa: E402
from overproof.student import experts, general, importance, shape  # noqa: E402
from overproof.student.dimensions import Dimensions  # noqa: E402
from overproof.student.examples import respell  # noqa: E402
from overproof.student.vocabulary import Vocabulary, demand_room, trim  # noqa: E402
from overproof.teacher.answers import made_of, read  # noqa: E402
from overproof.teacher.cache import SignalCache  # noqa: E402
from overproof.teacher.example import Example  # noqa: E402
from overproof.teacher.forward import packs  # noqa: E402
from overproof.teacher.kept import Spread, TopK, spread_temperature  # noqa: E402
from overproof.teacher.local import Teacher  # noqa: E402
from overproof.teacher.signals import answer_rows, shard_signals, target_mask  # noqa: E402
from overproof.teacher.tokens import other_tokens  # noqa: E402

TEXT_WEIGHT = 0.1  # of a token in the text itself, beside the teacher's probability of 1 a position
REPAIR_TOKENS = 12_288  # several times the MLP's inner width, so that the regression is well posed
OWN = TopK(96)  # kept of a base's own distributions while its layers are measured
SHAPE = "shape.json"
MASS = "mass.npy"  # beside answers that were written in other tokens, see `retokenise`
SINGLE = ("bos_token_id", "pad_token_id")  # of a configuration; ends may be several


@dataclass(frozen=True)
class Base:
    """Another model than the teacher, that the student is cut from; see `local.load_base`."""

    resource: Resource
    load: Callable[[], Teacher]


@dataclass(frozen=True)
class Initial:
    """An initial student: the model, its vocabulary and what was measured on the way."""

    model: Any
    vocabulary: Vocabulary
    facts: dict[str, Any]


def demand(teacher: Teacher, base: Teacher, config: StudentConfig) -> None:
    """Refuse, before any work, a student that cannot be made of these.

    Args:
        base: what the student is cut from: the teacher itself, or another model.

    Raises:
        StageError: the base's architecture has no plain stack of decoder layers, or the tokenizer
            lacks its own control tokens.
        UsageError: larger than the base, or a vocabulary with no room for bytes and control tokens.
    """
    if packs(base.model):
        experts.demand(base.model.config, config)
        shape.demand_fit(base.model, config)
    else:
        general.demand_fit(base.model, config)
    speaker = base if other_tokens(teacher.tokenizer_state, base.tokenizer_state) else teacher
    demand_room(speaker.tokenizer_state, config.vocabulary, control_tokens(speaker))


def make(
    teacher: Teacher,
    base: Teacher,
    prefix: Sequence[int],
    examples: Sequence[Example],
    signals: Iterable[Spread] | None,
    config: StudentConfig,
    length: int,
    temperature: float = 1.0,
    known: NDArray[np.float64] | None = None,
) -> Initial:
    """Shape the student from its base.

    1. Trim the vocabulary to the task.
    2. Choose the layers that stay, cut, narrow, and repair in closed form; or, where the layers
       are not known one by one, cut as `general` does.

    Args:
        examples: the teacher's training answers. signals: its distributions there; None: they are
            not known, and what a layer is worth is measured against the base's own.
        length: tokens a packed sequence.
        temperature: of those distributions.
        known: how much probability each token has by a teacher of other tokens.
    """
    # 1.
    mass = _mass(teacher, prefix, examples, signals or (), known)
    vocabulary = trim(
        teacher.tokenizer.backend_tokenizer, mass, config.vocabulary, control_tokens(teacher)
    )
    # 2.
    tokens = config.calibration_tokens
    if signals is None:
        few = _few(examples, tokens)
        signals = [shard_signals(base.half, prefix, few, length, OWN).spread(None)]
    calibration = _calibration(
        prefix, examples, signals, tokens, length, temperature, alone=not packs(base.model)
    )
    calibration = calibration.within(base.model.config.vocab_size)
    trials = importance.trials(base.model.config.num_hidden_layers, config)
    with meter("measuring layers", trials, "layers") as progress:
        if packs(base.model):
            kept = importance.choose_layers(base.half, config, calibration, progress)
        else:
            student, found = general.make(base.model, vocabulary, calibration, config, progress)
    if packs(base.model):
        student, found = _repaired(base, prefix, examples, vocabulary, kept, config, length)
    name_control_tokens(student.config, teacher, vocabulary)
    facts = found | {
        "vocabulary": vocabulary.size,
        "parameters": sum(p.numel() for p in student.parameters()),
        "student": size(student),
        "teacher": size(teacher.model),
        "base": size(base.model),
    }
    return Initial(student, vocabulary, facts)


def _repaired(
    base: Teacher,
    prefix: Sequence[int],
    examples: Sequence[Example],
    vocabulary: Vocabulary,
    chosen: tuple[list[int], list[importance.Removal]],
    config: StudentConfig,
    length: int,
) -> tuple[Any, Json]:
    """The student of these layers, narrowed, each fitted to its base's; and what was found."""
    kept, removals = chosen
    student = shape.cut(base.model, kept, vocabulary)
    head = vocabulary.spell(prefix)
    texts = [respell(example, vocabulary).tokens for example in _few(examples, REPAIR_TOKENS)]
    batch = pack(head, texts, length)
    narrowed = shape.narrow(student, base.half, kept, batch, vocabulary, config)
    with meter("repairing layers", len(kept), "layers") as progress:
        errors = shape.repair(
            student, base.half, kept, batch, vocabulary, progress.advance, narrowed
        )
    return student, {
        "kept_layers": kept,
        "removals": [{"layer": one.layer, "kl_nats_per_token": one.kl} for one in removals],
        "kept_channels": _listed(narrowed.channels),
        "kept_groups": None if narrowed.groups is None else list(map(_listed, narrowed.groups)),
        "state_error_after_repair": errors,
    }


def size(model: Any) -> Json:
    """What a report says of a model's size."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if not packs(model):  # what its other dimensions are called is not known
        config = model.config
        return {
            "parameters": parameters,
            "layers": config.num_hidden_layers,
            "vocabulary": config.vocab_size,
        }
    found = Dimensions.of(model.config)
    return {
        "parameters": parameters,
        "layers": found.layers,
        "hidden": found.hidden,
        "heads": found.heads,
        "kv_heads": found.kv_heads,
        "mlp_width": found.mlp_width,
        "vocabulary": found.vocabulary,
    }


def _listed(places: Tensor | None) -> list[int] | None:
    """As JSON; None for all."""
    return None if places is None else places.tolist()


def initial(
    load: Callable[[], Teacher],
    samples: Artifact,
    signals: Artifact | None,
    recipe: Recipe,
    resource: Input,
    store: Path,
    base: Base | None = None,
) -> Artifact:
    """The stage `initial`: the student before its first step.

    Args:
        signals: None: nothing was kept of the teacher's distributions.
        resource: of the model that `load` loads.
        base: where the student is cut from another one.
    """

    def make_it(work: Work) -> Json:
        teacher, answers = load(), read(samples)
        only = answer_rows(answers.train) if recipe.signals.prompts else None
        made = make(
            teacher,
            base.load() if base else teacher,
            answers.student_prefix,
            answers.train,
            SignalCache(signals.path, made_of(samples, recipe), only) if signals else None,
            recipe.student,
            recipe.train.sequence_length,
            spread_temperature(recipe.signals),
            np.load(samples.file(MASS)) if (samples.path / MASS).is_file() else None,
        )
        if resource.kind == BASE:  # in whose tokens the answers are, but who did not give them
            del made.facts["teacher"]
            if "teacher" in samples.facts:  # known where it is here, see `retokenise`
                made.facts["teacher"] = samples.facts["teacher"]
        save(made, teacher, work.folder)
        return made.facts

    config = {
        # The base counts by its weights, which are an input, not by where they are; the budget by
        # the shape that was chosen for it.
        "student": recipe.student.model_dump(exclude={"name", "base", "budget"}),
        "sequence_length": recipe.train.sequence_length,
    }
    inputs: dict[str, Input] = {resource.kind: resource, "samples": samples}
    if signals is not None:
        inputs["signals"] = signals
    if base:
        inputs["base"] = base.resource
    return build(store, "initial", inputs=inputs, config=config, make=make_it, layer="student")


def save(initial: Initial, teacher: Teacher, folder: Path) -> None:
    """Write the model, its tokenizer, and the vocabulary's map."""
    save_model(initial.model, folder)
    save_tokenizer(initial.vocabulary.tokenizer, teacher, folder)
    initial.vocabulary.save(folder)
    (folder / SHAPE).write_text(pretty(initial.facts), encoding="utf-8")


def load(folder: Path) -> Initial:
    """Read what `save` wrote."""
    facts = json.loads((folder / SHAPE).read_text(encoding="utf-8"))
    return Initial(load_model(folder), Vocabulary.load(folder), facts)


def save_model(model: Any, folder: Path, advice: SampleConfig | None = None) -> None:
    """Weights and configuration, as transformers reads them, in the model's type.

    Args:
        advice: how to sample from the model: as its teacher's answers were drawn.
    """
    config = model.config
    sampling = (
        {"do_sample": True, **advice.model_dump(include={"temperature", "top_k", "top_p"})}
        if advice
        else {}
    )
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
        **sampling,
    )
    model.save_pretrained(folder)


def load_model(folder: Path) -> Any:
    """A saved model in fp32, evaluation mode."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def load_model_config(folder: Path) -> Any:
    """The configuration of a saved model, without its weights."""
    return AutoConfig.from_pretrained(folder)


def save_tokenizer(tokenizer: Tokenizer, teacher: Teacher, folder: Path) -> None:
    """The trimmed tokenizer with the teacher's chat template and names of control tokens."""
    original = teacher.tokenizer
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **original.special_tokens_map,
        extra_special_tokens=original.extra_special_tokens,
        chat_template=teacher.chat_template,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)


def control_tokens(teacher: Teacher) -> set[str]:
    """Texts of the tokens that a student must have whole: named ones, ends, beginning, padding."""
    config = teacher.model.config
    given = [*teacher.stop_ids, *(getattr(config, name, None) for name in SINGLE)]
    ids = [number for number in given if isinstance(number, int) and number >= 0]
    texts = teacher.tokenizer.convert_ids_to_tokens(ids)
    return {*teacher.tokenizer.all_special_tokens, *(text for text in texts if text is not None)}


def name_control_tokens(config: Any, teacher: Teacher, vocabulary: Vocabulary) -> None:
    """Give the student's configuration its own ids of the teacher's control tokens.

    All ends are named, not only the teacher's first; what the teacher's tokenizer lacks is None.
    """
    ends = [vocabulary.whole(token) for token in teacher.stop_ids]
    config.eos_token_id = ends if len(ends) > 1 else ends[0]
    for name in SINGLE:
        old = getattr(teacher.model.config, name, None)
        setattr(config, name, vocabulary.whole(old) if isinstance(old, int) else None)


def spread_mass(signals: Iterable[Spread], size: int) -> NDArray[np.float64]:
    """The probability of each of so many tokens, summed over all positions."""
    mass = np.zeros(size)
    for shard in signals:
        share_N1 = shard.tail_N[:, None] / max(1, shard.drawn_NR.shape[1])
        shares_NR = share_N1.expand(shard.drawn_NR.shape)
        for ids, probs in ((shard.ids_NK, shard.probs_NK), (shard.drawn_NR, shares_NR)):
            mass += np.bincount(ids.numpy().ravel(), probs.double().numpy().ravel(), size)
    return mass


def _mass(
    teacher: Teacher,
    prefix: Sequence[int],
    examples: Sequence[Example],
    signals: Iterable[Spread],
    known: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """How much the task needs each teacher token: the teacher's probability, and its use.

    Args:
        known: more of its probability.
    """
    size = max(teacher.model.config.vocab_size, len(teacher.tokenizer))
    mass = spread_mass(signals, size)
    if known is not None:
        mass[: len(known)] += known[:size]
    text = np.fromiter((token for one in examples for token in one.tokens), np.int64)
    mass += TEXT_WEIGHT * np.bincount(text, minlength=size)
    mass[list(prefix)] += len(examples)  # every conversation begins with them
    return mass


def _few(examples: Sequence[Example], tokens: int) -> list[Example]:
    """The first examples that hold about so many tokens."""
    chosen, total = [], 0
    for example in examples:
        chosen.append(example)
        total += len(example.tokens)
        if total >= tokens:
            break
    return chosen


def _calibration(
    prefix: Sequence[int],
    examples: Sequence[Example],
    signals: Iterable[Spread],
    tokens: int,
    length: int,
    temperature: float = 1.0,
    *,
    alone: bool = False,
) -> importance.Calibration:
    few = _few(examples, tokens)
    batch = pack(prefix, [example.tokens for example in few], length, alone=alone)
    wanted = target_mask(few)
    picked = (batch.source_RT >= 0) & wanted[batch.source_RT]
    number = torch.from_numpy((np.cumsum(wanted) - 1)[batch.source_RT[picked]])
    shards, have = list[Spread](), 0
    for shard in signals:
        shards.append(shard)
        have += len(shard.ids_NK)
        if have >= wanted.sum():
            break
    ids_NK = torch.cat([shard.ids_NK for shard in shards])
    probs_NK = torch.cat([shard.probs_NK for shard in shards])
    return importance.Calibration(
        batch, torch.from_numpy(picked), ids_NK[number], probs_NK[number], temperature
    )
