"""Reading a data set back."""

from pathlib import Path

import pytest

from overproof.core.artifact import build
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
    with pytest.raises(UsageError, match="no certified data set"):
        open_dataset(tmp_path / "signals")
    with pytest.raises(StageError, match="no artifact"):
        open_dataset(tmp_path / "none")
