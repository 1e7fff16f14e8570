"""Sampling and augmentation of clips, and several clips of one decode."""

import numpy as np
import pytest
from fakes import FixedSampler

from configs import common
from invnext_jax.data import clips, decode, manifest
from invnext_jax.video import color_jitter, demux, frame_converter


@pytest.fixture
def load(tmp_path, videos):
    """Returns a function that makes one clip of a numbered video with fields of `config.data`."""
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
    """Returns frames of a video, cropped to `window` and scaled to 48 x 48 pixels."""
    record = manifest.VideoRecord(0, path, "a", None, None, {})
    return clips.read_clips(record, FixedSampler([numbers], [window], 48), short_side=48)[0]


def test_default_is_multi_scale_crop_of_sparse_frames(load):
    rng = clips.make_rng(3)
    numbers = clips.sample_sparse(60, 4, rng)
    window = frame_converter.sample_multi_scale_crop(48, 80, 48, (1.0, 0.75), rng)
    expected = read_clip(load.path, numbers, window)
    np.testing.assert_array_equal(load(3, crop_scales=(1.0, 0.75)), expected)


@pytest.mark.parametrize("seed", [None, 0, 5])
def test_dense_sampling_reads_frames_at_a_stride(load, seed):
    rng = None if seed is None else clips.make_rng(seed)
    numbers = clips.sample_dense(60, 4, (2, 9), rng)
    window = frame_converter.square_crop(48, 80)
    if rng is not None:
        window = frame_converter.sample_multi_scale_crop(48, 80, 48, (1.0,), rng)
    got = load(seed, sampling="dense", stride=(2, 9))
    np.testing.assert_array_equal(got, read_clip(load.path, numbers, window))


def test_random_resized_crop_and_jitter_depend_on_the_seed_of_the_clip(load):
    fields = {"crop": "random_resized", "crop_area": (0.5, 0.9), "jitter": (0.4, 0.4, 0.4, 0.1)}
    rng = clips.make_rng(4)
    numbers = clips.sample_sparse(60, 4, rng)
    window = frame_converter.sample_random_resized_crop(48, 80, (0.5, 0.9), (0.75, 4 / 3), rng)
    expected = read_clip(load.path, numbers, window)
    expected = color_jitter.jitter_colors(expected, (0.4, 0.4, 0.4, 0.1), rng)
    np.testing.assert_array_equal(load(4, **fields), expected)
    assert (load(5, **fields) != expected).any()


def test_evaluation_is_not_augmented(load):
    plain = load(None)
    fields = {"crop": "random_resized", "jitter": (0.4, 0.4, 0.4, 0.1)}
    np.testing.assert_array_equal(load(None, **fields), plain)


def test_by_source_overrides_the_transform(load):
    own = {"a": {"sampling": "dense", "stride": (2, 9), "flip": True}, "b": {"jitter": (0.3,) * 4}}
    differ = []
    for seed in range(8):
        plain = load(seed)
        np.testing.assert_array_equal(load(seed, source="c", by_source=own), plain)
        differ.append((load(seed, source="b", by_source=own) != plain).any())
        expected = load(seed, sampling="dense", stride=(2, 9), flip=True)
        np.testing.assert_array_equal(load(seed, source="a", by_source=own), expected)
    assert all(differ)


def test_fields_that_may_differ_by_source():
    assert clips.BY_SOURCE_FIELDS == (
        *("sampling", "stride", "crop", "crop_scales", "crop_area", "crop_aspect"),
        *("jitter", "flip"),
    )


