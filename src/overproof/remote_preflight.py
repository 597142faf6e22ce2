"""Try a teacher's endpoint at the cost of one or two short answers: what is wrong, by name.

1. Look: read the key, list the models, ask for one token, and for a short answer with its likeliest
   tokens where the recipe wants them.
2. Judge what was seen: a rule a check.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from overproof.core.check import Check
from overproof.core.errors import StageError, UsageError
from overproof.core.recipe import Recipe
from overproof.teacher.local import Teacher
from overproof.teacher.remote import stage
from overproof.teacher.remote.asking import Identity
from overproof.teacher.remote.client import Client, FailedError
from overproof.teacher.remote.reply import Reply
from overproof.teacher.remote.tokens import Hearing

SHORT = 16  # tokens of the answer that shows whether the endpoint's tokens are the base's
SHOWN = 5  # models named of those that an endpoint lists


@dataclass(frozen=True)
class Seen:
    """What the look found.

    Attributes:
        key: why the key is not there; None: it is, or none is needed.
        unreachable: why nothing answers; None: something does.
        models: that the endpoint lists; None: it has no list.
        refused: why a one-token answer was not given.
        reply: that answer.
        stranger: why that model may not answer.
        likely: why the likeliest tokens cannot be used; empty: they can; None: not wanted.
    """

    key: str | None = None
    unreachable: str | None = None
    models: tuple[str, ...] | None = None
    refused: str | None = None
    reply: Reply | None = None
    stranger: str | None = None
    likely: str | None = None


def run(recipe: Recipe, prompt: str, base: Teacher) -> tuple[Check, ...]:
    """Look, and judge.

    Args:
        base: the model here whose tokens the student speaks.

    Raises:
        StageError: the client library is not installed.
    """
    return judge(look(recipe, prompt, base), recipe)


def look(recipe: Recipe, prompt: str, base: Teacher) -> Seen:
    """Ask the endpoint."""
    try:
        client = Client(stage.endpoint_of(recipe))
    except UsageError as error:
        return Seen(key=error.what)
    return asyncio.run(_look(client, recipe, prompt, base))


async def _look(client: Client, recipe: Recipe, prompt: str, base: Teacher) -> Seen:
    endpoint = stage.endpoint_of(recipe)
    sent = stage.body(prompt, recipe.seed, recipe)
    async with client:
        try:
            models = tuple(await client.models())
        except FailedError as error:
            if not error.why.startswith("HTTP "):
                return Seen(unreachable=error.why)
            models = None
        try:
            reply = await client.answer({**sent, endpoint.limit_field: 1})
        except FailedError as error:
            return Seen(models=models, refused=error.why)
        stranger = _problem(
            lambda: Identity(recipe.teacher.model, endpoint.aliases).check(reply),
        )
        likely = None
        if stage.kept(recipe) is not None:
            likely = await _likely(client, {**sent, endpoint.limit_field: SHORT}, recipe, base)
    return Seen(models=models, reply=reply, stranger=stranger, likely=likely)


async def _likely(client: Client, sent: Mapping[str, Any], recipe: Recipe, base: Teacher) -> str:
    """Why the likeliest tokens cannot be used; empty: they can."""
    try:
        reply = await client.answer(sent)
    except FailedError as error:
        return error.why
    if not reply.places or not any(top for _, top in reply.places):
        return "the answer came without them"
    return _problem(lambda: Hearing(base, stage.kept(recipe)).heard(reply)) or ""


def _problem(demand: Callable[[], object]) -> str | None:
    """Why a demand is not met, in a line; None: it is."""
    try:
        demand()
    except StageError as error:
        return "; ".join([error.what, *error.details])
    return None


def judge(seen: Seen, recipe: Recipe) -> tuple[Check, ...]:
    """A rule a check, no look at the world; what could not be looked at is left out."""
    endpoint, model = stage.endpoint_of(recipe), recipe.teacher.model
    named = f"{endpoint.key} is set" if endpoint.key else "none is needed"
    found = [_check("key", seen.key, named, f"export {endpoint.key}=... in this shell")]
    if seen.key is None:
        hint = "look at teacher.endpoint.url, and whether the server runs"
        found.append(_check("reachable", seen.unreachable, endpoint.url, hint))
    if seen.key or seen.unreachable:
        return tuple(found)
    found.append(_listed(seen.models, model, endpoint.aliases))
    hint = "look at teacher.model and at the fields that the service takes"
    found.append(_check("answer", seen.refused, "one token came", hint))
    if seen.reply is None:
        return tuple(found)
    who = f"by {seen.reply.model!r}"
    if seen.reply.fingerprint:
        who += f", fingerprint {seen.reply.fingerprint}"
    hint = f"if it is the same model, add {seen.reply.model!r} to teacher.endpoint.aliases"
    found.append(_check("answered", seen.stranger, who, hint))
    found.append(_usage(seen.reply))
    if seen.likely is not None:
        fine = "the likeliest tokens come with it, and are the base's own"
        found.append(_check("logprobs", seen.likely or None, fine, "take signals.kind `text`"))
    return tuple(found)


def _check(name: str, problem: str | None, fine: str, remedy: str) -> Check:
    if problem is None:
        return Check(name, "ok", fine)
    return Check(name, "missing", problem, remedy)


def _listed(models: tuple[str, ...] | None, model: str, aliases: tuple[str, ...]) -> Check:
    if models is None:
        return Check("model", "warning", "the endpoint lists no models", "a short answer tells")
    if {model, *aliases} & set(models):
        return Check("model", "ok", f"{model} is among {len(models):,}")
    some = ", ".join(models[:SHOWN]) + (", ..." if len(models) > SHOWN else "")
    return Check("model", "warning", f"{model} is not among {some or 'none'}", "name one of these")


def _usage(reply: Reply) -> Check:
    if reply.used is not None:
        return Check("usage", "ok", f"{reply.used.prompt} and {reply.used.answer} tokens")
    return Check(
        "usage",
        "warning",
        "the answer does not say what it took: each counts at its worst",
        "raise the budget accordingly",
    )
