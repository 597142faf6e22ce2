"""Rules of remote teachers that need no server: retries, the ledger, the budget, the recipe."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from remote_server import recipe_text

from overproof.core.config import load_recipe
from overproof.core.endpoint import Budget, Price
from overproof.core.errors import StageError, UsageError
from overproof.core.recipe import Recipe
from overproof.teacher.remote.client import read
from overproof.teacher.remote.ledger import Ledger
from overproof.teacher.remote.purse import BudgetError, Purse
from overproof.teacher.remote.reply import Reply, Tokens
from overproof.teacher.remote.retry import FIRST_SECONDS, asked_seconds, is_passing, wait_seconds

NOW = dt.datetime(2026, 11, 28, 12, 0, 0, tzinfo=dt.UTC)
REPLY = Reply(
    "Hi – 你好", "stop", "m", None, Tokens(5, 2), 0, [("48", [("48", -0.5), ("49", -2.0)])]
)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("7", 7.0),
        ("0", 0.0),
        ("Sat, 28 Nov 2026 12:00:30 GMT", 30.0),
        ("Saturday, 28-Nov-26 12:00:30 GMT", 30.0),
        ("Sat, 28 Nov 2026 11:00:00 GMT", 0.0),
        ("-5", None),
        ("soon", None),
        ("", None),
    ],
)
def test_retry_after(text: str, wanted: float | None) -> None:
    assert asked_seconds({"retry-after": text}, NOW) == wanted


def test_no_retry_after() -> None:
    assert asked_seconds({}, NOW) is None


def test_which_statuses_pass() -> None:
    passing = {status for status in range(400, 600) if is_passing(status)}
    assert passing == {408, 409, 429, *range(500, 600)}


@given(st.integers(1, 100), st.none() | st.floats(0, 100), st.floats(0, 1))
def test_the_wait_is_jittered_whole_and_bounded(
    failed: int, asked: float | None, share: float
) -> None:
    found = wait_seconds(failed, asked, 60.0, lambda low, high: low + share * (high - low))
    if asked is not None and asked > 60.0:
        assert found is None
        return
    assert found is not None
    bound = min(60.0, FIRST_SECONDS * 2 ** (failed - 1))
    assert found == pytest.approx((asked or 0.0) + share * bound)


def test_a_ledger_gives_back_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "remote/ledger.jsonl"
    with Ledger(path) as ledger:
        first, second = ledger.open(Tokens(10, 5), 0.5), ledger.open(Tokens(20, 5), 1.0)
        ledger.settle(second, Tokens(9, 2), 0.25, "b", REPLY)
        ledger.settle(first, None, 0.0, "a")
        assert (ledger.spent.prompt, ledger.spent.answer) == (19, 7)
        assert (ledger.spent.money, ledger.spent.guessed) == (0.75, 1)
    with Ledger(path) as ledger:
        assert "b" in ledger
        assert "a" not in ledger
        again = ledger.reply("b")
        assert json.dumps(again.to_json()) == json.dumps(REPLY.to_json())
        assert again.used == Tokens(5, 2)
        assert (ledger.spent.tokens, ledger.spent.money, ledger.spent.guessed) == (26, 0.75, 1)
        assert ledger.open(Tokens(1, 1), 0.0) == 2


def test_after_a_kill_at_any_byte_no_whole_answer_and_no_money_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    with Ledger(path) as ledger:
        for key in ("a", "b"):
            ledger.settle(ledger.open(Tokens(10, 5), 1.0), Tokens(4, 1), 0.5, key, REPLY)
    data = path.read_bytes()
    ends = [place for place, byte in enumerate(data, 1) if byte == ord("\n")]
    near = {end + step for end in ends for step in (-1, 0, 1)}
    for cut in sorted((near | {*range(0, len(data), 41)}) - {len(data) + 1}):
        path.write_bytes(data[:cut])
        with Ledger(path) as ledger:
            whole = sum(end <= cut for end in ends)
            assert len(ledger) == whole // 2
            # What had left and is not settled may have been billed: it counts at its worst.
            assert ledger.spent.money == 0.5 * (whole // 2) + 1.0 * (whole % 2)
            ledger.settle(ledger.open(Tokens(1, 1), 0.25), None, 0.0, "c")
            money = ledger.spent.money
        with Ledger(path) as ledger:
            assert ledger.spent.money == money


def test_damage_in_the_middle_is_told(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    with Ledger(path) as ledger:
        ledger.settle(ledger.open(Tokens(1, 1), 0.0), Tokens(1, 1), 0.0, "a", REPLY)
    path.write_bytes(b"{" + path.read_bytes())
    with pytest.raises(StageError, match="is damaged") as caught:
        Ledger(path)
    assert "keep a copy" in str(caught.value.hint)


def test_currencies_are_not_mixed(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.jsonl", "EUR") as ledger:
        ledger.open(Tokens(1, 1), 1.0)
    with pytest.raises(UsageError, match="paid in EUR"):
        Ledger(tmp_path / "ledger.jsonl", "USD")


@settings(max_examples=40, deadline=None)  # it flushes to the disk
@given(
    st.lists(st.tuples(st.integers(1, 50), st.integers(0, 50)), max_size=20), st.integers(1, 400)
)
def test_the_budget_is_never_exceeded(requests: list[tuple[int, int]], limit: int) -> None:
    """Each request is (worst, used at most that); several at once."""

    async def spend(purse: Purse) -> None:
        async def one(worst: int, used: int) -> None:
            number = await purse.reserve(Tokens(worst, 0))
            held = sum(tokens.total for tokens in purse._held.values())
            assert purse.ledger.spent.tokens + held <= limit
            await asyncio.sleep(0)
            await purse.settle(number, Tokens(min(worst, used), 0), "k")

        done = await asyncio.gather(*(one(*row) for row in requests), return_exceptions=True)
        problems = [row for row in done if isinstance(row, BaseException)]
        assert all(isinstance(row, BudgetError) for row in problems)
        # None is refused while the money that others give back would be enough.
        if problems:
            least = min(worst for worst, _ in requests)
            most = max(worst for worst, _ in requests)
            assert purse.ledger.spent.tokens + most > limit or least > limit

    with tempfile.TemporaryDirectory() as folder, Ledger(Path(folder) / "ledger") as ledger:
        asyncio.run(spend(Purse(ledger, None, Budget(tokens=limit))))
        assert ledger.spent.tokens <= limit


def test_prices_are_per_million() -> None:
    assert Price(input=2.0, output=10.0).of(500_000, 100_000) == 2.0


@pytest.mark.parametrize("broken", [{}, {"choices": []}, {"choices": [{}]}, {"choices": None}])
def test_what_is_no_completion_is_told(broken: dict[str, object]) -> None:
    with pytest.raises((LookupError, TypeError, ValueError, AttributeError)):
        read({"model": "m", "usage": None, **broken})


def recipe(tmp_path: Path, *more: str) -> Recipe:
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe_text("http://localhost:8000/v1", Path("a"), Path("b")))
    return load_recipe(path, more)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("teacher.endpoint.budget={money: 0}", "greater than 0"),
        ("teacher.endpoint.budget={tokens: 0}", "greater than 0"),
        ("teacher.endpoint.budget={}", "limits money, tokens or both"),
        ("teacher.endpoint.budget={money: 5}", "needs a price"),
        ("teacher.endpoint.operator=vendor", "needs price and budget"),
        ("teacher.channel=weights", "needs channel: api"),
        ("student.base=null", "name a model here in student.base"),
        ("signals={kind: sampled}", "gives no `sampled` signals"),
        ("signals={kind: top-k}", "no more: prompts: false"),
        ("train.divergence={kind: reverse-kl}", "cross-entropy"),
        ("train.on_policy={warm_start: 0.0, fraction: 1.0}", "needs the teacher's weights"),
        ("train.controls=[{equal: steps}]", "is what a control arm has"),
        ("teacher.endpoint.extra={model: x}", "which requests say for themselves"),
        ("teacher.endpoint.url=ftp://x", "wanted http:// or https://"),
        ("teacher.endpoint.urls=x", "unknown key"),
    ],
)
def test_what_does_not_go_together_is_refused_when_the_recipe_is_read(
    tmp_path: Path, change: str, message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        recipe(tmp_path, change)
    assert message in caught.value.render()


@pytest.mark.parametrize(
    "change",
    [
        "teacher.endpoint.key=sk-proj-SECRET",
        "teacher.endpoint.url=https://user:SECRET@host/v1",
        "teacher.endpoint.url=https://host/v1?key=SECRET",
    ],
)
def test_a_secret_in_the_recipe_is_refused_and_not_shown(tmp_path: Path, change: str) -> None:
    with pytest.raises(UsageError) as caught:
        recipe(tmp_path, change)
    assert "SECRET" not in caught.value.render()


def test_checked_answers_have_a_control_arm(tmp_path: Path) -> None:
    found = recipe(tmp_path, "train.controls=[{equal: steps}]", "sample.verified=true")
    assert found.solving


def test_a_teacher_here_may_give_its_text_alone_too(tmp_path: Path) -> None:
    assert recipe(tmp_path, "teacher.endpoint=null").by_text


def test_signals_of_an_endpoint(tmp_path: Path) -> None:
    kind = "signals={kind: top-k, top_k: 20, tail_draws: 0, prompts: false}"
    assert recipe(tmp_path, kind).signals.kind == "top-k"
    with pytest.raises(UsageError):
        recipe(tmp_path, kind.replace("20", "21"))
