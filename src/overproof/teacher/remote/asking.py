"""Asking a remote teacher many things: a bounded number at once, each answer kept as it comes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from overproof.core.console import Meter
from overproof.core.endpoint import Endpoint
from overproof.core.errors import StageError
from overproof.teacher.remote.client import Client, FailedError
from overproof.teacher.remote.ledger import Ledger
from overproof.teacher.remote.purse import Purse, in_words
from overproof.teacher.remote.reply import Reply, Tokens
from overproof.teacher.remote.retry import wait_seconds

NOTHING = Tokens(0, 0)
JITTER = random.SystemRandom()


@dataclass(frozen=True)
class Question:
    """One request.

    Attributes:
        key: digest of all that its answer depends on.
        body: of the request.
        worst: tokens that it may take at most.
    """

    key: str
    body: Mapping[str, Any]
    worst: Tokens


class Identity:
    """Who answers: one model from the first answer to the last.

    Args:
        asked: the name that is asked for. aliases: others that may answer.
        answered: who gave the answers that are kept already.
    """

    def __init__(self, asked: str, aliases: Sequence[str], answered: str | None = None) -> None:
        self.asked, self.accepted, self.answered = asked, (asked, *aliases), answered

    def check(self, reply: Reply) -> None:
        """Refuse an answer of another model.

        Raises:
            StageError: the message names both.
        """
        if self.answered is None and reply.model in self.accepted:
            self.answered = reply.model
        if self.answered is None:
            raise StageError(
                "another model answered than the one that was asked for",
                details=[
                    f"got {reply.model!r}, wanted {' or '.join(map(repr, self.accepted))}",
                    "its answer is not kept",
                ],
                hint=f"if that is the same model, add {reply.model!r} to teacher.endpoint.aliases",
            )
        if reply.model != self.answered:
            raise StageError(
                "the endpoint changed its model in mid-run",
                details=[
                    f"got an answer of {reply.model!r}, those before are of {self.answered!r}",
                    "the earlier answers are kept, this one is not",
                ],
                hint=f"run the same command again once {self.answered!r} answers, or name the "
                "dated model in teacher.model: all is then asked of that one",
            )


class Asker:
    """Puts questions to an endpoint until all are answered or one cannot be.

    1. The first goes alone: who answers is known before much is spent.
    2. Then so many at once as the recipe says, in their order.
    3. Each attempt reserves its worst cost first. A passing failure is tried again; one that may
       have been billed counts at its worst.
    4. After a failure that stays no new one begins; those in flight end and are kept.
    """

    def __init__(
        self,
        client: Client,
        purse: Purse,
        identity: Identity,
        endpoint: Endpoint,
        meter: Meter,
        uniform: Callable[[float, float], float] = JITTER.uniform,
    ) -> None:
        self.client, self.purse, self.identity = client, purse, identity
        self.endpoint, self.meter, self.uniform = endpoint, meter, uniform
        self.problem: StageError | None = None

    async def ask(self, questions: Sequence[Question]) -> None:
        """Answer all of them.

        Raises:
            StageError: one could not be answered, or the budget is used up.
        """
        waiting = iter(questions)
        # 1.
        await self._work(iter([first]) if (first := next(waiting, None)) else iter(()))
        # 2.
        await asyncio.gather(*(self._work(waiting) for _ in range(self.endpoint.concurrency)))
        if self.problem is not None:
            raise self.problem

    async def _work(self, waiting: Iterator[Question]) -> None:
        while self.problem is None and (question := next(waiting, None)) is not None:
            try:
                await self._answer(question)
            except StageError as error:
                self.problem = self.problem or error  # 4.

    async def _answer(self, question: Question) -> None:
        """Step 3."""
        for attempt in range(1, self.endpoint.attempts + 1):
            number = await self.purse.reserve(question.worst)
            try:
                reply = await self.client.answer(question.body)
            except FailedError as error:
                used = None if error.billed else NOTHING
                await self.purse.settle(number, used, question.key)
                await self._wait(attempt, error)
                continue
            try:
                self.identity.check(reply)
            except StageError:
                await self.purse.settle(number, reply.used, question.key)
                raise
            await self.purse.settle(number, reply.used, question.key, reply)
            self.meter.advance(1, in_words(self.purse.ledger.spent, self.purse.price))
            return

    async def _wait(self, failed: int, error: FailedError) -> None:
        """Until the next attempt, if there is one.

        Raises:
            StageError: there is none.
        """
        seconds = None
        if error.passing and failed < self.endpoint.attempts and self.problem is None:
            longest = self.endpoint.longest_wait_seconds
            seconds = wait_seconds(failed, error.wait, longest, self.uniform)
        if seconds is None:
            raise self._given_up(failed, error)
        await asyncio.sleep(seconds)

    def _given_up(self, attempts: int, error: FailedError) -> StageError:
        details = [
            f"{error.why}, at attempt {attempts} of {self.endpoint.attempts}",
            f"endpoint {self.endpoint.url}",
            f"kept: {len(self.purse.ledger):,} answers",
        ]
        if error.wait is not None:
            details.insert(1, f"it asks to wait {error.wait:,.0f} s")
        return StageError(
            "the teacher's endpoint gives no answer",
            details=details,
            hint=error.hint
            or "run the same command again later: no kept answer is asked for again",
        )


def ask_all(
    questions: Sequence[Question], asked: str, endpoint: Endpoint, ledger: Ledger, meter: Meter
) -> None:
    """Ask what the ledger has no answer to yet.

    Raises:
        UsageError: the key is not there.
        StageError: an answer could not be had, another model answered, or the budget is used up;
            what came before is in the ledger.
    """
    done = [one for one in questions if one.key in ledger]
    left = [one for one in questions if one.key not in ledger]
    meter.skip(len(done))
    if not left:
        return
    answered = ledger.reply(done[0].key).model if done else None

    async def run() -> None:
        async with Client(endpoint) as client:
            purse = Purse(ledger, endpoint.price, endpoint.budget)
            identity = Identity(asked, endpoint.aliases, answered)
            await Asker(client, purse, identity, endpoint, meter).ask(left)

    asyncio.run(run())
