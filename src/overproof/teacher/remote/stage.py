"""The answers of a remote teacher as an artifact: the stage `samples` where it has an endpoint."""

from __future__ import annotations

import datetime as dt
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from overproof.core.artifact import Artifact, Input, Json, Resource, Work, build
from overproof.core.console import meter, note
from overproof.core.contract import REMOTE
from overproof.core.digest import sha256_json
from overproof.core.endpoint import Endpoint
from overproof.core.errors import StageError, UsageError
from overproof.core.methods import TopK as TopKConfig
from overproof.core.recipe import Recipe
from overproof.teacher import answers
from overproof.teacher.journal import Entry
from overproof.teacher.kept import kept_of
from overproof.teacher.kept.top_k import TopK
from overproof.teacher.local import Teacher, conversation
from overproof.teacher.prompts import HELDOUT, TRAIN, Asked, ask
from overproof.teacher.remote.asking import Question, ask_all
from overproof.teacher.remote.ledger import Ledger
from overproof.teacher.remote.purse import in_words
from overproof.teacher.remote.reply import Reply, Tokens
from overproof.teacher.remote.tokens import STOP, Hearing
from overproof.teacher.request import Request

LEDGER = "remote/ledger.jsonl"  # beside the stages: a stage made anew asks nothing again
REPLIES = "replies.jsonl"
CUT = "length"  # the service's word for an answer that reached the longest length
SEEDS = 2**31


def endpoint_of(recipe: Recipe) -> Endpoint:
    """The teacher's endpoint.

    Raises:
        UsageError: it has none.
    """
    if recipe.teacher.endpoint is None:
        raise UsageError("the teacher has no endpoint", hint="give teacher.endpoint")
    return recipe.teacher.endpoint


def identify(recipe: Recipe) -> Resource:
    """What stands for the teacher in a proof: a name at a place, for nobody can hash its weights.

    The digest is that of the name and the base URL.
    """
    endpoint, name = endpoint_of(recipe), recipe.teacher.model
    return Resource(
        REMOTE, name, endpoint.origin, sha256_json({"model": name, "url": endpoint.url})
    )


def heldout_file(folder: Path, number: int) -> Path:
    """Where a shard of the signals of held-out answers lies."""
    return folder / f"heldout-signals-{number:05d}.safetensors"


def kept(recipe: Recipe) -> TopK | None:
    """How much is kept of a position; None: the text alone."""
    if not isinstance(recipe.signals, TopKConfig):
        return None
    found = kept_of(recipe.signals)
    assert isinstance(found, TopK)
    return found


def body(prompt: str, seed: int, recipe: Recipe) -> Json:
    """A request of the chat API."""
    sample, endpoint = recipe.sample, endpoint_of(recipe)
    found: Json = {
        "model": recipe.teacher.model,
        "messages": conversation(prompt, recipe.teacher.system, recipe.teacher.shots),
        endpoint.limit_field: sample.max_new_tokens,
        "temperature": sample.temperature,
        "top_p": sample.top_p,
        **endpoint.extra,
    }
    if endpoint.seed:
        found["seed"] = seed % SEEDS
    if isinstance(recipe.signals, TopKConfig):
        found |= {"logprobs": True, "top_logprobs": recipe.signals.top_k}
    return found


def question(prompt: str, request: Request, recipe: Recipe) -> Question:
    """A request, its key, and its worst: a token stands for a byte at least."""
    endpoint, sent = endpoint_of(recipe), body(prompt, request.seed, recipe)
    draw = request.key.partition("/")[2]
    read = sum(len(turn["content"].encode()) for turn in sent["messages"])
    worst = Tokens(read + endpoint.prompt_overhead_tokens, recipe.sample.max_new_tokens)
    return Question(sha256_json({"url": endpoint.url, "draw": draw, "body": sent}), sent, worst)


