from __future__ import annotations

import pytest

from overproof.core.errors import (
    OverproofError,
    PolicyError,
    StageError,
    TrustError,
    UsageError,
)


def test_what_details_and_hint_in_that_order() -> None:
    error = StageError("the disk is full", details=["under out/", "0 bytes left"], hint="free some")
    assert error.render() == (
        "error: the disk is full\n  under out/\n  0 bytes left\nhint: free some"
    )


def test_one_sentence_is_enough() -> None:
    assert UsageError("no such file").render() == "error: no such file"


def test_a_failed_step_stands_in_front() -> None:
    assert TrustError("a file differs", step=4).render() == "error: step 4: a file differs"
    assert TrustError("a file differs").render() == "error: a file differs"


def test_the_step_is_written_once_only() -> None:
    text = TrustError("a file says error: no", step=4, details=["error: x"]).render()
    assert text == "error: step 4: a file says error: no\n  error: x"


def test_as_text_the_prefix_is_left_out() -> None:
    assert str(PolicyError("not permitted", hint="ask")) == "not permitted\nhint: ask"


@pytest.mark.parametrize(
    ("kind", "code"), [(StageError, 1), (UsageError, 2), (PolicyError, 3), (TrustError, 3)]
)
def test_exit_codes_and_one_tree(kind: type[OverproofError], code: int) -> None:
    assert issubclass(kind, OverproofError)
    assert kind("x").exit_code == code
