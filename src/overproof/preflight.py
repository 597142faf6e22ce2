"""Try a recipe on a few prompts before anything is spent on it: what would go wrong, by name.

The faults that cost the field most are silent: a second beginning-of-text token, a template that
drops the system message, answers that never end, a sampler that computes another distribution than
the model, a loss of the wrong size. Each is a check with a remedy.

1. Ask the terms gate: the checks draw tokens of the teacher.
2. Look: render prompts, draw answers, read them back, take the loss; of a teacher behind an
   endpoint the base of the student does so, and the endpoint is looked at by `remote_preflight`.
3. Judge what was seen: a rule a check.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from overproof.core import device

device.prepare()

import torch  # noqa: E402

from overproof import remote_preflight  # noqa: E402
from overproof.core import config as recipes  # noqa: E402
from overproof.core.check import Check, State  # noqa: E402
from overproof.core.console import note  # noqa: E402
from overproof.core.errors import OverproofError, StageError, UsageError  # noqa: E402
from overproof.core.recipe import Recipe  # noqa: E402
from overproof.data.read import lone_prompts  # noqa: E402
from overproof.policy import obligations  # noqa: E402
from overproof.student import arms, retokenise  # noqa: E402
from overproof.student.common import Common  # noqa: E402
from overproof.student.divergences import FORWARD_KL, Divergence, divergence  # noqa: E402
from overproof.student.losses import Dense, divergence_of  # noqa: E402
from overproof.teacher import local  # noqa: E402
from overproof.teacher.example import Example  # noqa: E402
from overproof.teacher.forward import head_of  # noqa: E402
from overproof.teacher.kept import TopK  # noqa: E402
from overproof.teacher.origins import Origins, find  # noqa: E402
from overproof.teacher.prompts import shared_prefix  # noqa: E402
from overproof.teacher.request import Answer, Drawing, Request  # noqa: E402
from overproof.teacher.routing import demand_alike  # noqa: E402
from overproof.teacher.sample import sampler  # noqa: E402
from overproof.teacher.signals import shard_signals  # noqa: E402
from overproof.teacher.tokens import other_tokens  # noqa: E402

PROMPTS = 8  # answered; a prefill group
PROBES = (
    "Where is my parcel?", "0 1 12 123 1234 3.14 1,000", "naïve café, Zürich, Łódź",
    "日本語のテキスト", "😀 👩‍👩‍👧", "  two  spaces\n\ttab", "<|not_a_token|>",
)  # fmt: skip
SYSTEM = "Zebra crossing."  # a system message that no template has of its own
ENDED = 0.5  # of the answers, at least
SERVED = 0.1  # nats of mean difference between sampler and plain pass; 0.03 measured in bf16
AGREED = 0.9  # of the positions where both must name the same likeliest token
SAME = 1e-3  # relative, of a loss that is known in closed form


@dataclass(frozen=True)
class Seen:
    """What the look found.

    Attributes:
        rows: of the model's embedding. highest: largest id of a token.
        changed: probes that come back as another text, with it.
        doubled: whether a rendered prompt begins with two beginning-of-text tokens.
        system: whether the template shows a system message; invites: whether it opens the
            assistant's turn.
        ended: answers that ended by themselves; answers: all.
        longest: tokens of the longest prompt and answer that may come. room: a training sequence.
        apart: mean difference of the likeliest token's log-probability between the sampler and a
            plain pass, nats.
        uniform: forward KL from the teacher to a uniform student, from the loss; expected: the
            same in closed form, log V less the teacher's entropy.
        itself: the recipe's divergence of the teacher from itself; start: from a uniform student.
    """

    rows: int
    highest: int
    changed: tuple[tuple[str, str], ...]
    doubled: bool
    system: bool
    invites: bool
    ended: int
    answers: int
    longest: int
    room: int
    apart: float
    uniform: float
    expected: float
    itself: float
    start: float


def run(name: str, overrides: Sequence[str] = ()) -> tuple[Check, ...]:
    """Try a recipe.

    Raises:
        PolicyError: the teacher's terms forbid it.
        UsageError: a recipe or a data file that cannot be used.
        StageError: a teacher that cannot be loaded.
    """
    path = recipes.find_recipe(name)
    recipe = recipes.load_recipe(path, overrides)
    if recipe.teacher.scratch is not None:
        raise UsageError(
            f"teacher {recipe.teacher.model} is not there yet: the run trains it from scratch",
            hint=f"overproof distill {name} --dry-run says what can be said before",
        )
    # 1.
    origins = find(recipe)
    obligations.permit(recipe, origins.places)
    # 2. and 3.
    prompts = first_prompts(recipes.find_data(recipe.data.train, path), recipe)
    note(f"preflight: {len(prompts)} prompts of {recipe.data.train}")
    teacher, other = local.load(origins.here.name), origins.other
    base = teacher
    if other:
        base = other.load() if origins.apart else local.load_base(other.name)
    asked = remote_preflight.run(recipe, prompts[0], teacher) if origins.remote else ()
    fits = _attempt(
        "student",
        lambda: arms.demand(teacher, base, recipe),
        "can be cut from this model",
    )
    others = [_alike(teacher, origins)] if origins.others else []
    seen = judge(look(teacher, prompts, recipe))
    return (*asked, *seen, *others, tokens(teacher, base, recipe), fits)


def _alike(first: local.Teacher, origins: Origins) -> Check:
    def demand() -> None:
        for other in origins.others:
            demand_alike(first, other.load())

    return _attempt("teachers", demand, f"{len(origins.teachers)} speak alike")


def tokens(teacher: local.Teacher, base: local.Teacher, recipe: Recipe) -> Check:
    """Which way the teacher's distributions go to the student's tokens."""
    if base is teacher:
        return Check("tokens", "ok", "the teacher's own")
    if not other_tokens(teacher.tokenizer_state, base.tokenizer_state):
        return Check("tokens", "ok", f"those of {base.name}, the teacher's among them")
    try:
        retokenise.demand(base, recipe)
    except OverproofError as error:
        return Check.failed("tokens", error)
    sides = [retokenise.side_of(one) for one in (teacher, base)]
    found = Common.of(*sides)
    same = int((found.same_V >= 0).sum())
    return Check(
        "tokens",
        "ok",
        f"others than the teacher's: texts are aligned by bytes; {same:,} of the base's "
        f"{found.same_V.size:,} tokens are the teacher's too, in {found.cells:,} common cells",
    )


def first_prompts(path: Path, recipe: Recipe) -> list[str]:
    """The first prompts of a data file.

    Raises:
        UsageError: none of its records is one.
    """
    found = list(itertools.islice(lone_prompts(path, recipe.data.max_record_bytes), PROMPTS))
    if not found:
        raise UsageError(
            f"{path} has no prompt among its records",
            hint=f"overproof certify {path} tells what is wrong with each",
        )
    return found


def look(teacher: local.Teacher, prompts: Sequence[str], recipe: Recipe) -> Seen:
    """Render, draw, read back, take the loss."""
    asks = recipe.teacher
    ids = [teacher.prompt_ids(prompt, asks.system, asks.shots) for prompt in prompts]
    prefix = shared_prefix(ids)
    longest = max(map(len, ids))
    kept = TopK(1).within(teacher.model.config.vocab_size)
    requests = [
        Request.make(str(number), own[len(prefix) :], recipe.seed, signals=True)
        for number, own in enumerate(ids)
    ]
    drawing = replace(Drawing.of(recipe.sample, teacher.stop_ids, kept), slots=PROMPTS)
    drawn = list(sampler(teacher.half, prefix, requests, drawing).draw(requests))
    uniform, expected, itself, start = _losses(
        teacher, ids, divergence(recipe.train.divergence), recipe.signals.temperature
    )
    bos = teacher.tokenizer.bos_token_id
    plain = teacher.prompt_ids(prompts[0], None)
    return Seen(
        rows=teacher.model.get_input_embeddings().weight.shape[0],
        highest=max(teacher.tokenizer.get_vocab().values()),
        changed=tuple((text, back) for text in PROBES if (back := _back(teacher, text)) != text),
        doubled=bos is not None and plain[:2] == [bos, bos],
        system=_shows_system(teacher, prompts[0]),
        invites=_opens_a_turn(teacher, prompts[0]),
        ended=sum(answer.tokens[-1] in teacher.stop_ids for _, answer in drawn),
        answers=len(drawn),
        longest=longest + recipe.sample.max_new_tokens,
        room=recipe.train.sequence_length,
        apart=_apart(teacher, prefix, drawn, kept),
        uniform=uniform,
        expected=expected,
        itself=itself,
        start=start,
    )


def _back(teacher: local.Teacher, text: str) -> str:
    ids = teacher.tokenizer(text, add_special_tokens=False)["input_ids"]
    return str(teacher.tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def _shows_system(teacher: local.Teacher, prompt: str) -> bool:
    try:
        return SYSTEM in teacher.tokenizer.decode(teacher.prompt_ids(prompt, SYSTEM))
    except StageError:
        return False


def _opens_a_turn(teacher: local.Teacher, prompt: str) -> bool:
    turns = [{"role": "user", "content": prompt}]
    made: Callable[..., Any] = teacher.tokenizer.apply_chat_template
    texts = [
        made(
            turns, tokenize=False, add_generation_prompt=opens, chat_template=teacher.chat_template
        )
        for opens in (False, True)
    ]
    return bool(texts[0] != texts[1])


def _apart(
    teacher: local.Teacher,
    prefix: tuple[int, ...],
    drawn: Sequence[tuple[Request, Answer]],
    kept: TopK,
) -> float:
    """Mean difference of the likeliest token's log-probability, where both name the same one.

    Rounding moves single ones by a fifth of a nat; infinite where they rarely name the same.
    """
    differences, same = list[torch.Tensor](), list[torch.Tensor]()
    for request, answer in drawn:
        example = Example(request.record, request.ids, tuple(answer.tokens))
        length = len(prefix) + len(example.tokens)
        plain = shard_signals(teacher.half, prefix, [example], length, kept)
        ours, log_ours, *_ = answer.signals.arrays if answer.signals else plain.arrays
        theirs, log_theirs, *_ = plain.arrays
        same.append((ours == theirs)[:, 0])
        differences.append((log_ours.float() - log_theirs.float())[:, 0].abs()[same[-1]])
    if float(torch.cat(same).float().mean()) < AGREED:
        return math.inf
    return float(torch.cat(differences).mean())


@torch.inference_mode()
def _losses(
    teacher: local.Teacher, ids: Sequence[Sequence[int]], made_small: Divergence, temperature: float
) -> tuple[float, float, float, float]:
    """See `Seen`: `uniform`, `expected`, `itself`, `start`; at the ends of the prompts."""
    model = teacher.model
    states = [
        model.base_model(input_ids=torch.tensor([one])).last_hidden_state[0, -1] for one in ids
    ]
    hidden_NE, head_UE = torch.stack(states), head_of(model).weight
    logits_NU = hidden_NE @ head_UE.T
    size = len(head_UE)
    every = torch.arange(size)
    plain = Dense(hidden_NE, head_UE, every, size)
    tempered = plain._replace(temperature=temperature)
    flat_NU = torch.zeros_like(logits_NU)
    log_p_NU = torch.log_softmax(logits_NU.double(), -1)
    entropy = float(-(log_p_NU.exp() * log_p_NU).sum(-1).mean())
    uniform, _ = divergence_of(flat_NU, plain, FORWARD_KL)
    itself, _ = divergence_of(logits_NU / temperature, tempered, made_small)
    start, _ = divergence_of(flat_NU, tempered, made_small)
    expected = math.log(size) - entropy
    return float(uniform.mean()), expected, float(itself.mean()), float(start.mean())


def judge(seen: Seen) -> tuple[Check, ...]:
    """A rule a check, no look at the world."""
    return (
        _check(
            "vocabulary",
            seen.highest < seen.rows,
            f"{seen.highest + 1:,} ids, {seen.rows:,} rows",
            "use a teacher whose embedding was resized with its tokenizer",
        ),
        _check(
            "round trip",
            not seen.changed,
            f"{len(PROBES)} probes come back as they were"
            if not seen.changed
            else f"{seen.changed[0][0]!r} comes back as {seen.changed[0][1]!r}",
            "look at the tokenizer's normaliser; a student inherits it",
            "warning",
        ),
        _check(
            "beginning",
            not seen.doubled,
            "a prompt begins with two beginning-of-text tokens"
            if seen.doubled
            else "no prompt begins twice",
            "the chat template and the tokenizer both write it: take it out of the template",
        ),
        _check(
            "system message",
            seen.system,
            "shown by the template" if seen.system else "the template drops it",
            "put it into the prompts, and leave teacher.system out",
            "warning",
        ),
        _check(
            "turn",
            seen.invites,
            "the template opens the assistant's turn"
            if seen.invites
            else "the template does not open the assistant's turn: the teacher goes on as the user",
            "use the model's own chat template with `add_generation_prompt`",
        ),
        _check(
            "termination",
            seen.ended >= ENDED * seen.answers,
            f"{seen.ended} of {seen.answers} answers ended by themselves",
            "raise sample.max_new_tokens, or ask for shorter answers in teacher.system",
            "warning",
        ),
        _check(
            "length",
            seen.longest <= seen.room,
            f"{seen.longest} tokens at most of {seen.room} a sequence",
            "raise train.sequence_length, or lower sample.max_new_tokens",
        ),
        _check(
            "served as read",
            seen.apart <= SERVED,
            f"sampler and plain pass lie {seen.apart:.3f} nats apart, {SERVED} allowed",
            "report it with the model's name: its layers do something that the sampler does not",
        ),
        _check(
            "loss",
            abs(seen.uniform - seen.expected) <= SAME * seen.expected,
            f"KL to a uniform student {seen.uniform:.4f} nats, log V less entropy "
            f"{seen.expected:.4f}",
            "report it with the model's name",
        ),
        _check(
            "divergence",
            0.0 <= seen.itself <= SAME * seen.start and math.isfinite(seen.start),
            f"{seen.itself:.1e} of the teacher from itself, {seen.start:.3f} from the uniform one",
            "report it with the recipe's train.divergence",
        ),
    )


def _check(name: str, good: bool, detail: str, remedy: str, bad: State = "missing") -> Check:
    return Check(name, "ok", detail) if good else Check(name, bad, detail, remedy)


def _attempt(name: str, demand: Callable[[], None], met: str) -> Check:
    """A demand of the pipeline as a check.

    Args:
        met: what to say if it is.
    """
    try:
        demand()
    except OverproofError as error:
        return Check.failed(name, error)
    return Check(name, "ok", met)
