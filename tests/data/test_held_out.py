"""Videos that are held out are never trained on, and their number is part of the recipe."""

import dataclasses

import ml_collections
import numpy as np
import pytest

from configs import common
from invnext_jax.data import held_out, pipeline
from invnext_jax.data.manifest import read_manifest
from invnext_jax.data.train_order import Mixture
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


def test_segments_of_a_file_in_a_shard_are_on_the_same_side(tmp_path):
    lines = [f"shard,{n},a,/videos/{n // 4}.mp4" for n in range(40)]
    (tmp_path / "m.csv").write_text("\n".join(["path,record,source,original", *lines]) + "\n")
    (tmp_path / "other.csv").write_text("path,source\nx.mp4,a\ny.mp4,a\n")
    for names in ("m.csv", "m.csv,other.csv"):
        read = read_manifest(",".join(str(tmp_path / name) for name in names.split(",")))
        rows = set(held_out.held_out_rows(read, 7).tolist())
        assert len(rows) >= 7
        assert all({4 * (n // 4) + k for k in range(4)} <= rows for n in rows if n < 40)


def test_at_most_half_of_the_videos_can_be_held_out(manifest):
    assert len(held_out.held_out_rows(manifest, 20)) == 20
    with pytest.raises(UserError, match="held_out=21 would .* 22 of 40 .* for example to 10"):
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


def test_other_spellings_and_overlapping_worlds_are_held_out_together(manifest):
    paths = [f"{row}.mp4" if row % 2 else f"./{row + 1}.mp4" for row in range(40)]
    spelled = dataclasses.replace(manifest, paths=paths)
    worlds = read_manifest("world:simple/train?videos=20,world:simple/train?videos=10")
    for part, keys in ((spelled, [row // 2 for row in range(40)]), (worlds, [*range(20)] * 2)):
        rows = set(held_out.held_out_rows(part, 5).tolist())
        held = {keys[row] for row in rows}
        assert rows == {row for row in range(len(part)) if keys[row] in held}


def test_copies_of_held_out_videos_are_mentioned(tmp_path):
    names = [f"{number}.mp4" for number in range(4)]
    for number, name in enumerate(names):
        (tmp_path / name).write_bytes(bytes([number]) * 99)
        (tmp_path / f"link{name}").symlink_to(name)
        (tmp_path / f"copy{name}").write_bytes(bytes([number]) * 99)

    def describe(*rows):
        lines = [f"{row},x" for row in rows]
        (tmp_path / "m.csv").write_text("\n".join(["path,source", *lines]) + "\n")
        return held_out.describe_copies(read_manifest(tmp_path / "m.csv"), 1)

    assert describe(*names) == ""
    for kind in ("link", "copy"):
        sentence = describe(*names, *(kind + name for name in names))
        assert "1 of 1 held-out videos have copies among the training" in sentence
    assert held_out.describe_copies(read_manifest(tmp_path / "m.csv"), 0) == ""


def test_a_source_with_a_weight_must_not_be_held_out_as_a_whole(manifest):
    message = "weights has the source 'b', but config.data.held_out holds out all of its rows"
    with pytest.raises(UserError, match=message):
        Mixture(manifest, (("a", 1.0), ("b", 3.0)), 0, range(20))
    mixture = Mixture(manifest, (), 0, range(20))
    assert mixture.absent == ["b"] and mixture.shares == {"a": 1.0}
    assert Mixture(manifest, (("a", 1.0), ("b", 3.0)), 0, range(31)).absent == []


def test_the_log_counts_held_out_videos_that_nothing_evaluates(manifest):
    config = ml_collections.ConfigDict(
        {"data": {"held_out": 7}, "eval": {"every_steps": 0, "manifest": ""}}
    )
    text = held_out.describe_unused(config, manifest)  # the files have two rows each
    assert text.startswith("8 of 40 videos are not trained on (config.data.held_out=7); nothing")
    assert text.endswith("because config.eval.every_steps is 0")
    config.eval.every_steps = 10
    assert held_out.describe_unused(config, manifest) == ""
    config.eval.manifest = "val.csv"
    assert held_out.describe_unused(config, manifest).endswith("config.eval.manifest is set")
    config.data.held_out = 0
    assert held_out.describe_unused(config, manifest) == ""
