"""A record, its canonical form and its key.

The canonical form is the RFC 8785 JSON of `{"messages": [{"role", "content"}, ...]}` or
`{"text": ...}` with every text normalised; the key is its SHA-256. Equal keys mean an exact or
normalised match only: a paraphrase has another key. `docs/records.md` gives the rules and
`tests/vectors/records` the vectors.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from overproof.core.digest import canonical
from overproof.core.errors import UsageError

MATCHING = "exact or normalised match only"
ROLES = ("system", "user", "assistant", "tool")
FORMS = ("prompt", "messages", "text")  # exactly one of them makes a record
KEY_BYTES = 32  # SHA-256

# The 25 code points of the property White_Space (Unicode, PropList.txt). Python's `str.split`
# also splits at U+001C to U+001F, which are control characters there, so it is not used.
_WHITE_SPACE = re.compile("[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+")
_SURROGATE = re.compile("[\ud800-\udfff]")


class RecordError(UsageError):
    """One record that cannot be used.

    Attributes:
        reason: a fixed word for it, `area:what`, such as `record:role-repeated`.
    """

    def __init__(self, reason: str, what: str) -> None:
        super().__init__(what)
        self.reason = reason


@dataclass(frozen=True)
class Message:
    """One turn."""

    role: str
    content: str


@dataclass(frozen=True)
class Record:
    """A conversation (`messages`, not empty) or a running text (`text`), with its text as read."""

    messages: tuple[Message, ...] = ()
    text: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The record as it stands in a certified data set, its text as read."""
        if self.text is not None:
            return {"text": self.text}
        return {"messages": [{"role": m.role, "content": m.content} for m in self.messages]}

    def parts(self) -> list[tuple[str, str]]:
        """Every text of the record with the name of its place, such as `messages[0].content`."""
        if self.text is not None:
            return [("text", self.text)]
        return [(f"messages[{i}].content", m.content) for i, m in enumerate(self.messages)]


def lone_prompt(messages: Sequence[Message] | None) -> str | None:
    """The text of a conversation that is one turn of a user; None if it is anything else."""
    if messages is None or len(messages) != 1 or messages[0].role != "user":
        return None
    return messages[0].content


def normalise(text: str) -> str:
    """The text by which records are compared.

    1. Unicode normalisation form C (UAX #15).
    2. Each run of white space, line ends included, becomes one space.
    3. The ends are stripped.
    """
    # 1.
    text = unicodedata.normalize("NFC", text)
    # 2. and 3.
    return _WHITE_SPACE.sub(" ", text).strip(" ")


def canonical_form(record: Record) -> bytes:
    """RFC 8785 bytes of the record with every text normalised."""
    if record.text is not None:
        return canonical({"text": normalise(record.text)})
    turns = [{"role": m.role, "content": normalise(m.content)} for m in record.messages]
    return canonical({"messages": turns})


def key_of(form: bytes) -> bytes:
    """SHA-256 of a canonical form, 32 bytes."""
    return hashlib.sha256(form).digest()


def record_key(record: Record) -> bytes:
    """The key of a record, 32 bytes. Equal keys: exact or normalised match only."""
    return key_of(canonical_form(record))


def parse(value: Mapping[str, Any]) -> Record:
    """The record in one JSON object that has `prompt`, `messages` or `text`; null means absent.

    1. Exactly one of the three forms is there.
    2. A prompt is one user message; a text stands alone.
    3. Each message is an object of a known role and a text, and nothing else.
    4. No two turns in a row have the same role.

    Raises:
        RecordError: a rule is broken; the message names the position.
    """
    # 1.
    form = _only_form(value)
    given = value[form]
    # 2.
    if form == "text":
        return Record(text=clean_text(given, "text"))
    if form == "prompt":
        return Record(messages=(Message("user", clean_text(given, "prompt")),))
    # 3.
    if not isinstance(given, Sequence) or isinstance(given, str | bytes):
        raise RecordError("record:wrong-type", f"messages is {kind_of(given)}, wanted a list")
    if not given:
        raise RecordError("record:no-messages", "messages is an empty list")
    messages = tuple(_message(item, i) for i, item in enumerate(given))
    # 4.
    for i, (before, after) in enumerate(pairwise(messages)):
        if before.role == after.role:
            raise RecordError(
                "record:role-repeated",
                f"messages[{i}] and messages[{i + 1}] both have the role {after.role!r}",
            )
    return Record(messages=messages)


def kind_of(value: Any) -> str:
    """The JSON name of a value's type, for messages."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    for types, name in (
        (str, "a text"),
        (int | float, "a number"),
        (Mapping, "an object"),
        (Sequence, "a list"),
    ):
        if isinstance(value, types):
            return name
    return f"of type {type(value).__name__}"


def _only_form(value: Mapping[str, Any]) -> str:
    found = [name for name in FORMS if value.get(name) is not None]
    if not found:
        raise RecordError("record:no-text", "has none of the fields prompt, messages, text")
    if len(found) > 1:
        raise RecordError("record:ambiguous", f"has {' and '.join(found)}, wanted one of them")
    return found[0]


def _message(item: Any, position: int) -> Message:
    place = f"messages[{position}]"
    if not isinstance(item, Mapping):
        raise RecordError("record:wrong-type", f"{place} is {kind_of(item)}, wanted an object")
    # A tool call or a name would be lost in the canonical form: two records that differ in it
    # would share a key.
    others = sorted(
        name for name in item if name not in ("role", "content") and item[name] is not None
    )
    if others:
        raise RecordError(
            "record:message-fields",
            f"{place} has {', '.join(map(repr, others))}; only role and content are known",
        )
    role = item.get("role")
    if not isinstance(role, str):
        raise RecordError("record:wrong-type", f"{place}.role is {kind_of(role)}, wanted a text")
    if role not in ROLES:
        raise RecordError(
            "record:unknown-role", f"{place}.role is {role!r}, wanted one of {', '.join(ROLES)}"
        )
    return Message(role, clean_text(item.get("content"), f"{place}.content"))


def clean_text(value: Any, place: str) -> str:
    """The value as a text that has a UTF-8 form.

    Raises:
        RecordError: no text, or half a surrogate pair in it.
    """
    if not isinstance(value, str):
        raise RecordError("record:wrong-type", f"{place} is {kind_of(value)}, wanted a text")
    lone = _SURROGATE.search(value)
    if lone:
        raise RecordError(
            "record:surrogate",
            f"{place} has half a surrogate pair (U+{ord(lone[0]):04X}) at character {lone.start()}",
        )
    return value
