from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import overproof
from overproof.core import code


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the package that can be changed."""
    root = tmp_path / "overproof"
    shutil.copytree(Path(overproof.__file__).parent, root)
    monkeypatch.setattr(overproof, "__file__", str(root / "__init__.py"))
    code.source_sha256.cache_clear()
    yield root
    code.source_sha256.cache_clear()


def digests() -> dict[str, str]:
    code.source_sha256.cache_clear()
    return {layer: code.source_sha256(layer) for layer in code.LAYERS}


@pytest.mark.parametrize("package", code.LAYERS)
def test_a_change_reaches_its_own_layer_and_those_above(sources: Path, package: str) -> None:
    before = digests()
    (sources / package / "__init__.py").write_text('"""Changed."""\n')
    after = digests()
    changed = [layer for layer in code.LAYERS if before[layer] != after[layer]]
    assert changed == list(code.LAYERS[code.LAYERS.index(package) :])


@pytest.mark.parametrize("module", ["merkle", "rfc6962"])
def test_the_record_tree_is_code_of_data_and_of_those_above(sources: Path, module: str) -> None:
    before = digests()
    (sources / "trust" / f"{module}.py").write_text('"""Changed."""\n')
    after = digests()
    changed = [layer for layer in code.LAYERS if before[layer] != after[layer]]
    assert changed == ["data", "teacher", "student", "release"]


def test_the_rest_of_trust_makes_no_stage(sources: Path) -> None:
    before = digests()
    (sources / "trust/verify.py").write_text('"""Changed."""\n')
    assert digests() == before


def test_a_moved_file_changes_it_and_byte_code_does_not(sources: Path) -> None:
    before = digests()
    cache = sources / "core/__pycache__"
    cache.mkdir(exist_ok=True)
    (cache / "new.cpython-311.pyc").write_bytes(b"anything")
    assert digests() == before
    (sources / "core/digest.py").rename(sources / "core/digests.py")
    assert digests()["core"] != before["core"]


def test_the_layers_are_the_packages_that_make_stages() -> None:
    root = Path(overproof.__file__).parent
    users = {
        path.relative_to(root).parts[0]
        for path in root.rglob("*.py")
        if "store," in path.read_text() and "build(" in path.read_text()
    }
    assert users - {"pipeline.py"} <= set(code.LAYERS)
