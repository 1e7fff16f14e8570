"""Probes return properties of files; hangs and crashes affect only their own file."""

import dataclasses
import errno
import fractions
import io
import os
import struct
import sys
import time

import av
import numpy as np
import pytest
from fakes import measure_growth, probe_or_hang

from benchmarks import odd_videos
from invnext_jax.data import decode
from invnext_jax.data import files as files_lib
from invnext_jax.dataset_prep import probing, video_flags
from invnext_jax.video.frame_index import PacketIndex
from invnext_jax.workers import process_worker as workers

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


def test_damage_after_the_first_frames_is_detected(tmp_path, videos):
    path = videos.write(tmp_path / "a.mp4", options=X264)
    content = path.read_bytes()
    start, end = content.index(b"mdat"), content.rindex(b"moov") - 4
    middle = (start + end) // 2
    path.write_bytes(
        content[:middle] + bytes(end - middle) + content[end:]
    )  # an interrupted download
    with pytest.raises(decode.BadVideo, match="zeros in place of frames"):
        probing.probe_video(str(path))
    path.write_bytes(content[:middle] + b"?" * (end - middle) + content[end:])
    with pytest.raises(decode.BadVideo):
        probing.probe_video(str(path))


@pytest.mark.parametrize(
    ("content", "reason"), [(b"", "empty file"), (b"no video", "Invalid"), (None, "No such file")]
)
def test_bad_files_have_a_reason(content, reason, tmp_path):
    path = tmp_path / "a.mp4"
    if content is not None:
        path.write_bytes(content)
    ((_, failure),) = probe_all([path]).items()
    assert reason in failure.reason and failure.timeout is None
    assert not failure.reason.startswith(str(path))


def test_copies_have_the_same_digest(tmp_path, videos):
    one = videos.write(tmp_path / "a.mp4", options=X264)
    (tmp_path / "b.mp4").write_bytes(one.read_bytes())
    videos.write(tmp_path / "c.mp4", options=X264, frames=50)
    digests = [probing.probe_video(str(tmp_path / f"{n}.mp4")).digest for n in "abc"]
    assert digests[0] == digests[1] != digests[2]


def test_file_that_cannot_be_read_is_told_from_others(tmp_path, videos):
    good = [videos.write(tmp_path / f"{i}.mp4", options=X264) for i in range(4)]
    (tmp_path / "hang.mp4").write_bytes(b"hang")
    started = time.monotonic()
    paths = [good[0], tmp_path / "hang.mp4", *good[1:]]
    results = probe_all(paths, timeout=2.0, probe=probe_or_hang)
    assert time.monotonic() - started < 30
    assert results.pop(str(tmp_path / "hang.mp4")) == probing.ProbeFailure(
        "a read does not return within 2 seconds", transient=True
    )
    assert len(results) == 4 and {probe.frames for probe in results.values()} == {60}


def hang_on_b(path):
    if path == "b":
        time.sleep(30)
    return probing.VideoProbe(1.0, 1, 1, 1, 1.0, "none", 0, path)


@pytest.mark.parametrize("place", ["header", "frames", "digest"])
def test_errors_of_the_disk_are_read_errors(place, tmp_path, videos, monkeypatch):
    path = videos.write(tmp_path / "a.mkv", options=X264, frames=200)
    limit, read = {"header": 0, "frames": path.stat().st_size // 2}.get(place), io.FileIO.read

    def fail(file, size=-1):
        if place != "digest" and file.tell() >= limit:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(file, min(size, limit - file.tell()) if limit else size)

    def fail_at_once(path):
        raise OSError(errno.EIO, os.strerror(errno.EIO), path)

    monkeypatch.setattr(files_lib, "_RAW_READ", fail)
    if place == "digest":
        monkeypatch.setattr(probing, "digest_file", fail_at_once)
    failure = probing._SafeProbe(probing.probe_video)(str(path))
    expected = probing.ProbeFailure("Input/output error", transient=True, read_error=True)
    assert failure == expected


def test_decoder_that_hangs_exceeds_the_timeout():
    results = probe_all("abc", probe=hang_on_b, timeout=0.5)
    assert results["b"] == probing.ProbeFailure("no result within 0.5 seconds", 0.5)
    assert results["a"].digest == "a" and results["c"].digest == "c"


def crash_on_b(path):
    if path == "b":
        os.abort()
    if path == "d":
        raise decode.BadVideo("d: network") from OSError(errno.EIO, "gone")
    if path == "f":
        raise TypeError("a mistake in the code")
    return probing.VideoProbe(1.0, 1, 1, 1, 1.0, "none", 0, path)


def test_crash_affects_one_file():
    results = probe_all("abdef", probe=crash_on_b)
    assert "crashed (exit code -6)" in results["b"].reason and results["b"].transient
    assert results["d"] == probing.ProbeFailure("network", transient=True)
    assert results["f"] == probing.ProbeFailure("TypeError: a mistake in the code", transient=True)
    assert results["a"].digest == "a" and results["e"].digest == "e"


def test_closing_the_results_ends_the_processes(tmp_path, videos):
    path = videos.write(tmp_path / "a.mp4", options=X264)
    (tmp_path / "hang.mp4").write_bytes(b"hang")
    paths = [str(path), str(tmp_path / "hang.mp4")]
    results = probing.probe_all(paths, workers=2, timeout=60.0, probe=probe_or_hang)
    next(results)
    started = time.monotonic()
    results.close()
    assert time.monotonic() - started < 5


def probe_again(path, seeds):
    probing.probe_video(path)


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")
def test_probing_does_not_leak_memory(tmp_path, videos):
    path = videos.write(tmp_path / "a.mp4", options=X264)
    worker = workers.ProcessWorker(measure_growth)
    grown = worker.call((probe_again, [str(path)], 300), 60)
    worker.close()
    assert grown < 50, f"{grown:.0f} bytes a file"  # an unclosed generator of PyAV leaks 200


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


def test_an_encrypted_file_is_called_so(tmp_path, videos):
    key = "00112233445566778899aabbccddeeff"
    container = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": key, "encryption_kid": key}
    path = videos.write(tmp_path / "a.mp4", options=X264, container=container)
    ((_, failure),) = probe_all([path]).items()
    assert failure == probing.ProbeFailure("encrypted")


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


def test_an_invalid_answer_of_a_worker_is_a_failure_of_its_video(tmp_path):
    paths = [str(tmp_path / "a.mp4")]
    ((_, result),) = probing.probe_all(
        paths, workers=1, timeout=20.0, probe=FakeProbe("a VideoProbe")
    )
    assert "does not match its task" in result.reason and result.transient


@dataclasses.dataclass(frozen=True)
class FakeProbe:
    result: str

    def __call__(self, path):
        return self.result
