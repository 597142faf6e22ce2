from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import tiny_teacher as tiny
import torch
import training

from overproof.core import device
from overproof.core.errors import StageError, UsageError
from overproof.data.pack import Packed, pack
from overproof.student.examples import TrainSet
from overproof.student.losses import divergence_of
from overproof.student.step import PLACES, targets
from overproof.student.train import Trained, _last_checkpoint, batches, record_keys, train
from overproof.student.worker import share_out


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train") / "examples"
    training.data(folder)
    return folder


@pytest.fixture(scope="module")
def data(examples: Path) -> TrainSet:
    return TrainSet.map(examples)


def test_it_makes_its_folder(examples: Path, tmp_path: Path) -> None:
    run(examples, tmp_path / "not/yet/there", steps=1)
    assert (tmp_path / "not/yet/there").is_dir()


def run(examples: Path, folder: Path, **changes: object):
    model = training.student()
    done = train(model, examples, training.config(**changes), 3, folder, tiny.meter(12))
    return model, done


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_loss_falls_and_the_weights_move(examples, tmp_path: Path, optimizer: str) -> None:
    model, done = run(examples, tmp_path, steps=30, optimizer=optimizer)
    assert len(done.losses) == 30
    assert np.mean(done.losses[-5:]) < 0.8 * np.mean(done.losses[:5])
    assert done.workers == min(device.cores(), 3)
    assert done.seconds > 0
    start = dict(training.student().named_parameters())
    assert all(not torch.equal(p, start[name]) for name, p in model.named_parameters())
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_the_first_loss_is_the_mean_divergence_of_the_first_batch(
    data, examples, tmp_path: Path
) -> None:
    """Whatever the number of workers; bf16 where the processor has it, hence the tolerance."""
    _, done = run(examples, tmp_path, steps=1)
    batch = next(batches(data, training.config(), 3))
    model, total, count = training.student(), 0.0, 0.0
    for row in range(len(batch.tokens_RT)):
        for segment in range(1, batch.segments_RT[row].max() + 1):
            where = np.flatnonzero(batch.segments_RT[row] == segment)
            source = batch.source_RT[row, where[:-1]]
            text = [*data.prefix, *batch.tokens_RT[row, where]]
            logits = tiny.alone(model, text)[len(data.prefix) : -1]
            loss, _ = divergence_of(logits, data.targets.at(source))
            weight = data.weight_N[source]
            total, count = (
                total + float((loss * torch.from_numpy(weight)).sum()),
                count + weight.sum(),
            )
    assert done.losses[0] == pytest.approx(total / count, rel=0.02)
    assert done.tokens == int((batch.segments_RT >= 0).sum())


def test_equal_runs_end_in_equal_bits(examples, tmp_path: Path) -> None:
    one, first = run(examples, tmp_path / "one", steps=6)
    other, second = run(examples, tmp_path / "other", steps=6)
    assert first == second
    for name, values in one.state_dict().items():
        assert torch.equal(values, other.state_dict()[name])


def test_an_epoch_takes_every_example_at_most_once_and_the_next_is_shuffled(data) -> None:
    config = training.config()
    packed = list(itertools.islice(batches(data, config, 0), 40))
    sources = [batch.source_RT[batch.source_RT >= 0].tolist() for batch in packed]
    seen: set[int] = set()
    for source in sources:
        if seen & set(source):
            break
        seen |= set(source)
    assert len(seen) > 0.7 * len(data.tokens_N)
    assert len(seen) < sum(map(len, sources))
    assert source != sources[0]
    again = list(itertools.islice(batches(data, config, 0), 3))
    assert all((a.tokens_RT == b.tokens_RT).all() for a, b in zip(again, packed, strict=False))


def test_more_sequences_a_step_than_there_are_is_told(data, examples) -> None:
    with pytest.raises(UsageError, match=r"train\.sequences is 500") as caught:
        next(batches(data, training.config(sequences=500), 0))
    assert "all examples fill" in caught.value.render()


def epoch(data: TrainSet) -> list[Packed]:
    """Its sequences, one a step, so that nothing is left over."""
    found, seen = list[Packed](), 0
    for batch in batches(data, training.config(sequences=1), 0):
        found.append(batch)
        seen += len(data.numbers(batch.source_RT))
        if seen >= len(data.lengths):
            break
    return found


