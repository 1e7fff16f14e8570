"""Videos that are held out are never trained on, and their number is part of the recipe."""

import dataclasses

import numpy as np
import pytest

from configs import common
from invnext_jax.data import held_out, pipeline
from invnext_jax.data.manifest import read_manifest
from invnext_jax.data.train_dataset import Mixture
from invnext_jax.errors import UserError

WORLD = "world:simple/val?videos=40"


@pytest.fixture(scope="module")
def manifest():
    """Forty rows of twenty files, two sources."""
    read = read_manifest(WORLD)
    paths = [f"{row // 2}.mp4" for row in range(40)]
    return dataclasses.replace(read, paths=paths, sources=["a"] * 30 + ["b"] * 10)


@pytest.mark.parametrize("count", [1, 4, 7])
def test_whole_files_are_held_out(manifest, count):
    rows = held_out.held_out_rows(manifest, count)
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert count <= len(rows) <= count + 1
    rest = held_out.training_rows(manifest, count)
    assert sorted([*rows, *rest]) == list(range(40))
    assert not {manifest.paths[row] for row in rows} & {manifest.paths[row] for row in rest}
    np.testing.assert_array_equal(rows, held_out.held_out_rows(manifest, count))


def test_rows_of_a_shard_are_different_videos(manifest):
    shard = dataclasses.replace(manifest, paths=["shard"] * 40, record=np.arange(40))
    assert len(held_out.held_out_rows(shard, 7)) == 7


def test_at_most_half_of_the_videos_can_be_held_out(manifest):
    assert len(held_out.held_out_rows(manifest, 20)) == 20
    with pytest.raises(UserError, match="held_out=21 would hold out 22 of 40 videos"):
        held_out.held_out_rows(manifest, 21)


@pytest.mark.parametrize("weights", [(), (("a", 1.0), ("b", 3.0))])
def test_neither_the_order_nor_substitutes_contain_held_out_videos(manifest, weights):
    rows = held_out.training_rows(manifest, 8)
    mixture = Mixture(manifest, weights, 0, rows)
    drawn = {mixture.get_video(n, attempt).index for n in range(300) for attempt in (0, 1)}
    assert drawn == set(rows.tolist())
    assert mixture.videos == 32
    assert all(
        share == pytest.approx(w / 4)
        for (_, w), share in zip(weights, mixture.shares.values(), strict=False)
    )


def test_epochs_count_the_training_videos():
    config = common.data()
    config.update(manifest=WORLD, held_out=10, workers=0)
    assert pipeline.make_train_dataset(config, seed=0, batch_size=4).videos == 30
    config.held_out = -1
    with pytest.raises(UserError, match="config.data.held_out=-1 must be at least 0"):
        pipeline.check_config(config)
