"""Strict reading: bytes that are not exactly what the writer would write are refused."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from overproof.core.digest import canonical
from overproof.core.errors import OverproofError, TrustError

MAX_SHOWN = 120  # characters of untrusted text in a message
MAX_DEPTH = 64  # nesting of untrusted JSON; Python's own recursion limit is a few hundred levels
SHA256_HEX = re.compile(r"[0-9a-f]{64}")


def shown(value: object) -> str:
    """Untrusted text made safe for a terminal: printable, at most `MAX_SHOWN` characters."""
    text = value if isinstance(value, str) else str(value)
    text = "".join(sign if sign.isprintable() else f"\\x{ord(sign):02x}" for sign in text)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "…"


def parse_canonical(data: bytes) -> Any:
    """Read JSON that must be in its RFC 8785 form, byte for byte.

    That refuses repeated keys, white space, other escapes and other spellings of a number.

    Raises:
        TrustError: not JSON, or not in canonical form.
    """
    try:
        value = json.loads(data)
        _check_depth(value)
        again = canonical(value)
    except (ValueError, RecursionError, OverproofError) as error:
        reason = error.what if isinstance(error, OverproofError) else str(error)
        raise TrustError("not JSON that can be checked", details=[shown(reason)]) from None
    if again != data:
        at = next((i for i, (a, b) in enumerate(zip(again, data, strict=False)) if a != b), None)
        where = min(len(again), len(data)) if at is None else at
        raise TrustError(
            "JSON is not in canonical form (RFC 8785)",
            details=[f"first difference at byte {where}"],
            hint="an editor or a line-end conversion may have touched the file",
        )
    return value


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for node in level
            if isinstance(node, dict | list)
            for child in (node.values() if isinstance(node, dict) else node)
        ]
        if not level:
            return
    raise TrustError(f"JSON is nested more than {MAX_DEPTH} levels deep")


def unbase64(text: object, what: str) -> bytes:
    """Standard base64 with padding; other spellings of the same bytes are refused (RFC 4648 3.5).

    Raises:
        TrustError: not base64, or not its one canonical spelling.
    """
    try:
        data = base64.b64decode(text, validate=True) if isinstance(text, str) else None
    except (binascii.Error, ValueError):
        data = None
    if data is None or base64.b64encode(data).decode() != text:
        raise TrustError(f"{what} is not canonical base64", details=[f"got {shown(text)!r}"])
    return data


def whole_number(text: str, what: str, *, limit: int) -> int:
    """ASCII decimal without sign, space or leading zero, at most `limit`.

    Raises:
        TrustError: written otherwise.
    """
    # The length is checked first: Python refuses to convert thousands of digits.
    if re.fullmatch(r"0|[1-9][0-9]*", text) and len(text) <= len(str(limit)) and int(text) <= limit:
        return int(text)
    raise TrustError(f"{what} is not a number of at most {limit}", details=[f"got {shown(text)!r}"])


@contextmanager
def step(number: int, file: str | None = None) -> Iterator[None]:
    """Give errors raised inside the number of the verification step and the file's name."""
    try:
        yield
    except TrustError as error:
        if error.step:
            raise
        details = [f"{file}: {error.what}", *error.details] if file else error.details
        what = f"{file} cannot be trusted" if file else error.what
        raise TrustError(what, step=number, details=details, hint=error.hint) from error
