"""What a proof says of a teacher behind an endpoint, and that it cannot be left out or changed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trust_release
from trust_release import ANSWERED, REMOTE, Synthetic

from overproof.core.errors import TrustError
from overproof.trust.verify import verify

KIND = "remote-teacher"


def test_what_is_known_is_attested_and_which_model_it_was_is_unknown(remote: Synthetic) -> None:
    verdict = verify(remote.release, remote.key.public)
    assert verdict.outcome == "accepted"
    found = {one.claim: one for one in verdict.claims}
    said = found["teacher big-model, remote"]
    assert said.level == "attested"
    assert said.evidence == (
        "3 answers as big-model-2026-10-01, at https://api.example.org, "
        "2026-11-24T09:00:00Z to 2026-11-24T09:10:00Z"
    )
    assert found["which model answered as big-model"].level == "unknown"
    assert found["base tiny-llama"].level == "attested"
    assert found["quality on held-out prompts"].evidence == (
        "cross-entropy 0.9 [0.8, 1] nats per byte of the teacher's answers"
    )
    unpinned = {one.claim: one.level for one in verify(remote.release, None).claims}
    assert unpinned["teacher big-model, remote"] == "unknown"


def refused(made: Synthetic, predicates: list[Any], message: str) -> str:
    made = replace(made, predicates=tuple(predicates))
    made.attest()
    with pytest.raises(TrustError, match=message) as caught:
        verify(made.release, made.key.public)
    assert caught.value.step == 6
    return caught.value.render()


def test_it_cannot_be_left_out(tmp_path: Path) -> None:
    made = trust_release.make_remote(tmp_path)
    others = [one for one in made.predicates if one[0] != KIND]
    assert "'big-model'" in refused(made, others, "not stated as it was")


@pytest.mark.parametrize(
    "change",
    [
        {"answered": {"bigger-model": 3}},
        {"origin": "https://elsewhere.example.org"},
        {"last": "2026-11-25T09:10:00Z"},
        {"operator": "own"},
        {"teacher": {"name": "other", "sha256": REMOTE.sha256}},
        {"teacher": {"name": REMOTE.name, "sha256": "55" * 32}},
        {"more": 1},
    ],
    ids=str,
)
def test_it_says_what_the_stage_says(tmp_path: Path, change: dict[str, Any]) -> None:
    made = trust_release.make_remote(tmp_path)
    rows = [
        (kind, about, {**said, **change} if kind == KIND else said)
        for kind, about, said in made.predicates
    ]
    refused(made, rows, "not stated as it was")


def test_a_statement_of_a_stage_that_asked_nobody(tmp_path: Path) -> None:
    made = trust_release.make_remote(tmp_path)
    said = next(one[2] for one in made.predicates if one[0] == KIND)
    rows = [*made.predicates, (KIND, made.named("student"), said)]
    refused(made, rows, "not stated as it was")


@pytest.mark.parametrize("gone", ["big-model", "tiny-llama"])
def test_teacher_and_base_both_need_a_verdict(tmp_path: Path, gone: str) -> None:
    made = trust_release.make_remote(tmp_path)
    rows = [
        one
        for one in made.predicates
        if one[0] != "terms-verdict" or one[2]["teacher"]["name"] != gone
    ]
    assert gone in refused(made, rows, "without a terms verdict")


@pytest.mark.parametrize(
    "change",
    [
        {"weights": "proved"},
        {"channel": "weights"},
        {"answered": {}},
        {"answered": {"a": 1, "b": 2}},
    ],
    ids=str,
)
def test_what_no_service_can_show_is_not_signed(tmp_path: Path, change: dict[str, Any]) -> None:
    made = trust_release.make_remote(tmp_path, {**ANSWERED, **change})
    with pytest.raises(TrustError, match="does not fit its schema"):
        made.attest()
