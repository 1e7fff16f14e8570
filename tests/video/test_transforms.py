import colorsys

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from invnext_jax.data import clips
from invnext_jax.video import color_jitter, frame_converter
from invnext_jax.video.frame_converter import Window


def ramp(height, width, frames=2):
    """Returns a clip whose red is the column, green the row and blue the frame number."""
    video = np.zeros((frames, height, width, 3), np.uint8)
    video[..., 0] = np.arange(width)
    video[..., 1] = np.arange(height)[:, None]
    video[..., 2] = np.arange(frames)[:, None, None]
    return video


def multi_scale_crop(video, size, scales, rng):
    window = frame_converter.sample_multi_scale_crop(*video.shape[1:3], size, scales, rng)
    return frame_converter.resize(video, window, size)


def random_resized_crop(video, size, area, aspect, rng):
    window = frame_converter.sample_random_resized_crop(*video.shape[1:3], area, aspect, rng)
    return frame_converter.resize(video, window, size)


def resize_center(video, size):
    return frame_converter.resize(video, frame_converter.square_crop(*video.shape[1:3]), size)


def test_multi_scale_crop_is_the_same_for_all_frames(monkeypatch):
    rng, video = np.random.default_rng(0), ramp(100, 160)
    windows, resize = set(), frame_converter.resize

    def spy(frames, box, size):
        windows.add(box)
        return resize(frames, box, size)

    monkeypatch.setattr(frame_converter, "resize", spy)
    for _ in range(600):
        got = multi_scale_crop(video, 32, (1.0, 0.875, 0.75, 0.66), rng)
        assert got.shape == (2, 32, 32, 3) and got.dtype == np.uint8
        np.testing.assert_array_equal(got[0, ..., :2], got[1, ..., :2])
    assert all(0 <= x0 < x1 <= 160 and 0 <= y0 < y1 <= 100 for x0, y0, x1, y1 in windows)
    sizes = {(x1 - x0, y1 - y0) for x0, y0, x1, y1 in windows}
    sides = (100, 88, 75, 66)  # the two sides differ by at most one scale
    assert sizes == {
        (w, h) for i, w in enumerate(sides) for j, h in enumerate(sides) if abs(i - j) < 2
    }


def test_multi_scale_crop_uses_thirteen_positions():
    rng, video = np.random.default_rng(0), ramp(96, 128)
    starts = set()
    for _ in range(400):
        got = multi_scale_crop(video, 64, (64 / 96,), rng)
        starts.add((int(got[0, 0, 0, 0]), int(got[0, 0, 0, 1])))
    fourths = [(x, y) for x in range(5) for y in range(5) if x % 2 == y % 2]
    assert starts == {(x * 16, y * 8) for x, y in fourths}


def test_a_window_of_the_requested_size_is_not_resampled():
    video = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(multi_scale_crop(video, 32, (1.0,), rng), video)
    np.testing.assert_array_equal(resize_center(video, 32), video)


def test_center_crop_and_resize_equal_pillow():
    video = np.random.default_rng(0).integers(0, 256, (2, 40, 64, 3)).astype(np.uint8)
    got = resize_center(video, 24)
    for frame, image in zip(video, got, strict=True):
        cut = Image.fromarray(frame).crop((12, 0, 52, 40))
        np.testing.assert_array_equal(image, np.asarray(cut.resize((24, 24), Image.BILINEAR)))


@pytest.mark.parametrize("shape", [(20, 30), (30, 20), (25, 25)])
def test_small_videos_are_scaled_up_to_the_size(shape):
    video = ramp(*shape)
    assert resize_center(video, 32).shape == (2, 32, 32, 3)
    rng = np.random.default_rng(0)
    assert multi_scale_crop(video, 32, (1.0, 0.75), rng).shape == (2, 32, 32, 3)


def test_flip_mirrors_left_and_right():
    video, transform = ramp(4, 6), clips.ClipTransform(flip=True)
    flipped = [transform.augment(video, np.random.default_rng(seed)) for seed in range(8)]
    rows = {tuple(clip[0, 0, :, 0].tolist()) for clip in flipped}
    assert rows == {(0, 1, 2, 3, 4, 5), (5, 4, 3, 2, 1, 0)}


