"""The documents of this part say what the code does."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from overproof.data.records import parse, record_key

ROOT = Path(__file__).parents[3]
VECTORS = ROOT / "tests/vectors/records"
GOOD = sorted(path for path in VECTORS.iterdir() if not path.name.endswith("_fail"))


@pytest.fixture(scope="module")
def key() -> Any:
    text = (ROOT / "docs/records.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    space: dict[str, Any] = {}
    exec(code, space)  # noqa: S102
    return space["key"]


@pytest.mark.parametrize("folder", GOOD, ids=lambda path: path.name)
def test_the_code_in_the_document_gives_the_keys_of_the_vectors(folder: Path, key: Any) -> None:
    record = json.loads((folder / "input.json").read_text())
    wanted = (folder / "key").read_text().strip()
    present = {name: value for name, value in record.items() if value is not None}
    assert key(present) == wanted == record_key(parse(record)).hex()


def test_every_reason_in_the_code_is_explained() -> None:
    source = "".join(path.read_text() for path in (ROOT / "src/overproof/data").rglob("*.py"))
    reasons = set(re.findall(r'"((?:read|record|licence):[a-z0-9-]+)"', source))
    docs = (ROOT / "docs/certify.md").read_text() + (ROOT / "docs/records.md").read_text()
    assert len(reasons) > 15
    assert not {reason for reason in reasons if f"`{reason}`" not in docs}