def worst_of(prompts: Sequence[Sequence[str]], recipe: Recipe) -> tuple[int, Tokens]:
    """Requests, and what they may take at most, whichever prompts the seed draws.

    Args:
        prompts: of the training split, then of the held-out one.
    """
    sample, requests, total = recipe.sample, 0, Tokens(0, 0)
    most = (sample.prompts, sample.heldout_prompts)
    for split, count, draws in zip(prompts, most, (sample.answers, 1), strict=True):
        asked = Request.make("any", (), recipe.seed)
        worst = [question(prompt, asked, recipe).worst for prompt in split]
        longest = sorted(worst, reverse=True)[:count]
        requests += draws * len(longest)
        total = Tokens(
            total.prompt + draws * sum(one.prompt for one in longest),
            total.answer + draws * sum(one.answer for one in longest),
        )
    return requests, total


@dataclass
class Heard:
    """Answers in tokens of the model here, as a journal gives them.

    Attributes:
        rows: of `REPLIES`.
        left_out: answers that nothing can be learned from, by the service's reason.
    """

    done: dict[str, Entry] = field(default_factory=dict)
    bytes_of: dict[str, bytes] = field(default_factory=dict)
    rows: list[Json] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    def signals(self, key: str) -> bytes:
        """The bytes that were kept beside an answer."""
        return self.bytes_of[key]

    def add(self, request: Request, split: str, reply: Reply, hearing: Hearing) -> bool:
        """Take an answer in; False: nothing can be learned from it."""
        usable = reply.finish in (STOP, CUT) and bool(reply.text.strip())
        why = None if usable else (reply.finish if reply.finish != STOP else "empty")
        self.rows.append(_row(request, split, reply, why))
        if why is not None:
            self.left_out[why] += 1
            return False
        found = hearing.heard(reply)
        self.done[request.key] = Entry(found.tokens, 0, 0)
        if found.signals is not None and hearing.kept is not None:
            self.bytes_of[request.key] = hearing.kept.to_bytes(found.signals)
        return True


def _row(request: Request, split: str, reply: Reply, why: str | None) -> Json:
    return {
        "key": request.key,
        "split": split.partition(".")[0],
        "model": reply.model,
        "system_fingerprint": reply.fingerprint,
        "finish_reason": reply.finish,
        "left_out": why,
        "prompt_tokens": reply.used.prompt if reply.used else None,
        "answer_tokens": reply.used.answer if reply.used else None,
        "received": day(reply.received, seconds=True),
    }


def day(since_1970: float, *, seconds: bool = False) -> str:
    """A moment in UTC."""
    form = "%Y-%m-%dT%H:%M:%SZ" if seconds else "%Y-%m-%d"
    return dt.datetime.fromtimestamp(since_1970, dt.UTC).strftime(form)


def sample(
    load: Callable[[], Teacher],
    train: Artifact,
    heldout: Artifact,
    base: Mapping[str, Input],
    terms: Artifact,
    recipe: Recipe,
    store: Path,
) -> Artifact:
    """Answer the prompts of both splits by asking the endpoint.

    1. Draw the prompts by the recipe's seed, as for a teacher here.
    2. Ask what the ledger has no answer to. It lies beside the stages and outlives them.
    3. Write the answers in the tokens of the student's base, with the likeliest tokens of each
       position if the recipe says so; leave out those that end for another reason than their own
       end or the longest length.
    4. From there on as for a teacher here, see `answers.sample`.

    Args:
        load: loads the base, whose tokens the student speaks.
        base: what stands for it, by its role.
        terms: the verdict that permits it; an input, so that the proof shows it came first.

    Raises:
        UsageError: a record is no single prompt, or an answer does not fit a training sequence.
        StageError: see `ask_all`; the endpoint's tokens are not those of the base.
    """
    endpoint, keep, teacher = endpoint_of(recipe), kept(recipe), identify(recipe)

    def make(work: Work) -> Json:
        # 1.
        base_model = load()
        asked = ask(base_model, train, heldout, recipe)
        # 2.
        currency = endpoint.price.currency if endpoint.price else None
        with Ledger(store / LEDGER, currency) as ledger:
            put = _questions(asked, recipe)
            with meter("asking", len(put), "answers") as progress:
                ask_all(list(put.values()), recipe.teacher.model, endpoint, ledger, progress)
            note(f"remote teacher: spent {in_words(ledger.spent, endpoint.price)} in this folder")
            work.measured["spent"] = vars(ledger.spent)
            # 3.
            heard, usable = _hear(asked, put, ledger, Hearing(base_model, keep))
        # 4.
        _demand_room(usable, heard, recipe)
        said, found = answers.chosen(usable, heard, base_model, recipe)
        facts = answers.write_all(work.folder, usable, said, heard, keep) | found
        if keep:
            answers.write_signals(work.folder, said[HELDOUT], heard, keep, heldout_file)
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in heard.rows)
        (work.folder / REPLIES).write_text(lines, encoding="utf-8")
        answers.write_origin(work.folder, base_model, teacher.sha256, recipe, keep)
        return facts | {"remote": summary(heard.rows, recipe)}

    config = {
        **answers.sampler(recipe),
        "signals": recipe.signals.model_dump(),
        "endpoint": endpoint.known,
    }
    inputs: dict[str, Input] = {
        "teacher": teacher,
        **base,
        "terms": terms,
        "train": train,
        "heldout": heldout,
    }
    return build(store, "samples", inputs=inputs, config=config, make=make, layer="teacher")