def test_random_resized_crop_keeps_area_aspect_and_position_in_range(monkeypatch):
    rng, video = np.random.default_rng(0), ramp(90, 160)
    boxes, resize = [], frame_converter.resize
    monkeypatch.setattr(
        frame_converter, "resize", lambda v, b, s: boxes.append(b) or resize(v, b, s)
    )
    for _ in range(500):
        got = random_resized_crop(video, 16, (0.1, 0.5), (0.5, 2.0), rng)
        assert got.shape == (2, 16, 16, 3) and got.dtype == np.uint8
        np.testing.assert_array_equal(got[0, ..., :2], got[1, ..., :2])
    x0, y0, x1, y1 = np.array(boxes).T
    assert (x0 >= 0).all() and (y0 >= 0).all() and (x1 <= 160).all() and (y1 <= 90).all()
    area, aspect = (x1 - x0) * (y1 - y0) / (90 * 160), (x1 - x0) / (y1 - y0)
    assert area.min() == pytest.approx(0.1, abs=0.01) and area.max() == pytest.approx(0.5, abs=0.02)
    assert aspect.min() == pytest.approx(0.5, rel=0.05) and aspect.max() == pytest.approx(
        2, rel=0.05
    )
    assert {0, 160} <= {*x0.tolist(), *x1.tolist()} and {0, 90} <= {*y0.tolist(), *y1.tolist()}


@pytest.mark.parametrize(
    ("shape", "box"), [((40, 200), (60, 0, 140, 40)), ((200, 40), (0, 60, 40, 140))]
)
def test_random_resized_crop_of_an_elongated_frame_is_centred(shape, box):
    video, rng = ramp(*shape), np.random.default_rng(0)
    got = random_resized_crop(video, 16, (1.0, 1.0), (0.5, 2.0), rng)
    np.testing.assert_array_equal(got, frame_converter.resize(video, Window(*box), 16))


def test_random_resized_crop_of_everything_is_a_resize():
    video = np.random.default_rng(0).integers(0, 256, (2, 40, 40, 3)).astype(np.uint8)
    rng = np.random.default_rng(0)
    got = random_resized_crop(video, 24, (1.0, 1.0), (1.0, 1.0), rng)
    np.testing.assert_array_equal(got, resize_center(video, 24))


