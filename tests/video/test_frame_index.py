"""Frames are those that a player shows; wrong key frame flags do not lead to wrong pixels."""

import dataclasses
import json
import struct
from types import SimpleNamespace

import av
import numpy as np
import pytest
from video_files import draw_number

from benchmarks import odd_videos
from invnext_jax.data import decode
from invnext_jax.video import demux, frame_index

FRAMES = 40
X264 = {"preset": "ultrafast", "bf": "0", "g": "12"}
PICKS = ([0], [39], [13], [10, 30], [38, 5, 21], list(range(8, 36, 4)))


def check_numbers(source, videos, expected):
    """Checks a complete read, and that a number refers to the same frame in every selection."""
    counts = []
    frames = decode.read_frames(source, lambda n: counts.append(n) or range(n))
    assert videos.numbers(frames) == expected and counts == [len(expected)]
    for pick in PICKS:
        pick = [number for number in pick if number < len(expected)] or [0]
        picked = decode.read_frames(source, lambda _, p=pick: p)
        assert videos.numbers(picked) == [expected[number] for number in pick], pick


@pytest.mark.parametrize("ending", ["mp4", "mkv", "ts"])
def test_two_fields_are_one_frame(ending, tmp_path, videos):
    lumas = np.stack([draw_number(n, 64, 80)[..., 0] for n in range(FRAMES)]).clip(16, 235)
    path = odd_videos.write_fields(tmp_path / f"a.{ending}", lumas)
    with av.open(str(path)) as container:
        assert sum(packet.size > 0 for packet in container.demux(video=0)) == 2 * FRAMES
    check_numbers(path, videos, list(range(FRAMES)))


def test_hidden_frames_have_no_number(tmp_path, videos):
    options = {"g": "20", "cpu-used": "8"}
    path = videos.write(tmp_path / "a.webm", codec="libvpx", options=options, frames=FRAMES)
    hidden = (1, 7, 21, 33)
    lie = tmp_path / "hidden.webm"
    with av.open(str(path)) as container, av.open(str(lie), "w") as output:
        stream = output.add_stream_from_template(container.streams.video[0])
        packets = [packet for packet in container.demux(video=0) if packet.size]
        for number, packet in enumerate(packets):
            copy = bytearray(bytes(packet))
            if number in hidden:
                copy[0] &= ~0x10  # show_frame of RFC 6386, section 9.1
            new = av.Packet(bytes(copy))
            new.pts, new.dts, new.time_base = packet.pts, packet.dts, packet.time_base
            new.is_keyframe, new.stream = packet.is_keyframe, stream
            output.mux(new)
    check_numbers(lie, videos, [number for number in range(FRAMES) if number not in hidden])


def test_a_packet_of_a_gif_without_a_frame_has_no_number(tmp_path, videos):
    path = videos.write(tmp_path / "a.gif", codec="gif", pix_fmt="rgb8", frames=FRAMES)
    control = b"\x21\xf9\x04\x00\x04\x00\x00\x00"  # GIF89a, section 23, without an image
    data = path.read_bytes()
    assert data[-1:] == b"\x3b"
    path.write_bytes(data[:-1] + control + data[-1:])
    with av.open(str(path)) as container:
        assert sum(packet.size > 0 for packet in container.demux(video=0)) == FRAMES + 1
    check_numbers(path, videos, list(range(FRAMES)))


class RepeatingContainer:
    """A container in which two packets without data follow each packet, as in Theora streams."""

    def __init__(self, container):
        self._container = container

    def demux(self, stream):
        del stream
        for packet in self._container.demux(video=0):
            if packet.size:
                yield packet
                yield from (av.Packet(0), av.Packet(0))


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_packets_without_data_do_not_end_decoding(codec, tmp_path, videos):
    path = videos.write(tmp_path / "a.mp4", codec=codec, frames=FRAMES)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        repeating = SimpleNamespace(
            container=RepeatingContainer(container), codec_context=stream.codec_context
        )
        frames = [frame.to_ndarray(format="rgb24") for _, frame in demux.decode_all(repeating)]
    assert videos.numbers(np.stack(frames)) == list(range(FRAMES))


