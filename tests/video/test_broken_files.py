"""Broken or unusual files: each is decoded exactly or raises BadVideo, within seconds."""

import struct
import subprocess
import sys
import textwrap
import time

import av
import numpy as np
import pytest

from invnext_jax.data import clips, decode
from invnext_jax.video import demux

SECONDS = 5
CODECS = {
    "h264": {"options": {"preset": "ultrafast", "bf": "3", "g": "12"}},
    "hevc": {
        "codec": "libx265",
        "options": {"preset": "ultrafast", "x265-params": "log-level=none:keyint=12:bframes=3"},
    },
    "vp9": {"codec": "libvpx-vp9", "options": {"g": "12", "cpu-used": "8"}},
    "av1": {"codec": "libsvtav1", "size": (64, 80), "options": {"preset": "12", "g": "12"}},
    "mpeg4": {"codec": "mpeg4", "options": {"g": "12", "bf": "2"}},
}


def write(videos, path, codec, **extra):
    fields = {**CODECS[codec], **extra}
    try:
        av.Codec(fields.get("codec", "libx264"), "w")
    except av.codec.codec.UnknownCodecError:
        pytest.skip(f"this PyAV cannot encode {codec}")
    return videos.write(path, **fields)


def reason(source, **fields):
    """Returns the error for `source`, which must be raised within seconds."""
    begin = time.monotonic()
    with pytest.raises(decode.BadVideo) as caught:
        decode.read_frames(source, range, **fields)
    assert time.monotonic() - begin < SECONDS
    return str(caught.value)


def patched(data, marker, offset, form, *values):
    """Returns `data` with `values` written some bytes after the first `marker`."""
    at = data.index(marker) + offset
    new = struct.pack(form, *values)
    return data[:at] + new + data[at + len(new) :]


@pytest.mark.parametrize("content", [b"", b"\x00", b"this is no video\n" * 50, bytes(5000)])
def test_files_that_are_not_videos_are_refused(content, tmp_path):
    (tmp_path / "a.mp4").write_bytes(content)
    assert "a.mp4" in reason(tmp_path / "a.mp4")


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    assert "missing.mp4" in reason(tmp_path / "missing.mp4")
    reason(tmp_path)


@pytest.mark.parametrize(
    ("codec", "ending"),
    [("h264", "mp4"), ("hevc", "mp4"), ("vp9", "webm"), ("av1", "mkv"), ("mpeg4", "avi")],
)
def test_a_truncated_header_is_refused(codec, ending, tmp_path, videos):
    data = write(videos, tmp_path / f"a.{ending}", codec).read_bytes()
    for cut in (20, 40, 200):
        reason(data[cut:])


@pytest.mark.parametrize("share", [0.5, 0.7, 0.9])
@pytest.mark.parametrize(
    ("codec", "ending"),
    [
        *[(codec, "mp4") for codec in CODECS],
        *[("vp9", "webm"), ("av1", "webm"), ("h264", "mkv"), ("hevc", "mkv")],
        *[("mpeg4", "avi"), ("h264", "avi")],
    ],
)
def test_a_truncated_file_is_refused(codec, ending, share, tmp_path, videos):
    front = {"container": {"movflags": "faststart"}} if ending == "mp4" else {}
    data = write(videos, tmp_path / f"a.{ending}", codec, **front).read_bytes()
    # An AVI file without the index at its end can still be decoded.
    length = data.index(b"idx1") if ending == "avi" else len(data)
    if ending == "avi":
        assert videos.numbers(decode.read_frames(data[:length], range)) == [*range(60)]
    reason(data[: int(share * length)])


