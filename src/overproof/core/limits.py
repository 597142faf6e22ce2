"""What `--budget` says, as overrides of a recipe."""

from __future__ import annotations

import re

from overproof.core.errors import UsageError

UNITS = {
    "latency": ("latency_ms", {"ms": 1.0, "s": 1e3, "us": 1e-3}),
    "memory": ("memory_mb", {"MB": 1.0, "GB": 1e3, "MiB": 1.048576, "GiB": 1073.741824}),
    "parameters": ("parameters", {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9}),
}
NUMBER = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")
OPEN = ("layers", "mlp_width", "kv_heads")  # what a budget chooses


def overrides_of(text: str) -> list[str]:
    """`latency=5ms,memory=100MB,parameters=60M,for=FILE` as `--set` would write it.

    The recipe's own numbers for what a budget chooses are taken back.

    Raises:
        UsageError: an unknown limit, a number without its unit, nothing at all.
    """
    found = [f"student.{name}=null" for name in OPEN]
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise _wrong(text, "it limits nothing")
    for part in parts:
        name, equals, value = part.partition("=")
        if not equals or not value:
            raise _wrong(text, f"{part!r} has no value")
        found.append(f"student.budget.{_limit(text, name.strip(), value.strip())}")
    return found


def _limit(text: str, name: str, value: str) -> str:
    if name == "for":
        return f"hardware={value}"
    if name not in UNITS:
        raise _wrong(text, f"{name!r} is no limit")
    field, units = UNITS[name]
    number = NUMBER.fullmatch(value)
    if number is None or number[2] not in units:
        wanted = ", ".join(unit or "none" for unit in units)
        raise _wrong(text, f"{name}: got {value!r}, wanted a number and one of the units {wanted}")
    size = float(number[1]) * units[number[2]]
    return f"{field}={round(size) if field == 'parameters' else size}"


def _wrong(text: str, why: str) -> UsageError:
    return UsageError(
        f"--budget {text!r}: {why}",
        hint="write it as latency=5ms,memory=100MB,parameters=60M,for=FILE; each may be left out",
    )
