"""Writes unusual videos: with fields, wrong key frame flags, hidden frames or still images.

Shape key: n frames, h w pixels, c channels.
"""

import fractions
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import av
import numpy as np

RATE = 25  # frames per second
TICKS = 90_000 // RATE  # duration of a frame in ticks of 1/90000 s
MATRICES = {  # elements a, b, c, d of the display matrix in MP4 files
    "none": (1, 0, 0, 1),
    "mirror": (-1, 0, 0, 1),
    "half_turn": (-1, 0, 0, -1),
    "upside_down": (1, 0, 0, -1),
    "transpose": (0, 1, 1, 0),
    "quarter_turn": (0, 1, -1, 0),
    "three_quarter_turn": (0, -1, 1, 0),
    "anti_transpose": (0, -1, -1, 0),
}


def set_matrix(data: bytes, matrix: tuple[int, int, int, int]) -> bytes:
    """Returns an MP4 file with the given display matrix in the header of its first track."""

    def pack(a: int, b: int, c: int, d: int) -> bytes:
        one = 0x10000
        return struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 0x40000000)

    at = data.index(pack(1, 0, 0, 1), data.index(b"tkhd"))
    return data[:at] + pack(*matrix) + data[at + 36 :]


def copy_packets(
    source: Path, target: Path, first: int = 0, keys: Sequence[int] | None = None
) -> Path:
    """Copies the packets of a video.

    Args:
      source: The video.
      target: The copy, in any container.
      first: Number of the first packet to copy.
      keys: Numbers of the packets to mark as key frames. None keeps the original flags.
    """
    with av.open(str(source)) as container, av.open(str(target), "w") as output:
        stream = output.add_stream_from_template(container.streams.video[0])
        packets = [packet for packet in container.demux(video=0) if packet.size]
        for number, packet in enumerate(packets):
            if number < first:
                continue
            if keys is not None:
                packet.is_keyframe = number in keys
            packet.stream = stream
            output.mux(packet)
    return target


def split_superframes(source: Path, target: Path) -> Path:
    """Copies a VP9 video into an MP4 file in which hidden frames have separate packets."""
    with av.open(str(source)) as container, av.open(str(target), "w") as output:
        stream = output.add_stream_from_template(container.streams.video[0])
        split = av.bitstream.BitStreamFilterContext(
            "vp9_superframe_split", container.streams.video[0]
        )
        packets = [packet for packet in container.demux(video=0) if packet.size]
        parts = [part for packet in packets for part in split.filter(packet)]
        for number, part in enumerate(parts):
            part.pts = part.dts = number
            part.time_base, part.stream = fractions.Fraction(1, RATE), stream
            output.mux(part)
    return target


def write_referring_past_intra(path: Path, frames_nhwc: np.ndarray, intra: int) -> Path:
    """Writes H.264 with an intra frame that is wrongly marked as a key frame.

    Later frames refer to frames before it, because they have the same pixels as those.

    Args:
      path: The video.
      frames_nhwc: The frames, uint8 RGB.
      intra: Number of the intra frame.
    """
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=RATE)
        stream.height, stream.width = frames_nhwc.shape[1:3]
        stream.pix_fmt = "yuv420p"
        params = "keyint=250:min-keyint=250:scenecut=0:ref=4:bframes=0"
        stream.options = {"preset": "medium", "x264-params": params}
        for number, frame_hwc in enumerate(frames_nhwc):
            frame = av.VideoFrame.from_ndarray(frame_hwc)
            if number == intra:
                frame.pict_type = av.video.frame.PictureType.I
            for packet in stream.encode(frame):
                packet.is_keyframe |= packet.pts is not None and number == intra
                output.mux(packet)
        output.mux(stream.encode())
    return path


def write_fields(path: Path, lumas_nhw: np.ndarray, group: int = 12) -> Path:
    """Writes H.264 in which each frame is a pair of fields in two packets (PAFF).

    Args:
      path: The video.
      lumas_nhw: luma as uint8, from 16 to 235. The sides are multiples of 32 pixels.
      group: Distance between key frames.
    """
    height, width = lumas_nhw.shape[1:]
    stream_bytes = b"".join(field for _, field in _field_units(lumas_nhw, group))
    raw = path.with_suffix(".h264")
    raw.write_bytes(stream_bytes)
    with av.open(str(raw)) as container, av.open(str(path), "w") as output:
        stream = output.add_stream_from_template(container.streams.video[0])
        stream.height, stream.width = height, width
        for number, (is_key, data) in enumerate(_field_units(lumas_nhw, group)):
            packet = av.Packet(data)
            packet.pts = packet.dts = number * TICKS // 2
            packet.time_base = fractions.Fraction(1, RATE * TICKS)
            packet.is_keyframe, packet.stream = is_key, stream
            output.mux(packet)
    raw.unlink()
    return path


