from __future__ import annotations

from pathlib import Path

import pytest
import tiny_model

from overproof.core.errors import StageError
from overproof.release import speed
from overproof.release.speed import Run, measure, run


def test_a_run_measures_speed_and_memory(builds: dict[str, Path]) -> None:
    found = run(builds["gguf-f16"], 1, trial=True)
    assert found.decode_tokens_per_second > 100  # 0.6M parameters; 135M decode at 50
    assert found.prefill_tokens_per_second > 100
    assert builds["gguf-f16"].stat().st_size < found.peak_bytes < 500e6


def test_memory_grows_with_the_file(builds: dict[str, Path], tmp_path: Path) -> None:
    big = tmp_path / "big.gguf"
    wide = tiny_model.save(tmp_path / "model", hidden_size=512, intermediate_size=8192)
    speed_target = __import__("overproof.release.targets", fromlist=["find"]).find("gguf-f16")
    speed_target.write(wide, big)
    grown = run(big, 1, trial=True).peak_bytes - run(builds["gguf-f16"], 1, trial=True).peak_bytes
    more = big.stat().st_size - builds["gguf-f16"].stat().st_size
    assert 0.7 * more < grown < 2 * more


def test_files_take_turns(builds: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[tuple[str, int, bool]] = []
    speeds = iter([10.0, 30.0, 20.0, 10.0, 1.0, 5.0, 3.0, 7.0, 2.0, 6.0])

    def pretend(path: Path, threads: int, *, trial: bool = False) -> Run:
        order.append((path.stem, threads, trial))
        return Run(next(speeds), 100.0, 5)

    monkeypatch.setattr(speed, "run", pretend)
    monkeypatch.setattr(speed.device, "cores", lambda: 2)
    found = measure({"a": builds["gguf-q8_0"], "b": builds["gguf-f16"]}, rounds=3)
    a, b = "gguf-q8_0", "gguf-f16"
    assert order[:4] == [(a, 1, True), (a, 2, True), (b, 1, True), (b, 2, True)]
    assert order[4:] == [(a, 2, False), (b, 1, False)] * 3
    assert found["a"].decode_runs == (1.0, 3.0, 2.0)
    assert found["a"].decode_tokens_per_second == 2.0
    assert found["b"].decode_tokens_per_second == 6.0
    assert (found["a"].threads, found["b"].threads) == (2, 1)
    assert found["a"].file_bytes == builds["gguf-q8_0"].stat().st_size
    assert found["a"].to_json()["decode_runs"] == [1.0, 3.0, 2.0]


def test_a_number_of_threads_that_hangs_is_no_choice(
    builds: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def pretend(path: Path, threads: int, *, trial: bool = False) -> Run:
        if threads > 1:
            raise speed.TooSlowError("hangs")
        return Run(1.0, 1.0, 1)

    monkeypatch.setattr(speed, "run", pretend)
    monkeypatch.setattr(speed.device, "cores", lambda: 2)
    assert speed.choose_threads(builds["gguf-f16"]) == 1


def test_a_run_without_end_is_given_up(
    builds: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "TRIAL_SECONDS", 0.01)
    with pytest.raises(speed.TooSlowError, match="not measured within"):
        run(builds["gguf-f16"], 1, trial=True)


def test_the_message_of_a_failing_run_is_passed_on(builds: dict[str, Path], tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    header = 120_000
    cut.write_bytes(builds["gguf-f16"].read_bytes()[:header])
    with pytest.raises(StageError):
        run(cut, 1)
    with pytest.raises(StageError, match="no GGUF file"):
        measure({"a": tmp_path / "none.gguf"})
