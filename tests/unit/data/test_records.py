"""Canonical form and key against the vectors, and what the errors say."""

from pathlib import Path

import pytest

from overproof.data.read import parse_object
from overproof.data.records import (
    Message,
    Record,
    RecordError,
    canonical_form,
    kind_of,
    normalise,
    parse,
    record_key,
)

VECTORS = Path(__file__).parents[2] / "vectors" / "records"
GOOD = sorted(path for path in VECTORS.iterdir() if not path.name.endswith("_fail"))
BAD = sorted(path for path in VECTORS.iterdir() if path.name.endswith("_fail"))


def read(folder: Path) -> Record:
    return parse(parse_object((folder / "input.json").read_bytes().rstrip(b"\n")))


@pytest.mark.parametrize("folder", GOOD, ids=lambda path: path.name)
def test_vector_has_this_canonical_form_and_key(folder: Path) -> None:
    record = read(folder)
    assert canonical_form(record) == (folder / "canonical.json").read_bytes()
    assert record_key(record).hex() == (folder / "key").read_text().strip()


@pytest.mark.parametrize("folder", BAD, ids=lambda path: path.name)
def test_vector_is_refused_for_this_reason(folder: Path) -> None:
    with pytest.raises(RecordError) as caught:
        read(folder)
    assert caught.value.reason == (folder / "reason").read_text().strip()


def test_there_are_vectors_of_both_kinds() -> None:
    assert len(GOOD) >= 15 and len(BAD) >= 15


def test_a_role_in_a_row_names_both_positions() -> None:
    with pytest.raises(RecordError, match=r"messages\[1\] and messages\[2\].*'assistant'"):
        read(VECTORS / "role_repeated_fail")


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"prompt": 7}, "prompt is a number, wanted a text"),
        ({"prompt": ["a"]}, "prompt is a list, wanted a text"),
        ({"text": True}, "text is true, wanted a text"),
        ({"messages": "a"}, "messages is a text, wanted a list"),
        ({"messages": [{"role": "user", "content": "a"}, 3]}, "messages[1] is a number"),
        ({"messages": [{"role": None, "content": "a"}]}, "messages[0].role is null"),
        ({"messages": [{"role": "user"}]}, "messages[0].content is null"),
        ({"messages": [{"role": "human", "content": "a"}]}, "wanted one of system, user"),
        ({"prompt": "a", "messages": [], "text": "b"}, "has prompt and messages and text"),
    ],
)
def test_an_error_says_what_was_got_and_wanted(value: dict[str, object], says: str) -> None:
    with pytest.raises(RecordError) as caught:
        parse(value)
    assert says in str(caught.value)


def test_the_text_is_kept_as_read() -> None:
    record = parse({"prompt": "line one\n\n  line two "})
    assert record == Record(messages=(Message("user", "line one\n\n  line two "),))
    assert record.to_json() == {
        "messages": [{"role": "user", "content": "line one\n\n  line two "}]
    }
    assert normalise(record.messages[0].content) == "line one line two"


def test_parts_name_each_text() -> None:
    assert parse({"text": "a"}).parts() == [("text", "a")]
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert parse({"messages": turns}).parts() == [
        ("messages[0].content", "a"),
        ("messages[1].content", "b"),
    ]


def test_kind_of_a_foreign_type_is_its_name() -> None:
    assert kind_of(object()) == "of type object"
    assert kind_of({}) == "an object"
