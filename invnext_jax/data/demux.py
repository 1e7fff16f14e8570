"""What the packets of a video file tell, without decoding: its frames' times, and which are keys.

Frame counts of headers are never trusted for more than telling a truncated file.
"""

import contextlib
import dataclasses
import math
from collections.abc import Sequence

from invnext_jax.data.frames import BadVideo

MIN_SHARE = 0.98  # of the header's frames or bytes; less means a truncated file
NO_INDEX = ("mpeg", "mpegts")  # formats whose seeks end anywhere, with time stamps guessed
SEGMENT = b"\x18\x53\x80\x67"  # Matroska's element that holds all but the file's header


@dataclasses.dataclass(frozen=True)
class PacketIndex:
    """What the packets tell of the frames shown.

    Attributes:
        times: Time stamps in presentation order; None for each where one is missing.
        keys: Time stamps of the key frames, rising; empty where seeking is of no use.
        delay: Frames that the decoder may hold back to bring them into order.
    """

    times: list[int | None]
    keys: list[int]
    delay: int


def demux(container, stream):
    """Yields the packets of `stream`.

    PyAV leaks where its own generators are not run to their end; this one may be left at any place.
    """
    with contextlib.closing(container.demux(stream)) as packets:
        yield from packets


def read_head(source) -> bytes:
    """The first bytes; an open file stays where its container has it."""
    if not hasattr(source, "read"):
        with open(source, "rb") as file:
            return file.read(4096)
    place = source.tell()
    source.seek(0)
    head = source.read(4096)
    source.seek(place)
    return head


def check_length(head: bytes, size: int) -> None:
    """Refuses a Matroska file of fewer bytes than it says; its header counts no frames."""
    begin = head.find(SEGMENT) + len(SEGMENT)
    if begin < len(SEGMENT) or not head[begin : begin + 1].strip(b"\0"):
        return
    # A number of 1 to 8 bytes: as many zero bits as bytes follow, a one, the value.
    width = 9 - head[begin].bit_length()
    unknown = 2 ** (7 * width) - 1  # all ones: written as a stream
    value = int.from_bytes(head[begin : begin + width], "big") & unknown
    end = begin + width + value
    if value != unknown and size < MIN_SHARE * end:
        raise BadVideo(f"truncated: {size} of {end} bytes", "truncated")


def scan(container, stream) -> PacketIndex:
    """Reads all packets once, without decoding or keeping them."""
    kind, packets, slots = container.format.name, [], 0
    for packet in demux(container, stream):
        if packet.size:
            packets.append((packet.pts, packet.is_keyframe, packet.is_discard))
            slots = max(slots, (packet.dts or 0) + 1)
    # AVI's header also counts the empty frames that make the one before them stand for longer.
    count = max(slots, len(packets)) if kind == "avi" else len(packets)
    if count < MIN_SHARE * stream.frames:
        raise BadVideo(f"truncated: {count} of {stream.frames} frames", "truncated")
    # An edit list marks what it cuts away; counting those would shift every number.
    shown = [(time, is_key) for time, is_key, is_cut in packets if not is_cut]
    if not shown:
        raise BadVideo("no frames")
    coded = [time for time, _ in shown]
    if any(time is None for time in coded):
        return PacketIndex([None] * len(coded), [], 0)
    times, keys = sorted(coded), sorted(time for time, is_key in shown if is_key)
    places = {time: number for number, time in enumerate(times)}
    # AVI counts frames as they are stored: of no use where the decoder changes their order.
    unordered = kind == "avi" and coded == times and stream.codec_context.has_b_frames
    if kind in NO_INDEX or unordered or len(places) < len(times):
        keys = []
    delay = max(number - places[time] for number, time in enumerate(coded))
    return PacketIndex(times, keys, delay)


def inside(times, stream, window) -> Sequence[int]:
    """Numbers of the frames shown between the two seconds of `window`."""
    start, end = window
    if start is None and end is None:
        return range(len(times))
    if times[0] is None:
        rate = float(stream.average_rate or 25)
        seconds = [i / rate for i in range(len(times))]
    else:
        seconds = [float((time - times[0]) * stream.time_base) for time in times]
    low = 0.0 if start is None else start
    high = math.inf if end is None else end
    shown = [i for i, second in enumerate(seconds) if low - 1e-6 <= second < high - 1e-6]
    if not shown:
        text = f"no frame between {low} and {high} seconds of {seconds[-1]:.2f}"
        raise BadVideo(text, "empty range")
    return shown
