import os
import struct
from pathlib import Path

import av
import numpy as np
import pytest
from fakes import FixedSampler

from invnext_jax.data import decode
from invnext_jax.data.clips import read_clips
from invnext_jax.data.manifest import VideoRecord
from invnext_jax.video import frame_converter

X264 = {"preset": "ultrafast", "bf": "3", "b-pyramid": "normal"}
X265 = {"preset": "ultrafast", "x265-params": "log-level=none:keyint=12:min-keyint=12:bframes=3"}
KINDS = {
    "h264_gop12.mp4": {"options": {**X264, "g": "12"}},
    "h264_gop250.mp4": {"options": {**X264, "g": "250"}},
    "h264_gop12.mkv": {"options": {**X264, "g": "12"}},
    "h264_gop12.ts": {"options": {**X264, "g": "12"}},
    "hevc_open_gop12.mp4": {"codec": "libx265", "options": X265},
    "vp9_gop12.webm": {"codec": "libvpx-vp9", "options": {"g": "12", "cpu-used": "8"}},
    "mpeg4_gop12.avi": {"codec": "mpeg4", "options": {"g": "12", "bf": "2"}},
    "mpeg4_gop250.mp4": {"codec": "mpeg4", "options": {"g": "250", "bf": "2"}},
}


def pick(*numbers):
    return lambda _: numbers


def row_of(path):
    return VideoRecord(0, str(path), "a", None, None, {})


@pytest.mark.parametrize("name", KINDS)
def test_frames_are_exact_in_every_order(name, tmp_path, videos):
    path = videos.write(tmp_path / name, **KINDS[name])
    counts = []
    frames = decode.read_frames(path, lambda n: counts.append(n) or range(n))
    assert counts == [60]
    assert frames.dtype == np.uint8 and frames.shape == (60, 48, 80, 3)
    assert videos.numbers(frames) == list(range(60))
    for requested in ([59], [0, 59], [13, 14, 40], [40, 3, 3, 27], [11, 12, 23, 24, 35, 36]):
        assert videos.numbers(decode.read_frames(path, pick(*requested))) == requested


def test_bytes_are_read_like_a_file(tmp_path, videos):
    path = videos.write(tmp_path / "a.mp4")
    frames = decode.read_frames(path.read_bytes(), pick(7, 31))
    np.testing.assert_array_equal(frames, decode.read_frames(path, pick(7, 31)))


def test_variable_frame_rate_is_counted_in_frames(tmp_path, videos):
    times = np.cumsum([1 + 4 * (i % 7 == 0) for i in range(60)])
    path = videos.write(tmp_path / "a.mp4", times=times.tolist(), options={**X264, "g": "12"})
    assert videos.numbers(decode.read_frames(path, pick(0, 8, 9, 44, 59))) == [0, 8, 9, 44, 59]


def test_start_and_end_are_seconds(tmp_path, videos):
    path = videos.write(tmp_path / "a.mp4", options={**X264, "g": "12"})  # 25 frames per second
    full = lambda n: range(n)  # noqa: E731
    assert videos.numbers(decode.read_frames(path, full, start=1.0, end=1.4)) == [*range(25, 35)]
    assert videos.numbers(decode.read_frames(path, full, start=2.2)) == [55, 56, 57, 58, 59]
    assert videos.numbers(decode.read_frames(path, full, end=0.2)) == [0, 1, 2, 3, 4]
    with pytest.raises(decode.BadVideo, match="no frame between"):
        decode.read_frames(path, full, start=3.0)


def test_frames_cut_by_an_edit_list_do_not_count(tmp_path, videos, edit_start):
    path = videos.write(tmp_path / "a.mp4", options={"preset": "ultrafast", "bf": "0", "g": "12"})
    assert videos.numbers(decode.read_frames(edit_start(path, 5), range)) == list(range(5, 60))


