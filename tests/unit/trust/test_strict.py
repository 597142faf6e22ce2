from __future__ import annotations

import pytest

from overproof.core.errors import TrustError
from overproof.trust.strict import parse_canonical, shown, step, unbase64, whole_number


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b'{"a":1} ',
        b'{"a":1}\n',
        b'{"a": 1}',
        b'{"b":1,"a":1}',
        b'{"a":1,"a":1}',
        b'{"a":1.0}',
        b'{"a":1e0}',
        b'{"a":-0}',
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":12345678901234567890}',
        b'{"a":' + b"9" * 5000 + b"}",
        b'{"a":"\\u0041"}',
        b'{"a":"\\ud800"}',
        b'{"a":"\xff"}',
        b'\xef\xbb\xbf{"a":1}',
        '{"a":1}'.encode("utf-16"),
        b"[" * 70 + b"]" * 70,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":1}\x00',
    ],
)
def test_only_canonical_json_is_read(data: bytes) -> None:
    with pytest.raises(TrustError):
        parse_canonical(data)


def test_canonical_json_is_read() -> None:
    assert parse_canonical(b'{"a":[1,0.5,"\xc3\xa9",null,true]}') == {
        "a": [1, 0.5, "é", None, True]
    }
    assert parse_canonical(b"[" * 60 + b"]" * 60)


def test_the_first_difference_is_named() -> None:
    with pytest.raises(TrustError, match="byte 4"):
        parse_canonical(b'{"a" :1}')


@pytest.mark.parametrize("text", ["AB", "AB=", "AB==", "A-8=", "QUI=\n", " QUI=", "QUJ=", 5, None])
def test_base64_has_one_spelling(text: object) -> None:
    with pytest.raises(TrustError):
        unbase64(text, "it")


def test_base64() -> None:
    assert unbase64("QUI=", "it") == b"AB"


@pytest.mark.parametrize(
    "text", ["", "01", "+1", "-1", " 1", "1 ", "1_0", "²", "٣", "11", "9" * 5000]
)
def test_numbers_have_one_spelling(text: str) -> None:
    with pytest.raises(TrustError):
        whole_number(text, "it", limit=10)


def test_numbers() -> None:
    assert [whole_number(text, "it", limit=10) for text in ("0", "7", "10")] == [0, 7, 10]


def test_untrusted_text_cannot_move_the_cursor() -> None:
    assert shown("a\x1b[2J\r\nb\u202e") == "a\\x1b[2J\\x0d\\x0ab\\x202e"
    assert len(shown("x" * 1000)) == 120


def test_step_keeps_the_first_number() -> None:
    with pytest.raises(TrustError) as caught, step(4), step(2, "file"):
        raise TrustError("what", details=["more"], hint="do")
    assert caught.value.step == 2
    assert caught.value.details == ("file: what", "more")
    assert caught.value.hint == "do"
