"""An artifact is complete and described, or not there, whatever happens to the process."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import stage

from overproof.core import artifact
from overproof.core.artifact import MANIFEST, Artifact, Json, Resource, Work, build, check, load
from overproof.core.disk import exclusive
from overproof.core.errors import StageError, TrustError

STAGE = Path(stage.__file__)
SOURCE = Resource("source", "a.jsonl", "file:a.jsonl", "11" * 32)
STEPS = 6
PATIENCE = 60  # seconds until a child must have started


def files(content: dict[str, bytes], facts: Json | None = None) -> Callable[[Work], Json]:
    def make(work: Work) -> Json:
        for name, data in content.items():
            (work.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (work.folder / name).write_bytes(data)
        return facts or {"count": len(content)}

    return make


def simple(store: Path, **changes: Any) -> Artifact:
    given: dict[str, Any] = {
        "inputs": {"source": SOURCE},
        "config": {"seed": 0},
        "make": files({"a.bin": b"aaa", "deep/b.bin": b"b"}),
    }
    return build(store, changes.pop("kind", "thing"), **(given | changes))


def never(work: Work) -> Json:
    raise AssertionError("made again, though it was finished")


def stop(*_: object) -> None:
    raise KeyboardInterrupt


@contextmanager
def waiting(store: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A run in another process that is half done; killed with SIGKILL at the end at the latest."""
    process = subprocess.Popen([sys.executable, STAGE, store, str(STEPS), "wait"])
    try:
        end = time.monotonic() + PATIENCE
        while not (store / "waiting").exists():
            assert process.poll() is None, "the run ended by itself"
            assert time.monotonic() < end, "the run did not start"
            time.sleep(0.02)
        yield process
    finally:
        process.kill()
        process.wait()


# A finished artifact.


def test_what_the_manifest_says(tmp_path: Path) -> None:
    made = simple(tmp_path)
    assert made.path == tmp_path / "thing"
    assert [row["name"] for row in made.manifest["files"]] == ["a.bin", "deep/b.bin"]
    assert made.manifest["inputs"][0]["role"] == "source"
    assert made.facts == {"count": 2}
    assert made.file("deep/b.bin").read_bytes() == b"b"
    check(made)


def test_a_file_that_the_manifest_does_not_list(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"has no file 'c\.bin'"):
        simple(tmp_path).file("c.bin")


