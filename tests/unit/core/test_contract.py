"""One home for what the gate and the verification must agree on."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import overproof
from overproof.core import contract

ROOT = Path(overproof.__file__).parent
# The kinds of origins are words that fields and relations are called by too.
VALUES = {value for name, value in vars(contract).items() if name.isupper()} - {*contract.ORIGINS}


def constants(file: Path) -> Iterator[object]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    yield from (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))


@pytest.mark.parametrize("package", ["policy", "trust"])
def test_neither_side_repeats_them(package: str) -> None:
    again = {
        f"{file.relative_to(ROOT)}: {value!r}"
        for file in (ROOT / package).glob("*.py")
        for value in constants(file)
        if value in VALUES
    }
    assert not again, "import it from core.contract"


def test_the_values_are_found() -> None:
    assert {contract.USE, contract.NOTICE, contract.MIN_LICENCE_TEXT} <= VALUES
    assert VALUES & set(constants(Path(contract.__file__)))
