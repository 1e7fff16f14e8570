"""How clips are cut: sampling and augmentation as the config says, all those of a video at once."""

import dataclasses

import numpy as np
import pytest

from configs import common
from invnext_jax import config_checks
from invnext_jax.data import clips, decode, frames, manifest, sampling, transforms


@pytest.fixture
def load(tmp_path, videos):
    """Makes one clip of a numbered video under some fields of `config.data`."""
    path = str(videos.write(tmp_path / "a.mp4", options={"preset": "ultrafast", "g": "12"}))

    def make(seed=0, *, source="a", **fields):
        config = common.data()
        config.update(frames=4, size=48, short_side=48, crop_scales=(1.0,), flip=False)
        config.update(**fields)
        record = manifest.VideoRecord(0, path, source, None, None, {})
        seed = None if seed is None else (seed,)
        return clips.LoadClip.from_config(config)(record, (seed,))["video"][0]

    make.path = path
    return make


def read_clip(path, numbers, window):
    """The frames `numbers` of a video, cut to `window`, 48 pixels a side."""
    pick, windows = lambda _: np.array([numbers]), [lambda *_: window]
    return decode.read_clips(path, pick, windows, 48, short_side=48)[0]


def test_the_default_is_the_recipes_crop_of_sparse_frames(load):
    rng = clips.make_rng(3)
    numbers = sampling.sample_sparse(60, 4, rng)
    window = transforms.sample_multi_scale_crop(48, 80, 48, (1.0, 0.75), rng)
    expected = read_clip(load.path, numbers, window)
    np.testing.assert_array_equal(load(3, crop_scales=(1.0, 0.75)), expected)


@pytest.mark.parametrize("seed", [None, 0, 5])
def test_dense_sampling_reads_neighbours(load, seed):
    rng = None if seed is None else clips.make_rng(seed)
    wanted = sampling.sample_dense(60, 4, (2, 9), rng)
    window = transforms.center_crop(48, 80)
    if rng is not None:
        window = transforms.sample_multi_scale_crop(48, 80, 48, (1.0,), rng)
    got = load(seed, sampling="dense", stride=(2, 9))
    np.testing.assert_array_equal(got, read_clip(load.path, wanted, window))


def test_random_resized_crop_and_jitter_follow_the_clips_seed(load):
    fields = {"crop": "random_resized", "crop_area": (0.5, 0.9), "jitter": (0.4, 0.4, 0.4, 0.1)}
    rng = clips.make_rng(4)
    numbers = sampling.sample_sparse(60, 4, rng)
    window = transforms.sample_random_resized_crop(48, 80, (0.5, 0.9), (0.75, 4 / 3), rng)
    expected = read_clip(load.path, numbers, window)
    expected = transforms.jitter_colors(expected, (0.4, 0.4, 0.4, 0.1), rng)
    np.testing.assert_array_equal(load(4, **fields), expected)
    assert (load(5, **fields) != expected).any()


def test_evaluation_is_not_augmented(load):
    plain = load(None)
    fields = {"crop": "random_resized", "jitter": (0.4, 0.4, 0.4, 0.1)}
    np.testing.assert_array_equal(load(None, **fields), plain)


def test_a_source_may_be_cut_in_its_own_way(load):
    own = {"a": {"sampling": "dense", "stride": (2, 9), "flip": True}, "b": {"jitter": (0.3,) * 4}}
    differ = []
    for seed in range(8):
        plain = load(seed)
        np.testing.assert_array_equal(load(seed, source="c", by_source=own), plain)
        differ.append((load(seed, source="b", by_source=own) != plain).any())
        theirs = load(seed, sampling="dense", stride=(2, 9), flip=True)
        np.testing.assert_array_equal(load(seed, source="a", by_source=own), theirs)
    assert all(differ)


def test_the_fields_of_a_source_are_those_that_the_checks_know():
    assert config_checks.BY_SOURCE == tuple(field.name for field in dataclasses.fields(clips.Cut))


def test_clips_of_one_decode_equal_clips_of_their_own(load, monkeypatch):
    config = common.data()
    config.update(frames=4, size=24, short_side=40, crop_scales=(1.0, 0.75), jitter=(0.2,) * 4)
    make = clips.LoadClip.from_config(config)
    record = manifest.VideoRecord(3, load.path, "a", 0.4, 2.0, {"label_x": 7})
    seeds = ((0, 12, 0, 0), (0, 13, 0, 0), (0, 14, 0, 0))
    alone = [make(record, (seed,)) for seed in seeds]
    opened, decoded = [], []
    open_file, seek_and_decode = decode._open, decode._seek_and_decode

    def count_frames(*arguments):
        for number, frame in seek_and_decode(*arguments):
            decoded.append(number)
            yield number, frame

    monkeypatch.setattr(decode, "_open", lambda source: opened.append(1) or open_file(source))
    monkeypatch.setattr(decode, "_seek_and_decode", count_frames)
    together = make(record, seeds)
    assert len(opened) == 1 and len(set(decoded)) == len(decoded) <= 12
    for name, values in together.items():
        assert len(values) == 3
        np.testing.assert_array_equal(values, np.concatenate([one[name] for one in alone]))
    videos = together["video"]
    assert (videos[0] != videos[1]).any() and (videos[1] != videos[2]).any()


def test_a_decoders_odd_error_is_a_bad_video_and_a_mistake_of_ours_is_none(load, monkeypatch):
    def reformat_badly(self, number, frame, *window):
        return frame.reformat(format="nonsense")

    monkeypatch.setattr(frames.Converter, "__call__", reformat_badly)
    record = manifest.VideoRecord(0, load.path, "a", None, None, {})
    config = common.data()
    config.update(frames=4, size=48, short_side=48)
    made = clips.LoadClip.from_config(config)(record, (None,))
    assert made.kind == "corrupt" and made.reason.startswith(f"{load.path}: ValueError: ")
    monkeypatch.setattr(frames.Converter, "__call__", lambda *_: int("our mistake"))
    with pytest.raises(ValueError, match="our mistake"):
        clips.LoadClip.from_config(config)(record, (None,))
