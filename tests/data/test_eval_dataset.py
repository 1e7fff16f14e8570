"""Evaluation batches: order, padding, bad videos, and the workers of a pass."""

import gc
import os
import sys
import threading
import time

import numpy as np
import pytest
from batches import assert_equal, next_batches, row_order
from fakes import FakeLoad, worker_pids
from video_files import write_video

from invnext_jax.data import decode, pipeline


@pytest.fixture
def config(world_config):
    return world_config


@pytest.mark.parametrize("count", [0, 3])
def test_evaluation_keeps_the_order_and_pads_the_last_batch(count, config):
    config.workers = count
    dataset = pipeline.make_eval_dataset(config, manifest=config.manifest, batch_size=5)
    config.manifest = ""
    batches = list(dataset)
    assert len(batches) == len(dataset) == 3
    assert row_order(batches) == [*range(12), -1, -1, -1]
    assert not batches[-1]["video"][2:].any()
    assert_equal(batches, list(dataset))
    path = dataset.manifest[3].path
    np.testing.assert_array_equal(
        batches[0]["video"][3], decode.read_frames(path, lambda _: [1, 3, 5, 7])
    )


def test_training_without_augmentation_reads_the_clips_of_evaluations(config):
    config.manifest = "world:simple/train?videos=6&size=48"  # larger than the crops
    config.update(flip=True, crop_scales=(0.5, 0.75), jitter=(0.4, 0.4, 0.4, 0.1), by_source={})
    (expected,) = pipeline.make_eval_dataset(config, manifest=config.manifest, batch_size=6)
    for augment, is_equal in ((False, True), (True, False)):
        config.augment = augment
        batches, _ = next_batches(config, 3, batch_size=6, seed=1)
        for batch in batches:
            assert sorted(batch["index"]) == list(range(6))
            clips = expected["video"][batch["index"]]
            assert np.array_equal(batch["video"], clips) == is_equal


def test_evaluation_drops_and_counts_bad_videos(with_bad_videos):
    config = with_bad_videos
    dataset = pipeline.make_eval_dataset(config, manifest=config.manifest, batch_size=5)
    assert row_order(dataset) == [0, 1, 3, 4, 5, 6, 8, 9, 10, 11]
    assert dataset.bad_videos.dropped == 2 and dataset.bad_videos.delivered == 10


@pytest.mark.parametrize(("workers", "kind"), [(0, "time limit"), (1, "worker died")])
def test_evaluation_survives_a_decoder_that_hangs_or_dies(workers, kind, config):
    config.update(workers=workers, clip_seconds=0.5)
    load = FakeLoad(**{"hangs" if kind == "time limit" else "dies": (3,)})
    dataset = pipeline.make_eval_dataset(config, manifest=config.manifest, batch_size=5, load=load)
    start = time.monotonic()
    assert row_order(dataset) == [0, 1, 2, *range(4, 12), -1, -1, -1, -1]
    assert time.monotonic() - start < 25
    assert dataset.bad_videos.kinds == {kind: 1} and dataset.bad_videos.delivered == 11


def test_videos_that_stall_in_an_evaluation_are_not_missing_for_good(config):
    config.clip_seconds = 0.3
    load = FakeLoad(stalls=(3,))
    dataset = pipeline.make_eval_dataset(config, manifest=config.manifest, batch_size=4, load=load)
    assert row_order(dataset) == [0, 1, 2, *range(4, 12), -1]
    assert dataset.bad_videos.kinds == {"stalled read": 1}
    assert dataset.bad_videos.transient
    dataset = pipeline.make_eval_dataset(
        config, manifest=config.manifest, batch_size=4, load=FakeLoad(bad=(3,))
    )
    list(dataset)
    assert not dataset.bad_videos.transient


def test_an_abandoned_evaluation_ends_its_workers(config):
    config.workers = 1
    before = set(threading.enumerate())
    batches = iter(pipeline.make_eval_dataset(config, manifest=config.manifest, batch_size=2))
    next(batches)
    batches.close()
    assert not worker_pids()
    assert set(threading.enumerate()) <= before


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_passes_leave_no_open_files(config):
    config.workers = 2
    dataset = pipeline.make_eval_dataset(
        config, manifest=config.manifest, batch_size=6, load=FakeLoad()
    )
    list(dataset)
    gc.collect()
    gc.disable()
    try:
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(5):
            assert row_order(dataset) == [*range(12)]
        assert len(os.listdir("/proc/self/fd")) == before
    finally:
        gc.enable()


def test_videos_shorter_than_a_clip_are_counted(config, caplog):
    config.update(sampling="dense", stride=(4, 4))
    dataset = pipeline.make_eval_dataset(config, manifest=config.manifest, batch_size=5, views=3)
    batches = list(dataset)
    assert all("missing_frames" not in batch for batch in batches)
    assert dataset.bad_videos.short == dataset.bad_videos.delivered == len(dataset.manifest)
    assert caplog.text.count("has 5 frames fewer than a clip can span") == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_three_views_are_the_ends_and_the_middle_of_the_longer_side(workers, config, tmp_path):
    path = write_video(
        tmp_path / "wide.mp4", size=(48, 80), options={"crf": "0"}, pix_fmt="yuv444p"
    )
    (tmp_path / "wide.csv").write_text(f"path,source\n{path},a\n")
    config.update(frames=4, size=48, short_side=48, workers=workers)
    options = {"manifest": str(tmp_path / "wide.csv"), "batch_size": 2}
    square = write_video(tmp_path / "square.mp4", size=(48, 48))
    (tmp_path / "both.csv").write_text(f"path,source\n{path},a\n{square},a\n")
    equal = set()
    both = {**options, "manifest": str(tmp_path / "both.csv"), "equal_rows": equal}
    list(pipeline.make_eval_dataset(config, **both, views=3))
    assert equal == {1}
    (batch,) = pipeline.make_eval_dataset(config, **options, views=3)
    (single,) = pipeline.make_eval_dataset(config, **options)
    np.testing.assert_array_equal(batch["index"], [0, 0, 0, -1, -1, -1])
    whole = decode.read_frames(path, lambda _: [7, 22, 37, 52]).astype(int)
    for view, left in enumerate((0, 16, 32)):
        expected = whole[:, :, left : left + 48]
        assert np.abs(batch["video"][view] - expected).max() <= 2
    np.testing.assert_array_equal(batch["video"][1], single["video"][0])


def test_only_the_requested_rows_are_read(config):
    dataset = pipeline.make_eval_dataset(
        config, manifest=config.manifest, batch_size=2, rows=[1, 4, 5]
    )
    assert row_order(dataset) == [1, 4, 5, -1]
    assert len(dataset) == 2 and dataset.bad_videos.delivered == 3
    none = pipeline.make_eval_dataset(config, manifest=config.manifest, batch_size=2, rows=[])
    assert list(none) == []
