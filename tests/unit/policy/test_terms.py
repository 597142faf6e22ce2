"""The verb: what it answers, and how it says so."""

from __future__ import annotations

import json
from datetime import date

import pytest

from overproof.core.errors import UsageError
from overproof.policy import terms
from overproof.policy.lookup import lookup
from overproof.policy.rows import DeclaredTeacher, Row, load_rows
from overproof.policy.verdict import Verdict
from overproof.policy.words import about_the_unknown, what_allows

TODAY = date(2026, 11, 24)


def answer(model: str, channel: str = "weights") -> terms.Result:
    return terms.run(terms.Config(model=model, channel=channel, on=TODAY))


def test_the_builtin_teacher_is_smollm2_allowed_with_a_warning_on_its_own_teacher() -> None:
    result = answer("builtin:smollm2-135m-instruct")
    assert result.exit_code == 0
    assert result.finding.verdict == "allow"
    assert result.finding.row.family == "SmolLM2"
    assert result.finding.row.licence == "Apache-2.0"
    assert any("Llama-3.1" in warning for warning in result.finding.warnings)
    assert not result.finding.inherited


def test_a_deny_prints_document_date_clause_quote_source_and_the_way_out() -> None:
    result = answer("gpt-4o", "api")
    text = " ".join(terms.render(result).split())
    assert result.exit_code == 3
    for wanted in (
        "DENY",
        "OpenAI Services Agreement, effective 2026-01-01",
        "3.3(e)",
        "use Output to develop artificial intelligence models that compete",
        "OpenTermsArchive",
        "2026-11-24",
        "a signed approval",
        f"and terms digest {result.finding.terms_digest}",
        f"Terms digest {result.finding.terms_digest}",
        "not legal advice",
    ):
        assert wanted in text


def test_obligations_are_printed_with_their_clauses() -> None:
    text = " ".join(terms.render(answer("meta-llama/Llama-3.1-8B")).split())
    assert "ALLOW_WITH" in text
    assert "begin the student's name with “Llama” (clause 1.b.i)" in text
    assert "700,000,000 monthly active users" in text
    assert "What would allow it" not in text


def test_unknown_denies_and_says_what_is_known() -> None:
    result = answer("acme/wonder-7b")
    text = " ".join(terms.render(result).split())
    assert result.exit_code == 3
    assert "UNKNOWN" in text and "counts as deny" in text
    assert "SmolLM2" in text and "a signed approval" in text and "a dated row" in text
    assert result.finding.row is None


def test_unknown_names_the_other_channel_and_the_nearest_family() -> None:
    lines = about_the_unknown(lookup("gpt-4o", "weights", TODAY))
    assert "known for channel api: OpenAI API, deny" in lines
    assert "nearest known family: gpt-oss" in lines


def test_unknown_before_the_first_row_says_so() -> None:
    lines = about_the_unknown(lookup("gpt-4o", "api", date(2020, 1, 1)))
    assert lines[-1] == "families known for channel api: none on that day"


def test_json_holds_what_the_text_says() -> None:
    answered = json.loads(json.dumps(answer("claude-opus-4", "api").to_json()))
    assert answered["verdict"] == "deny"
    assert answered["row"]["id"] == "anthropic-usage-policy-api-2025-09-15"
    assert answered["also"] == ["anthropic-commercial-2025-06-17"]
    assert answered["what_allows"] and answered["disclaimer"]
    assert answered["terms_digest"] == lookup("claude-opus-4", "api", TODAY).terms_digest


def test_the_digest_of_a_row_and_that_of_the_terms_have_a_name_each() -> None:
    result = answer("claude-opus-4", "api")
    assert result.finding.row is not None
    assert result.finding.row.row_digest != result.finding.terms_digest
    said = f"{terms.render(result)} {json.dumps(result.to_json())}".lower()
    assert "terms digest" in said
    assert "row digest" not in said and "row_digest" not in said


def test_today_is_the_default() -> None:
    assert terms.run(terms.Config(model="gpt-4o", channel="api")).finding.on == date.today()


@pytest.mark.parametrize("model", ["", "   "])
def test_a_blank_name_is_a_usage_error(model) -> None:
    with pytest.raises(UsageError):
        terms.run(terms.Config(model=model))