def colors(count=4000):
    """Returns a frame with random colors, grays and the corners of the color cube."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, 3))
    pixels[:256] = np.arange(256)[:, None]
    pixels[256:264] = [[r, g, b] for r in (0, 255) for g in (0, 255) for b in (0, 255)]
    return pixels.astype(np.uint8).reshape(1, 40, -1, 3)


@pytest.mark.parametrize("factor", [0.0, 0.4, 1.0, 1.7])
@pytest.mark.parametrize(
    ("change", "enhance"),
    [("_brightness", "Brightness"), ("_contrast", "Contrast"), ("_saturation", "Color")],
)
def test_brightness_contrast_and_saturation_equal_pillow(change, enhance, factor):
    video = colors()
    expected = getattr(ImageEnhance, enhance)(Image.fromarray(video[0])).enhance(factor)
    actual = getattr(color_jitter, change)(video.astype(np.float32), np.float32(factor))
    # Pillow rounds gray values and truncates the results.
    np.testing.assert_allclose(np.clip(actual[0], 0, 255), np.asarray(expected), atol=1.8)


@pytest.mark.parametrize("turn", [-0.5, -0.1, 0.0, 0.25, 1 / 3])
def test_hue_equals_colorsys(turn):
    video = colors()
    actual = color_jitter._hue(video.astype(np.float32), np.float32(turn))
    for pixel, got in zip(video.reshape(-1, 3), actual.reshape(-1, 3), strict=True):
        h, s, v = colorsys.rgb_to_hsv(*(pixel / 255))
        want = np.array(colorsys.hsv_to_rgb((h + turn) % 1, s, v)) * 255
        np.testing.assert_allclose(got, want, atol=1e-2)


def test_jitter_depends_on_the_seed_and_is_the_same_for_all_frames():
    video = np.repeat(colors(), 3, axis=0)
    strengths = (0.4, 0.4, 0.4, 0.1)
    draws = [
        color_jitter.jitter_colors(video, strengths, np.random.default_rng(seed))
        for seed in (0, 0, 1)
    ]
    assert draws[0].dtype == np.uint8 and draws[0].shape == video.shape
    np.testing.assert_array_equal(draws[0], draws[1])
    assert (draws[0] != draws[2]).any()
    np.testing.assert_array_equal(draws[0][0], draws[0][2])


def test_each_jitter_strength_changes_only_its_property():
    gray = np.full((1, 4, 4, 3), 100, np.uint8)
    rng = np.random.default_rng(0)
    levels = [
        int(color_jitter.jitter_colors(gray, (0.5, 0, 0, 0), rng)[0, 0, 0, 0]) for _ in range(400)
    ]
    assert 50 <= min(levels) < 53 and 147 < max(levels) <= 150
    for strengths in ((0, 0.5, 0, 0), (0, 0, 0.5, 0), (0, 0, 0, 0.5), (0, 0, 0, 0)):
        np.testing.assert_array_equal(color_jitter.jitter_colors(gray, strengths, rng), gray)
    video = colors()
    turned = color_jitter.jitter_colors(video, (0, 0, 0, 0.5), rng)
    np.testing.assert_array_equal(turned.max(-1), video.max(-1))
    np.testing.assert_array_equal(turned.min(-1), video.min(-1))


def test_sparse_sampling_takes_the_centre_of_each_segment():
    assert clips.sample_sparse(80, 8, None).tolist() == [5, 15, 25, 35, 45, 55, 65, 75]
    assert clips.sample_sparse(8, 8, None).tolist() == list(range(8))


def test_random_sparse_sampling_covers_each_segment():
    rng = np.random.default_rng(0)
    draws = np.stack([clips.sample_sparse(40, 4, rng) for _ in range(500)])
    assert (draws // 10 == np.arange(4)).all()
    assert all(len(np.unique(column)) == 10 for column in draws.T)
    assert clips.sample_sparse(8, 8, rng).tolist() == list(range(8))


@pytest.mark.parametrize("count", [1, 3, 7])
def test_short_videos_repeat_frames_in_order(count):
    for rng in (None, np.random.default_rng(1)):
        index = clips.sample_sparse(count, 8, rng)
        assert (np.diff(index) >= 0).all() and set(index) <= set(range(count))
        if rng is None:
            assert set(index) == set(range(count))
    # Each frame of a video of half the length is sampled twice.
    twice = clips.sample_sparse(4, 8, np.random.default_rng(2))
    assert twice.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_dense_sampling_keeps_its_stride_and_takes_the_middle():
    assert clips.sample_dense(100, 4, (5, 5), None).tolist() == [42, 47, 52, 57]
    assert clips.sample_dense(16, 4, (5, 5), None).tolist() == [0, 5, 10, 15]
    assert clips.sample_dense(100, 3, (2, 6), None).tolist() == [45, 49, 53]


def test_dense_sampling_repeats_the_last_frame_past_the_end():
    for rng in (None, np.random.default_rng(0)):
        assert clips.sample_dense(8, 6, (3, 3), rng).tolist() == [0, 3, 6, 7, 7, 7]
        assert clips.sample_dense(1, 4, (4, 4), rng).tolist() == [0, 0, 0, 0]


def test_random_dense_sampling_draws_every_stride_and_start():
    rng = np.random.default_rng(0)
    draws = np.stack([clips.sample_dense(40, 4, (2, 4), rng) for _ in range(1000)])
    strides = np.diff(draws)
    assert (strides == strides[:, :1]).all() and draws.min() == 0 and draws.max() == 39
    for stride in (2, 3, 4):
        assert set(draws[strides[:, 0] == stride, 0]) == set(range(40 - 3 * stride))
    again = np.random.default_rng(0)
    np.testing.assert_array_equal(clips.sample_dense(40, 4, (2, 4), again), draws[0])
