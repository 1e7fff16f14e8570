"""Reads packet headers: how many frames a packet shows, and whether decoding can start there.

A packet contains one frame that is shown, except in streams with separately coded fields or hidden
frames. The headers of the bit stream reveal these exceptions without decoding.
"""

from collections.abc import Callable, Iterator

MIN_MPEG4_BYTES = 16  # smaller packets may be placeholders for frames that are not coded
H264_SPS, H264_IDR = 7, 5
HEVC_IRAP = range(16, 24)  # types of NAL units at which decoding can start
# H.264 profiles whose parameter sets contain the chroma format and scaling lists.
H264_CHROMA_PROFILES = (100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135)
MAX_SPS_BYTES = 4096  # longer parameter sets are damaged and would be slow to parse


class _Bits:
    """Reads unsigned numbers from a bit string."""

    def __init__(self, data: bytes):
        self._value, self._left = int.from_bytes(data, "big"), 8 * len(data)

    def read(self, count: int) -> int:
        if count > self._left:
            raise ValueError("end of the header")
        self._left -= count
        return self._value >> self._left & (1 << count) - 1

    def read_golomb(self) -> int:
        zeros = 0
        while not self.read(1):
            zeros += 1
        return (1 << zeros) - 1 + self.read(zeros)


def frame_counter(codec: str) -> Callable[[memoryview], int] | None:
    """Returns a function that counts the frames shown by a packet; None if that is always one."""
    return {"vp8": _count_vp8, "vp9": _count_vp9, "mpeg4": _count_mpeg4}.get(codec)


def _count_vp8(data: memoryview) -> int:
    return data[0] >> 4 & 1


def _count_mpeg4(data: memoryview) -> int:
    # A packet of two frames is followed by a small placeholder packet. Returning 2 for the
    # placeholder makes the caller decode the file.
    return 1 if len(data) >= MIN_MPEG4_BYTES else 2


def _count_vp9(data: memoryview) -> int:
    marker, frames = data[-1], [data[0]]
    if marker >> 5 == 0b110:  # a superframe: several frames, followed by their sizes
        count, width = (marker & 7) + 1, (marker >> 3 & 3) + 1
        sizes = data[-1 - count * width : -1]
        if len(data) > 2 + count * width and data[-2 - count * width] == marker:
            begin, frames = 0, []
            for i in range(count):
                frames.append(data[begin] if begin < len(data) else 0)
                begin += int.from_bytes(sizes[i * width : (i + 1) * width], "little")
    return sum(map(_is_shown_vp9, frames))


def _is_shown_vp9(byte: int) -> bool:
    shift = 0 if byte >> 4 & 3 == 3 else 1  # profile 3 has an additional reserved bit
    shows_existing, is_shown = byte >> shift + 2 & 1, byte >> shift & 1
    return bool(shows_existing or is_shown)


def starts_with_intra(codec: str, extradata: bytes, packet: bytes) -> bool:
    """Returns whether decoding can start at a packet; True if the codec cannot be checked.

    Args:
      codec: FFmpeg's name of the codec.
      extradata: Header of the stream.
      packet: The packet.
    """
    if codec == "h264":
        return any(unit[0] & 31 == H264_IDR for unit in _nal_units(codec, extradata, packet))
    if codec == "hevc":
        units = _nal_units(codec, extradata, packet)
        return any(unit[0] >> 1 & 63 in HEVC_IRAP for unit in units)
    if codec == "vp8":
        return not packet[0] & 1
    if codec == "vp9":
        return not packet[0] >> (1 if packet[0] >> 4 & 3 == 3 else 2) & 1
    if codec == "mpeg4":
        begin = packet.find(b"\0\0\1\xb6") + 4  # picture header; its first two bits are the type
        return 4 <= begin < len(packet) and not packet[begin] >> 6
    return True


def may_have_fields(extradata: bytes, packet: bytes) -> bool:
    """Returns whether an H.264 stream may code a frame as two fields in two packets.

    Args:
      extradata: Header of the stream.
      packet: First packet of the stream.
    """
    sets = [unit for unit in _avcc_parameter_sets(extradata) if unit[0] & 31 == H264_SPS]
    for data in (packet,) if sets else (extradata, packet):
        sets += [u for u in _nal_units("h264", extradata, data) if u[0] & 31 == H264_SPS]
    try:
        return not sets or not all(map(_has_only_frames, sets))
    except ValueError:
        return True


def _has_only_frames(unit: bytes) -> bool:
    """Returns the `frame_mbs_only_flag` of an H.264 sequence parameter set."""
    bits = _Bits(unit[1:MAX_SPS_BYTES].replace(b"\0\0\3", b"\0\0"))
    profile, _, _ = bits.read(8), bits.read(16), bits.read_golomb()
    if profile in H264_CHROMA_PROFILES:
        lists = 12 if (chroma := bits.read_golomb()) == 3 else 8
        bits.read(1 if chroma == 3 else 0)
        bits.read_golomb(), bits.read_golomb(), bits.read(1)
        if bits.read(1):
            for i in range(lists):
                _skip_scaling_list(bits, 16 if i < 6 else 64)
    bits.read_golomb()
    if not (order := bits.read_golomb()):
        bits.read_golomb()
    elif order == 1:
        bits.read(1), bits.read_golomb(), bits.read_golomb()
        for _ in range(bits.read_golomb()):
            bits.read_golomb()
    bits.read_golomb(), bits.read(1), bits.read_golomb(), bits.read_golomb()
    return bool(bits.read(1))


def _skip_scaling_list(bits: _Bits, size: int) -> None:
    last = step = 8
    if not bits.read(1):
        return
    for _ in range(size):
        if step:
            code = bits.read_golomb()
            step = (last + (code + 1) // 2 * (1 if code % 2 else -1)) % 256
        last = step or last


def _nal_units(codec: str, extradata: bytes, data: bytes) -> Iterator[bytes]:
    """Yields the NAL units of a packet. Each is preceded by its length or by a start code."""
    if extradata[:1] != b"\1":
        yield from filter(None, data.split(b"\0\0\1")[1:])
        return
    position = 4 if codec == "h264" else 21
    if len(extradata) <= position:  # a damaged header
        return
    begin, width = 0, (extradata[position] & 3) + 1
    while len(data) > begin + width:
        end = begin + width + int.from_bytes(data[begin : begin + width], "big")
        if end > begin + width:
            yield data[begin + width : end]
        begin = end


def _avcc_parameter_sets(extradata: bytes) -> Iterator[bytes]:
    """Yields the sequence parameter sets in the H.264 header of MP4 and Matroska files."""
    if extradata[:1] != b"\1" or len(extradata) < 8:
        return
    begin = 6
    for _ in range(extradata[5] & 31):
        end = begin + 2 + int.from_bytes(extradata[begin : begin + 2], "big")
        if unit := extradata[begin + 2 : end]:
            yield unit
        begin = end
