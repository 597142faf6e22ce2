"""The gate: refusals that name the clause, approvals, and the predicate."""

from __future__ import annotations

import json
from datetime import date

import pytest

from overproof.core.errors import PolicyError, StageError, TrustError, UsageError
from overproof.policy.gate import Approval, Teacher, decide, load_approval
from overproof.policy.lookup import lookup
from overproof.policy.rows import load_rows
from overproof.policy.verdict import Verdict

TODAY = date(2026, 11, 24)
SMOL = Teacher("builtin:smollm2-135m-instruct", "a" * 64)
LLAMA = Teacher("meta-llama/Llama-3.1-8B-Instruct")


def approval(model: str, channel: str = "weights", **change) -> Approval:
    fields = {
        "teacher": model,
        "terms_digest": lookup(model, channel, TODAY).terms_digest,
        "approver": "key-1",
        "date": date(2026, 11, 1),
        "expires": date(2027, 11, 1),
    }
    return Approval.model_validate({**fields, **change})


def test_the_builtin_teacher_passes() -> None:
    decision = decide([SMOL], channel="weights", on=TODAY)
    assert decision.require() is decision
    assert decision.verdict is Verdict.ALLOW


@pytest.mark.parametrize("row", load_rows(), ids=lambda row: row.id)
def test_every_refusing_row_names_document_date_clause_and_quote(row) -> None:
    if row.verdict.permits:
        return
    model = row.match[-1].replace("[0-9]", "1").replace("*", "x")
    decision = decide([Teacher(model)], channel=row.channel, on=row.effective)
    with pytest.raises(PolicyError) as error:
        decision.require()
    deciding = decision.deciding.finding.row
    text = error.value.render()
    assert error.value.exit_code == 3
    assert deciding.verdict.rank <= row.verdict.rank
    for wanted in (
        deciding.document,
        f"{deciding.effective:%Y-%m}",
        deciding.clause,
        deciding.quote,
    ):
        assert wanted in text
    assert "signed approval" in text and model in text


def test_an_unknown_teacher_is_refused_with_what_is_known() -> None:
    with pytest.raises(PolicyError) as error:
        decide([Teacher("acme/wonder")], channel="weights", on=TODAY).require()
    assert "families known for channel weights" in error.value.render()
    assert "a dated row" in error.value.hint


def test_a_refusal_by_ancestry_names_the_ancestor() -> None:
    rows = tuple(row for row in load_rows() if row.family != "Llama 3.1")
    model = Teacher("deepseek-ai/DeepSeek-R1-Distill-Llama-8B")
    with pytest.raises(PolicyError) as error:
        decide([model], channel="weights", on=TODAY, rows=rows).require()
    assert "it derives from meta-llama/Llama-3.1-8B" in error.value.render()


def test_the_strictest_teacher_decides_and_all_refusals_are_told() -> None:
    bad = [Teacher("meta-llama/Llama-2-7b"), Teacher("acme/wonder")]
    decision = decide([SMOL, *bad], channel="weights", on=TODAY)
    assert decision.verdict is Verdict.DENY
    assert decision.deciding.teacher == bad[0]
    with pytest.raises(PolicyError) as error:
        decision.require()
    assert "Llama-2-7b" in error.value.what and "acme/wonder" in error.value.what


def test_obligations_of_all_teachers_are_joined_once() -> None:
    decision = decide([SMOL, LLAMA, LLAMA], channel="weights", on=TODAY)
    ids = [obligation.id for obligation in decision.obligations]
    assert decision.verdict is Verdict.ALLOW_WITH
    assert len(ids) == len(set(ids))
    assert {"smollm2/notice", "llama-3.1/name"} <= set(ids)


@pytest.mark.parametrize(
    "arguments",
    [
        {"teachers": [], "channel": "weights"},
        {"teachers": [SMOL], "channel": "telepathy"},
        {"teachers": [SMOL], "channel": "weights", "use": "world domination"},
    ],
)
def test_wrong_questions_are_usage_errors(arguments) -> None:
    with pytest.raises(UsageError):
        decide(on=TODAY, **arguments)


@pytest.mark.parametrize("model", ["meta-llama/Llama-2-7b", "acme/wonder"])
def test_an_approval_lifts_a_refusal(model) -> None:
    decision = decide([Teacher(model)], channel="weights", on=TODAY, approvals=[approval(model)])
    assert decision.require().verdict is Verdict.ALLOW
    assert decision.to_json()["approval"]["approver"] == "key-1"


