"""Laws of records and of their certification."""

import json
import tempfile
import unicodedata
from itertools import pairwise
from pathlib import Path
from typing import Any

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from overproof.data import dataset
from overproof.data.certify import Config, run
from overproof.data.checks.personal import find
from overproof.data.read import parse_object
from overproof.data.records import (
    ROLES,
    RecordError,
    canonical_form,
    normalise,
    parse,
    record_key,
)

# Characters that have to do with the rules: white space, combining marks, compositions.
SPACES = "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2009\u2028\u2029\u202f\u205f\u3000"
TEXT = st.text(
    st.one_of(
        st.sampled_from(SPACES + "aéÅe\u0301\u0327\u030a\u1100\u1161\u11a8\x1c\u200b"),
        st.characters(exclude_categories=["Cs"]),
    ),
    max_size=30,
)
SPACE = st.text(st.sampled_from(SPACES), min_size=1, max_size=4)


@st.composite
def records(draw: st.DrawFn) -> dict[str, Any]:
    form = draw(st.sampled_from(["prompt", "text", "messages"]))
    if form != "messages":
        return {form: draw(TEXT)}
    turns = draw(st.lists(st.tuples(st.sampled_from(ROLES), TEXT), min_size=1, max_size=4))
    roles = [role for role, _ in turns]
    assume(all(a != b for a, b in pairwise(roles)))
    return {"messages": [{"role": role, "content": text} for role, text in turns]}


def changed(value: dict[str, Any], change: Any) -> dict[str, Any]:
    """The record with every text changed."""
    if "messages" not in value:
        return {name: change(text) for name, text in value.items()}
    return {
        "messages": [{**turn, "content": change(turn["content"])} for turn in value["messages"]]
    }


def key(value: dict[str, Any]) -> bytes:
    return record_key(parse(value))


@given(TEXT)
def test_normalising_twice_changes_nothing(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once == unicodedata.normalize("NFC", once)


@given(records())
def test_the_canonical_form_is_a_record_with_the_same_canonical_form(value: dict[str, Any]) -> None:
    form = canonical_form(parse(value))
    assert canonical_form(parse(parse_object(form))) == form


@given(records(), st.sampled_from(["NFC", "NFD"]))
def test_the_key_is_stable_under_unicode_normalisation(value: dict[str, Any], form: Any) -> None:
    assert key(changed(value, lambda text: unicodedata.normalize(form, text))) == key(value)


@given(records(), SPACE, SPACE)
def test_the_key_is_stable_under_white_space(value: dict[str, Any], a: str, b: str) -> None:
    def spaced(text: str) -> str:
        return a + "".join(b if sign in SPACES else sign for sign in text) + b

    assert key(changed(value, spaced)) == key(value)


@given(records(), st.randoms())
def test_the_key_is_stable_under_the_order_of_fields(value: dict[str, Any], random: Any) -> None:
    def shuffled(item: Any) -> Any:
        if isinstance(item, list):
            return [shuffled(inner) for inner in item]
        if not isinstance(item, dict):
            return item
        names = list(item)
        random.shuffle(names)
        return {name: shuffled(item[name]) for name in names}

    more = {"licence": "MIT", **value, "extra": [1, {"b": 1, "a": 2}]}
    assert key(shuffled(more)) == key(value)


@given(records())
def test_a_prompt_is_its_user_message(value: dict[str, Any]) -> None:
    assume("prompt" in value)
    assert key(value) == key({"messages": [{"role": "user", "content": value["prompt"]}]})


@given(TEXT, st.sampled_from(ROLES), st.sampled_from(ROLES))
def test_another_role_is_another_key(text: str, one: str, other: str) -> None:
    keys = {key({"messages": [{"role": role, "content": text}]}) for role in (one, other)}
    assert len(keys) == len({one, other})


@given(TEXT, TEXT)
def test_texts_have_one_key_only_if_they_normalise_to_one(a: str, b: str) -> None:
    assert (key({"text": a}) == key({"text": b})) == (normalise(a) == normalise(b))


@given(
    st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "replace"))
)
def test_any_line_is_an_object_or_a_reason(data: bytes) -> None:
    try:
        assert isinstance(parse_object(data), dict)
    except RecordError as error:
        assert error.reason.startswith("read:")


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["role", "content", "x"]), inner, max_size=3)
        ),
    ),
    st.sampled_from(["prompt", "text", "messages"]),
)
def test_any_value_is_a_record_or_a_reason(value: Any, form: str) -> None:
    try:
        parse({form: value})
    except RecordError as error:
        assert error.reason.startswith("record:")


@given(
    st.text(st.characters(codec="utf-8") | st.sampled_from("0123456789 -+().@/:aA"), max_size=80)
)
def test_findings_lie_in_the_text_and_apart(text: str) -> None:
    end = 0
    for _, start, stop in find(text):
        assert end <= start < stop <= len(text)
        end = stop


LINES = st.lists(
    st.one_of(
        records().map(lambda value: json.dumps(value).encode()),
        st.sampled_from(
            [
                b'{"prompt": "Where is my parcel?"}',
                b'{"prompt": "Where is  my parcel?", "licence": "CC0-1.0"}',
                b'{"messages": [{"content": "Where is my parcel?", "role": "user"}]}',
                b'{"prompt": "write to anna@web.de"}',
                b'{"prompt": "b", "licence": "none such"}',
                b'{"prompt": "\xff"}',
                b"{",
                b"7",
            ]
        ),
    ),
    max_size=8,
)


@settings(max_examples=40, deadline=None)
@given(LINES, st.randoms())
def test_certification_loses_nothing_and_ignores_the_order(lines: list[bytes], random: Any) -> None:
    lines = [b'{"prompt": "one that is surely accepted"}', *lines]
    shuffled = list(lines)
    random.shuffle(shuffled)
    with tempfile.TemporaryDirectory() as folder:
        first, second = (
            certified(Path(folder), name, order) for name, order in (("a", lines), ("b", shuffled))
        )
    certificate, _ = first
    assert certificate["accepted"] + certificate["rejected"] == certificate["records"] == len(lines)
    assert sum(certificate["reasons"].values()) == certificate["rejected"]
    assert certificate["tree"]["size"] == certificate["accepted"]
    for one in (first, second):
        one[0].pop("source")
    assert first == second


def certified(folder: Path, name: str, lines: list[bytes]) -> tuple[dict[str, Any], bytes]:
    """Certificate and accepted records."""
    path = folder / f"{name}.jsonl"
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    done = run(Config(file=path, licence="MIT", out=folder / name))
    return done.certificate, done.artifact.file(dataset.RECORDS).read_bytes()
