"""Every row of the shipped table: the names that it covers get the verdict that it wants."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from overproof.core.errors import UsageError
from overproof.policy.lookup import lookup
from overproof.policy.rows import load_rows
from overproof.policy.table import markdown, updated
from overproof.policy.verdict import Verdict

TODAY = date(2026, 11, 24)
DOCS = Path(__file__).parents[3] / "docs" / "terms.md"

# Row, names that must reach it, channel, day, and the verdict of the whole finding.
CASES = [
    ("openai-api-2026-01-01", "gpt-4o gpt-4.1-mini openai/gpt-5 o3 o4-mini chatgpt-4o-latest", "api", TODAY, "deny"),
    ("openai-consumer-2026-01-16", "chatgpt gpt-4o", "consumer", TODAY, "deny"),
    ("gpt-oss-weights-2025-08-05", "openai/gpt-oss-120b gpt-oss:20b", "weights", TODAY, "allow"),
    ("anthropic-commercial-2025-06-17", "claude-sonnet-4-5", "api", date(2025, 7, 1), "needs_approval"),
    ("anthropic-commercial-2025-06-17", "claude-sonnet-4-5", "api", TODAY, "deny"),
    ("anthropic-usage-policy-api-2025-09-15", "claude-opus-4 anthropic.claude-v2:1", "api", TODAY, "deny"),
    ("anthropic-usage-policy-consumer-2025-09-15", "claude", "consumer", TODAY, "deny"),
    ("anthropic-consumer-2025-10-08", "claude", "consumer", TODAY, "deny"),
    ("gemini-api-2024-12-13", "gemini-1.5-pro", "api", date(2025, 1, 1), "deny"),
    ("gemini-api-2025-05-20", "models/gemini-2.5-flash google/gemini-pro", "api", TODAY, "deny"),
    ("google-consumer-2026-07-30", "gemini", "consumer", TODAY, "deny"),
    ("gemma-1-3-weights-2026-04-01", "google/gemma-2b-it google/gemma-2-9b gemma3:4b google/gemma-3n-E2B-it", "weights", TODAY, "allow_with"),
    ("gemma-4-weights-2026-11", "google/gemma-4-9b-it gemma4:9b", "weights", TODAY, "allow"),
    ("xai-aup-2026-08-14", "grok-4 xai/grok-3-mini", "api", TODAY, "deny"),
    ("xai-aup-consumer-2026-08-14", "grok", "consumer", TODAY, "deny"),
    ("xai-enterprise-2026-08-14", "x-ai/grok-4", "api", TODAY, "deny"),
    ("meta-model-api-2026-08-21", "Llama-4-Maverick meta-llama/Llama-3.3-70B-Instruct", "api", TODAY, "deny"),
    ("qwen-studio-2026-04-09", "qwen3-max", "consumer", date(2026, 5, 1), "deny"),
    ("qwen-studio-2026-05-19", "qwen3-max qwen-studio", "consumer", TODAY, "deny"),
    ("qwen-studio-api-2026-05-19", "qwen-studio qwen.ai", "api", TODAY, "deny"),
    ("deepseek-api-2026-03-27", "deepseek-chat", "api", date(2026, 4, 1), "allow"),
    ("deepseek-api-2026-04-29", "deepseek-chat deepseek-reasoner deepseek/deepseek-v4", "api", TODAY, "allow"),
    ("deepseek-consumer-2026-03-27", "deepseek", "consumer", TODAY, "allow"),
    ("mistral-services-2026-05-28", "mistral-large-latest", "api", date(2026, 6, 1), "allow"),
    ("mistral-services-2026-08-05", "mistral-large-latest ministral-8b-2410", "api", TODAY, "allow"),
    ("perplexity-aup-2025-07-08", "sonar-pro perplexity/sonar", "api", TODAY, "deny"),
    ("perplexity-aup-consumer-2025-07-08", "perplexity", "consumer", TODAY, "deny"),
    ("cohere-api-2026-11", "command-r-plus cohere/command-a", "api", TODAY, "deny"),
    ("cohere-weights-2026-11", "CohereForAI/c4ai-command-r-v01 CohereLabs/aya-expanse-8b", "weights", TODAY, "deny"),
    ("deepseek-r1-weights-2025-01-20", "deepseek-ai/DeepSeek-R1 deepseek-r1-0528", "weights", TODAY, "allow"),
    ("deepseek-r1-distill-qwen-weights-2025-01-20", "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", "weights", TODAY, "allow"),
    ("deepseek-r1-distill-llama-8b-weights-2025-01-20", "deepseek-ai/DeepSeek-R1-Distill-Llama-8B", "weights", TODAY, "allow_with"),
    ("deepseek-r1-distill-llama-70b-weights-2025-01-20", "deepseek-r1-distill-llama-70b-q4_k_m.gguf", "weights", TODAY, "allow_with"),
    ("llama-2-weights-2023-07-18", "meta-llama/Llama-2-7b-chat-hf llama2:7b", "weights", TODAY, "deny"),
    ("llama-3-weights-2024-04-18", "meta-llama/Meta-Llama-3-8B-Instruct llama3:8b llama3", "weights", TODAY, "deny"),
    ("llama-3.1-weights-2024-07-23", "meta-llama/Llama-3.1-8B-Instruct meta-llama/Meta-Llama-3.1-8B llama3.1:8b", "weights", TODAY, "allow_with"),
    ("llama-3.2-weights-2024-09-25", "meta-llama/Llama-3.2-1B-Instruct llama3.2", "weights", TODAY, "allow_with"),
    ("llama-3.3-weights-2024-12-06", "meta-llama/Llama-3.3-70B-Instruct", "weights", TODAY, "allow_with"),
    ("llama-4-weights-2025-04-05", "meta-llama/Llama-4-Scout-17B-16E-Instruct llama4:scout", "weights", TODAY, "allow_with"),
    ("qwen-tongyi-weights-2023-08-03", "Qwen/Qwen-7B-Chat Qwen-72B", "weights", TODAY, "deny"),
    ("qwen2.5-3b-weights-2026-11", "Qwen/Qwen2.5-3B-Instruct qwen2.5:3b Qwen/Qwen2.5-Coder-3B", "weights", TODAY, "deny"),
    ("qwen2.5-72b-weights-2024-09-19", "Qwen/Qwen2.5-72B-Instruct", "weights", TODAY, "allow_with"),
    ("qwen2.5-weights-2025-08-31", "Qwen/Qwen2.5-0.5B-Instruct qwen2.5-7b-instruct-3bit Qwen/Qwen2.5-Coder-32B", "weights", TODAY, "allow"),
    ("qwen3-weights-2025-08-31", "Qwen/Qwen3-0.6B qwen3:8b", "weights", TODAY, "allow"),
    ("smollm2-weights-2024-11-01", "HuggingFaceTB/SmolLM2-135M-Instruct builtin:smollm2-135m-instruct /m/SmolLM2-135M-Instruct.Q4_1.gguf", "weights", TODAY, "allow"),
    ("olmo-weights-2026-11", "allenai/OLMo-2-1124-7B", "weights", TODAY, "allow"),
    ("mistral-weights-2026-11", "mistralai/Mistral-7B-Instruct-v0.3 mixtral-8x7b", "weights", TODAY, "allow"),
    ("phi-weights-2026-11", "microsoft/Phi-4-mini-instruct phi3:mini", "weights", TODAY, "allow"),
    ("glm-weights-2026-11", "zai-org/GLM-4.5-Air", "weights", TODAY, "allow"),
    ("nemotron-3-weights-2025-12-15", "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", "weights", TODAY, "allow"),
    ("nemotron-weights-2025-10-24", "nvidia/NVIDIA-Nemotron-Nano-9B-v2", "weights", TODAY, "allow"),
    ("nemotron-weights-2025-10-24", "nvidia/Llama-3.1-Nemotron-70B-Instruct", "weights", TODAY, "allow_with"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("row", "model", "channel", "day", "verdict"),
    [(row, name, *rest) for row, names, *rest in CASES for name in names.split()],
)
def test_every_row_is_reached_and_says_what_it_should(row, model, channel, day, verdict) -> None:
    found = lookup(model, channel, day)
    assert row in [entry.id for entry in found.rows]
    assert found.verdict == verdict


def test_no_row_is_without_a_case() -> None:
    assert {row.id for row in load_rows()} == {case[0] for case in CASES}


@pytest.mark.parametrize("row", load_rows(), ids=lambda row: row.id)
def test_every_row_can_be_shown_to_a_lawyer(row) -> None:
    assert row.document and row.clause and row.source and row.retrieved
    assert "**" not in row.quote and "~" not in row.quote
    assert row.effective <= TODAY
    assert row.quote or row.verdict is Verdict.ALLOW
    if row.channel == "weights":
        assert row.licence or "not read" in row.document


def test_the_table_in_the_docs_is_the_data() -> None:
    text = DOCS.read_text(encoding="utf-8")
    assert updated(text, load_rows()) == text, "run python -m overproof.policy.table docs/terms.md"


def test_table_shows_every_row_and_its_digest() -> None:
    text = markdown(load_rows())
    assert len(text.splitlines()) == 2 + len(load_rows())
    assert all(row.digest[:12] in text for row in load_rows())


def test_a_document_without_markers_is_refused() -> None:
    with pytest.raises(UsageError, match="no place for the table"):
        updated("# Terms\n", load_rows())
