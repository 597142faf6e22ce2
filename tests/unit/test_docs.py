"""The documentation holds: links resolve, commands parse, generated parts are up to date.

A block that opens with ```bash runnable is a promise that each of its lines can be typed in a
checkout. What is tested is that its commands, targets and options exist; `make demo` runs some.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer

from overproof import cli
from overproof.core import config as recipes
from overproof.core.config import load_recipe
from overproof.core.recipe import Recipe

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
README_LINES = 150
IMAGE_BYTES = 300_000
LINK = re.compile(r"(?<!\\)\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(.*?)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
RUNNABLE = "bash runnable"
# Where somebody's own machine would show: home folders, this project's build folders.
MACHINE = re.compile(r"(?<![\w.~-])/(?:home|root|Users|tmp|work|mnt|opt|workspace)/[\w.-]")


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def prose(text: str) -> str:
    """The text without its code: what stands in code is not a link."""
    return re.sub(r"`[^`\n]*`", "", FENCE.sub("", text))


def anchors(page: Path) -> set[str]:
    """Names that the headings of a page can be linked by, as code hosts make them."""
    titles = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def commands() -> list[tuple[str, str]]:
    """Page and line of every command in a runnable block."""
    found = []
    for page in PAGES:
        for opening, body in FENCE.findall(page.read_text(encoding="utf-8")):
            if opening.strip() == RUNNABLE:
                lines = body.replace("\\\n", " ").splitlines()
                found += [(name_of(page), line) for line in lines if line.strip()]
    return found


def parse(words: list[str]) -> Any:
    """Resolve a command line as the program would, without running it."""
    command: Any = typer.main.get_command(cli.app)
    context = command.make_context("overproof", words)
    while hasattr(command, "resolve_command"):
        rest = [*context._protected_args, *context.args]
        name, command, rest = command.resolve_command(context, rest)
        context = command.make_context(name, rest, parent=context)
    return context


def make_targets() -> set[str]:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z]+):.*##", text, re.MULTILINE))


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_recipe", DOCS / "generate_recipe.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_is_short() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= README_LINES


def test_the_readme_names_every_verb() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    verbs = {command.name or command.callback.__name__ for command in cli.app.registered_commands}
    listed = re.findall(r"^\| `overproof (\w+)` \|", text, re.MULTILINE)
    assert sorted(listed) == sorted({*verbs, "keys"})


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_resolve(page: Path) -> None:
    broken = []
    for link in LINK.findall(prose(page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_page_names_a_path_of_one_machine(page: Path) -> None:
    assert not MACHINE.findall(page.read_text(encoding="utf-8"))


def test_every_page_is_linked_from_the_index() -> None:
    def linked(page: Path) -> Iterator[Path]:
        for link in LINK.findall(page.read_text(encoding="utf-8")):
            if link.partition("#")[0].endswith(".md") and ":" not in link:
                yield (page.parent / link.partition("#")[0]).resolve()

    seen = {DOCS / "index.md"}
    waiting = list(seen)
    while waiting:
        new = {page for page in linked(waiting.pop()) if page.exists()} - seen
        seen |= new
        waiting += new
    assert not {page for page in DOCS.rglob("*.md") if page not in seen}


def test_images_are_small() -> None:
    large = [path.name for path in DOCS.rglob("*.png") if path.stat().st_size > IMAGE_BYTES]
    assert not large


@pytest.mark.parametrize(("page", "line"), commands())
def test_a_runnable_line_can_be_typed(page: str, line: str) -> None:
    words = shlex.split(line, comments=True)
    match words:
        case ["overproof", *rest]:
            found = parse(rest)
            if found.info_name == "distill" and not found.params.get("print_schema"):
                check_recipe(found.params)
        case ["make", target, *_]:
            assert target in make_targets()
        case ["cp", source, _]:
            assert (ROOT / source).is_file()
        case _:
            pytest.fail(f"{page}: a runnable block with {words[:1]}, which no test understands")


def check_recipe(given: dict[str, Any]) -> None:
    """A recipe that ships is valid with the overrides that the page shows."""
    overrides = next((given[key] for key in ("set", "set_", "overrides") if key in given), None)
    assert overrides is not None
    own = str(given["recipe"]).endswith(".yaml")  # a copy that the reader makes
    path = recipes.find_recipe("support" if own else given["recipe"])
    load_recipe(path, tuple(overrides or ()))


def test_there_are_runnable_lines() -> None:
    assert {page for page, _ in commands()} >= {"README.md", "docs/distil.md"}


@pytest.mark.parametrize("line", ["overproof frobnicate", "overproof verify x --no-such-option"])
def test_a_command_that_does_not_exist_is_noticed(line: str) -> None:
    with pytest.raises(typer.exceptions.TyperException):
        parse(shlex.split(line)[1:])


def test_the_table_of_fields_is_what_the_models_say(generator: ModuleType) -> None:
    """After a change of the recipe: python docs/generate_recipe.py"""
    text = (DOCS / "distil.md").read_text(encoding="utf-8")
    assert text == generator.page(text)


def test_every_field_has_a_meaning(generator: ModuleType) -> None:
    schema = Recipe.model_json_schema()
    rows = generator.fields(schema, schema, "")
    assert rows
    assert not [place for place, field, _ in rows if not field.get("description")]


def test_every_stage_is_explained() -> None:
    text = (DOCS / "distil.md").read_text(encoding="utf-8")
    from overproof.release.parts import Parts

    several = {"students": "student", "controls": "control", "evaluations": "evaluation"}
    stages = {several.get(name, name) for name in Parts.__dataclass_fields__}
    assert stages <= set(re.findall(r"^\| `(\w+)`[ ,]", text, re.MULTILINE))


def test_code_that_the_papers_point_to_exists() -> None:
    text = (DOCS / "papers.md").read_text(encoding="utf-8")
    files = set(re.findall(r"`([a-z/]+/\w+\.py)`", text))
    assert files
    assert not [file for file in files if not (ROOT / "src/overproof" / file).is_file()]
    for function, file in re.findall(r"`(\w+)` in `([a-z/]+/\w+\.py)`", text):
        code = (ROOT / "src/overproof" / file).read_text(encoding="utf-8")
        assert f"def {function}(" in code or f"class {function}(" in code


def test_papers_that_the_code_cites_are_listed() -> None:
    text = (DOCS / "papers.md").read_text(encoding="utf-8")
    cited = {
        number
        for file in (ROOT / "src").rglob("*.py")
        for number in re.findall(r"arXiv (\d{4}\.\d{5})", file.read_text(encoding="utf-8"))
    }
    assert cited
    assert not {number for number in cited if number not in text}
