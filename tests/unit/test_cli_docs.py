"""docs/cli.md is what the commands print, and names every command and variable."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from overproof import cli

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_cli", DOCS / "generate_cli.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_what_the_commands_print(generator: ModuleType) -> None:
    """After a change of the help: make docs"""
    assert (DOCS / "cli.md").read_text(encoding="utf-8") == generator.page()


@pytest.mark.parametrize("columns", ["40", "200"])
def test_the_page_does_not_depend_on_the_terminal(
    columns: str, generator: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = generator.page()
    monkeypatch.setenv("COLUMNS", columns)
    assert generator.page() == before


def test_every_command_is_on_the_page(generator: ModuleType) -> None:
    top = {command.name or command.callback.__name__ for command in cli.app.registered_commands}
    keys = {("keys", str(command.name)) for command in cli.keys_app.registered_commands}
    assert {(), ("keys",), *((name,) for name in top), *keys} == set(generator.COMMANDS)