@pytest.mark.parametrize(("first", "count"), [(0, 16), (5, 35), (14, 12), (30, 10)])
def test_an_edit_list_shows_a_part(first, count, tmp_path, videos, monkeypatch):
    monkeypatch.setattr(decode, "_decode_from_start", None)  # all frames can be reached by seeking
    path = videos.write(tmp_path / "a.mp4", options=X264, frames=FRAMES)
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        tick = int(1 / (25 * container.streams.video[0].time_base))
    at = data.index(b"elst") + 12  # after version, flags and the number of entries
    duration, start = struct.unpack(">Ii", data[at : at + 8])
    edit = struct.pack(">Ii", duration * count // FRAMES, start + first * tick)
    data[at : at + 8] = edit
    check_numbers(bytes(data), videos, list(range(first, first + count)))


@pytest.mark.parametrize("name", ["h264.mkv", "h264.ts", "vp9.webm"])
def test_frames_before_the_first_key_frame_have_no_number(name, tmp_path, videos):
    fields = FALSE_KEYS["vp9.mkv" if "vp9" in name else "h264.mkv"]
    path = videos.write(tmp_path / "a.mkv", frames=FRAMES, **fields)
    cut = odd_videos.copy_packets(path, tmp_path / name, first=5)
    check_numbers(cut, videos, list(range(12, FRAMES)))


FALSE_KEYS = {
    "h264.mkv": {"options": X264},
    "h264_b.mp4": {"options": {**X264, "bf": "3"}},
    "mpeg4.mp4": {"codec": "mpeg4", "options": {"g": "17", "bf": "2"}},
    "vp9.mkv": {"codec": "libvpx-vp9", "options": {"g": "12", "cpu-used": "8"}},
    "h263.3gp": {"codec": "h263", "options": {"g": "17"}, "size": (144, 176)},
    "msmpeg4v2.asf": {"codec": "msmpeg4v2", "options": {"g": "17"}},
    "mpeg2.mkv": {"codec": "mpeg2video", "options": {"g": "17"}, "size": (64, 80)},
}


@pytest.mark.parametrize("distance", [1, 10])
@pytest.mark.parametrize("name", FALSE_KEYS)
def test_false_key_flags_give_no_wrong_frame(name, distance, tmp_path, videos):
    path = videos.write(tmp_path / name, frames=FRAMES, **FALSE_KEYS[name])
    keys = range(0, FRAMES, distance)
    lie = odd_videos.copy_packets(path, tmp_path / f"lie_{name}", keys=keys)
    with av.open(str(path)) as container:  # a separate, complete read
        expected = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(expected) == FRAMES
    for pick in PICKS:
        frames = decode.read_frames(lie, lambda _, p=pick: p)
        for number, image_hwc in zip(pick, frames, strict=True):
            apart = np.abs(image_hwc.astype(int) - expected[number]).mean()
            assert apart < 3, (pick, number)  # the scalers differ by less than this


def test_an_intra_frame_past_which_others_refer_is_not_trusted(tmp_path, videos):
    rng = np.random.default_rng(0)
    frames = np.stack([draw_number(n, 48, 80) for n in range(FRAMES)])
    frames[:, 32:] = rng.integers(0, 256, (FRAMES, 16, 80, 3))
    frames[21] = frames[19]  # refers to frame 19, before the intra frame
    path = odd_videos.write_referring_past_intra(tmp_path / "a.mkv", frames, intra=20)
    complete = decode.read_frames(path, range)
    for number in (20, 21, 22, 39):
        alone = decode.read_frames(path, lambda _, n=number: [n])
        np.testing.assert_array_equal(alone[0], complete[number])


def test_the_decoder_knows_the_encoder_of_the_first_packet(tmp_path):
    """Old x264 builds deviate from the standard, and only the first packet contains the build."""
    (y, x), rng = np.mgrid[:64, :96], np.random.default_rng(0)
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv444p"
        stream.options = {"preset": "medium", "g": "12", "bf": "0"}
        for n in range(FRAMES):
            waves = [np.sin((x + 2 * n) / 5), np.cos((y + n) / 6), np.sin((x + y) / 4)]
            image_hwc = 128 + 70 * np.stack(waves, -1) + 10 * rng.normal(size=(64, 96, 3))
            image_hwc = image_hwc.clip(0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image_hwc)))
        container.mux(stream.encode())
    data = path.read_bytes()
    at = data.index(b"x264 - core ") + len(b"x264 - core ")
    lie = data[:at] + b"148" + data[at + 3 :]  # so the decoder expects the deviation
    with pytest.raises(decode.BadVideo, match="corrupt"):
        decode.read_frames(lie, range)
    with decode.open_video(lie) as video:
        index = video.index
    for options in ({}, {"index": index}):
        with pytest.raises(decode.BadVideo, match="corrupt"):
            decode.read_frames(lie, lambda _: [13], **options)


def test_frames_after_a_damaged_one_are_refused(tmp_path, videos):
    path = videos.write(tmp_path / "a.mp4", frames=FRAMES, options={**X264, "refs": "1"})
    with av.open(str(path)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    data = bytearray(path.read_bytes())
    begin, size = packets[15]  # the groups begin at 12 and 24
    data[begin + 12 : begin + size] = np.random.default_rng(0).bytes(size - 12)
    for number in (14, 24, 39):
        assert videos.numbers(decode.read_frames(bytes(data), lambda _, n=number: [n])) == [number]
    for number in (15, 16, 23):
        with pytest.raises(decode.BadVideo):
            decode.read_frames(bytes(data), lambda _, n=number: [n])


@pytest.mark.parametrize("name", ["h264_b.mp4", "msmpeg4v2.asf"])
def test_an_index_is_kept_as_json_and_replaces_the_scan(name, tmp_path, videos, monkeypatch):
    path = videos.write(tmp_path / name, frames=FRAMES, **FALSE_KEYS[name])
    with decode.open_video(path) as video:
        fields = json.loads(json.dumps(dataclasses.asdict(video.index)))
    index = frame_index.PacketIndex(
        tuple(fields.pop("times")), tuple(fields.pop("key_times")), **fields
    )
    monkeypatch.setattr(frame_index, "build_index", None)
    frames = decode.read_frames(path, lambda n: [n - 1, 3], index=index)
    assert videos.numbers(frames) == [FRAMES - 1, 3]


def test_an_end_of_zero_seconds_is_an_empty_range(tmp_path, videos):
    path = videos.write(tmp_path / "a.mp4", options=X264, frames=5)
    with pytest.raises(decode.BadVideo, match="no frame between"):
        decode.read_frames(path, range, end=0.0)


@pytest.mark.parametrize(
    ("start", "end", "message"),
    [
        (-1.0, 1.0, "the start, -1 seconds, must not be negative"),
        (2.0, 1.5, "the start, 2 seconds, is after the end, 1.5: they seem to be swapped"),
        (1.0, 1.0, ""),
        (0.0, None, ""),
    ],
)
def test_impossible_ranges_are_described(start, end, message):
    assert frame_index.describe_range(start, end) == message