def test_windows_hold_each_example_once_at_its_own_place(
    data, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_window = epoch(data)
    order = np.random.default_rng([0, 0]).permutation(len(data.lengths)).tolist()
    whole = pack(data.prefix.tolist(), data.examples, training.ROOM, order)
    assert (np.concatenate([one.source_RT for one in one_window]) == whole.source_RT).all()
    monkeypatch.setattr("overproof.student.train.WINDOW", 50)  # three windows of 40
    windows = epoch(data)
    numbers = [one for batch in windows for one in data.numbers(batch.source_RT).tolist()]
    for first in (0, 40, 80):
        assert set(numbers[first : first + 40]) == set(order[first : first + 40])
    source = np.concatenate([one.source_RT.ravel() for one in windows])
    tokens = np.concatenate([one.tokens_RT.ravel() for one in windows])
    assert sorted(source[source >= 0]) == list(range(len(data.tokens_N)))
    assert (tokens[source >= 0] == data.tokens_N[source[source >= 0]]).all()


def test_train_tells_it_too(examples, tmp_path: Path) -> None:
    """The same message must reach the user, not a worker's traceback."""
    with pytest.raises(UsageError, match=r"train\.sequences is 500"):
        run(examples, tmp_path, sequences=500)


def test_an_example_longer_than_a_sequence_is_told(examples, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not fit a sequence"):
        run(examples, tmp_path, sequence_length=8)


def test_a_worker_that_dies_is_told(examples, tmp_path: Path) -> None:
    broken = training.student()
    del broken.model.norm
    with pytest.raises(StageError, match="worker"):
        train(broken, examples, training.config(), 3, tmp_path, tiny.meter())


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
def test_parameters_are_shared_out_evenly(workers: int) -> None:
    named = {name: p.numel() for name, p in tiny.model(layers=6).named_parameters()}
    shares = share_out(named, workers)
    assert sorted(name for share in shares for name in share) == sorted(named)
    sizes = [sum(named[name] for name in share) for share in shares]
    largest = max(named.values())
    assert max(sizes) - min(sizes) <= largest
    assert shares == share_out(dict(reversed(named.items())), workers)


def test_only_a_whole_checkpoint_of_as_many_workers_counts(tmp_path: Path) -> None:
    def write(step: int, *, workers: int = 2, progress: bool = True) -> None:
        folder = tmp_path / f"step-{step}-by-{workers}"
        folder.mkdir()
        for rank in range(workers):
            (folder / f"worker-{rank}.pt").touch()
        if progress:
            state = Trained(workers, [1.0] * step, 10 * step, {0: "a"}, {1: "b"}, step / 2)
            (folder / "progress.json").write_text(json.dumps(asdict(state)))

    assert _last_checkpoint(tmp_path, 2) == Trained(2)
    write(3)
    write(10)
    write(11, workers=3)
    write(12, progress=False)
    found = _last_checkpoint(tmp_path, 2)
    assert found == Trained(2, [1.0] * 10, 100, {0: "a"}, {1: "b"})
    assert found.seconds == 5.0
    assert len(_last_checkpoint(tmp_path, 3).losses) == 11
    assert _last_checkpoint(tmp_path, 4) == Trained(4)


def test_weights_are_digested_before_some_steps_and_at_the_end(examples, tmp_path: Path) -> None:
    model, done = run(examples, tmp_path, steps=5, digest_steps=2)
    assert list(done.weights) == [0, 2, 4, 5]
    assert len(set(done.weights.values())) == 4

    def digest(of) -> str:
        values = [p.detach().numpy().tobytes() for _, p in of.named_parameters()]
        return hashlib.sha256(b"".join(values)).hexdigest()

    assert done.weights[0] == digest(training.student())
    assert done.weights[5] == digest(model)


def test_records_of_a_step_are_those_whose_tokens_it_holds(data) -> None:
    keys = [one.key for one in tiny.examples(120)]
    ends = np.cumsum(data.lengths)
    steps = batches(data, training.config(), 3)
    keys_of = record_keys(data, training.config(), 3, 2)
    for batch, records in itertools.islice(zip(steps, keys_of, strict=False), 6):
        source = batch.source_RT[batch.source_RT >= 0]
        wanted = {keys[int((ends <= at).sum())] for at in source}
        assert set(records) == wanted
        assert len(records) == len(wanted)


def test_a_loss_that_is_no_number_stops_with_the_record_and_keeps_the_checkpoint(
    examples, tmp_path: Path
) -> None:
    shutil.copytree(examples, tmp_path / "set")
    data = TrainSet.map(tmp_path / "set")
    probs = np.load(tmp_path / "set/probs_NK.npy")
    ends = np.cumsum(data.lengths)
    probs[ends[50] - data.lengths[50] : ends[50]] = np.nan
    np.save(tmp_path / "set/probs_NK.npy", probs)
    with pytest.raises(StageError, match=r"diverged at step \d+: the loss is not finite") as caught:
        run(tmp_path / "set", tmp_path / "run", steps=80)
    # Not the first record of the set, which filler points to.
    assert caught.value.details == (f"record {tiny.examples(51)[50].key}",)
    before = {path.name for path in (tmp_path / "run").iterdir()}
    assert all(name.startswith("step-") for name in before)


def test_the_set_holds_its_examples(data, examples) -> None:
    assert sum(map(len, data.examples)) == len(data.tokens_N) == len(data.targets.ids_NK)


def test_every_step_has_the_same_shapes(data) -> None:
    """Memory that one step frees must fit the next one, or a long run grows without end."""
    few = list(itertools.islice(batches(data, training.config(), 0), 20))
    assert {batch.tokens_RT.shape for batch in few} == {(3, training.ROOM)}
    for batch in few:
        place, source, weight = targets(batch, data)
        assert len(place) == len(source) == len(weight)
        assert len(place) % PLACES == 0
        real = weight > 0
        assert weight.sum() == data.weight_N[batch.source_RT[batch.predicts_RT]].sum()
        assert np.array_equal(batch.source_RT.ravel()[place[real]], source[real])
