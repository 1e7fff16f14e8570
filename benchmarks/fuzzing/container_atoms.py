"""Finds the atoms of video containers: boxes, elements, chunks, pages, packets and blocks.

An atom is a range of bytes with a header, which usually contains the size of the atom. In a damaged
file, the atoms before the damage are found.
"""

import dataclasses
from collections.abc import Callable, Iterator

MP4_PARENTS = {  # type of a box with children -> bytes between its header and the first child
    **dict.fromkeys((b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"dinf", b"udta"), 0),
    **dict.fromkeys((b"moof", b"traf", b"mvex"), 0),
    **{b"meta": 4, b"stsd": 8, b"dref": 8, b"avc1": 78, b"hvc1": 78, b"hev1": 78, b"mp4v": 78},
}
EBML_PARENTS = (  # Segment, Tracks, TrackEntry, Video, Cluster, BlockGroup, Cues, SeekHead, ...
    *(b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67", b"\x16\x54\xae\x6b", b"\xae", b"\xe0"),
    *(b"\x1f\x43\xb6\x75", b"\xa0", b"\x1c\x53\xbb\x6b", b"\xbb", b"\xb7", b"\x11\x4d\x9b\x74"),
    *(b"\x4d\xbb", b"\x15\x49\xa9\x66", b"\x12\x54\xc3\x67", b"\x73\x73", b"\x67\xc8"),
)
TS_BYTES = 188  # size of an MPEG-TS packet


@dataclasses.dataclass(frozen=True)
class Atom:
    """A range of bytes of a file.

    Attributes:
      start: Position of the header.
      body: Position of the first byte after the header.
      end: Exclusive end.
      size_at: Position of the size field.
      size_bytes: Length of the size field; 0 if there is none.
      order: Byte order of the size field: "big", "little" or "vint" (Matroska's variable-length
          integers).
      parents: The atoms that contain this one, from the outermost.
    """

    start: int
    body: int
    end: int
    size_at: int = 0
    size_bytes: int = 0
    order: str = "big"
    parents: tuple["Atom", ...] = ()


def find_atoms(data: bytes) -> list[Atom]:
    """Returns the atoms of a file in any of the known containers, in file order."""
    finders: tuple[tuple[bool, Callable[[bytes], Iterator[Atom]]], ...] = (
        (data[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"wide"), _mp4_boxes),
        (data[:4] == b"\x1a\x45\xdf\xa3", _ebml_elements),
        (data[:4] == b"RIFF", _riff_chunks),
        (data[:4] == b"OggS", _ogg_pages),
        (data[:3] == b"GIF", _gif_blocks),
        (data[:3] == b"FLV", _flv_tags),
        (data[:1] == b"G" and data[TS_BYTES : TS_BYTES + 1] == b"G", _ts_packets),
    )
    find = next((find for matches, find in finders if matches), _start_codes)
    return [atom for atom in find(data) if atom.start < atom.end <= len(data)]


def _mp4_boxes(data, start=0, end=None, parents=()) -> Iterator[Atom]:
    end = len(data) if end is None else end
    while start + 8 <= end:
        size = int.from_bytes(data[start : start + 4], "big")
        if not 8 <= size <= end - start:
            return
        atom = Atom(start, start + 8, start + size, start, 4, parents=parents)
        yield atom
        kind = data[start + 4 : start + 8]
        if kind in MP4_PARENTS:
            first = atom.body + MP4_PARENTS[kind]
            yield from _mp4_boxes(data, first, atom.end, (*parents, atom))
        start = atom.end


def _ebml_elements(data, start=0, end=None, parents=()) -> Iterator[Atom]:
    end = len(data) if end is None else end
    while start + 2 <= end:
        size_at = start + 9 - data[start].bit_length()
        if size_at - start > 4 or size_at >= end:
            return
        size_bytes = 9 - data[size_at].bit_length()
        body = size_at + size_bytes
        unknown = 2 ** (7 * size_bytes) - 1
        size = int.from_bytes(data[size_at:body], "big") & unknown
        stop = end if size == unknown else body + size
        if size_bytes > 8 or stop > end:
            return
        atom = Atom(start, body, stop, size_at, size_bytes, "vint", parents)
        yield atom
        if data[start:size_at] in EBML_PARENTS:
            yield from _ebml_elements(data, body, stop, (*parents, atom))
        start = stop


def _riff_chunks(data, start=0, end=None, parents=()) -> Iterator[Atom]:
    end = len(data) if end is None else end
    while start + 8 <= end:
        size = int.from_bytes(data[start + 4 : start + 8], "little")
        if size > end - start - 8:
            return
        atom = Atom(start, start + 8, start + 8 + size, start + 4, 4, "little", parents)
        yield atom
        if data[start : start + 4] in (b"RIFF", b"LIST"):
            yield from _riff_chunks(data, atom.body + 4, atom.end, (*parents, atom))
        start = atom.end + size % 2


def _ogg_pages(data) -> Iterator[Atom]:
    start = 0
    while data[start : start + 4] == b"OggS" and start + 27 < len(data):
        body = start + 27 + data[start + 26]
        atom = Atom(start, body, body + sum(data[start + 27 : body]), start + 26, 1)
        yield atom
        start = atom.end


def _gif_blocks(data) -> Iterator[Atom]:
    start = 13 + _color_table_bytes(data[10])
    yield Atom(0, 13, start)
    while start < len(data) and data[start] in b"\x21\x2c":
        body = start + 2
        if data[start] == 0x2C:
            body = start + 11 + _color_table_bytes(data[start + 9])
        end = body
        while end < len(data) and data[end]:
            end += data[end] + 1
        yield Atom(start, body, end + 1, body, 1)
        start = end + 1


def _color_table_bytes(flags: int) -> int:
    return 3 * 2 ** (flags % 8 + 1) if flags & 0x80 else 0


def _flv_tags(data) -> Iterator[Atom]:
    start = 13
    while start + 15 <= len(data):
        size = int.from_bytes(data[start + 1 : start + 4], "big")
        yield Atom(start, start + 11, start + 11 + size + 4, start + 1, 3)
        start += size + 15


def _ts_packets(data) -> Iterator[Atom]:
    for start in range(0, len(data), TS_BYTES):
        yield Atom(
            start, start + 4, start + TS_BYTES, start + 4, 1
        )  # length of the adaptation field


def _start_codes(data) -> Iterator[Atom]:
    """Yields the ranges between MPEG start codes.

    In program streams, most of these ranges contain a size field.
    """
    start = data.find(b"\0\0\1")
    while start >= 0:
        end = data.find(b"\0\0\1", start + 3)
        end = len(data) if end < 0 else end
        yield Atom(start, start + 6, end, start + 4, 2)
        start = end if end < len(data) else -1
