"""Probes return the properties of files, and flag unusual ones."""

import fractions
import os
import struct

import av
import numpy as np
import pytest

from benchmarks import odd_videos
from invnext_jax.data import decode
from invnext_jax.dataset_prep import probing, video_flags
from invnext_jax.video.frame_index import PacketIndex

X264 = {"preset": "ultrafast", "g": "12"}


def probe_all(paths, **options):
    options = {"workers": 2, "timeout": 20.0, **options}
    return dict(probing.probe_all([os.fspath(path) for path in paths], **options))


def test_properties_of_a_good_file(tmp_path, videos):
    path = videos.write(tmp_path / "a.mp4", options=X264)
    probe = probing.probe_video(str(path))
    assert (probe.frames, probe.width, probe.height) == (60, 80, 48)
    assert (probe.duration, probe.fps, probe.codec, probe.rotation) == (2.4, 25.0, "h264", 0)


@pytest.mark.parametrize(
    ("name", "codec"), [("a.webm", "libvpx-vp9"), ("a.avi", "mpeg4"), ("a.ts", "libx264")]
)
def test_frame_counts_equal_those_of_training(name, codec, tmp_path, videos):
    path, counts = videos.write(tmp_path / name, codec=codec), []
    decode.read_frames(path, lambda n: counts.append(n) or [0])
    probe = probing.probe_video(str(path))
    assert [probe.frames] == counts
    assert probe.duration == pytest.approx(2.4, abs=0.05)


def test_wrong_extension_is_ignored(tmp_path, videos):
    path = videos.write(tmp_path / "a.mp4", options=X264).rename(tmp_path / "a.avi")
    assert probing.probe_video(str(path)).frames == 60


def test_rotation_is_returned(tmp_path, videos):
    path, one = videos.write(tmp_path / "a.mp4", options=X264), 0x10000
    data = path.read_bytes()
    identity = struct.pack(">9i", one, 0, 0, 0, one, 0, 0, 0, 0x40000000)
    clockwise = struct.pack(">9i", 0, one, 0, -one, 0, 0, 0, 0, 0x40000000)
    at = data.index(identity, data.index(b"tkhd"))
    path.write_bytes(data[:at] + clockwise + data[at + 36 :])
    probe = probing.probe_video(str(path))
    assert (probe.rotation, probe.width, probe.height) == (-90, 80, 48)


def test_shape_of_pixels_transfer_and_mirroring_are_returned(tmp_path, videos):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx265", rate=25)
        stream.width, stream.height, stream.pix_fmt = 80, 48, "yuv420p10le"
        params = "log-level=none:sar=4:transfer=smpte2084"  # the fourth ratio of H.265 is 16:11
        stream.options = {"preset": "ultrafast", "x265-params": params}
        stream.codec_context.sample_aspect_ratio = fractions.Fraction(16, 11)
        for _ in range(3):
            frame = av.VideoFrame.from_ndarray(np.full((48, 80, 3), 120, np.uint8))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    probe = probing.probe_video(str(path))
    assert (probe.sar, probe.transfer, probe.mirrored) == ("16:11", "pq", False)
    assert (probe.width, probe.height) == (80, 48)
    plain = videos.write(tmp_path / "b.mp4", options=X264)
    assert probing.probe_video(str(plain)).sar == "1:1"
    data = odd_videos.set_matrix(plain.read_bytes(), odd_videos.MATRICES["mirror"])
    plain.write_bytes(data)
    assert probing.probe_video(str(plain)).mirrored


def test_seeks_are_compared_with_decoding_in_order(tmp_path, videos, monkeypatch):
    path = videos.write(tmp_path / "a.mp4", options=X264, frames=200)
    assert probing.probe_video(str(path)).frames == 200
    trusted = decode._Group.decode_until

    def decode_wrong_group(group, time):
        frame = trusted(group, time)
        if group.key > 0:  # simulates a decoder that needs the start of the file
            for plane in frame.planes:
                plane.update(bytes([77]) * plane.buffer_size)
        return frame

    monkeypatch.setattr(decode._Group, "decode_until", decode_wrong_group)
    with pytest.raises(decode.BadVideo, match="a seek to frame 60 leads to a different frame"):
        probing.probe_video(str(path))


