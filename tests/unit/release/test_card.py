"""The model card: metadata that the hub reads, sections that people read."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import report_facts
import yaml
from huggingface_hub import ModelCard

from overproof.core.errors import StageError
from overproof.policy.obligations import unmet
from overproof.policy.rows import Obligation
from overproof.release.card import escape, licence_fields, metadata, render, write_card
from overproof.release.conclusion import conclude
from overproof.release.facts import ReportFacts

LLAMA = (
    "Built with Llama",
    "Use of this model must keep to the use policy at https://www.llama.com/llama3_1/use-policy",
)


@pytest.fixture(scope="module")
def facts() -> ReportFacts:
    return report_facts.facts()


def front_matter(card: str) -> dict[str, Any]:
    _, matter, _ = card.split("---\n", 2)
    found = yaml.safe_load(matter)
    assert isinstance(found, dict)
    return found


def test_metadata(facts: ReportFacts) -> None:
    found = front_matter(render(facts, licence="Apache-2.0"))
    assert found == {
        "license": "apache-2.0",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": [
            "distillation", "gguf", "knowledge-distillation", "overproof", "provenance",
            "text-generation",
        ],
        "base_model": ["HuggingFaceTB/SmolLM2-135M-Instruct"],
    }  # fmt: skip


def test_only_things_of_the_hub_are_named_as_such(facts: ReportFacts) -> None:
    assert facts.heldout is not None
    local = dataclasses.replace(facts.teacher_model, hub=None)
    assert "base_model" not in metadata(dataclasses.replace(facts, teacher_model=local), "MIT")
    named = dataclasses.replace(
        facts,
        dataset=dataclasses.replace(facts.dataset, hub="me/support"),
        heldout=dataclasses.replace(facts.heldout, hub="me/support"),
    )
    assert metadata(named, "MIT")["datasets"] == ["me/support"]


def test_the_hubs_own_reader_takes_it(facts: ReportFacts) -> None:
    data = ModelCard(render(facts, licence="MIT", language=["en", "de"])).data
    assert data.license == "mit"
    assert data.language == ["en", "de"]
    assert data.pipeline_tag == "text-generation"


@pytest.mark.parametrize(
    ("licence", "fields"),
    [
        ("Apache-2.0", {"license": "apache-2.0"}),
        ("CC0-1.0", {"license": "cc0-1.0"}),
        ("LicenseRef-scancode-llama-3.1-license-2024", {"license": "llama3.1"}),
        ("LicenseRef-scancode-llama-4-cla-2025", {"license": "llama4"}),
        ("LicenseRef-Llama-3", {"license": "llama3"}),
        ("LicenseRef-Gemma-2026-04-01", {"license": "gemma"}),
        (
            "Apache-2.0 AND CC-BY-4.0",
            {
                "license": "other",
                "license_name": "apache-2.0-and-cc-by-4.0",
                "license_link": "proof/NOTICE",
            },
        ),
        (
            "other",
            {"license": "other", "license_name": "see-notice", "license_link": "proof/NOTICE"},
        ),
    ],
)
def test_licence(licence: str, fields: dict[str, str]) -> None:
    assert licence_fields(licence) == fields


def test_sections_numbers_and_proof(facts: ReportFacts) -> None:
    card = render(facts, licence="Apache-2.0")
    headings = [line for line in card.splitlines() if line.startswith("#")]
    assert headings == [
        "# support-flash", "## What it is", "## How to use it", "## Teacher and terms", "## Data",
        "## Evaluation", "## Speed", "## Builds and receipts", "## Proof", "## Limits",
    ]  # fmt: skip
    for wanted in (
        "| student | 0.512 [0.497, 0.527] | 70.4% [68.9%, 71.9%] | 3.61 [3.50, 3.72] |",
        "| control arm | 0.741 [0.719, 0.763] |",
        "**Distillation helped",
        "| decode, tokens per second | 61.4 | 158 | 2.58× |",
        "| threads, the fastest number | 2 | 1 | |",
        "A control arm is the same student, trained by cross-entropy on the teacher's text.",
        "≤ 0.02) | 98.7% (≥ 95.0%)",
        "overproof verify RELEASE --signer demo.pub",
        "d4" * 32,
        "*attested*",
    ):
        assert wanted in card, wanted


def test_tables_are_whole(facts: ReportFacts) -> None:
    """Every row of a table has as many cells as its head: a broken loop would join lines."""
    rows = [
        line.replace("\\|", "") for line in render(facts, licence="MIT").splitlines()
        if line.startswith("|")
    ]  # fmt: skip
    assert all(row.endswith("|") for row in rows)
    heads = [index for index, row in enumerate(rows) if set(row) <= set("|-: ") and "-" in row]
    assert len(heads) == 6
    for start, end in zip(heads, [*heads[1:], len(rows) + 1], strict=True):
        width = rows[start].count("|")
        assert {row.count("|") for row in rows[start - 1 : end - 1]} == {width}


def test_what_the_terms_demand_is_there_word_for_word(facts: ReportFacts) -> None:
    named = dataclasses.replace(facts, name="Llama-support_flash")
    card = render(named, licence="LicenseRef-scancode-llama-3.1-license-2024", card_lines=LLAMA)
    duties = [
        Obligation(id="name", kind="name_prefix", value="Llama"),
        Obligation(id="card", kind="card_text", value="Built with Llama"),
    ]
    assert unmet({"README.md": card}, named.name, duties) == []
    assert LLAMA[1] in card


def test_text_from_data_stays_text(facts: ReportFacts) -> None:
    teacher = dataclasses.replace(
        facts.teacher_model, name="a|b\n# [x](javascript:y) <script> `z`", licence=None
    )
    card = render(dataclasses.replace(facts, teacher_model=teacher), licence="MIT")
    assert "<script>" not in card.replace("\\<script\\>", "")
    assert escape("a|b\n# `c`") == "a\\|b \\# \\`c\\`"
    assert "| licence of the teacher | unknown |" in card


def test_card_of_the_barest_release(facts: ReportFacts) -> None:
    bare = dataclasses.replace(
        facts, controls=(), receipts=(), heldout=None, system=None, terms={}, machine={}
    )
    card = render(bare, licence="MIT")
    headline = conclude(bare).headline
    assert "Not measured" in headline
    assert "control arm" not in card.replace(headline, "").lower()
    assert "No build was made." in card


def test_equal_facts_give_equal_bytes(tmp_path: Path) -> None:
    texts = []
    for _ in range(2):
        write_card(report_facts.facts(), tmp_path, licence="MIT", card_lines=LLAMA)
        texts.append((tmp_path / "README.md").read_bytes())
    assert texts[0] == texts[1]


def test_a_folder_that_is_not_there_is_a_clear_error(facts: ReportFacts, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="cannot write"):
        write_card(facts, tmp_path / "missing", licence="MIT")


def test_what_the_gate_warns_of_is_on_the_card() -> None:
    facts = report_facts.facts()
    warned = dataclasses.replace(
        facts, terms={**facts.terms, "warnings": ["judged by *name* only"]}
    )
    assert "- To be known: judged by \\*name\\* only\n" in render(warned, licence="Apache-2.0")
