from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
from fractions import Fraction

import psutil
import pytest

from overproof.core.errors import StageError, UsageError
from overproof.teacher.checkers import final, parse, thinks
from overproof.teacher.checkers.numbers import last_number, value_of
from overproof.teacher.checkers.pool import Case, demand, judge
from overproof.teacher.checkers.text import fenced

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
        ("\u20135", -5),
        ("x = - 5", -5),
        ("-.5", Fraction(-1, 2)),
        ("2/4 of them", Fraction(1, 2)),
        ("1 1/2", Fraction(3, 2)),
        ("-1 1/2", Fraction(-3, 2)),
        ("1e3", 1000),
        ("50% of it", 50),
        ("$12", 12),
        ("2.5kg", Fraction(5, 2)),
        ("1,234km", 1234),
        ("42\u00b2", 42),
        ("_42_", 42),
        ("3/4x", Fraction(3, 4)),
        (r"first 7, then \boxed{12} of 99", 12),
        (r"\boxed{\frac{1}{3}}", Fraction(1, 3)),
        (r"$\frac12$", Fraction(1, 2)),
        (r"\boxed{1{,}234}", 1234),
        (r"\boxed{x=42\text{ cm}^2}", 42),
        (r"7 of \boxed{none}", None),
        ("v2 and x3", None),
        ("none at all", None),
        ("1/0", None),
        ("1e999999999", None),
        ("1/2.5", None),
        ("1234,567", None),  # nobody knows what is meant
        ("1,2,300", None),
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
        {"kind": "json-schema", "schema": {"$ref": "https://example.com/a.json"}},
        {"kind": "number", "answer": True},
        {"kind": "number", "answer": "1,2"},
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
        ("print(open(__file__).read())", "NameError"),
        ("if 0: \\", "SyntaxError"),
        ("while True: pass", "took longer than 1 s of computing"),
        ("x = bytearray(1 << 40)", "MemoryError"),
        ("open('big', 'wb').write(bytes(1 << 26))", "File too large"),
        ("import ctypes, os\nos.setns(os.open('/proc/1/ns/net', 0))", "rror"),
    ],
)
def test_a_program_has_limits(program: str, why: str) -> None:
    check = {"kind": "code", "tests": "assert 1 + 1 == 3 - 1", "seconds": 1}
    (found,) = judge([Case(check, program)], 1)
    assert not found.passed
    assert why in found.why


def test_a_program_may_print_and_rebind_what_it_likes() -> None:
    programs = [
        "print('x' * (3 << 20))",
        "print = None",
        "import sys\nsys.stdout = None",
        "if __name__ == '__main__':\n    input()",
        "from dataclasses import dataclass\n@dataclass\nclass A:\n    x: 'int' = 1",
    ]
    found = judge([Case({"kind": "code", "tests": "assert 1"}, one) for one in programs], 1)
    assert found == [(True, "")] * len(programs)


def test_what_a_program_leaves_behind_is_ended() -> None:
    program = (
        "import subprocess, sys\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(1000)  # left behind'],"
        " start_new_session=True)"
    )
    (found,) = judge([Case({"kind": "code", "tests": "pass"}, program)], 1)
    assert found.passed
    done = subprocess.run(["ps", "-eo", "args="], capture_output=True, text=True, check=True)
    assert "# left behind" not in done.stdout


def test_equal_programs_have_equal_verdicts() -> None:
    check = {"kind": "code", "cases": [{"output": "b c a"}]}
    program = "print(*{'a', 'b', 'c'})"
    found = judge([Case(check, program)] * 6, 2)
    assert len(set(found)) == 1


def test_a_program_sees_no_network_and_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that answers outside; inside nothing is there, not even its address."""
    monkeypatch.setenv("SECRET_KEY", "k")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        program = f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 2)"
        found = judge([Case({"kind": "code", "tests": "pass"}, program)], 1)
        subprocess.run([sys.executable, "-c", program], check=True)  # outside it is reached
    assert not found[0].passed
    assert "unreachable" in found[0].why
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
    assert time.monotonic() - began < 200
    assert [one.passed for one in found] == [True, False, True, True]
    assert found[1].why == "its check took longer than 10 s of computing"


def test_a_check_ends_itself_when_nobody_is_left_to_end_it() -> None:
    code = (
        "from overproof.teacher.checkers.pool import Case, judge\n"
        f"judge([Case({HANGS!r}, {EVIL!r})], 1)"
    )
    with subprocess.Popen([sys.executable, "-c", code]) as parent:
        deadline = time.monotonic() + 120
        while not (workers := psutil.Process(parent.pid).children()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(2)
        parent.kill()
    _, left = psutil.wait_procs(workers, timeout=120)
    assert not left


def test_stopping_does_not_wait_for_what_is_under_way() -> None:
    slow = Case({"kind": "code", "tests": "pass", "seconds": 300}, "while True: pass")
    began = time.monotonic()

    def told(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        judge([Case({"kind": "exact", "answer": "a"}, "a"), slow], 2, told)
    assert time.monotonic() - began < 60


@pytest.mark.parametrize(
    ("answer", "program"),
    [
        ("```c++ x\nA\n```\nhm\n```\nB\n```", "B"),
        ("```python title=a\nA\n```\nOutput:\n```\nB\n```", "A"),
        ("```python\nprint('```')\n```", "print('```')"),
        ("1. so\n   ```py\n   if 1:\n       A\n   ```", "if 1:\n    A"),
        ("~~~\nA\n~~~", "A"),
        ("```\nA", "A"),
        ("A", "A"),
    ],
)
def test_the_program_of_an_answer(answer: str, program: str) -> None:
    assert fenced(answer, "python", "py") == program


def test_large_numbers_and_tolerances_are_exact() -> None:
    large = {"kind": "number", "answer": 9007199254740993}
    assert parse(large).check("9007199254740993").passed
    assert not parse(large).check("9007199254740992").passed
    assert parse({"kind": "number", "answer": 1, "tolerance": 0.3}).check("1.3").passed


def test_json_has_no_infinity() -> None:
    assert not parse({"kind": "json-schema", "schema": {}}).check("[Infinity]").passed


@pytest.mark.parametrize("check", ["exact", 3, ["number"], None])
def test_what_is_no_object_is_no_check(check: object) -> None:
    with pytest.raises(UsageError, match="is no check"):
        parse(check)


def test_checks_that_cannot_work_are_told_before_anything_is_drawn() -> None:
    demand([parse({"kind": "exact", "answer": "a"}), parse({"kind": "code", "tests": "pass"})])
    if importlib.util.find_spec("reasoning_gym"):
        with pytest.raises(UsageError, match="has no task 'guess'"):
            demand([parse({"kind": "reasoning-gym", "task": "guess", "entry": {}})])


def test_a_prompt_that_begins_the_reasoning() -> None:
    assert thinks("<user>What?<assistant><think>\n")
    assert not thinks("<think>a</think> <user>What?<assistant>")
    assert final("it is 42", thinking=True) is None
    assert final("it is </think> 42", thinking=True) == "42"


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
