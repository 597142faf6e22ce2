from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from fractions import Fraction

import pytest

from overproof.core.errors import StageError, UsageError
from overproof.teacher.checkers import final, parse
from overproof.teacher.checkers.pool import Case, judge
from overproof.teacher.checkers.text import last_number, value_of

HANGS = {"kind": "regex", "pattern": "^(a+)+$"}
EVIL = "a" * 60 + "!"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("42", "42"),
        ("<think>6 * 7</think>\n42 ", "42"),
        ("<think>a</think> b <think>c</think> d", "d"),
        ("<think>it goes on", None),
        ("<think>a</think> b <think>and on", None),  # begun again and not ended
    ],
)
def test_the_answer_stands_behind_the_reasoning(text: str, answer: str | None) -> None:
    assert final(text) == answer


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The answer is 42.", 42),
        ("3 + 4 = 7", 7),
        ("It costs 1,234.50 in all", Fraction("1234.5")),
        ("10-5", 5),
        ("minus: -5", -5),
        ("\u22125", -5),
        ("2/4 of them", Fraction(1, 2)),
        (r"first 7, then \boxed{12} of 99", 12),
        ("1e3", 1000),
        ("50% of it", 50),
        ("v2 and x3", None),
        ("none at all", None),
        ("1/0", None),
        ("1e999999999", None),
        ("1, 2, 3", 3),
    ],
)
def test_the_last_number_is_the_answer(text: str, number: int | None) -> None:
    assert last_number(text) == number


@pytest.mark.parametrize(
    ("check", "right", "wrong"),
    [
        ({"kind": "exact", "answer": "New  York"}, "New\nYork", "new york"),
        ({"kind": "exact", "answer": "yes", "ignore_case": True}, "YES", "yes!"),
        ({"kind": "number", "answer": 42}, "so it is 42.0", "so it is 43"),
        ({"kind": "number", "answer": "1/3"}, "2/6", "0.333"),
        ({"kind": "number", "answer": 0.333, "tolerance": 0.01}, "1/3", "0.4"),
        ({"kind": "regex", "pattern": r"\bABC-\d+\b"}, "It is ABC-12, sir", "It is ABC-"),
        ({"kind": "regex", "pattern": r"[ab]+", "whole": True}, "abba", "abbc"),
        (
            {"kind": "json-schema", "schema": {"type": "object", "required": ["intent"]}},
            'Here:\n```json\n{"intent": "refund"}\n```',
            '{"other": 1}',
        ),
        ({"kind": "json-schema", "schema": {"type": "array"}}, "[1]", "no JSON"),
        (
            {"kind": "code", "tests": "assert double(4) == 8"},
            "```python\ndef double(x):\n    return 2 * x\n```",
            "```python\ndef double(x):\n    return x\n```",
        ),
        (
            {"kind": "code", "cases": [{"input": "2 3\n", "output": "5\n"}]},
            "a, b = map(int, input().split())\nprint(a + b)",
            "print(6)",
        ),
    ],
)
def test_right_passes_and_wrong_does_not(check: dict, right: str, wrong: str) -> None:
    good, bad = judge([Case(check, right), Case(check, wrong)], 1)
    assert good == (True, "")
    assert not bad.passed
    assert bad.why


@pytest.mark.parametrize(
    "check",
    [
        {},
        {"kind": "guess"},
        {"kind": "number", "answer": "many"},
        {"kind": "number", "answer": 1, "tolerance": -1},
        {"kind": "regex", "pattern": "("},
        {"kind": "json-schema", "schema": {"type": "thing"}},
        {"kind": "code"},
        {"kind": "exact", "answer": "a", "fold": True},
    ],
)
def test_what_is_no_check_is_refused(check: dict) -> None:
    with pytest.raises(UsageError, match="is no check"):
        parse(check)


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("raise ValueError('no')", "ValueError: no"),
        ("import sys; sys.exit(0)", "ended before its tests did"),
        ("import os; os._exit(0)", "ended before its tests did"),
        ("while True: pass", "took longer than 1 s"),
        ("x = bytearray(1 << 40)", "MemoryError"),
        ("open('big', 'wb').write(bytes(1 << 26))", "File too large"),
        ("import subprocess; subprocess.Popen(['sleep', '30'])", None),
    ],
)
def test_a_program_has_limits(program: str, why: str | None) -> None:
    began = time.monotonic()
    (found,) = judge([Case({"kind": "code", "tests": "pass", "seconds": 1}, program)], 1)
    assert time.monotonic() - began < 20
    if why is None:
        assert found.passed
    else:
        assert not found.passed
        assert why in found.why


