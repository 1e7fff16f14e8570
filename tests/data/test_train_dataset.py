"""Order of training clips, substitutes for bad ones, and the state of the iterator."""

import csv
import functools

import numpy as np
import pytest
from batches import assert_equal, next_batches
from fakes import ROWS, FakeLoad

from invnext_jax.data import bad_videos as bad_videos_lib
from invnext_jax.data import pipeline
from invnext_jax.errors import UserError

read_batches = functools.partial(next_batches, batch_size=6, load=FakeLoad())


@pytest.fixture
def config(list_config):
    return list_config


def join(*parts):
    """Concatenates the batches of several processes, as the mesh does."""
    return [
        {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
        for batches in zip(*parts, strict=True)
    ]


def test_a_run_resumes_with_other_numbers_of_workers_and_processes(config):
    load = FakeLoad(bad=(3, 8))
    full, end = read_batches(config, 8, load=load)
    first, state = read_batches(config, 2, load=load)  # within the first epoch
    config.workers = 2
    second, state = read_batches(config, 2, load=load, state=state)
    config.workers = 1
    third, state = read_batches(config, 1, load=load, state=state)
    config.workers = 0
    parts = [
        read_batches(
            config, 3, load=load, state=state, batch_size=6, positions=range(3 * i, 3 * i + 3)
        )
        for i in (0, 1)
    ]
    assert_equal(full, first + second + third + join(parts[0][0], parts[1][0]))
    assert parts[0][1] == parts[1][1] == end == {"clips": 48}


def test_the_state_of_two_processes_is_restored_by_three(config):
    full, _ = read_batches(config, 4)
    _, state = read_batches(config, 2, batch_size=6, positions=range(3, 6))
    parts = [
        read_batches(config, 2, state=state, batch_size=6, positions=(2 * i, 2 * i + 1))[0]
        for i in range(3)
    ]
    assert_equal(full[2:], join(*parts))


def test_the_state_of_another_pipeline_is_refused(config):
    for state, text in (
        ({"parent": {"next_index": 3}}, "another version"),
        ({"clips": 7}, "not a multiple of the batch size"),
    ):
        with pytest.raises(UserError, match=text):
            read_batches(config, 1, state=state)


@pytest.mark.parametrize("workers", [0, 1])
def test_repeats_are_clips_of_one_video_with_different_seeds(workers, config):
    config.update(repeats=3, workers=workers)
    batches, state = read_batches(config, 10, seed=4)
    rows = np.concatenate([batch["index"] for batch in batches])
    assert (rows.reshape(-1, 3) == rows[::3, None]).all()
    assert sorted(rows[::3]) == list(range(ROWS))  # an epoch is three times the rows
    seeds = np.concatenate([batch["seed"] for batch in batches])
    np.testing.assert_array_equal(seeds, [(4, clip, 0, 0) for clip in range(60)])
    assert state == {"clips": 60}


def test_repeats_keep_the_order_of_single_clips(config):
    singles, _ = read_batches(config, 10)
    config.repeats = 2
    pairs, _ = read_batches(config, 20)
    rows = [np.concatenate([batch["index"] for batch in part]) for part in (singles, pairs)]
    np.testing.assert_array_equal(rows[0], rows[1][::2])


def test_a_bad_video_counts_for_all_its_clips(config):
    bad_videos = bad_videos_lib.BadVideoTracker()
    config.repeats = 3
    full, _ = read_batches(config, 10)
    with_bad_videos, _ = read_batches(config, 10, load=FakeLoad(bad=(4, 9)), bad_videos=bad_videos)
    tries = sum(batch["seed"][::3, 2].sum() for batch in with_bad_videos)  # bad videos
    assert tries >= 2 and bad_videos.kinds == {"corrupt": bad_videos.dropped}
    assert (
        bad_videos.dropped == 3 * tries
        and bad_videos.delivered == 60
        and len(bad_videos.reasons) == 2
    )
    for one, other in zip(full, with_bad_videos, strict=True):
        kept = ~np.isin(one["index"], (4, 9))
        assert (one["index"] == other["index"])[kept].all()
        assert (other["index"].reshape(2, 3) == other["index"][::3, None]).all()
        assert not np.isin(other["index"], (4, 9)).any()


def test_a_batch_must_divide_by_the_repeats(config):
    config.repeats = 4
    with pytest.raises(UserError, match="6 clips .* must be divisible by config.data.repeats=4"):
        read_batches(config, 1)


def test_clips_of_one_video_must_be_on_one_process(config):
    config.repeats = 4
    for positions in ([0, 1, 4, 5], [2, 3, 4, 5]):
        with pytest.raises(UserError, match="repeats=4 clips of one video would be on several"):
            read_batches(config, 1, batch_size=8, positions=positions)


@pytest.mark.parametrize("workers", [1, 2])
def test_substitutes_depend_on_seed_and_position(workers, config):
    load = FakeLoad(bad=(0, 5, 6, 7, 11, 13))
    alone, _ = read_batches(config, 7, load=load)
    other_seed, _ = read_batches(config, 7, load=load, seed=1)
    config.workers = workers
    assert_equal(alone, read_batches(config, 7, load=load)[0])
    indices = np.stack([batch["index"] for batch in alone])
    assert set(indices.flat) == set(range(ROWS)) - set(load.bad)
    assert (indices != np.stack([batch["index"] for batch in other_seed])).any()


def test_a_bad_video_does_not_change_other_clips(config):
    full, _ = read_batches(config, 4)
    with_bad_videos, _ = read_batches(config, 4, load=FakeLoad(bad=(4, 9)))
    for one, other in zip(full, with_bad_videos, strict=True):
        kept = ~np.isin(one["index"], (4, 9))
        assert (one["index"] == other["index"])[kept].all()
        assert (one["seed"] == other["seed"])[kept].all()
        assert not np.isin(other["index"], (4, 9)).any()


@pytest.mark.parametrize("workers", [0, 1])
def test_on_bad_fail_ends_the_run_at_the_first_bad_video(workers, config):
    config.update(workers=workers, on_bad="fail")
    with pytest.raises(UserError, match=r"bad video \(corrupt\): .*7\.mp4: broken"):
        read_batches(config, 4, load=FakeLoad(bad=(7,)))


def test_too_large_a_share_of_bad_videos_ends_the_run_with_a_table(config):
    config.max_bad_share = 0.3
    with pytest.raises(UserError, match=r"of \d+ clips are bad(.|\n)*\d+  corrupt"):
        read_batches(config, 40, load=FakeLoad(bad=tuple(range(10))))
    config.max_bad_share = 0.6
    read_batches(config, 40, load=FakeLoad(bad=tuple(range(10))))


@pytest.fixture
def broken_world(world_folder, tmp_path):
    """Forty files: 28 good ones, five that are missing, four empty and three of text."""
    videos = sorted((world_folder / "train").iterdir())
    lines = ["path,source"]
    for number in range(40):
        name = f"{number}.mp4"
        lines.append(f"{name},a")
        if number < 28:
            (tmp_path / name).symlink_to(videos[number % len(videos)])
        elif 33 <= number < 37:
            (tmp_path / name).touch()
        elif number >= 37:
            (tmp_path / name).write_text("this is no video\n" * 50)
    manifest = tmp_path / "broken.csv"
    manifest.write_text("\n".join(lines) + "\n")
    return manifest


def test_counts_and_quarantine_of_a_broken_data_set(broken_world, config, tmp_path):
    config.update(manifest=str(broken_world), frames=2, size=32, short_side=32, crop_scales=(1.0,))
    counts = []
    for workers in (0, 2):
        config.workers = workers
        bad_videos = bad_videos_lib.BadVideoTracker.from_config(config)
        bad_videos.write_quarantine(tmp_path)
        dataset = pipeline.make_train_dataset(config, seed=0, batch_size=20, bad_videos=bad_videos)
        iterator = iter(dataset)
        batches = [next(iterator), next(iterator)]  # one epoch
        iterator.close()
        assert all(batch["index"].max() < 28 for batch in batches)
        counts.append((bad_videos.delivered, dict(bad_videos.kinds)))
        assert len(bad_videos.reasons) == 12
    tried = {"missing": 0, "corrupt": 0}
    for clip in range(40):
        for attempt in range(100):
            row = dataset.mixture.get_video(clip, attempt).index
            if row < 28:
                break
            tried["missing" if row < 33 else "corrupt"] += 1
    assert counts == [(40, tried), (40, tried)]
    with (tmp_path / "quarantine.csv").open(newline="") as file:
        reasons = {row["path"]: row["reason"] for row in csv.DictReader(file)}
    assert sorted(reasons) == [f"{tmp_path}/{i}.mp4" for i in range(28, 40)]
    for i in range(28, 40):
        reason = reasons[f"{tmp_path}/{i}.mp4"]
        assert reason.startswith("missing: No such file" if i < 33 else "corrupt: Invalid")
