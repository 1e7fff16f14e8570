"""Clips of `world:` URLs equal those of `render_clip` in labels and frames."""

import numpy as np
import pytest
from fakes import FixedSampler

from configs import common
from invnext_jax.data import clips, manifest, pipeline
from invnext_jax.errors import UserError
from invnext_jax.synthetic_world import urls
from invnext_jax.synthetic_world.files import write_world
from invnext_jax.synthetic_world.render import render_clip
from invnext_jax.synthetic_world.scene import WorldSpec
from invnext_jax.video import frame_converter
from invnext_jax.video.frame_converter import Window

NAME = "world:full/val?videos=5&seed=3&size=48&frames=16"
SPEC = WorldSpec(level="full", split="val", seed=3, size=48, frames=16)


def test_rows_equal_those_of_the_world_on_disk(tmp_path):
    rendered = manifest.read_manifest(NAME)
    written = manifest.read_manifest(write_world(SPEC, tmp_path, 5, progress=False))
    assert len(rendered) == 5 and rendered.sources == written.sources == ["world"] * 5
    assert rendered.labels.keys() == written.labels.keys()
    for task, values in written.labels.items():
        np.testing.assert_array_equal(rendered.labels[task], values)
    assert rendered[3].start is None and rendered[3].end is None


def test_frames_equal_those_of_the_clip():
    clip = render_clip(SPEC, 4).video
    side = clip.shape[1]
    frames_rt = np.array([[3, 3, 15, 0], [1, 2, 3, 4]])
    whole, part = frame_converter.square_crop(side, side), Window(2, 1, 12, 17)
    sampler = FixedSampler(frames_rt, [whole, part], side)
    record = manifest.VideoRecord(4, urls.clip_name(NAME, 4), "world", None, None, {})
    read = clips.read_clips(record, sampler, None)
    assert sampler.frame_counts == [16] and sampler.frame_sizes == [(side, side)]
    np.testing.assert_array_equal(read[0], clip[frames_rt[0]])
    np.testing.assert_array_equal(read[1], frame_converter.resize(clip[frames_rt[1]], part, side))


def test_missing_fields_have_default_values():
    assert urls.parse("world:simple?videos=7") == urls.World(WorldSpec(), 7)
    assert urls.parse(NAME) == urls.World(SPEC, 5)
    name = "world:anticipation/val?videos=5&object_size=0.5&speed=2&clutter=4"
    spec = WorldSpec("anticipation", split="val", object_size=0.5, speed=2.0, clutter=4)
    assert urls.parse(name) == urls.World(spec, 5)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("world:simple/train", "videos=2000"),
        ("world://[x", "'world://.x' is not a valid world URL"),
        ("world:simple/train?videos=0", "videos=0"),
        ("world:simple/train?videos=3000000000", "videos=3000000000"),
        ("world:simple/train?videos=many", "'many'"),
        ("world:simple/train?videos=2&color=1", "'color'"),
        ("world:simple/train?videos=2&videos=3", "'videos'"),
        ("world:simple/train?videos=2&size", "size"),
        ("world:simple/train?videos=2&clutter=1.5", "'1.5'"),
        ("world:simple/train?videos=2&speed=nan", "speed=nan"),
        ("world:anticipation/train?videos=2&frames=4", "at least 6 frames"),
        ("world:easy/train?videos=2", "unknown world level 'easy'"),
        ("world:simple/dev?videos=2", "unknown world split 'dev'"),
        ("world:simple/train?videos=2&size=8", "size=8 must be an integer from 16 to 2048"),
        ("world:simple/train?videos=2&size=100000", "size=100000 must be"),
        ("world:simple/train?videos=2&frames=1000000", "frames=1000000 must be"),
        ("world:?videos=2", "unknown world level ''"),
        ("world:simple/train?videos=100001", "videos=100001 is not from 1 to 100000"),
        ("world:simple/train?videos=2&size=257&frames=4096", "more than 268435456 pixels"),
        ("world:simple/train?videos=" + "0" * 990 + "2", "has 1017 characters"),
        ("world:simple/train?" + "&" * 10**7, "has 10000019 characters"),
    ],
)
def test_invalid_urls_are_errors_of_one_sentence(name, text):
    with pytest.raises(UserError, match=text) as caught:
        manifest.read_manifest(name)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize("workers", [0, 1])
def test_training_clips_are_cropped_from_rendered_frames(workers):
    config = common.data()
    config.update(manifest="world:simple/train?videos=9", frames=4, size=32, short_side=32)
    config.update(crop_scales=(1.0,), workers=workers)
    iterator = iter(pipeline.make_train_dataset(config, seed=5, batch_size=6))
    batches = [next(iterator), next(iterator)]
    iterator.close()
    spec = WorldSpec()
    for n, batch in enumerate(batches):
        for i, row in enumerate(batch["index"]):
            clip = render_clip(spec, int(row))
            rng = clips.make_rng(5, 6 * n + i, 0, 0)
            frames_t = clips.sample_sparse(8, 4, rng)
            np.testing.assert_array_equal(batch["video"][i], clip.video[frames_t])
            assert {t: batch[f"label_{t}"][i] for t in clip.labels} == clip.labels


def test_evaluation_reads_a_rendered_world():
    config = common.data()
    config.update(frames=8, size=32, short_side=32, workers=0)
    name = "world:simple/val?videos=3"
    (batch,) = pipeline.make_eval_dataset(config, manifest=name, batch_size=3)
    spec = WorldSpec(split="val")
    for i in range(3):
        np.testing.assert_array_equal(batch["video"][i], render_clip(spec, i).video)