def test_a_program_sees_no_network_and_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that answers outside; inside nothing is there, not even its address."""
    monkeypatch.setenv("SECRET_KEY", "k")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        program = f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 2)"
        found = judge([Case({"kind": "code", "tests": "pass"}, program)], 1)
        subprocess.run([sys.executable, "-c", program], check=True)  # outside it is reached
    assert not found[0].passed
    assert "Network is unreachable" in found[0].why or "refused" in found[0].why
    clean = "import os\nassert 'SECRET_KEY' not in os.environ"
    assert judge([Case({"kind": "code", "tests": "pass"}, clean)], 1)[0].passed


def test_no_program_is_run_where_there_is_a_network() -> None:
    """In this process there is; the processes of the pool have left it."""
    with pytest.raises(StageError, match="are run without the network"):
        parse({"kind": "code", "tests": "pass"}).check("")


def test_the_processes_keep_the_order_and_tell_how_far_they_are() -> None:
    cases = [
        Case({"kind": "number", "answer": number % 7}, f"<think>{number}</think>{number % 5}")
        for number in range(60)
    ]
    told = list[int]()
    found = judge(cases, 2, told.append)
    assert [one.passed for one in found] == [n % 7 == n % 5 for n in range(60)]
    assert sum(told) == 60


def test_a_check_that_hangs_costs_its_time_and_nothing_else() -> None:
    good = Case({"kind": "exact", "answer": "a"}, "a")
    began = time.monotonic()
    found = judge([good, Case(HANGS, EVIL), good, good], 1)
    assert time.monotonic() - began < 40
    assert [one.passed for one in found] == [True, False, True, True]
    assert "took longer than 5 s" in found[1].why


def test_reasoning_that_does_not_end_is_wrong() -> None:
    (found,) = judge([Case({"kind": "number", "answer": 42}, "<think>it is 42")], 1)
    assert found == (False, "the reasoning does not end")


def test_a_check_that_cannot_be_read_is_the_callers_mistake() -> None:
    with pytest.raises(UsageError, match="is no check"):
        judge([Case({"kind": "guess"}, "a")], 2)


def test_no_process_is_left_behind() -> None:
    def children() -> set[str]:
        done = subprocess.run(
            ["ps", "--ppid", str(os.getpid()), "-o", "args="], capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        return {line for line in done.stdout.splitlines() if "checkers.pool" in line}

    judge([Case({"kind": "exact", "answer": "a"}, "a")] * 4, 2)
    assert not children()


def test_checks_need_no_torch() -> None:
    code = "import sys, overproof.teacher.checkers.pool; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_numbers_are_read_exactly() -> None:
    assert value_of("0.1") == Fraction(1, 10)
    assert value_of("1,000,000.01") == Fraction("1000000.01")


def test_the_scorers_of_reasoning_gym() -> None:
    gym = pytest.importorskip("reasoning_gym", reason="needs a C compiler to install")
    entry = gym.create_dataset("chain_sum", size=1, seed=3)[0]
    check = {"kind": "reasoning-gym", "task": "chain_sum", "entry": json.loads(json.dumps(entry))}
    found = judge([Case(check, f"<think>hm</think>{entry['answer']}"), Case(check, "many")], 1)
    assert [one.passed for one in found] == [True, False]
    with pytest.raises(UsageError, match="has no task 'guess'"):
        parse(check | {"task": "guess"}).check("1")
