"""The ledger of a run's folder: every answer that was paid for, and everything that was spent.

A line is written before a request leaves and another when it is settled, the answer in it. So a
killed process loses no answer that had come and forgets no money: what was in flight may have been
billed, and is counted at its worst. Neither a change of the recipe nor one of Overproof's code
touches the file.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from overproof.core.errors import StageError, UsageError
from overproof.teacher.remote.reply import Reply, Tokens


@dataclass(frozen=True)
class Spent:
    """What has been spent, or may have been.

    Attributes:
        guessed: requests that nobody said the usage of; they count at their worst.
    """

    prompt: int = 0
    answer: int = 0
    money: float = 0.0
    guessed: int = 0

    @property
    def tokens(self) -> int:
        """Of prompts and answers."""
        return self.prompt + self.answer

    def plus(self, used: Tokens, money: float, *, guessed: bool = False) -> Spent:
        """With one request more."""
        return Spent(
            self.prompt + used.prompt,
            self.answer + used.answer,
            self.money + money,
            self.guessed + guessed,
        )


class Ledger:
    """Answers by key and the sum of what was spent; one process writes it at a time.

    Args:
        currency: of the recipe's price; None: nothing is paid for.

    Raises:
        UsageError: earlier requests were paid in another currency.
        StageError: a line in the middle cannot be read.
    """

    def __init__(self, path: Path, currency: str | None = None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.currency = path, currency
        self.spent = Spent()
        self._places: dict[str, tuple[int, int]] = {}  # of the answer's line: offset, size
        self._open: dict[int, tuple[Tokens, float]] = {}
        self._next = 0
        self._stream = path.open("a+b")
        try:
            self._recover()
        except BaseException:
            self._stream.close()
            raise

    def __contains__(self, key: str) -> bool:
        """Whether a request was answered."""
        return key in self._places

    def __len__(self) -> int:
        """Answers."""
        return len(self._places)

    def reply(self, key: str) -> Reply:
        """The answer to a request; read from the disk, as a long run's take gigabytes."""
        offset, size = self._places[key]
        self._stream.seek(offset)
        return Reply.from_json(json.loads(self._stream.read(size))["reply"])

    def open(self, worst: Tokens, money: float) -> int:
        """Write down, before a request leaves, what it may cost; returns its number."""
        number, self._next = self._next, self._next + 1
        row = {"open": number, "worst": list(worst), "money": money, "currency": self.currency}
        self._write(row)
        self._open[number] = (worst, money)
        return number

    def settle(
        self, number: int, used: Tokens | None, money: float, key: str, reply: Reply | None = None
    ) -> None:
        """Write down what it did cost, and what came of it.

        Args:
            used: None: nobody said; it counts at its worst.
            reply: an answer that is kept.
        """
        worst, most = self._open[number]
        row: dict[str, Any] = {"settled": number, "key": key, "used": used, "money": money}
        if used is None:
            row |= {"used": worst, "money": most, "guessed": True}
        if reply is not None:
            row["reply"] = reply.to_json()
        place = self._write(row)
        os.fsync(self._stream.fileno())  # with the lines before it
        self._count(row, place)

    def close(self) -> None:
        """Give the file back."""
        self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, row: dict[str, Any]) -> tuple[int, int]:
        line = json.dumps(row).encode() + b"\n"
        offset = self._stream.seek(0, os.SEEK_END)
        self._stream.write(line)
        self._stream.flush()
        return offset, len(line)

    def _count(self, row: dict[str, Any], place: tuple[int, int]) -> None:
        self._open.pop(row["settled"])
        used = Tokens(*row["used"])
        self.spent = self.spent.plus(used, row["money"], guessed=row.get("guessed", False))
        if "reply" in row:
            self._places[row["key"]] = place

    def _recover(self) -> None:
        """Read what is whole; what was in flight when the last process died counts at its worst."""
        self._stream.seek(0)
        whole = 0
        while line := self._stream.readline():
            if not line.endswith(b"\n"):
                break  # cut off by a kill
            try:
                self._read(json.loads(line), (whole, len(line)))
            except (ValueError, KeyError, TypeError) as error:
                raise StageError(
                    f"{self.path} is damaged",
                    details=[f"at byte {whole:,}: {type(error).__name__}"],
                    hint="it holds answers that were paid for: keep a copy before you remove it",
                ) from error
            whole += len(line)
        self._stream.truncate(whole)
        for number, (worst, money) in list(self._open.items()):
            self._count({"settled": number, "used": worst, "money": money, "guessed": True}, (0, 0))

    def _read(self, row: dict[str, Any], place: tuple[int, int]) -> None:
        if "open" in row:
            if row["money"] and row["currency"] != self.currency:
                raise UsageError(
                    f"{self.path} holds what was paid in {row['currency']}",
                    details=[f"teacher.endpoint.price.currency: got {self.currency}"],
                    hint="keep to one currency, or give this run another folder with --out",
                )
            self._open[row["open"]] = (Tokens(*row["worst"]), row["money"])
            self._next = row["open"] + 1
        else:
            self._count(row, place)