@pytest.mark.parametrize("model", ["/", "..", "\n", "a" * 10_000, "*", "[0-9]*", "ÄÖ/ü", "\x00"])
def test_hostile_names_are_unknown_and_nothing_worse(model) -> None:
    found = lookup(model, "weights", TODAY)
    assert found.verdict == "unknown"
    assert what_allows(found)


@pytest.mark.parametrize("model", ["/", "\x00", "a" * 10_000, "~nobody-here/x"])
def test_any_name_is_looked_for_here_and_then_in_the_table(model: str) -> None:
    assert terms.run(terms.Config(model=model)).finding.verdict == "unknown"


def test_what_is_here_goes_before_the_hub(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    name = "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert terms.run(terms.Config(model=name)).finding.model == name
    (tmp_path / name).mkdir(parents=True)
    found = terms.run(terms.Config(model=name)).finding
    assert found.model == str(tmp_path / name)
    assert any("name of a file or folder" in warning for warning in found.warnings)


def test_another_owners_copy_is_warned_of() -> None:
    assert any("not the publisher" in w for w in answer("someone/SmolLM2-135M").finding.warnings)
    for local in ("/srv/models/SmolLM2-135M", "./SmolLM2-135M", "SmolLM2-135M.Q8_0.gguf"):
        assert any("name of a file or folder" in w for w in answer(local).finding.warnings)
    mine = answer("HuggingFaceTB/SmolLM2-135M").finding.warnings
    assert not any("not the publisher" in w for w in mine)


def test_an_allowed_service_warns_of_other_hosts() -> None:
    assert any("another host" in w for w in answer("deepseek-chat", "api").finding.warnings)


def test_names_of_two_vendors_are_ambiguous_and_the_strictest_wins() -> None:
    found = lookup("Llama-3.1-Nemotron-70B-Instruct", "weights", TODAY)
    assert {row.vendor for row in found.rows} == {"Meta", "NVIDIA"}
    assert found.verdict == "allow_with"
    kinds = {obligation.kind for obligation in found.obligations}
    assert {"name_prefix", "notice"} <= kinds


def test_a_base_that_is_established_joins_the_verdict_and_the_obligations() -> None:
    found = lookup("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", "weights", TODAY)
    assert found.rows[0].verdict == "allow"
    assert found.verdict == "allow_with"
    assert found.row.family == "Llama 3.1"
    assert "llama-3.1/name" in {obligation.id for obligation in found.obligations}


def with_teacher(**change) -> tuple[Row, ...]:
    """The shipped table, with one declared teacher of SmolLM2 changed."""
    (smollm,) = (row for row in load_rows() if row.family == "SmolLM2")
    entry = {"name": "meta-llama/Llama-2-7b", "established": True, "source": "test", **change}
    others = tuple(row for row in load_rows() if row is not smollm)
    declared = (DeclaredTeacher.model_validate(entry),)
    return (*others, smollm.model_copy(update={"declared_teachers": declared}))


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({}, "deny"),
        ({"established": False}, "allow"),
        ({"name": "meta-llama/Llama-3.1-8B"}, "allow_with"),
        ({"name": "gpt-4o", "channel": "api"}, "deny"),
        ({"name": "nobody/nothing"}, "unknown"),
        ({"name": "smollm2-1.7b"}, "allow"),
    ],
)
def test_established_teachers_decide_and_others_only_warn(change, verdict) -> None:
    found = lookup("smollm2-135m", "weights", TODAY, with_teacher(**change))
    assert found.verdict == verdict
    warned = any("is said to derive" in warning for warning in found.warnings)
    assert warned is (change.get("established") is False)


def test_models_that_derive_from_each_other_end() -> None:
    base = load_rows()[0].model_copy(update={"verdict": Verdict.ALLOW})
    ring = tuple(
        base.model_copy(
            update={
                "id": mine,
                "family": mine,
                "match": (f"{mine}*",),
                "declared_teachers": (
                    DeclaredTeacher(name=other, established=True, source="test"),
                ),
            }
        )
        for mine, other in (("one", "two"), ("two", "one"))
    )
    assert lookup("one", "weights", TODAY, ring).verdict == "allow"
