"""Selection of the video stream among several streams."""

import io
import os
import socket
import subprocess
import sys

import av
import numpy as np
import pytest
from av.stream import Disposition
from video_files import draw_number

from benchmarks import odd_videos
from invnext_jax.data import decode
from invnext_jax.video import demux

COVER = {"codec": "mjpeg", "frames": np.full((1, 48, 80, 3), 255, np.uint8)}
ATTACHED = {**COVER, "disposition": Disposition.attached_pic}


def numbered(height=48, width=80, **fields):
    frames = np.stack([draw_number(n, height, width) for n in range(30)])
    return {"codec": "libx264", "frames": frames, "options": {"preset": "ultrafast"}, **fields}


@pytest.mark.parametrize(
    ("name", "streams"),
    [
        ("thumbnail_first.mov", [COVER, numbered()]),
        ("thumbnail_first.mkv", [COVER, numbered()]),
        ("cover_first.mp4", [ATTACHED, numbered()]),
        ("cover_first.mkv", [ATTACHED, numbered()]),
        ("cover_last.mp4", [numbered(), ATTACHED]),
    ],
)
def test_a_still_image_is_not_the_video(name, streams, tmp_path, videos):
    path = odd_videos.write_streams(tmp_path / name, streams)
    for source in (path, path.read_bytes()):
        assert videos.numbers(decode.read_frames(source, range)) == list(range(30))
        assert videos.numbers(decode.read_frames(source, lambda n: [n - 1])) == [29]


@pytest.mark.parametrize("ending", ["mov", "mkv"])
def test_a_still_image_after_the_sound_is_not_the_video(ending, tmp_path, videos):
    path = tmp_path / f"a.{ending}"
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=8000, layout="mono")
        still, moving = (
            container.add_stream("mjpeg", rate=25),
            container.add_stream("h264", rate=25),
        )
        still.pix_fmt, moving.pix_fmt = "yuvj420p", "yuv420p"
        still.width, still.height, moving.width, moving.height = 80, 48, 80, 48
        audio = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        audio.rate = 8000
        container.mux(sound.encode(audio))
        frames = numbered()["frames"]
        for stream, count in ((still, 1), (moving, 30)):
            for number in range(count):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frames[number])))
        for stream in (sound, still, moving):
            container.mux(stream.encode())
    assert videos.numbers(decode.read_frames(path, range)) == list(range(30))


def test_sound_that_starts_late_does_not_make_a_video_bad(tmp_path, videos):
    path = videos.write(tmp_path / "a.flv", codec="flv", frames=200, options={"g": "12"})
    data, start = path.read_bytes(), 13
    for _ in range(190):
        start += int.from_bytes(data[start + 1 : start + 4], "big") + 15
    sound = b"\x2f" + bytes(100)  # MP3
    size = len(sound).to_bytes(3, "big")
    tag = b"\x08" + size + data[start + 4 : start + 8] + bytes(3) + sound
    path.write_bytes(data[:start] + tag + len(tag).to_bytes(4, "big") + data[start:])
    # Without this variable, the result would depend on uninitialized memory.
    environment = {**os.environ, "MALLOC_PERTURB_": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    code = "import sys; from invnext_jax.data import decode\n"
    code += "print(len(decode.read_frames(sys.argv[1], range)))"
    command = [sys.executable, "-c", code, str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "200\n", done.stderr[-2000:]


@pytest.mark.parametrize("ending", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize("large_first", [False, True])
def test_the_largest_frame_is_the_video(ending, large_first, tmp_path, videos):
    streams = [numbered(96, 160), numbered(48, 80)]
    path = odd_videos.write_streams(tmp_path / f"a.{ending}", streams[:: 1 if large_first else -1])
    with av.open(str(path)) as container:
        defaults = [
            s.height for s in container.streams.video if s.disposition & Disposition.default
        ]
    # Like ffmpeg, the reader prefers the stream marked as the default, which is the first one in
    # MP4.
    height = defaults[0] if len(defaults) == 1 else 96
    assert height == 96 or (ending == "mp4" and not large_first)
    assert decode.read_frames(path, range).shape == (30, height, height * 5 // 3, 3)


def test_a_song_with_cover_art_is_not_a_video(tmp_path):
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=8000, layout="mono")
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 80, 48, "yuvj420p"
        cover.disposition = Disposition.attached_pic
        frame = av.VideoFrame.from_ndarray(COVER["frames"][0])
        frame.pts = 0
        container.mux(cover.encode(frame))
        container.mux(cover.encode())
        for number in range(8):
            audio = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            audio.rate, audio.pts = 8000, number * 1024
            container.mux(sound.encode(audio))
        container.mux(sound.encode())
    with pytest.raises(decode.BadVideo, match="no video stream") as caught:
        decode.read_frames(path, range)
    assert caught.value.kind == "no video stream"


def free_udp_port():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def is_udp_port_free(port):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def write_private(folder):
    path = folder / "private.mp4"
    odd_videos.write_streams(path, [numbered()])
    return path


def session_description(port):
    lines = ("v=0", "o=- 0 0 IN IP4 127.0.0.1", "s=x", "c=IN IP4 127.0.0.1", "t=0 0")
    media = (f"m=video {port} RTP/AVP 96", "a=rtpmap:96 H264/90000")
    return "".join(f"{line}\r\n" for line in (*lines, *media)).encode()


@pytest.mark.parametrize("as_file", [False, True])
def test_a_session_description_opens_no_socket(as_file, tmp_path):
    port = free_udp_port()
    text = session_description(port)
    source = tmp_path / "a.mp4" if as_file else io.BytesIO(text)
    if as_file:
        source.write_bytes(text)
    with (
        pytest.raises(demux.BadVideo, match="not a supported video container") as error,
        demux.open_stream(source),
    ):
        assert is_udp_port_free(port)
    assert error.value.kind == "unknown format"


@pytest.mark.parametrize("name", ["a.mp4", "a.m3u8", "a.ffconcat"])
@pytest.mark.parametrize("kind", ["concat", "playlist"])
def test_a_file_that_names_other_files_opens_none(kind, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    private = write_private(tmp_path)
    assert decode.read_frames(private, range).shape[0] == 30
    texts = {
        "concat": f"ffconcat version 1.0\nfile '{private.name}'\n",
        "playlist": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9.0,\n"
        f"file://{private}\n#EXT-X-ENDLIST\n",
    }
    path = tmp_path / name
    path.write_text(texts[kind])
    for source in (path, path.read_bytes()):
        with pytest.raises(demux.BadVideo):
            decode.read_frames(source, range)


@pytest.mark.parametrize("codec", ["png", "mjpeg"])
def test_a_still_image_is_refused(codec, tmp_path):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w", format="image2") as container:
        stream = container.add_stream(codec, rate=1)
        stream.width, stream.height = 80, 48
        stream.pix_fmt = "rgb24" if codec == "png" else "yuvj420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(COVER["frames"][0])))
        container.mux(stream.encode())
    with pytest.raises(demux.BadVideo, match="not a supported video container"):
        decode.read_frames(path, range)


def test_only_old_builds_of_x264_need_the_first_packet():
    for build, needed in ((67, True), (148, True), (150, True), (151, False), (164, False)):
        assert demux.needs_first_packet(b"\0x264 - core %d r1" % build) == needed
    assert not demux.needs_first_packet(b"Lavc62")
