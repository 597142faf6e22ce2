"""Students of architectures that the fast path does not know: cut, and run, as wholes.

Nothing is known here of what a layer does. A model is taken apart by the names of its weights, run
by its own `forward`, one example a row, and a smaller one is loaded from the same weights:

1. Which layers stay is measured as in `importance`: dropped one after the other, each time the one
   whose loss costs least.
2. Settings layer by layer (kinds of attention, compression, routing) are cut with the layers.
3. Of each table with a row a token, the rows of the kept tokens are taken.
4. Of each mixture of experts, the experts that carry most stay (`experts.py`).

There is no repair in closed form: nothing says which matrix of an unknown layer is its last.

Shape suffixes: R sequences, T tokens, P positions with a target, N = R * T, D width.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

from overproof.core import device

device.prepare()

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from overproof.core.artifact import Json  # noqa: E402
from overproof.core.console import Meter  # noqa: E402
from overproof.core.errors import StageError, UsageError  # noqa: E402
from overproof.core.sections import StudentConfig  # noqa: E402
from overproof.data.pack import pack  # noqa: E402
from overproof.student import experts, importance, shape  # noqa: E402
from overproof.student.importance import Calibration, Removal  # noqa: E402
from overproof.student.losses import Sparse, divergence_of  # noqa: E402
from overproof.student.vocabulary import Vocabulary  # noqa: E402
from overproof.teacher.forward import head_of, inputs_of  # noqa: E402

FIELDS = frozenset(
    {
        "name",
        "base",
        "layers",
        "vocabulary",
        "experts",
        "spare_experts",
        "importance",
        "calibration_tokens",
    }
)
ROWS = 8  # sequences that go through a model together
PROBE, FILLER, PROBE_NATS = 24, 8, 1e-3  # tokens; rounding explains 1e-5
USE = "docs/architectures.md says what an architecture must have"


def demand_fit(teacher: Any, config: StudentConfig) -> None:
    """Refuse a student that cannot be cut out of this teacher, before any work is done.

    1. The recipe asks for nothing that only the fast path can do.
    2. The student is no larger than its teacher.
    3. The model is a list of layers between an embedding and a head; its experts, where they are
       to be fewer, are known by their names.
    4. Its head makes its logits of its last hidden states, and what fills a row up behind a text
       changes nothing in it.

    Raises:
        UsageError: see 1 and 2.
        StageError: see 3 and 4.
    """
    # 1.
    asked = sorted(
        f"student.{name}"
        for name in config.model_fields_set - FIELDS
        if getattr(config, name) is not None
    )
    if config.importance == "angular":
        asked.append("student.importance: angular")
    if asked:
        raise UsageError(
            f"{', '.join(asked)}: not for {type(teacher).__name__}",
            details=["it needs layers that are known one by one, as Llama's are"],
            hint="leave it out",
        )
    # 2.
    shape.demand_size(teacher.config, config)
    experts.demand(teacher.config, config)
    # 3.
    layers = getattr(teacher.base_model, "layers", None)
    if not isinstance(layers, nn.ModuleList) or len(layers) != teacher.config.num_hidden_layers:
        raise _unfit(teacher, "it has no list of decoder layers named `layers`")
    if config.experts is not None and not experts.known(teacher):
        raise _unfit(teacher, "its mixtures of experts are built in a way that is not known here")
    # 4.
    _probe(teacher)


def _unfit(model: Any, reason: str) -> StageError:
    return StageError(
        f"{type(model).__name__} cannot be cut into a student", details=[reason], hint=USE
    )


@torch.inference_mode()
def _probe(model: Any) -> None:
    """Step 4 of `demand_fit`."""
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear) or getattr(head, "bias", None) is not None:
        raise _unfit(model, "its head is no plain matrix")
    ids = torch.arange(PROBE + FILLER)[None] * 7 % model.config.vocab_size
    own = torch.log_softmax(model(ids[:, :PROBE], use_cache=False).logits.double(), -1)
    states = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[:, :PROBE]
    gap = float((torch.log_softmax(head(states).double(), -1) - own).abs().max())
    if not gap <= PROBE_NATS:  # a NaN is refused too
        raise _unfit(
            model,
            f"log-probabilities from its head and last states, with {FILLER} tokens behind the "
            f"text, differ by {gap:.3g} nats from its own",
        )


def make(
    teacher: Any,
    vocabulary: Vocabulary,
    calibration: Calibration,
    config: StudentConfig,
    progress: Meter,
) -> tuple[Any, Json]:
    """The student of this vocabulary, and what was measured on the way.

    Args:
        teacher: a model of transformers in fp32.
        calibration: laid out one example a row.
        progress: counts layers that are tried, see `importance.trials`.
    """
    kept, removals = choose_layers(teacher, config, calibration, progress)
    smaller = reduced(teacher, kept)
    choices = choose_experts(smaller, calibration, config.experts)
    student = cut(smaller, vocabulary, choices, merge=config.spare_experts == "merge")
    facts: Json = {
        "kept_layers": kept,
        "removals": [{"layer": one.layer, "kl_nats_per_token": one.kl} for one in removals],
    }
    if choices:
        facts["experts"] = {
            "kept": [list(one.kept) for one in choices.values()],
            "mass": [[round(each, 6) for each in one.mass] for one in choices.values()],
            "spare": config.spare_experts,
        }
    return student, facts


def choose_layers(
    teacher: Any, config: StudentConfig, calibration: Calibration, progress: Meter
) -> tuple[list[int], list[Removal]]:
    """Which layers stay; see `importance.choose_layers`, for models that are run as wholes."""
    total = teacher.config.num_hidden_layers
    keep = config.layers or total
    if config.importance == "even":
        return importance.choose_layers_evenly(total, keep), []
    kept, removals = list(range(total)), list[Removal]()
    while len(kept) > keep:
        costs = dict[int, float]()
        for layer in kept:
            left = reduced(teacher, [one for one in kept if one != layer])
            costs[layer] = divergence(left, calibration)
            progress.advance(1)
        layer = min(kept, key=lambda one: (costs[one], one))
        kept.remove(layer)
        removals.append(Removal(layer, costs[layer]))
    return kept, removals


def reduced(model: Any, kept: Sequence[int]) -> Any:
    """The model with these of its layers alone; their weights are the model's own.

    To be run without a cache: the layers keep their numbers.
    """
    memo = {id(one): one for one in (*model.parameters(), *model.buffers())}
    found = copy.deepcopy(model, memo)
    for name, value in vars(shape.cut_config(model.config, kept)).items():
        setattr(found.config, name, value)
    body = found.base_model
    body.layers = nn.ModuleList(body.layers[layer] for layer in kept)
    return found


@torch.inference_mode()
def divergence(model: Any, calibration: Calibration) -> float:
    """Mean divergence of what a model says from its teacher, nats a position."""
    total = done = 0.0
    head, places = head_of(model), calibration.picked.sum(1).tolist()
    ids_PK = calibration.ids_PK.split(places)
    probs_PK = calibration.probs_PK.split(places)
    for rows, states_RTD in _states(model, calibration):
        for row, states_TD in zip(range(rows.start, rows.stop), states_RTD, strict=True):
            wanted = calibration.picked[row, : len(states_TD)]
            logits_PV = head(states_TD[wanted]).float() / calibration.temperature
            loss_P, _ = divergence_of(logits_PV, Sparse.of(ids_PK[row], probs_PK[row]))
            total += float(loss_P.double().sum())
            done += len(loss_P)
    return total / done


def _states(model: Any, calibration: Calibration) -> Iterator[tuple[slice, Tensor]]:
    """Last hidden states of some sequences after the other, and which these are."""
    count = len(calibration.batch.tokens_RT)
    for start in range(0, count, ROWS):
        rows = slice(start, min(start + ROWS, count))
        batch = calibration.batch.rows(rows)
        yield rows, model.base_model(**inputs_of(model, batch)).last_hidden_state


@torch.inference_mode()
def choose_experts(
    model: Any, calibration: Calibration, count: int | None
) -> dict[str, experts.Choice]:
    """For each mixture of experts by its name: which experts stay. None for all: no choice."""
    if count is None:
        return {}
    valid = list[Tensor]()
    with experts.watched(model) as said:
        for rows, states_RTD in _states(model, calibration):
            segments_RT = calibration.batch.segments_RT[rows, : states_RTD.shape[1]]
            valid.append(torch.from_numpy(segments_RT >= 0).flatten())
    return {
        name: experts.choose(experts.use_of(found, valid), count) for name, found in said.items()
    }


def cut(
    teacher: Any,
    vocabulary: Vocabulary,
    choices: dict[str, experts.Choice] | None = None,
    *,
    merge: bool = False,
) -> Any:
    """A student of these tokens and experts, with the teacher's weights in fp32.

    A byte that the teacher's vocabulary lacks starts from the mean of all rows; in a table of
    numbers that are no weights, from the first row.

    Args:
        teacher: with the layers that stay, see `reduced`.
        choices: of its mixtures of experts; none: every expert stays.

    Raises:
        StageError: the student does not take these weights, or, where all experts stay, does not
            run as the teacher.
    """
    choices = choices or {}
    state = {name: values.detach() for name, values in teacher.state_dict().items()}
    rows = torch.from_numpy(vocabulary.teacher_ids_V)
    for name in _tables(teacher):
        state[name] = _picked(state[name], rows)
    for name, choice in choices.items():
        state |= experts.apply(state, name, choice, merge=merge)
    config = _without_drafts(copy.deepcopy(teacher.config))
    config.vocab_size = vocabulary.size
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config, name, None)  # the teacher's ids; the caller names the student's
    if choices:
        experts.set_count(config, len(next(iter(choices.values())).kept))
    student = type(teacher)(config).float()
    try:
        student.load_state_dict(state)
    except RuntimeError as error:
        raise _unfit(teacher, str(error).splitlines()[-1].strip()) from error
    student.tie_weights()
    student.eval()
    if not choices:
        _demand_equal(student, teacher, rows)
    return student


def _without_drafts(config: Any) -> Any:
    """The configuration itself, without layers that predict several tokens ahead.

    transformers loads none of them, so a student has none.
    """
    if hasattr(config, "num_nextn_predict_layers"):
        config.num_nextn_predict_layers = 0
    return config


def config_of(teacher: Any, config: StudentConfig) -> Any:
    """A configuration of the student's size, before it is measured which layers stay.

    Args:
        teacher: its configuration.
    """
    total = teacher.num_hidden_layers
    kept = importance.choose_layers_evenly(total, config.layers or total)
    found = _without_drafts(shape.cut_config(teacher, kept))
    found.vocab_size = config.vocabulary
    if config.experts is not None:
        experts.set_count(found, config.experts)
    return found


def _tables(model: Any) -> list[str]:
    """Names of what has a row for each token: embedding, head, and routing by token."""
    tables = {id(model.get_input_embeddings().weight), id(head_of(model).weight)}
    named = model.named_parameters(remove_duplicate=False)
    weights = [name for name, one in named if id(one) in tables]
    routed = [name for name, _ in model.named_buffers() if name.endswith(f".{experts.TABLE}")]
    return weights + routed


def _picked(table: Tensor, rows: Tensor) -> Tensor:
    found = table[rows.clamp_min(0)]
    other = table.mean(0) if table.is_floating_point() else table[0]
    return torch.where((rows >= 0)[:, None], found, other)


@torch.inference_mode()
def _demand_equal(student: Any, teacher: Any, rows: Tensor) -> None:
    """The student's own pass over some tokens must equal the teacher's."""
    ids = torch.nonzero(rows >= 0)[: shape.PROBE_TOKENS, 0]
    batch = pack((), [ids.tolist()], len(ids), alone=True)
    got = student.base_model(**inputs_of(student, batch)).last_hidden_state
    wanted = teacher.base_model(input_ids=rows[ids][None], use_cache=False).last_hidden_state
    gap = float((got - wanted).norm() / wanted.norm())
    if not gap <= shape.PROBE_GAP:
        raise _unfit(teacher, f"the cut student's states differ by {gap:.2g} from its layers' own")