def test_a_truncated_file_with_its_index_at_the_end_is_refused(tmp_path, videos):
    data = write(videos, tmp_path / "a.mp4", "h264").read_bytes()
    reason(data[: len(data) * 9 // 10])


def test_a_file_with_only_audio_is_refused(tmp_path, videos):
    assert "no video stream" in reason(videos.write_audio(tmp_path / "a.mp4"))


@pytest.mark.parametrize("ending", ["mkv", "webm"])
def test_a_wrong_duration_in_the_header_is_ignored(ending, tmp_path, videos):
    data = write(videos, tmp_path / f"a.{ending}", "vp9").read_bytes()
    for seconds in (0.1, 9.0, 1e9):  # a screen recording may end with a long still
        lie = patched(data, b"\x44\x89\x88", 3, ">d", 1000 * seconds)
        assert lie != data and videos.numbers(decode.read_frames(lie, range)) == [*range(60)]


def test_matroska_of_unknown_length_decodes(tmp_path, videos):
    data = write(videos, tmp_path / "a.mkv", "h264").read_bytes()
    lie = patched(data, demux.SEGMENT, 4, ">Q", 2**57 - 1)
    assert videos.numbers(decode.read_frames(lie, range)) == [*range(60)]


@pytest.mark.parametrize("codec", CODECS)
def test_one_frame_is_repeated(codec, tmp_path, videos):
    # With B-frames, x265 writes a random decoding time for a single frame.
    no_b = {"options": {"x265-params": "log-level=none:bframes=0"}} if codec == "hevc" else {}
    path = write(videos, tmp_path / "a.mp4", codec, frames=1, **no_b)
    frames = decode.read_frames(path, lambda n: clips.sample_sparse(n, 8, None))
    assert videos.numbers(frames) == [0] * 8
    frames = decode.read_frames(path, lambda n: clips.sample_dense(n, 8, (4, 4), None))
    assert videos.numbers(frames) == [0] * 8


@pytest.mark.parametrize("codec", ["h264", "hevc", "vp9", "mpeg4"])
def test_a_tiny_frame_decodes(codec, tmp_path, videos):
    path = write(videos, tmp_path / "a.mp4", codec, size=(16, 16), frames=9)
    frames = decode.read_frames(path, range, short_side=256)
    assert frames.shape == (9, 16, 16, 3)
    bit = [image_hwc.mean() > 127 for image_hwc in frames]  # the frame is one block
    assert bit == [bool(number & 1) for number in range(9)]


def test_8k_decodes_in_bounded_memory_and_more_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 7680, 4320, "yuv420p"
        for level in (50, 200):
            frame = av.VideoFrame(7680, 4320, "yuv420p")
            for plane, value in zip(frame.planes, (level, 128, 128), strict=True):
                plane.update(bytes([value]) * plane.buffer_size)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    code = f"""
        import resource
        from invnext_jax.data import decode
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        frames = decode.read_frames({str(path)!r}, lambda n: [0, 1] * 8, short_side=256)
        assert frames.shape == (16, 256, 455, 3), frames.shape
        assert frames[0].max() < 60 < 180 < frames[1].min()
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
    """
    code = [sys.executable, "-c", textwrap.dedent(code)]
    megabytes = int(subprocess.run(code, check=True, capture_output=True, text=True).stdout)
    assert megabytes < 400  # a frame takes 50 MB, and the decoder holds a few
    monkeypatch.setattr(demux, "MAX_PIXELS", 2**24)
    assert "max pixel count" in reason(path, short_side=256)


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_large_codec_parameters_are_refused(ending, tmp_path, videos, monkeypatch):
    path = write(videos, tmp_path / f"a.{ending}", "h264")
    with av.open(path) as container:
        size = container.streams.video[0].codec_context.extradata_size
    monkeypatch.setattr(demux, "MAX_EXTRADATA_BYTES", size)
    assert len(decode.read_frames(path, lambda _: [0])) == 1
    monkeypatch.setattr(demux, "MAX_EXTRADATA_BYTES", size - 1)
    assert reason(path) == f"{path}: {size} bytes of codec parameters"


@pytest.mark.parametrize(("codec", "ending"), [("vp9", "webm"), ("h264", "mkv"), ("mpeg4", "avi")])
def test_a_wrong_file_extension_is_ignored(codec, ending, tmp_path, videos):
    path = write(videos, tmp_path / f"a.{ending}", codec)
    path = path.rename(tmp_path / "b.mp4")
    assert videos.numbers(decode.read_frames(path, lambda _: [3, 50])) == [3, 50]


@pytest.mark.parametrize("codec", CODECS)
def test_random_bytes_in_packets_are_refused(codec, tmp_path, videos):
    front = {"container": {"movflags": "faststart"}}
    data = write(videos, tmp_path / "a.mp4", codec, **front).read_bytes()
    begin, rng = data.index(b"mdat") + 4, np.random.default_rng(0)
    half = (begin + len(data)) // 2
    reason(data[:begin] + rng.bytes(len(data) - begin))
    reason(data[:begin] + bytes(len(data) - begin))
    storm = data[:half] + rng.bytes(len(data) - half)
    reason(storm)
    # The frames before the random bytes are intact, and decoding stops before them.
    assert videos.numbers(decode.read_frames(storm, lambda _: [0, 1])) == [0, 1]


def test_an_avi_header_with_too_many_frames_is_refused(tmp_path, videos):
    data = write(videos, tmp_path / "a.avi", "mpeg4").read_bytes()
    for count in (6000, 2**31 - 1):
        assert "truncated: 60 of" in reason(patched(data, b"strh", 40, "<I", count))


def test_an_avi_header_with_too_few_frames_is_ignored(tmp_path, videos):
    data = write(videos, tmp_path / "a.avi", "mpeg4").read_bytes()
    for lie in (
        patched(data, b"strh", 40, "<I", 30),
        patched(data, b"avih", 24, "<I", 30),
        patched(data, b"avih", 24, "<I", 2**31 - 1),
    ):
        assert videos.numbers(decode.read_frames(lie, range)) == [*range(60)]


@pytest.mark.parametrize(
    ("size", "count"), [(0, 30), (0, 600), (0, 2**31 - 1), (100, 60), (100, 9999), (1, 2**31 - 1)]
)
def test_a_wrong_mp4_index_is_refused(size, count, tmp_path, videos):
    data = write(videos, tmp_path / "a.mp4", "h264").read_bytes()
    reason(patched(data, b"stsz", 8, ">II", size, count))
