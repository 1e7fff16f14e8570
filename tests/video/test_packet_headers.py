"""Packet headers, written bit by bit according to the specifications of the codecs."""

import time

import av
import pytest

from invnext_jax.video import packet_headers


def vp9_frame(profile=0, existing=False, is_key=False, is_shown=True):
    """Returns the first bytes of a VP9 frame (VP9 bitstream specification, section 6.2)."""
    bits = f"10{profile & 1}{profile >> 1}" + "0" * (profile == 3) + str(int(existing))
    bits += "000" if existing else f"{int(not is_key)}{int(is_shown)}0"
    return int(bits.ljust(16, "0"), 2).to_bytes(2, "big")


def superframe(*frames):
    """Joins VP9 frames, followed by their one-byte sizes (Annex B)."""
    marker = bytes([0b11000000 | len(frames) - 1])
    return b"".join(frames) + marker + bytes(map(len, frames)) + marker


@pytest.mark.parametrize("profile", range(4))
def test_shown_frames_of_vp9(profile):
    count = packet_headers.frame_counter("vp9")
    shown, hidden = vp9_frame(profile), vp9_frame(profile, is_shown=False)
    again = vp9_frame(profile, existing=True)
    for frames, expected in (
        ((shown,), 1),
        ((hidden,), 0),
        ((again,), 1),
        ((hidden, shown), 1),
        ((hidden, hidden, again), 1),
        ((shown, shown), 2),
    ):
        data = frames[0] if len(frames) == 1 else superframe(*frames)
        assert count(memoryview(data)) == expected, frames


@pytest.mark.parametrize("profile", range(4))
def test_key_frames_of_vp9(profile):
    for is_key in (True, False):
        data = vp9_frame(profile, is_key=is_key)
        assert packet_headers.starts_with_intra("vp9", b"", data) == is_key


FILES = {
    "h264.mp4": {"options": {"preset": "ultrafast", "g": "12"}},
    "h264.ts": {"options": {"preset": "ultrafast", "g": "12"}},
    "h264_high_444.mkv": {"options": {"preset": "medium", "g": "12"}, "pix_fmt": "yuv444p"},
    "hevc.mp4": {
        "codec": "libx265",
        "options": {"preset": "ultrafast", "x265-params": "log-level=none:keyint=12:bframes=0"},
    },
    "vp8.webm": {"codec": "libvpx", "options": {"g": "12", "cpu-used": "8"}},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"g": "12", "cpu-used": "8"}},
    "mpeg4.mp4": {"codec": "mpeg4", "options": {"g": "12"}},
}


@pytest.mark.parametrize("name", FILES)
def test_intra_packets_of_files(name, tmp_path, videos):
    path = videos.write(tmp_path / name, frames=30, **FILES[name])
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        codec, extradata = stream.codec_context.codec.canonical_name, stream.codec_context.extradata
        packets = [packet for packet in container.demux(stream) if packet.size]
        flags = [packet.is_keyframe for packet in packets]
        found = [
            packet_headers.starts_with_intra(codec, extradata or b"", bytes(packet))
            for packet in packets
        ]
        assert found == flags and 1 < sum(flags) < 30


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("ending", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv444p"])
def test_fields_are_possible_in_interlaced_h264_only(interlaced, ending, pix_fmt, tmp_path, videos):
    params = "cqm=jvt" + ":interlaced=1" * interlaced  # `cqm` adds scaling lists to the header
    options = {"preset": "fast", "x264-params": params}
    path = videos.write(
        tmp_path / f"a.{ending}", size=(64, 80), options=options, pix_fmt=pix_fmt, frames=30
    )
    with av.open(str(path)) as container:
        extradata = container.streams.video[0].codec_context.extradata or b""
        packet = next(container.demux(video=0))
        assert packet_headers.may_have_fields(extradata, bytes(packet)) == interlaced


@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_a_short_header_of_a_stream_has_no_key_frame(codec):
    for length in (1, 4):
        extradata = b"\1".ljust(length, b"\0")
        assert not packet_headers.starts_with_intra(codec, extradata, bytes(50))
    for extradata in (b"\1", bytes([1, 0, 0, 0, 0, 1, 0, 1])):  # ends after the length of a unit
        assert packet_headers.may_have_fields(extradata, bytes(50))


def test_long_damaged_headers_take_little_time():
    extradata = b"\1".ljust(30, b"\0")  # lengths of one byte
    begin = time.process_time()
    for codec in ("h264", "hevc"):
        assert not packet_headers.starts_with_intra(codec, extradata, bytes(300_000))
    # The number of elements of the loop over frame offsets is huge.
    unit = bytes([7]) + int("01000010" + "0" * 16 + "1" * 2 + "010" + "0" + "11", 2).to_bytes(
        4, "big"
    )
    unit += b"\0\0\2" + b"\xff" * 100_000
    packet_headers.may_have_fields(b"", b"\0\0\1" + unit)
    assert time.process_time() - begin < 5
