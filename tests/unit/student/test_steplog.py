from __future__ import annotations

import json
from pathlib import Path

import pytest

from overproof.core.digest import sha256_json
from overproof.core.errors import TrustError
from overproof.student import steplog


def written(folder: Path) -> tuple[Path, str]:
    path = folder / steplog.FILE
    found = steplog.lines(
        {"seed": 3}, iter([["a", "b"], ["c"], ["a"]]), [3.0, 2.5, 0.1], [0.1, 0.2, 0.1],
        {0: "w0", 2: "w2", 3: "w3"}, {1: "s1"},
    )  # fmt: skip
    return path, steplog.write(path, found)


def test_a_log_reads_back(tmp_path: Path) -> None:
    path, head = written(tmp_path)
    assert steplog.read(path, head) == [
        {"format": "overproof-steps-1", "seed": 3},
        {"step": 0, "records": sha256_json(["a", "b"]), "loss": 3.0, "rate": 0.1, "weights": "w0"},
        {"step": 1, "records": sha256_json(["c"]), "loss": 2.5, "rate": 0.2, "said": "s1"},
        {"step": 2, "records": sha256_json(["a"]), "loss": 0.1, "rate": 0.1, "weights": "w2"},
        {"step": 3, "weights": "w3"},
    ]
    assert json.loads(path.read_text().splitlines()[-1])["chain"] == head


def test_equal_runs_have_equal_heads(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    assert written(tmp_path)[1] == written(tmp_path / "other")[1]


@pytest.mark.parametrize(
    ("line", "change"),
    [
        (1, lambda text: text.replace("3", "4")),
        (2, lambda text: text.replace('"records": "', '"records": "0')),
        (2, lambda text: text.replace("3.0", "NaN")),
        (3, lambda text: text.replace("2.5", "2.4")),
        (3, lambda _: ""),
        (4, lambda text: text + text),
        (5, lambda text: text.replace("w3", "w4")),
        (5, lambda _: "not JSON\n"),
        (5, lambda _: "[]\n"),
    ],
)
def test_a_changed_line_is_named(tmp_path: Path, line: int, change) -> None:
    path, head = written(tmp_path)
    lines = path.read_text().splitlines(keepends=True)
    lines[line - 1] = change(lines[line - 1])
    path.write_text("".join(lines))
    with pytest.raises(TrustError, match="not the log that was written") as caught:
        steplog.read(path, head)
    assert caught.value.details[0].startswith(
        f"line {line + (lines[line - 1].count(chr(10)) == 2)} "
    )


def test_no_log_and_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(TrustError, match="no log at"):
        steplog.read(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(TrustError, match="ends elsewhere"):
        steplog.read(tmp_path / "empty.jsonl")


def test_a_log_cut_at_its_end_is_told_by_the_head(tmp_path: Path) -> None:
    path, head = written(tmp_path)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    assert len(steplog.read(path)) == 4
    with pytest.raises(TrustError, match="ends elsewhere"):
        steplog.read(path, head)
