"""Exact frames from all common codecs, containers and structures of groups of pictures."""

import av
import numpy as np
import pytest

from invnext_jax.data import decode

FRAMES = 60
X264 = {"preset": "ultrafast", "bf": "3", "g": "12", "b-pyramid": "normal"}
X265 = {"preset": "ultrafast"}
SVT = {"codec": "libsvtav1", "size": (64, 80)}  # it rejects smaller frames
VP9 = {"codec": "libvpx-vp9", "options": {"g": "12", "cpu-used": "8"}}
MPEG4 = {"codec": "mpeg4", "options": {"g": "12", "bf": "2"}}
UNEVEN = np.cumsum([1 + 4 * (i % 7 == 0) for i in range(FRAMES)]).tolist()


def x265(more="bframes=3", **fields):
    params = f"log-level=none:keyint=12:min-keyint=12:{more}"
    return {"codec": "libx265", "options": {**X265, "x265-params": params}, **fields}


# Decoding can start at a key frame; with intra refresh, only at the first.
SEEKABLE = {
    "h264_refresh.mp4": {
        "options": {"preset": "ultrafast", "x264-params": "intra-refresh=1:keyint=12"}
    },
    "h264.mov": {"options": X264},
    "h264.flv": {"options": X264},
    "h264_open_gop.mp4": {"options": {**X264, "x264-params": "open-gop=1:keyint=12:min-keyint=12"}},
    "h264_open_gop.mkv": {"options": {**X264, "x264-params": "open-gop=1:keyint=12:min-keyint=12"}},
    "h264_intra.mp4": {"options": {**X264, "g": "1", "bf": "0"}},
    "h264_fragments.mp4": {
        "options": X264,
        "container": {"movflags": "frag_keyframe+empty_moov"},
    },
    "h264_interlaced.mp4": {
        "options": {**X264, "flags": "+ildct+ilme", "x264-params": "interlaced=1"},
        "size": (64, 80),
    },
    "h264_no_b.avi": {"options": {**X264, "bf": "0"}},
    "h264_10bit.mp4": {"options": X264, "pix_fmt": "yuv420p10le"},
    "h264_uneven.mp4": {"options": X264, "times": UNEVEN},
    "hevc_closed_gop.mp4": x265("bframes=3:open-gop=0"),
    "hevc_open_gop.mkv": x265(),
    "hevc_many_b.mp4": x265("bframes=8:b-adapt=0:b-pyramid=1:rc-lookahead=20"),
    "hevc_10bit.mp4": x265(pix_fmt="yuv420p10le"),
    "hevc_gray.mp4": x265(pix_fmt="gray"),
    "hevc_odd.mp4": x265(size=(47, 79), pix_fmt="yuv444p"),
    "hevc_uneven.mp4": x265(times=UNEVEN),
    "vp8.webm": {"codec": "libvpx", "options": {"g": "12", "auto-alt-ref": "1", "cpu-used": "5"}},
    "vp9_long_gop.webm": {**VP9, "options": {"g": "250", "auto-alt-ref": "1", "cpu-used": "8"}},
    "vp9.mp4": VP9,
    "vp9_444.webm": {**VP9, "pix_fmt": "yuv444p"},
    "vp9_odd.webm": {**VP9, "size": (47, 79)},
    "vp9_uneven.webm": {**VP9, "times": UNEVEN},
    "av1.mp4": {**SVT, "options": {"preset": "12", "g": "12"}},
    "av1.webm": {**SVT, "options": {"preset": "12", "g": "12"}},
    "av1_long_gop_10bit.mkv": {
        **SVT,
        "options": {"preset": "12", "g": "250"},
        "pix_fmt": "yuv420p10le",
    },
    "av1_odd.mp4": {**SVT, "options": {"preset": "12", "g": "12"}, "size": (67, 81)},
    "av1_uneven.mp4": {**SVT, "options": {"preset": "12", "g": "12"}, "times": UNEVEN},
    "mpeg4.mkv": MPEG4,
    "mpeg4_odd.mp4": {**MPEG4, "size": (47, 79)},
    "mpeg4_uneven.avi": {**MPEG4, "times": UNEVEN},
    "mjpeg_uneven.avi": {"codec": "mjpeg", "pix_fmt": "yuvj420p", "times": UNEVEN},
    "h264_no_b_uneven.avi": {"options": {**X264, "bf": "0"}, "times": UNEVEN},
    "msmpeg4v3.avi": {"codec": "msmpeg4v3", "options": {"g": "12"}},
    "wmv2.wmv": {"codec": "wmv2", "options": {"g": "12"}},
    "sorenson.flv": {"codec": "flv", "options": {"g": "12"}},
    "mjpeg.avi": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "prores.mov": {"codec": "prores", "pix_fmt": "yuv422p10le"},
    "ffv1.mkv": {"codec": "ffv1"},
    "gif.gif": {"codec": "gif", "pix_fmt": "rgb8"},
}
# Files that are decoded from the start: without an index or time stamps, or with guessed ones.
FROM_START = {
    "h264.ts": {"options": X264},
    "h264.h264": {"options": X264},
    "h264_b.avi": {"options": X264},
    "h264_b_uneven.avi": {"options": X264, "times": UNEVEN},
    "hevc_open_gop.ts": x265(),
    "mpeg4.ts": MPEG4,
    "mpeg2.mpg": {**MPEG4, "codec": "mpeg2video", "size": (64, 80)},
    "mpeg2.ts": {**MPEG4, "codec": "mpeg2video", "size": (64, 80)},
    "mpeg1.mpg": {**MPEG4, "codec": "mpeg1video", "size": (64, 80)},
}
PICKS = {
    "all": [*range(FRAMES)],
    "last": [59],
    "scattered": [0, 7, 22, 40, 59],
    "dense": [*range(20, 40)],
    "dense_with_stride": [*range(5, 60, 4)],
    "reversed": [52, 37, 22, 7],
    "repeated": [40, 3, 3, 27, 40],
    "borders": [11, 12, 23, 24, 35, 36],
}