def turn(data, matrix):
    """Returns an mp4 file with a rotation in its header."""

    def pack(a, b, c, d):
        one = 0x10000
        return struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 0x40000000)

    at = data.index(pack(1, 0, 0, 1), data.index(b"tkhd"))
    return data[:at] + pack(*matrix) + data[at + 36 :]


MATRICES = {-1: (0, 1, -1, 0), 2: (-1, 0, 0, -1), 1: (0, -1, 1, 0)}


@pytest.mark.parametrize("turns", MATRICES)
def test_rotated_video_is_returned_upright(turns, tmp_path, videos):
    data = videos.write(tmp_path / "a.mp4").read_bytes()
    plain = decode.read_frames(data, pick(9))
    upright = decode.read_frames(turn(data, MATRICES[turns]), pick(9))
    np.testing.assert_array_equal(upright[0], np.rot90(plain[0], turns))


@pytest.mark.parametrize(
    ("size", "pix_fmt"), [((47, 79), "yuv444p"), ((48, 80), "gray"), ((48, 80), "yuv420p10le")]
)
def test_odd_sizes_gray_and_ten_bits(size, pix_fmt, tmp_path, videos):
    path = videos.write(tmp_path / "a.mp4", size=size, pix_fmt=pix_fmt, frames=20)
    frames = decode.read_frames(path, pick(3, 19))
    assert frames.shape == (2, *size, 3)
    assert videos.numbers(frames) == [3, 19]


def test_short_side_scales_down_and_never_up(tmp_path, videos):
    path = videos.write(tmp_path / "a.mp4", frames=20)
    small = decode.read_frames(path, pick(5, 18), short_side=24)
    assert small.shape == (2, 24, 40, 3)
    assert videos.numbers(small) == [5, 18]
    assert decode.read_frames(path, pick(5), short_side=100).shape == (1, 48, 80, 3)


def write_smooth(path, height, width, pix_fmt):
    """Writes three frames with smooth gradients, which all resampling methods preserve."""
    y, x = np.mgrid[:height, :width]
    red, green = 255 * x / (width - 1), 255 * y / (height - 1)
    image = np.stack([red, green, 127 + 100 * np.sin(x / 25) * np.cos(y / 30)], -1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        stream.options = {"crf": "1", "preset": "ultrafast"}
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image.astype(np.uint8))))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("turns", [0, *MATRICES])
@pytest.mark.parametrize(
    ("height", "width", "pix_fmt"),
    [
        (256, 340, "yuv420p"),
        (480, 640, "yuv420p10le"),
        (243, 321, "yuv444p"),
        (256, 340, "gray"),
        (340, 256, "yuvj420p"),
    ],
)
def test_a_window_equals_the_crop_of_the_full_frame(height, width, pix_fmt, turns, tmp_path):
    """The tolerance is two or three levels of the scaler. A shifted window would exceed it."""
    path = write_smooth(tmp_path / "a.mp4", height, width, pix_fmt)
    if turns:
        path.write_bytes(turn(path.read_bytes(), MATRICES[turns]))
    full = decode.read_frames(path, pick(1), short_side=256)
    high, wide = full.shape[1:3]
    windows = [
        frame_converter.Window(0, 0, wide, high),
        frame_converter.Window(31, 17, 199, 241),
        frame_converter.Window(wide - 150, high - 201, wide, high),
    ]
    sampler = FixedSampler(np.ones((3, 2), int), windows, 112)
    clips = read_clips(row_of(path), sampler, 256)
    assert sampler.frame_sizes == [(high, wide)] and clips.shape == (3, 2, 112, 112, 3)
    np.testing.assert_array_equal(clips[:, 0], clips[:, 1])
    for clip, window in zip(clips[:, 0], windows, strict=True):
        expected = frame_converter.resize(full, window, 112)[0].astype(int)
        apart = np.abs(clip - expected)
        assert apart.mean() < 3 and apart.max() < 20
        assert np.abs((clip - expected).mean((0, 1))).max() < 3


