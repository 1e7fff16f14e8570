"""Orientation of frames, compared with the filters of FFmpeg."""

import av
import numpy as np
import pytest
from fakes import FixedSampler

from benchmarks import odd_videos
from invnext_jax.data import decode
from invnext_jax.data.clips import read_clips
from invnext_jax.data.manifest import VideoRecord
from invnext_jax.video import frame_converter

# Filters that ffmpeg's autorotate inserts for each display matrix (fftools/ffmpeg_filter.c).
FILTERS = {
    "none": [],
    "mirror": [("hflip", "")],
    "half_turn": [("hflip", ""), ("vflip", "")],
    "upside_down": [("vflip", "")],
    "transpose": [("transpose", "cclock_flip")],
    "quarter_turn": [("transpose", "clock")],
    "three_quarter_turn": [("transpose", "cclock")],
    "anti_transpose": [("transpose", "clock_flip")],
}


def filtered(path, name):
    """Decodes a file with PyAV and makes its frames upright with filters."""
    frames = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            graph = av.filter.Graph()
            nodes = [graph.add_buffer(template=container.streams.video[0])]
            nodes += [graph.add(*filter_) for filter_ in FILTERS[name]]
            nodes.append(graph.add("buffersink"))
            for one, other in zip(nodes, nodes[1:], strict=False):
                one.link_to(other)
            graph.configure()
            graph.vpush(frame)
            frames.append(graph.vpull().to_ndarray(format="rgb24"))
    return np.stack(frames)


@pytest.mark.parametrize("name", odd_videos.MATRICES)
def test_every_display_matrix_is_applied_as_by_autorotate(name, tmp_path, videos):
    plain = videos.write(tmp_path / "a.mp4", frames=5)
    path = tmp_path / "b.mp4"
    path.write_bytes(odd_videos.set_matrix(plain.read_bytes(), odd_videos.MATRICES[name]))
    expected = filtered(plain, name)
    frames = decode.read_frames(path, range)
    assert frames.shape == expected.shape
    # Chroma is interpolated differently.
    assert np.abs(frames.astype(int) - expected).mean() < 3
    high, wide = expected.shape[1:3]
    windows = [
        frame_converter.Window(2, 4, 34, 36),
        frame_converter.Window(wide - 32, high - 32, wide, high),
    ]
    record = VideoRecord(0, str(path), "a", None, None, {})
    clips = read_clips(record, FixedSampler([[3], [3]], windows, 32), None)
    for clip, window in zip(clips, windows, strict=True):
        np.testing.assert_array_equal(clip, frame_converter.resize(frames[3:4], window, 32))