def test_clips_of_one_decode_equal_clips_decoded_separately(load, monkeypatch):
    config = common.data()
    config.update(frames=4, size=24, short_side=40, crop_scales=(1.0, 0.75), jitter=(0.2,) * 4)
    make = clips.LoadClip.from_config(config)
    record = manifest.VideoRecord(3, load.path, "a", 0.4, 2.0, {"label_x": 7})
    seeds = ((0, 12, 0, 0), (0, 13, 0, 0), (0, 14, 0, 0))
    alone = [make(record, (seed,)) for seed in seeds]
    opened, decoded = [], []
    open_file, seek_and_decode = demux.open_stream, decode._seek_and_decode

    def count_frames(*arguments):
        for number, frame in seek_and_decode(*arguments):
            decoded.append(number)
            yield number, frame

    monkeypatch.setattr(demux, "open_stream", lambda source: opened.append(1) or open_file(source))
    monkeypatch.setattr(decode, "_seek_and_decode", count_frames)
    together = make(record, seeds)
    assert len(opened) == 1 and len(set(decoded)) == len(decoded) <= 12
    for name, values in together.items():
        assert len(values) == 3
        np.testing.assert_array_equal(values, np.concatenate([one[name] for one in alone]))
    videos = together["video"]
    assert (videos[0] != videos[1]).any() and (videos[1] != videos[2]).any()


def test_errors_of_pyav_are_bad_videos_and_bugs_are_raised(load, monkeypatch):
    def reformat_badly(self, number, frame, *window):
        return frame.reformat(format="nonsense")

    monkeypatch.setattr(frame_converter.FrameConverter, "__call__", reformat_badly)
    record = manifest.VideoRecord(0, load.path, "a", None, None, {})
    config = common.data()
    config.update(frames=4, size=48, short_side=48)
    made = clips.LoadClip.from_config(config)(record, (None,))
    assert made.kind == "corrupt" and made.reason.startswith(f"{load.path}: ValueError: ")
    monkeypatch.setattr(frame_converter.FrameConverter, "__call__", lambda *_: int("our mistake"))
    with pytest.raises(ValueError, match="our mistake"):
        clips.LoadClip.from_config(config)(record, (None,))


def test_bad_clip_has_no_secret_of_its_address():
    path = "memory://me:password@data/none.mp4?token=abc"
    record = manifest.VideoRecord(0, path, "a", None, None, {})
    config = common.data()
    config.update(frames=4, size=48, short_side=48)
    made = clips.LoadClip.from_config(config)(record, (None,))
    assert made.path == record.name == "memory://REDACTED@data/none.mp4?token=REDACTED"
    assert made.path in made.reason
    assert "password" not in made.reason and "abc" not in made.reason


def test_results_of_workers_that_no_call_returns_are_not_valid(load):
    config = common.data()
    config.update(frames=4, size=24, short_side=40)
    make = clips.LoadClip.from_config(config)
    record = manifest.VideoRecord(3, load.path, "a", None, None, {"label_x": 7})
    task = (record, (None, None))
    result = make(*task)
    assert make.is_valid(result, *task)
    assert make.is_valid(clips.BadClip(load.path, "corrupt", "broken"), *task)
    for changed in (
        *(None, {}, [], {**result, "more": result["index"]}, {**result, "label_x": 7}),
        {**result, "video": result["video"][:1]},
        {**result, "video": result["video"].astype(np.int32)},
        {**result, "label_x": result["label_x"] + 1},
        clips.BadClip("/etc/passwd", "corrupt", "broken"),
    ):
        assert not make.is_valid(changed, *task)


@pytest.mark.parametrize(
    ("fields", "missing"),
    [
        ({"sampling": "dense", "stride": (19, 19)}, 0),  # spans 58 frames
        ({"sampling": "dense", "stride": (2, 20)}, 1),  # up to 61 frames
        ({"frames": 60}, 0),
        ({"frames": 72}, 12),
    ],
)
def test_frames_that_a_video_lacks_are_reported(load, fields, missing):
    config = common.data()
    config.update(frames=4, size=24, short_side=40)
    config.update(**fields)
    record = manifest.VideoRecord(0, load.path, "a", None, None, {})
    result = clips.LoadClip.from_config(config)(record, (None, None))
    assert result[clips.MISSING_FRAMES].tolist() == [missing] * 2  # the video has 60 frames