def test_a_window_that_is_not_resized_keeps_the_pixels(tmp_path, videos):
    """At an odd position, the window starts one pixel earlier and has the same size."""
    path = videos.write(tmp_path / "a.mp4")
    full = decode.read_frames(path, pick(3, 8))
    for window in (frame_converter.Window(20, 4, 52, 36), frame_converter.Window(21, 5, 53, 37)):
        (clip,) = read_clips(row_of(path), FixedSampler([[3, 8]], [window], 32), None)
        np.testing.assert_array_equal(clip, full[:, 4:36, 20:52])


def test_windows_of_tiny_frames(tmp_path, videos):
    path = videos.write(tmp_path / "a.mp4", size=(16, 16), frames=2)
    for window in (frame_converter.Window(0, 0, 16, 16), frame_converter.Window(15, 3, 16, 4)):
        clip = read_clips(row_of(path), FixedSampler([[1]], [window], 8), None)
        assert clip.shape == (1, 1, 8, 8, 3)


def test_bad_files_are_named_with_a_reason(tmp_path, videos):
    full = videos.write(tmp_path / "a.mp4", container={"movflags": "faststart"}).read_bytes()
    late_index = videos.write(tmp_path / "b.mp4").read_bytes()
    avi = videos.write(tmp_path / "c.avi", codec="mpeg4").read_bytes()
    sound = videos.write_audio(tmp_path / "sound.mp4").read_bytes()
    bad = {
        "empty.mp4": (b"", "corrupt"),
        "text.mp4": (b"this is no video\n" * 50, "corrupt"),
        "zeros.mp4": (bytes(5000), "corrupt"),
        "truncated.mp4": (full[: len(full) // 2], "truncated"),
        "no_index.mp4": (late_index[: len(late_index) // 2], "corrupt"),
        "truncated.avi": (avi[: len(avi) // 2], "corrupt"),
        "only_sound.mp4": (sound, "no video stream"),
    }
    for name, (data, kind) in bad.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(decode.BadVideo, match=name.replace(".", r"\.")) as caught:
            decode.read_frames(tmp_path / name, lambda n: range(n))
        assert caught.value.kind == kind, name
    for missing in (tmp_path / "missing.mp4", tmp_path):
        with pytest.raises(decode.BadVideo) as caught:
            decode.read_frames(missing, pick(0))
        assert caught.value.kind == "missing"
    with pytest.raises(decode.BadVideo) as caught:
        decode.read_frames(tmp_path / "b.mp4", pick(0), start=99.0)
    assert caught.value.kind == "empty range"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_missing_permission_is_not_reported_as_corruption(tmp_path, videos):
    path = videos.write(tmp_path / "a.mp4")
    path.chmod(0)
    with pytest.raises(decode.BadVideo) as caught:
        decode.read_frames(path, pick(0))
    assert caught.value.kind == "permission"


@pytest.mark.parametrize("name", ["h264_gop12.mp4", "vp9_gop12.webm", "mpeg4_gop12.avi"])
def test_damaged_bytes_raise_nothing_but_bad_video(name, tmp_path, videos):
    data = videos.write(tmp_path / name, **KINDS[name]).read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(40):
        damaged = bytearray(data)
        for at in rng.integers(0, len(data), rng.integers(1, 30)):
            damaged[at] = rng.integers(256)
        try:
            frames = decode.read_frames(bytes(damaged), lambda n: [0, n // 2, n - 1])
            assert frames.shape[0] == 3
        except decode.BadVideo:
            pass


def test_relative_names_with_colons_and_other_characters_are_files(videos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = videos.write(tmp_path / "made.mp4", frames=8)
    for name in ("a:b.mp4", "http:c.mp4", "concat:d|e.mp4", " f\ng .mp4", "%03d.mp4", "\udcff.mp4"):
        made = made.rename(tmp_path / name)
        for source in (name, Path(name), str(made)):
            frames = decode.read_frames(source, lambda count: [0, count - 1])
            assert videos.numbers(frames) == [0, 7]
    with pytest.raises(decode.BadVideo, match=r"^gone:1\.mp4: "):
        decode.read_frames("gone:1.mp4", range)