def test_an_approval_keeps_the_obligations() -> None:
    model = "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"
    rows = tuple(row for row in load_rows() if row.family != "Llama 3.1")
    given = approval(model, terms_digest=lookup(model, "weights", TODAY, rows).terms_digest)
    decision = decide([Teacher(model)], channel="weights", on=TODAY, approvals=[given], rows=rows)
    assert decision.verdict is Verdict.ALLOW_WITH
    assert decision.obligations


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"terms_digest": "0" * 64}, "the table now gives"),
        ({"expires": date(2026, 11, 23)}, "it counts from"),
        ({"date": date(2026, 11, 25)}, "it counts from"),
        ({"sha256": "b" * 64}, "it is for weights"),
    ],
)
def test_an_approval_that_does_not_fit_is_told_and_ignored(change, reason) -> None:
    model = "acme/wonder"
    decision = decide(
        [Teacher(model, "a" * 64)],
        channel="weights",
        on=TODAY,
        approvals=[approval(model, **change)],
    )
    with pytest.raises(PolicyError) as error:
        decision.require()
    assert reason in error.value.render()


def test_an_approval_of_another_teacher_or_channel_counts_for_nothing() -> None:
    others = [approval("acme/other"), approval("gpt-4o", "api")]
    for model, channel in (("acme/wonder", "weights"), ("gpt-4o", "weights")):
        decision = decide([Teacher(model)], channel=channel, on=TODAY, approvals=others)
        assert not decision.verdict.permits


def test_an_approval_for_these_weights_counts() -> None:
    teacher = Teacher("acme/wonder", "a" * 64)
    given = approval(teacher.name, sha256="a" * 64)
    assert decide([teacher], channel="weights", on=TODAY, approvals=[given]).verdict.permits


def test_an_approval_counts_wherever_the_model_lies() -> None:
    these = {"sha256": "a" * 64}
    for given, asked, weights, counts in (
        ("/home/jane/wonder", "/srv/models/wonder/", these, True),
        ("/home/jane/wonder", "/srv/models/wonder/", {}, False),  # any folder could be called so
        ("/hub/models--acme--wonder/snapshots/abc", "acme/wonder", {}, True),
        ("acme/wonder", "/srv/models/wonder", these, False),
    ):
        approvals, teacher = [approval(given, **weights)], Teacher(asked, "a" * 64)
        decision = decide([teacher], channel="weights", on=TODAY, approvals=approvals)
        assert decision.verdict.permits == counts, given


def payload(**change) -> bytes:
    fields = approval("acme/wonder").model_dump(mode="json", exclude={"approver"})
    return json.dumps({**fields, **change}).encode()


def test_load_approval_takes_the_key_from_the_signature(tmp_path) -> None:
    (tmp_path / "a.json").write_bytes(b"signed")
    seen = []

    def verify(raw: bytes) -> tuple[bytes, str]:
        seen.append(raw)
        return payload(), "key-9"

    assert load_approval(tmp_path / "a.json", verify).approver == "key-9"
    assert seen == [b"signed"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"\xff",
        b'{"teacher": "x"}',
        payload(approver="key-2"),
        payload(terms_digest="short"),
        payload(expires="2020-01-01"),
        payload(format="overproof-approval/2"),
        payload(extra=1),
    ],
)
def test_load_approval_refuses_what_is_no_approval(tmp_path, content) -> None:
    (tmp_path / "a.json").write_bytes(b"signed")
    with pytest.raises(TrustError, match="is no approval"):
        load_approval(tmp_path / "a.json", lambda raw: (content, "key-1"))


def test_load_approval_passes_a_bad_signature_on_and_explains_a_missing_file(tmp_path) -> None:
    def refuse(raw: bytes) -> tuple[bytes, str]:
        raise TrustError("the signature does not hold")

    (tmp_path / "a.json").write_bytes(b"forged")
    with pytest.raises(TrustError, match="does not hold"):
        load_approval(tmp_path / "a.json", refuse)
    with pytest.raises(StageError, match="cannot read"):
        load_approval(tmp_path / "none.json", refuse)


def test_the_predicate_has_the_fields_of_a_terms_verdict() -> None:
    decision = decide([SMOL], channel="weights", on=TODAY)
    predicate = json.loads(json.dumps(decision.to_json({"smollm2/notice"})))
    assert predicate["teacher"] == {"name": SMOL.name, "sha256": SMOL.sha256}
    assert predicate["verdict"] == "allow"
    assert set(predicate["row"]) == {
        "family", "artefact", "document", "effective", "clause", "quote", "source", "retrieved",
    }  # fmt: skip
    assert {o["id"]: o["done"] for o in predicate["obligations"]} == {
        "smollm2/licence": False,
        "smollm2/notice": True,
    }


def test_predicates_has_one_per_teacher_and_to_json_the_deciding_one() -> None:
    decision = decide([SMOL, LLAMA], channel="weights", on=TODAY)
    names = [predicate["teacher"]["name"] for predicate in decision.predicates()]
    assert names == [SMOL.name, LLAMA.name]
    assert decision.to_json()["teacher"]["name"] == LLAMA.name


def test_the_predicate_of_an_approved_unknown_has_no_row() -> None:
    given = [approval("acme/wonder")]
    decision = decide([Teacher("acme/wonder")], channel="weights", on=TODAY, approvals=given)
    assert decision.to_json()["row"] is None
