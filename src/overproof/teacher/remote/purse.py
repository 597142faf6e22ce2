"""A budget that is never exceeded: the worst is reserved before a request, and settled after it."""

from __future__ import annotations

import asyncio

from overproof.core.endpoint import Budget, Price
from overproof.core.errors import StageError
from overproof.teacher.remote.ledger import Ledger, Spent
from overproof.teacher.remote.reply import Reply, Tokens


class BudgetError(StageError):
    """The next request does not fit."""


class Purse:
    """What may still be spent. Of one event loop.

    Args:
        price, budget: None: it costs nothing; it may cost anything.
    """

    def __init__(self, ledger: Ledger, price: Price | None, budget: Budget | None) -> None:
        self.ledger, self.price, self.budget = ledger, price, budget
        self._held: dict[int, Tokens] = {}
        self._changed = asyncio.Condition()

    def money(self, tokens: Tokens) -> float:
        """What so many tokens cost."""
        return self.price.of(*tokens) if self.price else 0.0

    async def reserve(self, worst: Tokens) -> int:
        """Hold what a request may cost, as soon as it fits; returns its number in the ledger.

        What is held by others in flight is mostly given back: only if none is in flight and it
        does not fit does it never fit.

        Raises:
            BudgetError: it never fits.
        """
        async with self._changed:
            while problem := self._over(worst):
                if not self._held:
                    raise self._stop(problem)
                await self._changed.wait()
            number = self.ledger.open(worst, self.money(worst))
            self._held[number] = worst
            return number

    async def settle(
        self, number: int, used: Tokens | None, key: str, reply: Reply | None = None
    ) -> None:
        """Count what a request did cost; None: nobody said, and it counts at its worst."""
        async with self._changed:
            money = 0.0 if used is None else self.money(used)
            self.ledger.settle(number, used, money, key, reply)
            del self._held[number]
            self._changed.notify_all()

    def _over(self, worst: Tokens) -> str | None:
        """What the next request would exceed, in words; None: it fits."""
        if self.budget is None:
            return None
        spent = self.ledger.spent
        for one in (*self._held.values(), worst):
            spent = spent.plus(one, self.money(one))
        money, tokens = self.budget.money, self.budget.tokens
        if money is not None and spent.money > money:
            return f"money: {self._in_words(self.money(worst))} of {self._in_words(money)} in all"
        if tokens is not None and spent.tokens > tokens:
            return f"tokens: {worst.total:,} of {tokens:,} in all"
        return None

    def _in_words(self, money: float) -> str:
        return f"{money:,.4f} {self.price.currency if self.price else ''}".strip()

    def _stop(self, problem: str) -> BudgetError:
        return BudgetError(
            "the next request to the teacher would exceed the budget",
            details=[
                f"it may take {problem}",
                f"spent: {in_words(self.ledger.spent, self.price)}",
                f"kept: {len(self.ledger):,} answers in {self.ledger.path}",
            ],
            hint="raise teacher.endpoint.budget, or ask less (sample.prompts), and run the same "
            "command again: no kept answer is asked for again",
        )


def in_words(spent: Spent, price: Price | None) -> str:
    """What was spent, for people."""
    words = f"{spent.prompt:,} tokens of prompts and {spent.answer:,} of answers"
    if price is not None:
        words = f"{spent.money:,.4f} {price.currency}, {words}"
    if spent.guessed:
        words += f"; counted at their worst, as nobody gave their usage: {spent.guessed:,} requests"
    return words