def test_copies_have_the_same_digest(tmp_path, videos):
    one = videos.write(tmp_path / "a.mp4", options=X264)
    (tmp_path / "b.mp4").write_bytes(one.read_bytes())
    videos.write(tmp_path / "c.mp4", options=X264, frames=50)
    digests = [probing.probe_video(str(tmp_path / f"{n}.mp4")).digest for n in "abc"]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("name", ["a.mkv", "a.flv"])
@pytest.mark.parametrize("frames", [2, 30])
def test_fps_follows_from_the_time_stamps(name, frames, tmp_path):
    """The headers of the files have no frame rate, or the rate of a clock."""
    path = tmp_path / name
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4" if name == "a.mkv" else "flv1", rate=1000)
        stream.width, stream.height, stream.pix_fmt = 80, 48, "yuv420p"
        for number in range(frames):
            frame = av.VideoFrame(80, 48, "yuv420p")
            frame.pts, frame.time_base = round(number * 1000 / 30), fractions.Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    probe = probing.probe_video(str(path))
    assert probe.frames == frames
    assert probe.fps == pytest.approx(30, rel=0.02)
    assert probe.duration == pytest.approx(frames / 30, abs=0.002)


def write_frames(path, codec, height, width, frames):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for _ in range(frames):
            container.mux(stream.encode(av.VideoFrame(width, height, "yuv420p")))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("size", "frames", "flags"),
    [((48, 80), 5, ""), ((48, 80), 1, "one_frame"), ((8, 80), 3, "tiny"), ((2, 2), 2, "tiny")],
)
def test_unusual_files_are_flagged(size, frames, flags, tmp_path):
    path = write_frames(tmp_path / "a.mkv", "ffv1", *size, frames)
    probe = probing.probe_video(str(path))
    assert (probe.flags, probe.frames, probe.height, probe.width) == (flags, frames, *size)


def test_a_frame_that_a_decoder_refuses_is_called_too_small(tmp_path):
    path = write_frames(tmp_path / "a.mkv", "ffv1", 2, 2, 1)
    data = path.read_bytes().replace(b"V_FFV1", b"V_VP9\0")
    path.write_bytes(data)
    ((_, failure),) = probe_all([path]).items()
    assert failure.reason == "frames of 2 x 2 are too small"


def test_expensive_files_are_those_that_decode_many_pixels_for_a_clip():
    index = PacketIndex(tuple(range(21_766)), tuple(range(0, 21_766, 128)), 0, is_decoded=False)
    assert video_flags.find_flags(index, 3840, 2160) == "expensive"
    assert video_flags.find_flags(index, 340, 256) == ""
    short = PacketIndex(tuple(range(300)), (0,), 0, is_decoded=False)
    assert video_flags.find_flags(short, 1280, 720) == ""
    assert video_flags.decoded_pixels(short, 1280, 720) == 300 * 1280 * 720


def test_unknown_flags_of_workers_and_caches_are_ignored():
    assert video_flags.are_flags("tiny expensive") and video_flags.are_flags("")
    assert not video_flags.are_flags("tiny evil")
    found = video_flags.describe_flags({"a.mp4": "evil tiny", "b.mp4": "evil"})
    assert len(found) == 1 and found[0].startswith("1 files (flag tiny)")


def test_frames_that_are_decades_apart_are_damage(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 64
        frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8))
        packets = [p for p in (*stream.encode(frame), *stream.encode(frame), *stream.encode(None))]
        for packet, time in zip(packets, (0, 3 * 10**9), strict=True):
            packet.time_base = fractions.Fraction(1, 1000)
            packet.pts = packet.dts = 1000 * time
            container.mux(packet)
    (result,) = probe_all([path]).values()
    assert isinstance(result, probing.ProbeFailure) and not result.transient
    assert "a duration of 6e+09 seconds" in result.reason
