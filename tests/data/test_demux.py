"""Which of several streams is the video."""

import av
import numpy as np
import pytest
from av.stream import Disposition
from video_files import draw_number

from benchmarks import odd_videos
from invnext_jax.data import decode

COVER = {"codec": "mjpeg", "pictures": np.full((1, 48, 80, 3), 255, np.uint8)}
ATTACHED = {**COVER, "disposition": Disposition.attached_pic}


def numbered(height=48, width=80, **fields):
    pictures = np.stack([draw_number(n, height, width) for n in range(30)])
    return {"codec": "libx264", "pictures": pictures, "options": {"preset": "ultrafast"}, **fields}


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
def test_a_still_picture_is_not_the_video(name, streams, tmp_path, videos):
    path = odd_videos.write_streams(tmp_path / name, streams)
    for source in (path, path.read_bytes()):
        assert videos.numbers(decode.read_frames(source, range)) == list(range(30))
        assert videos.numbers(decode.read_frames(source, lambda n: [n - 1])) == [29]


@pytest.mark.parametrize("ending", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize("large_first", [False, True])
def test_the_largest_picture_is_the_video(ending, large_first, tmp_path, videos):
    streams = [numbered(96, 160), numbered(48, 80)]
    path = odd_videos.write_streams(tmp_path / f"a.{ending}", streams[:: 1 if large_first else -1])
    with av.open(str(path)) as container:
        defaults = [
            s.height for s in container.streams.video if s.disposition & Disposition.default
        ]
    # Like ffmpeg, the reader prefers the only stream that is marked as the default: MP4's first.
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
        frame = av.VideoFrame.from_ndarray(COVER["pictures"][0])
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