def _field_units(lumas_nhw: np.ndarray, group: int) -> Iterator[tuple[bool, bytes]]:
    """Yields (whether it is a key frame, NAL units) for each field."""
    height, width = lumas_nhw.shape[1:]
    sizes = _golomb(width // 16 - 1) + _golomb(height // 32 - 1)
    numbers = _golomb(0) + _golomb(0) + _golomb(2) + _golomb(1)  # POC type 2, one reference
    sequence = f"{77:08b}{0:08b}{30:08b}" + numbers + "0" + sizes + "0" + "0" + "1" + "0" + "0"
    picture = _golomb(0) * 2 + "00" + _golomb(0) * 3 + "000" + _golomb(0) * 3 + "000"
    delimiter = _nal_unit(9, 0, b"\x10")
    for number, luma_hw in enumerate(lumas_nhw):
        is_key = number % group == 0
        sets = _nal_unit(7, 3, _to_bytes(sequence)) + _nal_unit(8, 3, _to_bytes(picture))
        for parity in (0, 1):
            is_idr = is_key and not parity
            data = _field(luma_hw[parity::2], number % group, parity, number // group % 2, is_idr)
            unit = _nal_unit(5 if is_idr else 1, 1, data)
            yield is_idr, delimiter + (sets if is_idr else b"") + unit


def _field(luma_hw: np.ndarray, frame: int, parity: int, idr_id: int, is_idr: bool) -> bytes:
    """Returns a slice of uncompressed gray macroblocks."""
    header = _golomb(0) + _golomb(7) + _golomb(0) + f"{frame % 16:04b}" + "1" + str(parity)
    header += (_golomb(idr_id) + "00" if is_idr else "0") + _golomb(0)
    data, bits = b"", header
    for y in range(0, luma_hw.shape[0], 16):
        for x in range(0, luma_hw.shape[1], 16):
            data += _to_bytes(bits + _golomb(25), stop=False)  # 25: uncompressed
            data += luma_hw[y : y + 16, x : x + 16].tobytes() + b"\x80" * 128
            bits = ""
    return data + b"\x80"


def _golomb(number: int) -> str:
    bits = f"{number + 1:b}"
    return "0" * (len(bits) - 1) + bits


def _to_bytes(bits: str, stop: bool = True) -> bytes:
    bits += "1" * stop
    bits += "0" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


def _nal_unit(kind: int, importance: int, payload: bytes) -> bytes:
    escaped, zeros = bytearray(), 0
    for byte in payload:
        if zeros >= 2 and byte <= 3:
            escaped.append(3)
            zeros = 0
        escaped.append(byte)
        zeros = zeros + 1 if byte == 0 else 0
    return b"\0\0\0\1" + bytes([importance << 5 | kind]) + bytes(escaped)


def write_streams(path: Path, streams: Sequence[dict]) -> Path:
    """Writes several video streams into one file.

    Args:
      path: The video.
      streams: For each stream a dict with `frames` uint8 [n h w c], `codec`, and optionally
          `disposition` and `options`.
    """
    with av.open(str(path), "w") as output:
        opened = []
        for fields in streams:
            stream = output.add_stream(fields["codec"], rate=RATE)
            stream.height, stream.width = fields["frames"].shape[1:3]
            stream.pix_fmt = "yuvj420p" if fields["codec"] == "mjpeg" else "yuv420p"
            stream.options = fields.get("options", {})
            if "disposition" in fields:
                stream.disposition = fields["disposition"]
            opened.append((stream, fields["frames"]))
        for stream, frames_nhwc in opened:
            for number, frame_hwc in enumerate(frames_nhwc):
                frame = av.VideoFrame.from_ndarray(frame_hwc)
                frame.pts = number
                output.mux(stream.encode(frame))
            output.mux(stream.encode())
    return path