@pytest.fixture
def decoded(monkeypatch):
    """Time stamps of the frames decoded so far."""
    times, decode_frames = [], decode._decode

    def counting(*args):
        for frame in decode_frames(*args):
            times.append(frame.pts)
            yield frame

    monkeypatch.setattr(decode, "_decode", counting)
    return times


def write(videos, path, fields):
    codec = fields.get("codec", "libx264")
    try:
        av.Codec(codec, "w")
    except av.codec.codec.UnknownCodecError:
        pytest.skip(f"this PyAV cannot encode by {codec}")
    return videos.write(path, frames=FRAMES, **fields)


@pytest.mark.parametrize("name", [*SEEKABLE, *FROM_START])
def test_requested_frames_are_exact(name, tmp_path, videos, monkeypatch):
    path = write(videos, tmp_path / name, (SEEKABLE | FROM_START)[name])
    from_start, decode_all = [], decode._decode_from_start
    monkeypatch.setattr(
        decode, "_decode_from_start", lambda *args: from_start.append(1) or decode_all(*args)
    )
    for pick, requested in PICKS.items():
        counts = []
        frames = decode.read_frames(path, lambda n, w=requested, c=counts: c.append(n) or w)
        assert counts == [FRAMES], pick
        assert videos.numbers(frames) == requested, pick
        small = decode.read_frames(path, lambda _, w=requested: w, short_side=32)
        assert videos.numbers(small) == requested, pick
    assert bool(from_start) == (name in FROM_START)


@pytest.mark.parametrize("name", ["hevc_uneven.mp4", "vp9_uneven.webm", "av1_uneven.mp4"])
def test_start_and_end_follow_variable_frame_rate(name, tmp_path, videos):
    path = write(videos, tmp_path / name, SEEKABLE[name])
    seconds = (np.array(UNEVEN) - UNEVEN[0]) / 25
    frames = decode.read_frames(path, range, start=0.99, end=2.01)
    assert videos.numbers(frames) == np.flatnonzero((seconds > 0.99) & (seconds < 2.01)).tolist()


def test_sparse_frames_are_decoded_from_their_key_frames(tmp_path, videos, decoded):
    options = {"preset": "ultrafast", "bf": "0", "g": "12"}
    path = videos.write(tmp_path / "a.mp4", options=options, frames=120)
    requested = [3, 40, 61, 119]  # groups begin at 0, 36, 60 and 108
    assert videos.numbers(decode.read_frames(path, lambda _: requested)) == requested
    assert len(decoded) == 4 + 5 + 2 + 12


@pytest.mark.parametrize("name", ["h264.mov", "hevc_open_gop.mkv", "vp9.mp4", "av1.mp4"])
@pytest.mark.parametrize("pick", PICKS)
def test_no_frame_is_decoded_twice(name, pick, tmp_path, videos, decoded):
    path = write(videos, tmp_path / name, SEEKABLE[name])
    decode.read_frames(path, lambda _: PICKS[pick])
    assert len(decoded) == len(set(decoded)) <= max(PICKS[pick]) + 1


@pytest.mark.parametrize("b_frames", [0, 3])
def test_a_long_group_is_decoded_once_and_no_further_than_needed(
    b_frames, tmp_path, videos, decoded
):
    options = {"preset": "ultrafast", "bf": str(b_frames), "b-pyramid": "none", "g": "250"}
    path = videos.write(tmp_path / "a.mp4", options=options, frames=120)
    requested = [*range(7, 100, 15)]
    assert videos.numbers(decode.read_frames(path, lambda _: requested)) == requested
    if b_frames:  # three of four frames are non-reference frames and can be skipped
        assert len(decoded) < requested[-1] / 2
    else:
        assert len(decoded) == requested[-1] + 1


@pytest.mark.parametrize("name", ["h264.mov", "mpeg4.mkv", "h264_open_gop.mp4"])
def test_skipping_changes_no_pixel(name, tmp_path, videos, monkeypatch):
    path = write(videos, tmp_path / name, SEEKABLE[name])
    quick = [decode.read_frames(path, lambda _, w=requested: w) for requested in PICKS.values()]
    monkeypatch.setattr(decode, "SKIPPABLE", ())
    for images, requested in zip(quick, PICKS.values(), strict=True):
        np.testing.assert_array_equal(images, decode.read_frames(path, lambda _, w=requested: w))


def test_an_edit_list_removes_frames_of_reordered_video(tmp_path, videos, edit_start):
    for name in ("h264.mov", "hevc_closed_gop.mp4"):
        path = write(videos, tmp_path / name, SEEKABLE[name])
        data = edit_start(path, 5)
        assert videos.numbers(decode.read_frames(data, range)) == list(range(5, FRAMES)), name
        picked = decode.read_frames(data, lambda _: [50, 8, 7, 20])
        assert videos.numbers(picked) == [55, 13, 12, 25], name
