"""Reading a data set back."""

from pathlib import Path

import pytest

from overproof.core.artifact import MANIFEST, build
from overproof.core.errors import StageError, UsageError
from overproof.data.dataset import Row, open_dataset
from overproof.data.records import Message, Record

ROW = Row("00" * 32, Record((Message("user", "a"),)), "MIT", "here", None, {"industry": "bank"})


def test_a_row_survives_writing_and_reading() -> None:
    assert Row.from_line(ROW.to_line()) == ROW
    assert b"findings" not in ROW.to_line()


@pytest.mark.parametrize("line", [b"", b"[]", b"{}", b'{"record": {"prompt": 1}}', b"\xff"])
def test_a_foreign_row_is_an_error(line: bytes) -> None:
    with pytest.raises(StageError, match="another version"):
        Row.from_line(line)


def test_another_artifact_is_no_data_set(tmp_path: Path) -> None:
    build(tmp_path, "signals", inputs={}, config={}, make=lambda work: {})
    with pytest.raises(UsageError, match="no certified data set") as caught:
        open_dataset(tmp_path / "signals")
    assert "got an artifact of kind 'signals'" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "got"),
    [("none", "nothing there"), ("notes.txt", "a file"), ("notes", "a folder without")],
)
def test_a_path_that_is_no_data_set(tmp_path: Path, name: str, got: str) -> None:
    (tmp_path / "notes.txt").write_text("not a data set")
    (tmp_path / "notes").mkdir()
    with pytest.raises(UsageError, match=f"{name} is no certified data set") as caught:
        open_dataset(tmp_path / name)
    assert f"got {got}" in str(caught.value)
    assert "overproof certify FILE" in str(caught.value.hint)


def test_a_damaged_data_set_is_no_wrong_path(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text("{")
    with pytest.raises(StageError, match="is not JSON"):
        open_dataset(tmp_path)
