"""Opens video files and reads the packets of their video stream."""

import contextlib
import errno
import itertools
import os
import re
import traceback
from collections.abc import Callable, Iterator

import av
from av.stream import Disposition

MAX_PIXELS = 2**26  # limit per frame, twice 8K; a damaged header may specify far more
MAX_EXTRADATA_BYTES = 2**24  # FFmpeg copies and scans them many times; usually less than 1 kB
# The demuxers that FFmpeg may use. Each of them reads only one file. Playlists, session
# descriptions, image sequences, still images, capture devices and formats that open further files
# are excluded.
FORMATS = (
    "3dostr,4xm,apng,argo_brp,asf,asf_o,av1,avi,avs,avs2,avs3,bethsoftvid,bfi,bink,binka,c93,"
    "cavsvideo,cdxl,cine,dhav,dirac,dnxhd,dsicin,dv,dxa,ea,ea_cdata,evc,film_cpk,filmstrip,flic,flv,"
    "gdv,gif,gxf,h261,h263,h264,hevc,hnm,idcin,iff,ingenient,ipmovie,ipu,iss,iv8,ivf,jv,kux,lmlm4,"
    "live_flv,lvf,lxf,m4v,matroska,mcc,mgsts,mjpeg,mjpeg_2000,mm,moflex,mods,mov,mp4,mpeg,mpegts,"
    "mpegvideo,mtv,mv,mvi,mxf,mxg,nc,nsv,nut,nuv,obu,ogg,paf,pmp,psxstr,pva,r3d,rl2,rm,roq,rpl,sdr2,"
    "ser,sga,simbiosis_imx,siff,smk,smush,swf,thp,tiertexseq,tmv,ty,txd,v210,v210x,vc1,vc1test,"
    "vivo,vmd,vvc,wc3movie,webm,wsvqa,wtv,xmv,yop,yuv4mpegpipe"
)
_SAFETY = {
    "format_whitelist": FORMATS,
    "protocol_whitelist": "file",
    "max_pixels": str(MAX_PIXELS),  # for the frames that FFmpeg decodes while it opens a file
}
MIN_SHARE = 0.98  # a file with a smaller share of the frames or bytes in its header is truncated
# Streams of still images: cover art and thumbnails.
STILLS = Disposition.attached_pic | Disposition.timed_thumbnails
MAX_STREAM_PACKETS = 500  # packets read to find out which of several streams are still images
DEFAULT_BONUS = 5_000_000  # bonus in pixels that ffmpeg gives to a stream marked as the default
SEGMENT = b"\x18\x53\x80\x67"  # ID of the Matroska element with all data after the header
HEAD_BYTES = 4096  # bytes read from a file to find that element
X264_BUILD = re.compile(rb"x264 - core (\d+)")
X264_EXACT = 151  # older builds deviate from the standard, so the decoder needs the build number
# Errors for paths that do not name a file. Retrying does not help.
EMPTY_ERRNO = errno.ENODATA  # error number for an empty file
NO_FILE_ERRNOS = (errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO)
# Operating system errors that FFmpeg also raises for settings that a decoder rejects.
DECODER_ERRNOS = (errno.EPERM, errno.EINVAL)


class BadVideo(Exception):  # noqa: N818, short because it is used everywhere
    """A video cannot be decoded; the message contains its name and the reason.

    Attributes:
      kind: Kind of reason: "missing", "permission", "unreadable", "truncated", "no video stream",
          "unknown codec", "unknown format", "empty range", "corrupt", "too long" or "too small".
    """

    def __init__(self, text: str, kind: str = "corrupt"):
        super().__init__(text)
        self.kind = kind


def describe_error(error: Exception) -> str:
    """Describes an error that a file system or decoder raised, without its error number."""
    text, log = getattr(error, "strerror", None) or str(error), getattr(error, "log", None)
    detail = log[2].strip() if log else ""
    if error.errno in DECODER_ERRNOS and detail:
        return detail
    return f"{text} ({detail})" if detail else text


