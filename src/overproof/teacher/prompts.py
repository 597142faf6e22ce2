"""What the teacher is asked: prompts drawn from the certified data, in its own tokens."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from overproof.core.artifact import Artifact
from overproof.core.errors import UsageError
from overproof.core.recipe import Recipe
from overproof.data import dataset
from overproof.data.records import lone_prompt
from overproof.teacher.checkers import Checker, parse, thinks
from overproof.teacher.checkers.pool import demand
from overproof.teacher.local import Teacher
from overproof.teacher.request import Request
from overproof.teacher.routing import Router

TRAIN, HELDOUT = "train.jsonl", "heldout.jsonl"
WORD = re.compile(r"\S+")


def demand_sequence(prompt: int, recipe: Recipe) -> None:
    """Refuse, before anything is drawn, answers that may be too long to train on.

    A text that the student has to spell can still be longer; packing tells.

    Args:
        prompt: tokens of the longest prompt, the shared prefix among them.

    Raises:
        UsageError: the longest answer to it would not fit a training sequence.
    """
    answer, room = recipe.sample.max_new_tokens, recipe.train.sequence_length
    if prompt + answer > room:
        raise UsageError(
            f"train.sequence_length is {room}, too short for the longest prompt and answer",
            details=[
                f"an answer of {answer} tokens (sample.max_new_tokens) behind a prompt of {prompt}"
            ],
            hint="raise train.sequence_length, or lower sample.max_new_tokens",
        )


@dataclass(frozen=True)
class Asked:
    """What the teacher is asked.

    Attributes:
        prefix: tokens that every conversation starts with.
        student_prefix: the same of the student, which is not shown the shots.
        requests: of each split, by its file's name.
        prompts: all prompts as they were certified, by key. texts: the held-out ones.
        checks: what is right, of the records that say so, by key.
        thinking: the chat template has begun the reasoning at the end of a prompt.
    """

    prefix: tuple[int, ...]
    student_prefix: tuple[int, ...]
    requests: dict[str, list[Request]]
    prompts: dict[str, str]
    texts: dict[str, str]
    checks: dict[str, Mapping[str, Any]]
    thinking: bool = False


def ask(teacher: Teacher, train: Artifact, heldout: Artifact, recipe: Recipe) -> Asked:
    """Draw the prompts of both splits by the recipe's seed, and render them.

    Raises:
        UsageError: a record is no single prompt, has no check or none that can be read where the
            recipe trains on verified answers, or may not fit a training sequence.
    """
    prompts = {
        TRAIN: _prompts(train, recipe.sample.prompts, recipe),
        HELDOUT: _prompts(heldout, recipe.sample.heldout_prompts, recipe),
    }
    every = [prompt for split in prompts.values() for prompt in split]
    system, shots = recipe.teacher.system, recipe.teacher.shots
    ids = {one.key: teacher.prompt_ids(one.text, system, shots) for one in every}
    prefix = shared_prefix(list(ids.values()))
    own = {key: tokens[len(prefix) :] for key, tokens in ids.items()}
    alone = prefix
    if shots:
        alone = _alone({one.key: teacher.prompt_ids(one.text, system) for one in every}, own)
    demand_sequence(max(len(ids[prompt.key]) for prompt in prompts[TRAIN]), recipe)
    draws = {TRAIN: recipe.sample.answers, HELDOUT: 1}
    router = Router(recipe.teacher, recipe.seed)
    requests = {
        name: [
            _routed(
                Request.make(one.key, own[one.key], recipe.seed, draw, signals=name == TRAIN),
                one,
                router,
            )
            for draw in range(draws[name])
            for one in split
        ]
        for name, split in prompts.items()
    }
    checks = {prompt.key: prompt.check for prompt in every if prompt.check is not None}
    demand(
        [
            *_checkers(prompts[TRAIN], every=recipe.sample.verified),
            *_checkers(prompts[HELDOUT], every=False),
        ]
    )
    texts = {one.key: one.text for one in prompts[HELDOUT]}
    return Asked(
        prefix,
        alone,
        requests,
        {prompt.key: prompt.text for prompt in every},
        texts,
        checks,
        begins_to_think(teacher, next(iter(ids.values()))),
    )


def _routed(request: Request, prompt: Prompt, router: Router) -> Request:
    return replace(request, teacher=router.teacher(request.key, prompt.fields))


def _alone(bare: Mapping[str, Sequence[int]], own: Mapping[str, Sequence[int]]) -> tuple[int, ...]:
    """What stands before the own tokens of every prompt where no shots do.

    Args:
        bare: the prompts without shots, by key. own: of each, what is its own behind the shots.

    Raises:
        UsageError: a prompt is written otherwise behind shots than alone.
    """
    heads = set[tuple[int, ...]]()
    for key, tokens in own.items():
        whole = tuple(bare[key])
        cut = len(whole) - len(tokens)
        if cut < 0 or whole[cut:] != tuple(tokens):
            raise UsageError(
                "the chat template writes a prompt otherwise behind teacher.shots than alone",
                details=[f"record {key}"],
                hint="put the shots into teacher.system as text, and leave teacher.shots out",
            )
        heads.add(whole[:cut])
    if len(heads) > 1:
        raise UsageError(
            "without teacher.shots the conversations do not begin alike",
            hint="put the shots into teacher.system as text, and leave teacher.shots out",
        )
    return heads.pop()


def begins_to_think(teacher: Teacher, prompt: Sequence[int]) -> bool:
    """Whether the chat template ends in reasoning that it has begun; of any rendered prompt."""
    return thinks(str(teacher.tokenizer.decode(prompt, skip_special_tokens=False)))


class Prompt(NamedTuple):
    """One record that the teacher is asked.

    Attributes:
        fields: of the record, beside its prompt.
    """

    key: str
    text: str
    fields: Mapping[str, Any]

    @property
    def check(self) -> Mapping[str, Any] | None:
        """What is right, if the record says so."""
        found: Mapping[str, Any] | None = self.fields.get("check")
        return found


def _prompts(records: Artifact, count: int, recipe: Recipe) -> list[Prompt]:
    """So many prompts, drawn by seed; all of them if there are fewer."""
    rows = list(dataset.rows(records))
    order = np.random.default_rng(recipe.seed).permutation(len(rows))[:count]
    return [
        Prompt(
            rows[index].key,
            beginning(_prompt(rows[index]), recipe.sample.words),
            _fields(rows[index]),
        )
        for index in order
    ]


def _fields(row: dataset.Row) -> dict[str, Any]:
    return {"origin": row.origin, "creator": row.creator, "licence": row.licence, **row.extra}


def _checkers(prompts: Sequence[Prompt], *, every: bool) -> Iterator[Checker]:
    """The checks of the prompts that have one.

    Args:
        every: each must have one.

    Raises:
        UsageError: one that cannot be read, or none where each must have one.
    """
    for prompt in prompts:
        if prompt.check is None:
            if not every:
                continue
            raise UsageError(
                "sample.verified trains on answers that pass a check, and a record has none",
                details=[f"record {prompt.key}"],
                hint="give every record a field `check`, see docs/reasoning.md",
            )
        try:
            yield parse(prompt.check)
        except UsageError as error:
            details = [f"record {prompt.key}", *error.details]
            raise UsageError(error.what, details=details, hint=error.hint) from error


def beginning(text: str, words: int | None) -> str:
    """So many words of a text, and what stands between them; None: all of it."""
    if words is None:
        return text
    found = [part for _, part in zip(range(words), WORD.finditer(text), strict=False)]
    return text[: found[-1].end()] if found else text


def _prompt(row: dataset.Row) -> str:
    prompt = lone_prompt(row.record.messages)
    if prompt is None:
        raise UsageError(
            "the teacher can only answer records that are one prompt",
            details=[f"record {row.key} is something else"],
            hint="give records with a field `prompt`",
        )
    return prompt


def shared_prefix(prompts: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """The tokens that all prompts start with; each keeps at least one of its own."""
    ids = [tuple(prompt) for prompt in prompts]
    first, last = min(ids), max(ids)  # what these two share, all share
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    shortest = min(map(len, prompts))
    return tuple(token for token, _ in itertools.islice(same, shortest - 1))
