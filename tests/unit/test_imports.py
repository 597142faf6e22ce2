"""Imports flow one way. The rules are read from the source, imports inside functions included."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from overproof.core import code

SOURCE = Path(__file__).parents[2] / "src"
# Each package and the packages that it may import from; itself goes without saying.
ALLOWED: Mapping[str, frozenset[str]] = {
    "core": frozenset(),
    "policy": frozenset({"core"}),
    "trust": frozenset({"core"}),
    "data": frozenset({"core", "policy"}),
    "teacher": frozenset({"core", "policy", "data"}),
    "student": frozenset({"core", "policy", "data", "teacher"}),
    "release": frozenset({"core", "policy", "data", "teacher", "student"}),
}
TOP = {
    "cli",
    "outcome",
    "pipeline",
    "sources",
    "engines",
    "outlook",
    "pace",
    "doctor",
    "machine",
    "preflight",
    "remote_preflight",
    "matmul",
}  # may import everything, and each other in one way
# docs/adr/0001: the record tree is the one part of `trust` that makes something during a run.
EXTRA_EDGES = {("data", "overproof.trust.merkle")}
HEAVY = {
    "torch",
    "numpy",
    "transformers",
    "pyarrow",
    "tokenizers",
    "safetensors",
    "matplotlib",
    "ray",
}

Graph = dict[str, set[str]]


def modules() -> dict[str, Path]:
    """Every module of the package by dotted name."""
    found = {}
    for path in sorted((SOURCE / "overproof").rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(tree: ast.AST, known: Mapping[str, Path]) -> Iterator[str]:
    """Dotted names that a module imports: `from a import b` names `a.b` where that is a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise AssertionError("relative import: write the full name")
            module = node.module or ""
            for alias in node.names:
                name = f"{module}.{alias.name}"
                yield name if name in known else module


def graph(known: Mapping[str, Path]) -> Graph:
    trees = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in known.items()}
    return {name: set(imported(tree, known)) for name, tree in trees.items()}


def package_of(module: str) -> str:
    """`overproof.trust.keys` is of `trust`; `overproof` itself of the empty name."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def wrong_edges(edges: Graph) -> list[str]:
    wrong = []
    for module, targets in sorted(edges.items()):
        here = package_of(module)
        for target in sorted(targets):
            if target.partition(".")[0] != "overproof" or here in TOP:
                continue
            there = package_of(target)
            if (
                there in {here, ""}
                or there in ALLOWED.get(here, ())
                or (here, target) in EXTRA_EDGES
            ):
                continue
            wrong.append(f"{module} -> {target}")
    return wrong


def cycle(edges: Graph) -> list[str]:
    """A cycle as the list of its modules, or an empty list."""
    done: set[str] = set()
    path: list[str] = []

    def visit(module: str) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done or module not in edges:
            return []
        path.append(module)
        for target in sorted(edges[module]):
            if found := visit(target):
                return found
        path.pop()
        done.add(module)
        return []

    return next((found for module in sorted(edges) if (found := visit(module))), [])


def reach(edges: Graph, module: str) -> set[str]:
    """Everything that importing a module can bring in; the parent packages run too."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        parts = name.split(".")
        waiting += [".".join(parts[:end]) for end in range(1, len(parts))]
        waiting += edges.get(name, set())
    return seen


@pytest.fixture(scope="module")
def edges() -> Graph:
    return graph(modules())


def test_every_module_belongs_to_a_known_package(edges: Graph) -> None:
    unknown = {package_of(module) for module in edges} - ALLOWED.keys() - TOP - {""}
    assert not unknown, f"say in ALLOWED what these may import: {unknown}"


def test_imports_flow_one_way(edges: Graph) -> None:
    assert wrong_edges(edges) == []


def test_no_cycle(edges: Graph) -> None:
    assert cycle(edges) == []


@pytest.mark.parametrize("root", ["overproof.trust", "overproof.policy", "overproof.core"])
def test_the_base_install_reaches_no_heavy_package(root: str, edges: Graph) -> None:
    for module in sorted(edges):
        if module == root or module.startswith(root + "."):
            heavy = {name for name in reach(edges, module) if name.partition(".")[0] in HEAVY}
            assert not heavy, f"{module} reaches {sorted(heavy)}"


def test_trust_imports_only_core(edges: Graph) -> None:
    for module in sorted(edges):
        if package_of(module) == "trust":
            ours = {package_of(n) for n in reach(edges, module) if n.startswith("overproof.")}
            assert ours <= {"trust", "core"}, module


@pytest.mark.parametrize("layer", code.LAYERS)
def test_the_code_digest_covers_all_that_a_layer_can_run(layer: str, edges: Graph) -> None:
    known, package = modules(), SOURCE / "overproof"
    ours = {name for name in known if package_of(name) == layer}
    run = set().union(*(reach(edges, name) for name in ours)) & known.keys() - {"overproof"}
    files = {known[name].relative_to(package).as_posix() for name in run}
    assert files - set(code.source_files(layer)) == set()


def test_the_code_digest_covers_nothing_beside_that_no_layer_runs(edges: Graph) -> None:
    for layer, files in code.BESIDE.items():
        ours = [name for name in modules() if package_of(name) == layer]
        run = set().union(*(reach(edges, name) for name in ours))
        names = {".".join(("overproof", *Path(file).with_suffix("").parts)) for file in files}
        assert {name.removesuffix(".__init__") for name in names} <= run


@pytest.mark.parametrize(
    ("edges", "wrong"),
    [
        ({"overproof.core.a": {"overproof.data.b"}}, True),
        ({"overproof.policy.a": {"overproof.data.b"}}, True),
        ({"overproof.student.a": {"overproof.release.b"}}, True),
        ({"overproof.trust.a": {"overproof.policy"}}, True),
        ({"overproof.data.a": {"overproof.trust.keys"}}, True),
        ({"overproof.data.a": {"overproof.cli"}}, True),
        ({"overproof.data.a": {"overproof.trust.merkle"}}, False),
        ({"overproof.release.a": {"overproof.core.b", "torch"}}, False),
        ({"overproof.pipeline": {"overproof.release.b", "overproof.trust.attest"}}, False),
    ],
)
def test_the_rule_itself(edges: Graph, wrong: bool) -> None:
    assert bool(wrong_edges(edges)) is wrong


def test_the_cycle_finder_itself() -> None:
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == ["a", "b", "c", "a"]
    assert cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_an_import_inside_a_function_counts() -> None:
    tree = ast.parse("def f():\n    from overproof.trust import keys\n    import torch.nn\n")
    known = {"overproof.trust": Path(), "overproof.trust.keys": Path()}
    assert set(imported(tree, known)) == {"overproof.trust.keys", "torch.nn"}
