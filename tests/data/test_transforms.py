import numpy as np
import pytest
from PIL import Image

from invnext_jax.data import transforms


def ramp(height, width, frames=2):
    """Red is the column, green the row, blue the frame."""
    video = np.zeros((frames, height, width, 3), np.uint8)
    video[..., 0] = np.arange(width)
    video[..., 1] = np.arange(height)[:, None]
    video[..., 2] = np.arange(frames)[:, None, None]
    return video


def test_multi_scale_crop_cuts_all_frames_alike(monkeypatch):
    rng, video = np.random.default_rng(0), ramp(100, 160)
    windows, resize = set(), transforms._resize

    def spy(frames, box, size):
        windows.add(box)
        return resize(frames, box, size)

    monkeypatch.setattr(transforms, "_resize", spy)
    for _ in range(600):
        got = transforms.multi_scale_crop(video, 32, (1.0, 0.875, 0.75, 0.66), rng)
        assert got.shape == (2, 32, 32, 3) and got.dtype == np.uint8
        np.testing.assert_array_equal(got[0, ..., :2], got[1, ..., :2])
    assert all(0 <= x0 < x1 <= 160 and 0 <= y0 < y1 <= 100 for x0, y0, x1, y1 in windows)
    sizes = {(x1 - x0, y1 - y0) for x0, y0, x1, y1 in windows}
    sides = (100, 88, 75, 66)  # at most one scale apart
    assert sizes == {
        (w, h) for i, w in enumerate(sides) for j, h in enumerate(sides) if abs(i - j) < 2
    }


def test_multi_scale_crop_uses_the_thirteen_places():
    rng, video = np.random.default_rng(0), ramp(96, 128)
    starts = set()
    for _ in range(400):
        got = transforms.multi_scale_crop(video, 64, (64 / 96,), rng)
        starts.add((int(got[0, 0, 0, 0]), int(got[0, 0, 0, 1])))
    fourths = [(x, y) for x in range(5) for y in range(5) if x % 2 == y % 2]
    assert starts == {(x * 16, y * 8) for x, y in fourths}


def test_a_window_of_the_wanted_size_is_not_resampled():
    video = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(transforms.multi_scale_crop(video, 32, (1.0,), rng), video)
    np.testing.assert_array_equal(transforms.resize_center(video, 32), video)


def test_resize_center_is_pillows_crop_and_resize():
    video = np.random.default_rng(0).integers(0, 256, (2, 40, 64, 3)).astype(np.uint8)
    got = transforms.resize_center(video, 24)
    for frame, image in zip(video, got, strict=True):
        cut = Image.fromarray(frame).crop((12, 0, 52, 40))
        np.testing.assert_array_equal(image, np.asarray(cut.resize((24, 24), Image.BILINEAR)))


@pytest.mark.parametrize("shape", [(20, 30), (30, 20), (25, 25)])
def test_small_videos_are_scaled_up_to_the_size(shape):
    video = ramp(*shape)
    assert transforms.resize_center(video, 32).shape == (2, 32, 32, 3)
    rng = np.random.default_rng(0)
    assert transforms.multi_scale_crop(video, 32, (1.0, 0.75), rng).shape == (2, 32, 32, 3)


def test_flip_mirrors_left_and_right():
    video = ramp(4, 6)
    np.testing.assert_array_equal(transforms.flip(video)[0, 0, :, 0], [5, 4, 3, 2, 1, 0])
    np.testing.assert_array_equal(transforms.flip(transforms.flip(video)), video)
