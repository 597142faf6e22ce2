from __future__ import annotations

import pytest

from overproof.core import console


def test_a_log_file_gets_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with console.meter("train", 100, "tok") as bar:
        for _ in range(10):
            now[0] += console.PLAIN_INTERVAL_SECONDS / 2
            bar.advance(10, "loss 1.5")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 5
    assert all(line.startswith("  train: ") for line in lines)
    assert "/100 tok" in lines[0]
    assert "loss 1.5" in lines[0]
    assert lines[0].endswith(" s left")


def test_skipped_work_does_not_count_as_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with console.meter("train", 100, "tok") as bar:
        bar.skip(90)
        now[0] = 5.0
        bar.advance(10)
        assert bar.rate == pytest.approx(2.0)


def test_a_note_is_printed_as_it_is_and_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    console.note("[red]no markup[/] :smile: " + "x" * 300)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "[red]no markup[/] :smile: " + "x" * 300 + "\n"


@pytest.mark.parametrize(("units", "said"), [(9, "0.90 steps/s"), (90_000, "9,000 steps/s")])
def test_a_slow_rate_has_decimals(
    units: int,
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with console.meter("train", 100_000, "steps") as bar:
        now[0] = console.PLAIN_INTERVAL_SECONDS * 2
        bar.advance(units * console.PLAIN_INTERVAL_SECONDS * 2 // 10)
    assert f"{said}, " in capsys.readouterr().err
