"""Shares and order of sources, order of training clips, and substitutes for bad ones."""

import collections
import csv
import functools

import numpy as np
import pytest
from batches import assert_equal, next_batches
from fakes import ROWS, FakeLoad

from invnext_jax.data import bad_videos as bad_videos_lib
from invnext_jax.data import manifest as manifest_lib
from invnext_jax.data import pipeline, train_order
from invnext_jax.errors import UserError

read_batches = functools.partial(next_batches, batch_size=6, load=FakeLoad())


@pytest.fixture
def config(list_config):
    return list_config


@pytest.mark.parametrize("workers", [0, 1])
def test_repeats_are_clips_of_one_video_with_different_seeds(workers, config):
    config.update(repeats=3, workers=workers)
    batches, state = read_batches(config, 10, seed=4)
    rows = np.concatenate([batch["index"] for batch in batches])
    assert (rows.reshape(-1, 3) == rows[::3, None]).all()
    assert sorted(rows[::3]) == list(range(ROWS))  # with 3 repeats, 60 clips are an epoch
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
    tries = sum(batch["seed"][::3, 2].sum() for batch in with_bad_videos)  # number of bad videos
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
        expected = "missing: No such file" if i < 33 else "corrupt: "
        expected += "" if i < 33 else "empty file" if i < 37 else "Invalid"
        assert reason.startswith(expected)


COUNTS = {"a": 600, "b": 1000, "c": 300}  # grain shuffles fewer rows slowly


@pytest.fixture
def manifest(tmp_path):
    path = tmp_path / "list.csv"
    lines = [f"{name}{i}.mp4,{name}\n" for name, count in COUNTS.items() for i in range(count)]
    path.write_text("path,source\n" + "".join(lines))
    return manifest_lib.read_manifest(path)


def order(manifest, weights, count, seed=0, start=0):
    mix = train_order.Mixture(manifest, weights, seed)
    return [mix.get_video(number, 0) for number in range(start, start + count)]


@pytest.mark.parametrize("weights", [(0.3, 0.1, 0.6), (2, 3, 5), (1, 1, 1), (7, 11.5, 0.25)])
def test_shares_of_sources_follow_the_weights(weights, manifest):
    records = order(manifest, tuple(zip("abc", weights, strict=True)), 4000)
    counts = collections.Counter(record.source for record in records)
    for name, weight in zip("abc", weights, strict=True):
        assert counts[name] / 4000 == pytest.approx(weight / sum(weights), rel=0.005, abs=1 / 4000)


def test_each_pass_over_a_source_has_all_its_rows_in_another_order(manifest):
    records = order(manifest, (("a", 1), ("b", 2), ("c", 3)), 6000)
    for name, count in COUNTS.items():
        rows = [record.index for record in records if record.source == name]
        passes = [tuple(rows[i : i + count]) for i in range(0, len(rows) - count + 1, count)]
        assert passes and all(len(set(one)) == count for one in passes)
        assert len(set(passes)) == len(passes)
        assert passes[0] != tuple(sorted(passes[0]))


def test_any_position_is_computed_without_earlier_ones(manifest):
    weights = (("c", 1.0), ("a", 3.0), ("b", 0.5))
    full = order(manifest, weights, 300)
    assert order(manifest, weights, 100, start=200) == full[200:]
    assert order(manifest, weights, 300, seed=1) != full
    assert order(manifest, weights, 1, start=10**9)  # far ahead


def test_without_weights_every_row_occurs_once_in_an_epoch(manifest):
    rows = [record.index for record in order(manifest, (), 3800)]
    assert sorted(rows[:1900]) == sorted(rows[1900:]) == list(range(1900))
    assert rows[:1900] != rows[1900:]


def test_equal_sources_are_not_shuffled_alike(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text("path,source\n" + "".join(f"{s}{i},{s}\n" for s in "ab" for i in range(300)))
    records = order(manifest_lib.read_manifest(path), (("a", 1), ("b", 1)), 600)
    rows = {s: [r.index for r in records if r.source == s] for s in "ab"}
    assert [row + 300 for row in rows["a"]] != rows["b"]


def test_substitutes_follow_the_shares(manifest):
    mix = train_order.Mixture(manifest, (("a", 1), ("b", 6), ("c", 3)), seed=0)
    counts = collections.Counter(mix.get_video(n, a).source for n in range(300) for a in (1, 2, 3))
    deviation = np.sqrt(900 * 0.25)
    for name, share in (("a", 0.1), ("b", 0.6), ("c", 0.3)):
        assert abs(counts[name] - 900 * share) < 4 * deviation
    assert len({mix.get_video(n, 1).index for n in range(300)}) > 200


@pytest.mark.parametrize(
    ("weights", "text"),
    [
        ((("a", 1.0), ("b", 1.0)), "no weight for the source 'c'"),
        ((("a", 1.0), ("b", 1.0), ("c", 1.0), ("d", 1.0)), "no source 'd', only 'a', 'b', 'c'"),
        ((("a", 1.0), ("a", 1.0), ("b", 1.0), ("c", 1.0)), "the source 'a' twice"),
        ((("a", 0.0), ("b", 1.0), ("c", 1.0)), r"\('a', 0.0\) must be"),
        ((("a", -1), ("b", 1.0), ("c", 1.0)), "above 0"),
        ((("a", float("nan")), ("b", 1.0), ("c", 1.0)), "above 0"),
        ((("a", "1"), ("b", 1.0), ("c", 1.0)), "above 0"),
        (("a", "b", "c"), "'a' must be a source and a weight"),
        ((1.0, 2.0, 3.0), "1.0 must be a source and a weight"),
    ],
)
def test_errors_of_weights_are_one_sentence(weights, text, manifest):
    with pytest.raises(UserError, match=text) as caught:
        train_order.Mixture(manifest, weights, 0)
    assert "\n" not in str(caught.value)


def test_table_contains_rows_shares_epochs_and_options(manifest):
    mix = train_order.Mixture(manifest, (("a", 1), ("b", 3), ("c", 1)), seed=0)
    head, *lines = mix.table(30_000, "<{}>".format).splitlines()
    assert head.split() == ["source", "rows", "share", "epochs", "options"]
    assert [line.split() for line in lines] == [
        ["a", "600", "20.00%", "10.00", "<a>"],
        ["b", "1,000", "60.00%", "18.00", "<b>"],
        ["c", "300", "20.00%", "20.00", "<c>"],
    ]
    plain = train_order.Mixture(manifest, (), seed=0).table(3800, str).splitlines()
    assert [line.split()[3] for line in plain[1:]] == ["2.00"] * 3