def test_equal_inputs_equal_digests_wherever_and_whenever(tmp_path: Path) -> None:
    first = simple(tmp_path / "one")
    time.sleep(1.1)  # times are written in whole seconds
    second = simple(tmp_path / "two")
    assert first.manifest["times"] != second.manifest["times"]
    assert first.sha256 == second.sha256


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "other"},
        {"config": {"seed": 1}},
        {"inputs": {}},
        {"inputs": {"heldout": SOURCE}},
        {"inputs": {"source": Resource("source", "a.jsonl", "file:a.jsonl", "22" * 32)}},
        {"make": files({"a.bin": b"aab", "deep/b.bin": b"b"})},
        {"make": files({"a.bin": b"aaa", "deep/c.bin": b"b"})},
        {"make": files({"a.bin": b"aaa", "deep/b.bin": b"b"}, {"count": 3})},
    ],
)
def test_anything_else_that_differs_gives_another_digest(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    assert simple(tmp_path / "one").sha256 != simple(tmp_path / "two", **changes).sha256


def test_an_artifact_as_input_is_bound_by_its_digest(tmp_path: Path) -> None:
    one = simple(tmp_path / "one")
    two = simple(tmp_path / "two", config={"seed": 1})
    next_one = simple(tmp_path / "one", kind="next", inputs={"thing": one})
    next_two = simple(tmp_path / "two", kind="next", inputs={"thing": two})
    assert next_one.sha256 != next_two.sha256


def test_it_is_made_once(tmp_path: Path) -> None:
    first = simple(tmp_path)
    assert simple(tmp_path, make=never).manifest == first.manifest


def test_another_configuration_takes_its_place(tmp_path: Path) -> None:
    simple(tmp_path)
    second = simple(tmp_path, config={"seed": 1})
    assert load(tmp_path / "thing").sha256 == second.sha256
    assert [path.name for path in tmp_path.iterdir()] == ["thing"]


def test_scratch_is_no_part_of_it(tmp_path: Path) -> None:
    def make(work: Work) -> Json:
        work.scratch("notes").write_text("x")
        work.measured["tokens_per_second"] = 3.5
        return {}

    made = simple(tmp_path, make=make)
    assert made.manifest["files"] == []
    assert made.manifest["times"]["measured"] == {"tokens_per_second": 3.5}
    assert not (made.path / ".scratch").exists()


def test_a_name_with_a_wild_card_leaves_the_work_of_others_alone(tmp_path: Path) -> None:
    other = tmp_path / ".ab.0123456789abcdef.partial"
    other.mkdir()
    simple(tmp_path, name="a*")
    assert other.is_dir()


# Killed and run again.


def test_kill_9_in_the_middle_and_resume(tmp_path: Path) -> None:
    whole = stage.run(tmp_path / "whole", STEPS)
    store = tmp_path / "killed"
    with waiting(store) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (store / "parts").exists()
    resumed = stage.run(store, STEPS)
    made = [str(step) for step in range(STEPS)]
    assert resumed.manifest["times"]["measured"]["made"] == made, "a part was made twice"
    assert resumed.sha256 == whole.sha256
    check(resumed)
    assert not list(store.glob(".*.partial"))


def test_ctrl_c_keeps_the_work_folder(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        simple(tmp_path, make=stop)
    assert len(list(tmp_path.glob(".thing.*.partial"))) == 1
    assert simple(tmp_path).sha256 == simple(tmp_path / "other").sha256


def test_the_time_of_each_stopped_run_counts_up_to_its_last_file(tmp_path: Path) -> None:
    hour = 3600

    def stopped_after(hours: int) -> Callable[[Work], Json]:
        def make(work: Work) -> Json:
            last = time.time() + hours * hour
            (work.folder / "part").touch()
            os.utime(work.folder / "part", (last, last))
            raise KeyboardInterrupt

        return make

    for hours in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            simple(tmp_path, make=stopped_after(hours))
    times = simple(tmp_path).manifest["times"]
    assert 3 * hour - 1 <= times["seconds"] < 3 * hour + 60
    assert times["started"] <= times["finished"]


def test_stopped_between_the_manifest_and_the_move(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(artifact, "_move_into_place", stop)
        simple(tmp_path)
    assert not (tmp_path / "thing").exists()
    check(simple(tmp_path, make=never))


def test_stopped_while_an_older_one_is_replaced(tmp_path: Path) -> None:
    simple(tmp_path)
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if self.name.endswith(".partial"):
            raise KeyboardInterrupt
        return real(self, target)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", rename)
        simple(tmp_path, config={"seed": 1})
    assert not (tmp_path / "thing").exists()
    check(simple(tmp_path, config={"seed": 1}, make=never))
    assert [path.name for path in tmp_path.iterdir()] == ["thing"]


def test_the_manifest_is_written_last(tmp_path: Path) -> None:
    def make(work: Work) -> Json:
        assert not (work.folder / MANIFEST).exists()
        return files({"a": b"a"})(work)

    simple(tmp_path, make=make)


# Two runs in one folder.


def test_a_second_run_is_locked_out_and_told_by_whom(tmp_path: Path) -> None:
    with waiting(tmp_path) as process:
        with pytest.raises(StageError) as caught:
            stage.run(tmp_path, STEPS)
        assert f"process {process.pid}" in caught.value.details
        assert "--out" in (caught.value.hint or "")
        process.kill()
        process.wait()
        stage.run(tmp_path, STEPS)  # the lock went with the process


def test_a_folder_that_cannot_be_one(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(StageError, match="cannot write under"), exclusive(folder):
            pytest.fail("held")


def test_what_is_replaced_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for steps in (1, 2):
        artifact.build(tmp_path, "student", inputs={}, config={"n": steps}, make=lambda _: {})
    assert capsys.readouterr().err.count("student: made anew; it then replaces the one in") == 1


# A full disk.


def test_no_space_left_is_told_in_words(tmp_path: Path) -> None:
    def make(work: Work) -> Json:
        with Path("/dev/full").open("wb", buffering=0) as stream:
            stream.write(b"x")
        return {}

    with pytest.raises(StageError) as caught:
        simple(tmp_path, make=make)
    assert "the disk is full under" in caught.value.what
    assert "finished work is kept" in (caught.value.hint or "")
    assert not (tmp_path / "thing").exists()


def test_a_file_over_the_limit_is_told_in_words(tmp_path: Path) -> None:
    code = (
        "import resource, runpy, sys;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000));"
        f"sys.argv = ['stage', {str(tmp_path)!r}, '3'];"
        f"runpy.run_path({str(STAGE)!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert f"error: cannot write under {tmp_path}: File too large" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_disk_that_fills_and_is_freed(tmp_path: Path) -> None:
    """On a real file system of a few pages, in a mount namespace of its own."""
    if shutil.which("unshare") is None or os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    room = 4 * stage.PART_BYTES
    script = f"""
        set -e
        mount -t tmpfs -o size={room} none {tmp_path}
        dd if=/dev/zero of={tmp_path}/filler bs=1000 count=100 2>/dev/null
        {sys.executable} {STAGE} {tmp_path} 3 || echo "code $?"
        test ! -e {tmp_path}/parts
        rm {tmp_path}/filler
        {sys.executable} {STAGE} {tmp_path} 3
    """
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True)
    if "mount" in done.stderr:
        pytest.skip(f"no small file system here: {done.stderr.strip()}")
    assert f"error: the disk is full under {tmp_path}" in done.stderr
    code, digest = done.stdout.splitlines()
    assert code == "code 1"
    assert digest == stage.run(tmp_path / "roomy", 3).sha256


# Damage.


def test_a_cut_or_missing_file_is_noticed_at_once(tmp_path: Path) -> None:
    made = simple(tmp_path)
    (made.path / "a.bin").write_bytes(b"aa")
    with pytest.raises(StageError) as caught:
        load(made.path)
    assert caught.value.details == ("a.bin: missing or cut",)
    (made.path / "a.bin").unlink()
    with pytest.raises(StageError, match="damaged"):
        load(made.path)


def test_a_damaged_artifact_is_made_again(tmp_path: Path) -> None:
    made = simple(tmp_path)
    (made.path / "a.bin").write_bytes(b"")
    check(simple(tmp_path))


def test_a_kept_artifact_with_another_byte_is_made_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = simple(tmp_path)
    (made.path / "a.bin").write_bytes(b"aab")  # the same size
    check(simple(tmp_path))
    assert "thing: changed since it was made, made again: a.bin" in capsys.readouterr().err


def test_stopped_while_the_manifest_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What helps to resume is still there, and the half-written manifest is no part of it."""

    with monkeypatch.context() as patch:

        def make(work: Work) -> Json:
            done = work.scratch("done")
            found = done.is_file()
            done.write_bytes(b"")
            (work.folder / "a.bin").write_bytes(b"a")
            if not found:
                patch.setattr(os, "fsync", stop)  # from here on the manifest alone is written
            return {"resumed": found}

        with pytest.raises(KeyboardInterrupt):
            simple(tmp_path, make=make)
    made = simple(tmp_path, make=make)
    assert made.facts == {"resumed": True}
    check(made)
    assert sorted(path.name for path in made.path.iterdir()) == ["a.bin", MANIFEST]


def test_every_change_is_named_by_the_check(tmp_path: Path) -> None:
    made = simple(tmp_path)
    (made.path / "a.bin").write_bytes(b"aab")
    (made.path / "deep/b.bin").unlink()
    (made.path / "new").touch()
    with pytest.raises(TrustError) as caught:
        check(made)
    assert [line.partition(":")[0] for line in caught.value.details] == [
        "a.bin",
        "deep/b.bin",
        "new",
    ]
    assert "wanted no file" in caught.value.details[2]


def test_a_link_cannot_be_bound(tmp_path: Path) -> None:
    made = simple(tmp_path)
    (made.path / "link").symlink_to("a.bin")
    with pytest.raises(TrustError, match="only regular files"):
        check(made)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: "{", "is not JSON"),
        (lambda m: "[]", "of another version"),
        (lambda m: json.dumps({**m, "format": "overproof-artifact/9"}), "of another version"),
        (lambda m: json.dumps({**m, "files": None}), "is damaged"),
        (lambda m: json.dumps({**m, "files": [{"name": "a.bin"}]}), "is damaged"),
        (lambda m: json.dumps({**m, "files": ["a.bin"]}), "is damaged"),
        (lambda m: json.dumps({**m, "facts": 3}), "is damaged"),
        (lambda m: json.dumps({k: v for k, v in m.items() if k != "kind"}), "is damaged"),
    ],
)
def test_a_manifest_that_is_none(tmp_path: Path, change: Callable[[Json], str], said: str) -> None:
    made = simple(tmp_path)
    (made.path / MANIFEST).write_text(change(made.manifest))
    with pytest.raises(StageError, match=said):
        load(made.path)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(StageError) as caught:
        load(tmp_path)
    assert MANIFEST in (caught.value.hint or "")