def error_kind(error: Exception) -> str:
    """Returns the `BadVideo.kind` for an error that a file system or decoder raised."""
    if isinstance(error, av.FFmpegError) and error.errno in DECODER_ERRNOS:
        return "corrupt"
    if error.errno in (EMPTY_ERRNO, errno.EFBIG):
        return "corrupt"
    if isinstance(error, FileNotFoundError) or error.errno in NO_FILE_ERRNOS:
        return "missing"
    if isinstance(error, PermissionError):
        return "permission"
    if isinstance(error, av.EOFError):
        return "truncated"
    return "unreadable" if isinstance(error, OSError) else "corrupt"


@contextlib.contextmanager
def open_stream(source, **options) -> Iterator[av.VideoStream]:
    """Opens the video stream of a file. The stream's attribute `container` is the opened file.

    Args:
      source: Path of the file, or a seekable open file, which is read from its start.
      **options: Options of the demuxer.

    Raises:
      BadVideo: The format of the file is not in `FORMATS`, the file has no video stream, or the
          codec of the stream is unknown; or PyAV raised an exception in the `with` block that is
          neither an FFmpeg error nor a `MemoryError`, because a header has impossible values.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_convert_errors())
        container = stack.enter_context(_open(source, options))
        stream = _choose_stream(source, container)
        if (size := stream.codec_context.extradata_size) > MAX_EXTRADATA_BYTES:
            raise BadVideo(f"{size} bytes of codec parameters")
        # One thread per video: the workers share the cores, and frame threading slows down seeks.
        stream.codec_context.thread_type, stream.codec_context.thread_count = "SLICE", 1
        stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
        yield stream


@contextlib.contextmanager
def _convert_errors() -> Iterator[None]:
    try:
        yield
    except (BadVideo, av.FFmpegError, MemoryError):
        raise
    except Exception as error:  # PyAV raises many types, for example ValueError and OverflowError
        if not _is_from_pyav(error):
            raise
        raise BadVideo(f"{type(error).__name__}: {error}") from error


def _is_from_pyav(error: Exception) -> bool:
    """Returns whether PyAV raised the error.

    PyAV is compiled, and only its traceback entries have relative file names.
    """
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_code.co_filename.startswith("av/")


@contextlib.contextmanager
def _open(source, options=None) -> Iterator[av.container.InputContainer]:
    is_file = hasattr(source, "read")
    position = source.tell() if is_file else 0
    if is_file:
        source.seek(0)
    else:  # FFmpeg would interpret the "a:" of "a:b.mp4" as a protocol
        source = os.path.abspath(source)
    try:
        with _open_container(source, {**(options or {}), **_SAFETY}) as container:
            yield container
    finally:
        if is_file:  # another container may be reading the same file
            source.seek(position)


def _open_container(source, options: dict[str, str]) -> av.container.InputContainer:
    # Metadata with an unknown text encoding must not make a video bad.
    ignore = {"metadata_errors": "ignore"} if int(av.__version__.split(".")[0]) < 19 else {}
    try:
        return av.open(source, options=options, **ignore)
    except av.ArgumentError as error:  # the format is unknown or not in `FORMATS`
        raise BadVideo("not a supported video container", "unknown format") from error


def _choose_stream(source, container) -> av.VideoStream:
    """Chooses the video stream with the largest frames, as ffmpeg does.

    If several have the same size, the first one is chosen. A stream marked as the default is chosen
    unless the frames of another one are much larger. Attached images are never chosen. Streams of
    a single frame are chosen only if there are no others.

    Raises:
      BadVideo: There is no such stream, or none has a known codec.
    """
    streams = [s for s in container.streams.video if not s.disposition & STILLS]
    if not streams:
        raise BadVideo("no video stream", "no video stream")
    streams = [stream for stream in streams if stream.codec_context is not None]
    if not streams:
        raise BadVideo("unknown codec", "unknown codec")
    if len(streams) > 1:
        moving = _find_moving(source, [stream.index for stream in streams])
        streams = [stream for stream in streams if stream.index in moving] or streams

    def score(stream) -> int:
        is_default = bool(stream.disposition & Disposition.default)
        return stream.width * stream.height + DEFAULT_BONUS * is_default

    return max(streams, key=score)  # the first one if several tie


def _find_moving(source, indices: list[int]) -> set[int]:
    """Returns the indices of the streams that have more than one packet."""
    counts = dict.fromkeys(indices, 0)
    with _open(source) as container:
        packets = _demux(container, [container.streams[i] for i in indices])
        for packet in itertools.islice(packets, MAX_STREAM_PACKETS):
            counts[packet.stream_index] += 1
            if min(counts.values()) > 1:
                break
    return {index for index, count in counts.items() if count > 1}


def demux(stream) -> Iterator[av.Packet]:
    """Yields the packets of `stream` that have data.

    Packets without data repeat the previous frame and would flush the decoder, so they are skipped.
    To obtain the last frames, flush the decoder with `None` after the last packet. PyAV's own
    generators leak memory if they are not exhausted; this one does not.
    """
    return _demux(stream.container, [stream])


def _demux(container, streams: list[av.VideoStream]) -> Iterator[av.Packet]:
    # After the last packet, PyAV may raise IndexError if the file has more streams than when it was
    # opened, because the first packet of a stream is late. Packets without data may have a wrong
    # stream index.
    with contextlib.closing(container.demux(streams)) as packets, contextlib.suppress(IndexError):
        for packet in packets:
            if packet.size:
                yield packet


def prime_decoder(stream, packet) -> None:
    """Passes the first packet to an H.264 decoder that needs it even to decode later frames."""
    is_h264 = stream.codec_context.codec.canonical_name == "h264"
    if is_h264 and needs_first_packet(bytes(memoryview(packet)[:4096])):
        try:
            packet.decode()
        except av.FFmpegError:
            return  # reported where the packet's frame is requested


def needs_first_packet(packet: bytes) -> bool:
    """Returns whether an H.264 decoder must receive the first packet before any seek.

    Only this packet contains the x264 build number, and old builds encode some formats differently.
    """
    build = X264_BUILD.search(packet)
    return build is not None and int(build[1]) < X264_EXACT


def decode_all(stream) -> Iterator[tuple[int, av.VideoFrame]]:
    """Decodes all packets and yields (number of decoded packets, frame), in decoder output order.

    Like ffmpeg, skips packets that cannot be decoded before the first frame, because the file may
    not begin at a key frame.

    Raises:
      av.FFmpegError: A later packet cannot be decoded.
    """
    context, count, is_started = stream.codec_context, 0, False
    for count, packet in enumerate(demux(stream), start=1):
        try:
            frames = packet.decode()
        except av.InvalidDataError:
            if is_started:
                raise
            continue
        is_started = is_started or bool(frames)
        yield from ((count, frame) for frame in frames)
    yield from ((count, frame) for frame in context.decode(None))


def read_head(source) -> bytes:
    """Reads the first bytes of a file. The position of an open file does not change."""
    if not hasattr(source, "read"):
        with open(source, "rb") as file:
            return file.read(HEAD_BYTES)
    position = source.tell()
    source.seek(0)
    head = source.read(HEAD_BYTES)
    source.seek(position)
    return head


def seek(seek: Callable[[int, int], int], offset: int, whence: int) -> int:
    """Seeks; returns a negative error number for invalid positions.

    Damaged files may contain such positions.
    """
    try:
        return seek(offset, whence)
    except (OSError, ValueError):
        return -errno.EINVAL


def check_matroska_length(head: bytes, size: int) -> None:
    """Compares the size of a Matroska file with its header, which contains no frame count.

    Args:
      head: First bytes of the file.
      size: Size of the file in bytes.

    Raises:
      BadVideo: The file is truncated.
    """
    begin = head.find(SEGMENT) + len(SEGMENT)
    if begin < len(SEGMENT) or not head[begin : begin + 1].strip(b"\0"):
        return
    # A variable-length integer: a zero bit for each additional byte (up to 7), then a one bit, then
    # the value.
    width = 9 - head[begin].bit_length()
    unknown = 2 ** (7 * width) - 1  # unknown size: the file was written as a stream
    value = int.from_bytes(head[begin : begin + width], "big") & unknown
    end = begin + width + value
    if value != unknown and size < MIN_SHARE * end:
        raise BadVideo(f"truncated: {size} of {end} bytes", "truncated")
