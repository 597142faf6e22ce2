from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import trust_release
from jsonschema import Draft202012Validator

from overproof.core.errors import TrustError
from overproof.trust import predicates
from overproof.trust.folder import Folder
from overproof.trust.proofs import Signed, read_proofs

DOCS = Path(__file__).parents[3] / "docs/predicates"


def published(short: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((DOCS / f"{short}.schema.json").read_text("utf-8"))
    return value


@pytest.mark.parametrize("short", predicates.OWN)
def test_the_published_schema_is_the_one_in_use(short: str) -> None:
    """After a change of a model: python docs/predicates/generate.py"""
    assert published(short) == predicates.schema(short)
    Draft202012Validator.check_schema(published(short))
    assert (DOCS / f"{short}.md").read_text(encoding="utf-8").startswith(f"# {short}\n")


def signed(*made: trust_release.Synthetic) -> list[Signed]:
    return [item for one in made for item in read_proofs(Folder.list(one.release)).signed]


def test_what_attest_writes_fits_the_schemas(
    sealed: trust_release.Synthetic, remote: trust_release.Synthetic
) -> None:
    seen = set()
    for item in signed(sealed, remote):
        kind = item.statement.predicate_type
        for short in predicates.OWN:
            if kind == predicates.type_uri(short):
                seen.add(short)
                Draft202012Validator(published(short)).validate(item.statement.predicate)
    assert seen == set(predicates.OWN)


@pytest.mark.parametrize("short", predicates.OWN)
def test_model_and_schema_agree_on_what_is_missing(
    short: str, sealed: trust_release.Synthetic, remote: trust_release.Synthetic
) -> None:
    """Each field taken away in turn: refused by both or by neither."""
    uri = predicates.type_uri(short)
    every = [item.statement for item in signed(sealed, remote)]
    whole = next(one.predicate for one in every if one.predicate_type == uri)
    validator = Draft202012Validator(published(short))
    for gone in whole:
        part = {key: value for key, value in whole.items() if key != gone}
        assert validator.is_valid(part) == accepts(short, part), gone
        wrong = {**whole, gone: [7]}
        assert validator.is_valid(wrong) == accepts(short, wrong), gone


def accepts(short: str, value: dict[str, Any]) -> bool:
    try:
        predicates.read(predicates.OWN[short], value, "it")
    except TrustError:
        return False
    return True


def test_messages_name_the_field() -> None:
    value = trust_release.terms()
    value["obligations"][0]["done"] = "yes"
    value["teacher"]["sha256"] = "short"
    with pytest.raises(TrustError) as caught:
        predicates.read(predicates.TermsVerdict, value, "the terms verdict")
    assert "obligations.0.done" in caught.value.render()
    assert "teacher.sha256" in caught.value.render()
    assert "docs/predicates" in caught.value.render()
