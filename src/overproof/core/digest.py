"""Digests and canonical JSON (RFC 8785), the two things that every proof rests on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import rfc8785

from overproof.core.errors import UsageError

CHUNK_BYTES = 1 << 20  # read size; larger gains nothing on a local disk


def canonical(value: Any) -> bytes:
    """RFC 8785 bytes of a JSON value.

    Raises:
        UsageError: the value is no JSON (NaN, an integer beyond 2**53, a foreign type).
    """
    try:
        return rfc8785.dumps(value)
    except (rfc8785.CanonicalizationError, ValueError) as error:
        raise UsageError(f"value has no canonical JSON form: {error}") from error


def pretty(value: Any) -> str:
    """JSON for people: sorted keys, two spaces, a final newline. Deterministic like `canonical`."""
    return json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False) + "\n"


def sha256_bytes(data: bytes) -> str:
    """SHA-256 as 64 lowercase hex digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_json(value: Any) -> str:
    """SHA-256 of the canonical form of a JSON value."""
    return sha256_bytes(canonical(value))


def sha256_file(path: Path) -> str:
    """SHA-256 of a file, streamed."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