def _questions(asked: Asked, recipe: Recipe) -> dict[str, Question]:
    """By the key of their request; the held-out ones first: without them there is no measure."""
    return {
        request.key: question(asked.prompts[request.record], request, recipe)
        for split in (HELDOUT, TRAIN)
        for request in asked.requests[split]
    }


def _hear(
    asked: Asked, put: Mapping[str, Question], ledger: Ledger, hearing: Hearing
) -> tuple[Heard, Asked]:
    """Answers in tokens of the base, and what was asked less what nothing can be learned from.

    Raises:
        StageError: nothing is left of a split.
    """
    heard = Heard()
    requests = {
        split: [
            request
            for request in every
            if heard.add(request, split, ledger.reply(put[request.key].key), hearing)
        ]
        for split, every in asked.requests.items()
    }
    if heard.left_out:
        reasons = ", ".join(f"{count:,} {why}" for why, count in sorted(heard.left_out.items()))
        note(f"remote teacher: answers left out: {reasons}")
    if empty := [split for split, left in requests.items() if not left]:
        raise StageError(
            "the remote teacher gave no answer that can be used",
            details=[f"{split}: {dict(heard.left_out)}" for split in empty],
            hint="a model that reasons first needs room: raise sample.max_new_tokens",
        )
    return heard, replace(asked, requests=requests)


def _demand_room(asked: Asked, heard: Heard, recipe: Recipe) -> None:
    """The service counts in tokens of its own: only now is it known how long answers are here."""
    room = recipe.train.sequence_length
    longest = max(
        len(asked.student_prefix) + len(request.ids) + len(heard.done[request.key].tokens)
        for request in asked.requests[TRAIN]
    )
    if longest > room:
        raise UsageError(
            f"train.sequence_length is {room}, too short for the longest prompt and answer",
            details=[f"they take {longest} tokens of student.base"],
            hint="raise it and run the same command again: nothing is asked anew",
        )


def summary(rows: Sequence[Json], recipe: Recipe) -> Json:
    """What a proof says of the remote teacher; see docs/predicates/remote-teacher.md."""
    endpoint = endpoint_of(recipe)
    received = sorted(row["received"] for row in rows)
    return {
        "asked": recipe.teacher.model,
        "origin": endpoint.origin,
        "channel": recipe.teacher.channel,
        "operator": endpoint.operator,
        "answered": dict(Counter(row["model"] for row in rows)),
        "fingerprints": dict(Counter(row["system_fingerprint"] or "none" for row in rows)),
        "first": received[0],
        "last": received[-1],
        "answers": len(rows),
        "left_out": sum(row["left_out"] is not None for row in rows),
        "prompt_tokens": sum(row["prompt_tokens"] or 0 for row in rows),
        "answer_tokens": sum(row["answer_tokens"] or 0 for row in rows),
        "weights": "unknown",
    }
