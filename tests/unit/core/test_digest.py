from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overproof.core import digest
from overproof.core.errors import UsageError

SCALARS = st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text()
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=12
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        # RFC 8785 sections 3.2.2.2 (strings), 3.2.2.3 (numbers), 3.2.3 (order of names)
        ({"b": 1, "a": [True, None]}, '{"a":[true,null],"b":1}'),
        ([333333333.33333329, 1e30, 4.5, 2e-3], "[333333333.3333333,1e+30,4.5,0.002]"),
        ({"\u20ac": 1, "\r": 2, "1": 3}, '{"\\r":2,"1":3,"€":1}'),
        ('\u000f\n"\\', '"\\u000f\\n\\"\\\\"'),
    ],
)
def test_canonical_form_of_rfc_8785(value: Any, text: str) -> None:
    assert digest.canonical(value) == text.encode()


@given(st.dictionaries(st.text(), VALUES))
def test_the_order_of_keys_does_not_matter(value: dict[str, Any]) -> None:
    turned = dict(reversed(list(value.items())))
    assert digest.sha256_json(turned) == digest.sha256_json(value)
    assert digest.pretty(turned) == digest.pretty(value)


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("inf"), 2**53 + 1, {1: "key is a number"}, b"bytes", object(), "\ud800"],
)
def test_what_is_no_json_is_refused_in_words(value: Any) -> None:
    with pytest.raises(UsageError, match="no canonical JSON form"):
        digest.canonical(value)


def test_a_file_longer_than_a_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digest, "CHUNK_BYTES", 7)
    data = bytes(range(50))
    (tmp_path / "f").write_bytes(data)
    assert digest.sha256_file(tmp_path / "f") == hashlib.sha256(data).hexdigest()
    assert digest.sha256_bytes(data) == hashlib.sha256(data).hexdigest()
