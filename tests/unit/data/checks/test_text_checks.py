"""Length, encoding, mojibake and overlap on single records."""

import pytest

from overproof.data.checks import Candidate, Check
from overproof.data.checks.encoding import Encoding, Mojibake
from overproof.data.checks.length import Length
from overproof.data.checks.overlap import Overlap
from overproof.data.records import canonical_form, key_of, parse


def candidate(text: str) -> Candidate:
    record = parse({"text": text})
    form = canonical_form(record)
    return Candidate(record, form, key_of(form))


def found(check: Check, text: str) -> list[tuple[str, int, int]]:
    return [(item.kind, item.start, item.end) for item in check(candidate(text))]


def test_empty_means_nothing_but_white_space() -> None:
    assert found(Length(100), " \u3000\n") == [("empty", 0, 3)]
    assert found(Length(100), "a") == []


def test_each_empty_turn_is_named() -> None:
    record = parse(
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}]}
    )
    assert [str(item) for item in Length(100)(Candidate(record, b"", b""))] == [
        "empty in messages[1].content, characters 0 to 0"
    ]


def test_the_limit_counts_bytes_of_the_canonical_record() -> None:
    size = len('{"text":"éé"}'.encode())
    assert found(Length(size), "éé") == []
    assert found(Length(size - 1), "éé") == [("too-long", 0, size)]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("lost \ufffd\ufffd here", [("replacement-character", 5, 7)]),
        ("bell \x07", [("control-character", 5, 6)]),
        ("c1 \x9f and del \x7f", [("control-character", 3, 4), ("control-character", 13, 14)]),
        ("none \ufdd0 \U0001ffff", [("noncharacter", 5, 6), ("noncharacter", 7, 8)]),
        ("tab\tline\nfeed\r\nform\f next\x85 fine", []),
        ("emoji 😀 한국어 العربية हिन्दी \u200d", []),
    ],
)
def test_damage_is_found(text: str, wanted: list[tuple[str, int, int]]) -> None:
    assert found(Encoding(), text) == wanted


@pytest.mark.parametrize(
    "right", ["é", "ß", "Ö", "—", "’", "…", "\xa0", "😀", "\ufffd", "日本", "한국", "\ufeff"]
)
@pytest.mark.parametrize("read_as", ["latin-1", "cp1252"])
def test_misread_utf8_is_found(right: str, read_as: str) -> None:
    try:
        wrong = right.encode().decode(read_as)
    except UnicodeDecodeError:
        pytest.skip("cp1252 has no sign for a byte of it")
    assert found(Mojibake(), f"so {wrong} it") == [("misread-utf8", 3, 3 + len(wrong))]


@pytest.mark.parametrize(
    "text",
    [
        "voilà\xa0», dit-il",
        "“NÃO”",
        "Ângela, à côté",
        "façade Ærø São £5 ½",
        "naïve – 10 €",
        "日本",
    ],
)
def test_right_accents_are_not_mojibake(text: str) -> None:
    assert found(Mojibake(), text) == []


def test_overlap_goes_by_the_normalised_record() -> None:
    keys = sorted(candidate(text).key for text in ("one two", "three"))
    assert found(Overlap(keys), "one\n two ") == [("excluded", 0, len('{"text":"one two"}'))]
    assert found(Overlap(keys), "one Two") == []
