"""From names to patterns."""

from __future__ import annotations

import pytest

from overproof.policy import match


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("builtin:smollm2-135m-instruct", "smollm2-135m-instruct"),
        ("llama3.1:8b", "llama3.1-8b"),
        ("Meta-Llama_3.1 8B/", "meta-llama-3.1-8b"),
        ("https://huggingface.co/Qwen/Qwen3-0.6B", "qwen/qwen3-0.6b"),
        (
            "/root/.cache/hub/models--HuggingFaceTB--SmolLM2-135M/snapshots/12ab",
            "huggingfacetb/smollm2-135m",
        ),
        (r"C:\models\Phi-4", "c-/models/phi-4"),
    ],
)
def test_one_spelling(name, wanted) -> None:
    assert match.normalise(name) == wanted
    assert match.normalise(match.normalise(name)) == wanted


def test_forms_are_the_last_two_parts_and_the_last() -> None:
    assert match.forms("Models/Llama-3.1-8B") == ("models/llama-3.1-8b", "llama-3.1-8b")
    assert match.forms("grok") == ("grok",)
    assert match.forms("/") == ("",)


def test_weight_counts_what_a_pattern_fixes() -> None:
    assert match.weight("*gpt-[0-9]*") == 5
    assert match.weight("*") == 0


def test_the_most_specific_pattern_counts() -> None:
    assert match.score(["qwen2.5-*", "qwen2.5-3b*"], "Qwen/Qwen2.5-3B") == len("qwen2.5-3b")
    assert match.score(["qwen2.5-*"], "my-qwen2.5-7b") == 0


@pytest.mark.parametrize(
    ("name", "owner"),
    [
        ("HuggingFaceTB/SmolLM2-135M", "huggingfacetb"),
        ("smollm2", None),
        ("./models/smollm2", None),
        ("/models/smollm2", None),
        ("models/smollm2.gguf", None),
        ("a/b/c", None),
    ],
)
def test_owner_of_hub_names_only(name, owner) -> None:
    assert match.owner(name) == owner


def test_the_folder_of_a_path_is_no_part_of_its_name() -> None:
    assert match.forms("/home/jane/smollm2-distil/teacher") == ("teacher",)
    assert match.forms("./smollm2-distil/teacher.gguf") == ("teacher.gguf",)
    assert match.forms("acme/teacher") == ("acme/teacher", "teacher")
    hub = "/cache/models--HuggingFaceTB--SmolLM2-135M/snapshots/abc"
    assert match.forms(hub) == ("huggingfacetb/smollm2-135m", "smollm2-135m")


def test_a_released_file_never_shows_a_local_path() -> None:
    assert match.display("/home/someone/secret/Llama-3.1-8B/") == "Llama-3.1-8B"
    assert match.display("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"
    assert match.display("builtin:smollm2-135m-instruct") == "smollm2-135m-instruct"
    assert match.stated("builtin:smollm2-135m-instruct") == "builtin:smollm2-135m-instruct"
    assert match.stated("/home/jane/models/Llama-3.1-8B") == "Llama-3.1-8B"
    assert match.stated("meta-llama/Llama-3.1-8B") == "meta-llama/Llama-3.1-8B"
