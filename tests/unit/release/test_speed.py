from __future__ import annotations

import resource
from pathlib import Path
from types import SimpleNamespace

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


@pytest.mark.parametrize(
    ("cores", "speeds", "tried", "chosen"),
    [
        (1, {1: 5.0}, [1], 1),
        (4, {1: 1.0, 2: 2.0, 4: 4.0}, [1, 2, 4], 4),
        (6, {1: 1.0, 2: 2.0, 4: 3.0, 6: 2.5}, [1, 2, 4, 6], 4),
        (64, {1: 3.0, 2: 2.0}, [1, 2], 1),
        (64, {1: 3.0}, [1, 2], 1),  # more threads end too late: they are slower
        (8, {4: 2.0, 8: 4.0}, [1, 2, 4, 8], 8),  # a large model: few threads end too late
        (8, {4: 2.0, 8: 1.0}, [1, 2, 4, 8], 4),
    ],
)
def test_threads_are_tried_until_more_are_slower(
    cores: int,
    speeds: dict[int, float],
    tried: list[int],
    chosen: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[int] = []

    def pretend(path: Path, threads: int, *, trial: bool = False) -> Run:
        seen.append(threads)
        if threads not in speeds:
            raise speed.TooSlowError("too slow")
        return Run(speeds[threads], 1.0, 1)

    monkeypatch.setattr(speed, "run", pretend)
    monkeypatch.setattr(speed.device, "cores", lambda: cores)
    assert speed.choose_threads(Path("model.gguf")) == chosen
    assert seen == tried


def test_no_number_of_threads_that_ends_in_time_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def pretend(path: Path, threads: int, *, trial: bool = False) -> Run:
        raise speed.TooSlowError("too slow")

    monkeypatch.setattr(speed, "run", pretend)
    monkeypatch.setattr(speed.device, "cores", lambda: 3)
    with pytest.raises(speed.TooSlowError, match="by any number of threads") as caught:
        speed.choose_threads(Path("model.gguf"))
    assert caught.value.details[0] == "threads tried: 1, 2, 3"


@pytest.mark.parametrize(("platform", "unit"), [("linux", 1024), ("darwin", 1)])
def test_peak_memory_where_the_kernel_names_none(
    platform: str, unit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = tmp_path / "status"
    without.write_text("VmRSS:\t1 kB\n")
    monkeypatch.setattr(speed, "STATUS", without)
    monkeypatch.setattr(speed.sys, "platform", platform)
    most = 1 << 40
    monkeypatch.setattr(resource, "getrusage", lambda _: SimpleNamespace(ru_maxrss=most // unit))
    assert speed.peak_resident_bytes() == most
    monkeypatch.setattr(resource, "getrusage", lambda _: SimpleNamespace(ru_maxrss=0))
    assert speed.peak_resident_bytes() > 1e6  # what is resident now


def test_peak_memory_is_never_negative(
    builds: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "peak_resident_bytes", lambda: 0)
    assert speed.run_here(builds["gguf-f16"], 1, 1000, 4, 4).peak_bytes == 0


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
