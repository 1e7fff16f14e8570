"""Makes small videos with many codecs, containers and structures, using the program ffmpeg.

Each shows a moving test image in 50 frames, unless its options drop some. The image is smooth,
because versions of the scaler interpolate colors at edges differently.
"""

import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
from av.stream import Disposition

from benchmarks import odd_videos

SOURCE = "-f lavfi -i testsrc2=size={size}:rate=25:duration=2,gblur=sigma=3"
OPEN = "-x264-params open-gop=1:keyint=12:min-keyint=12:bframes=3"
X264, X265 = "-c:v libx264 -preset fast -bf 3 -g 12", "-c:v libx265 -preset ultrafast"
CLOSED5 = " -x265-params log-level=none:keyint=12:min-keyint=12:bframes=3:open-gop=0"
OPEN5 = " -x265-params log-level=none:keyint=12:min-keyint=12:bframes=3"
VP9 = "-c:v libvpx-vp9 -cpu-used 8 -g 25"
ALT_REF = "-lag-in-frames 16 -auto-alt-ref 1 -b:v 60k -g 50 -cpu-used 2"
AV1 = "-c:v libsvtav1 -preset 12 -g 12"
Q = "-q:v 4 -g 12"
INTERLACED = "-flags +ildct+ilme"

# Maps the name of a file to ffmpeg options.
ENCODED = {
    **dict.fromkeys(("h264.mp4", "h264.mov", "h264.mkv", "h264.flv", "h264.ts", "h264.mts"), X264),
    **dict.fromkeys(("h264.h264", "h264_b.avi", "h264.3gp"), X264),
    "h264.avi": "-c:v libx264 -bf 0 -g 12",
    **dict.fromkeys(("open_gop.mp4", "open_gop.mkv", "open_gop.ts"), f"-c:v libx264 {OPEN}"),
    "refresh.mp4": "-c:v libx264 -x264-params intra-refresh=1:keyint=12",
    "h264_444.mp4": f"{X264} -pix_fmt yuv444p",
    "h264_422.mkv": f"{X264} -pix_fmt yuv422p",
    "h264_10bit.mp4": f"{X264} -pix_fmt yuv420p10le",
    "h264_gray.mkv": f"{X264} -pix_fmt gray",
    "interlaced.mp4": f"{X264} {INTERLACED} -x264-params tff=1",
    "interlaced.ts": f"{X264} {INTERLACED} -x264-params tff=1",
    "fragments.mp4": f"{X264} -movflags frag_keyframe+empty_moov",
    "uneven.mkv": f"{X264} -vf select='not(mod(n\\,3))' -vsync vfr",
    "uneven.mp4": f"{X264} -vf select='not(mod(n\\,3))' -vsync vfr",
    "sar.mp4": f"{X264} -vf setsar=32/27",
    "one_frame.mp4": f"{X264} -frames:v 1",
    **dict.fromkeys(("hevc.mp4", "hevc.mkv", "hevc.ts"), X265 + CLOSED5),
    **dict.fromkeys(("hevc_open.mp4", "hevc_open.mkv", "hevc_open.ts"), X265 + OPEN5),
    "hevc_10bit.mp4": f"{X265}{OPEN5} -pix_fmt yuv420p10le",
    "hevc_444.mkv": f"{X265}{OPEN5} -pix_fmt yuv444p",
    "hevc_pq.mp4": f"{X265}{OPEN5} -pix_fmt yuv420p10le -color_trc smpte2084",
    "vp8.webm": "-c:v libvpx -cpu-used 5 -g 25",
    **dict.fromkeys(("vp9.webm", "vp9.mp4", "vp9.mkv"), VP9),
    "vp9_10bit.webm": f"{VP9} -pix_fmt yuv420p10le",
    "vp9_444.webm": f"{VP9} -pix_fmt yuv444p",
    **dict.fromkeys(("av1.mp4", "av1.webm", "av1.mkv"), AV1),
    "av1_10bit.mp4": f"{AV1} -pix_fmt yuv420p10le",
    **dict.fromkeys(("mpeg1.mpg", "mpeg1.ts"), f"-c:v mpeg1video -bf 2 {Q}"),
    **dict.fromkeys(("mpeg2.mpg", "mpeg2.ts", "mpeg2.mkv"), f"-c:v mpeg2video -bf 2 {Q}"),
    "mpeg2_interlaced.ts": f"-c:v mpeg2video -bf 2 {Q} {INTERLACED}",
    "mpeg2_422.mov": f"-c:v mpeg2video -pix_fmt yuv422p -bf 2 {Q}",
    **dict.fromkeys(("mpeg4.mp4", "mpeg4.mkv", "mpeg4.avi", "mpeg4.ts"), f"-c:v mpeg4 {Q} -bf 2"),
    "mpeg4_simple.avi": f"-c:v mpeg4 {Q}",
    "mpeg4_still.avi": f"-c:v mpeg4 {Q} -vf loop=20:1:10",
    "xvid.avi": f"-c:v libxvid {Q} -bf 2",
    "msmpeg4v2.asf": f"-c:v msmpeg4v2 {Q}",
    "msmpeg4v3.avi": f"-c:v msmpeg4 {Q}",
    **dict.fromkeys(("wmv1.asf", "wmv1.avi"), f"-c:v wmv1 {Q}"),
    **dict.fromkeys(("wmv2.wmv", "wmv2.mkv"), f"-c:v wmv2 {Q}"),
    "sorenson.flv": f"-c:v flv {Q}",
    **dict.fromkeys(("mjpeg.avi", "mjpeg.mov", "mjpeg.mkv"), "-c:v mjpeg -q:v 3"),
    **dict.fromkeys(("theora.ogv", "theora.mkv"), "-c:v libtheora -q:v 8 -g 12"),
    "gif.gif": "-pix_fmt rgb8",
    **dict.fromkeys(("ffv1.mkv", "ffv1.avi", "ffv1.mov"), "-c:v ffv1"),
    "prores.mov": "-c:v prores",
    "huffyuv.avi": "-c:v huffyuv",
    "png.mov": "-c:v png",
    "utvideo.avi": "-c:v utvideo",
    "cinepak.avi": "-c:v cinepak",
    "raw.avi": "-c:v rawvideo -pix_fmt yuv420p",
    "qtrle.mov": "-c:v qtrle",
    "svq1.mov": f"-c:v svq1 {Q}",
    "rv20.rm": f"-c:v rv20 {Q}",
}
# The encoders write hidden frames only in two-pass mode.
TWO_PASSES = {
    "vp8_hidden.webm": f"-c:v libvpx {ALT_REF}",
    "vp9_superframes.webm": f"-c:v libvpx-vp9 {ALT_REF}",
    "vp9_superframes_10bit.webm": f"-c:v libvpx-vp9 {ALT_REF} -pix_fmt yuv420p10le",
}
# Maps the name of a file to the name of a file in `ENCODED` and the ffmpeg options before and after
# the input.
COPIED = {
    "edit.mp4": ("h264.mp4", "-ss 0.6", ""),
    "edit_end.mp4": ("h264.mp4", "-ss 0.6", "-t 0.5"),
    "hevc_edit.mp4": ("hevc.mp4", "-ss 0.6", ""),
    "mpeg4_edit.mp4": ("mpeg4.mp4", "-ss 0.6", ""),
}


# Maps the name of a file to the name of a file in `ENCODED` and the number of packets left out at
# its start.
CUT = {
    **dict.fromkeys(("cut.mkv", "cut.mp4", "cut.ts"), ("h264.mkv", 5)),
    "open_gop_cut.mkv": ("open_gop.mkv", 12),
    "open_gop_cut.ts": ("open_gop.ts", 12),
    "refresh_cut.mkv": ("refresh.mp4", 12),
    "hevc_cut.mkv": ("hevc_open.mp4", 5),
    "hevc_open_cut.mkv": ("hevc_open.mp4", 12),
    "hevc_open_cut.mp4": ("hevc_open.mp4", 12),
    "mpeg2_cut.mkv": ("mpeg2.mkv", 5),
    "mpeg2_cut.ts": ("mpeg2.ts", 5),
    "mpeg4_cut.mkv": ("mpeg4.mkv", 5),
    "vp9_cut.webm": ("vp9.webm", 5),
}


def make_files(folder: Path) -> list[str]:
    """Makes the videos; returns a sentence for each one that the installed ffmpeg cannot make."""
    folder.mkdir(parents=True, exist_ok=True)
    problems = []
    for name, options in ENCODED.items():
        problems += _run_ffmpeg(SOURCE.format(size="128x96"), options, folder / name)
    for name, options in TWO_PASSES.items():
        log = f"-passlogfile {shlex.quote(str(folder / 'log.txt'))}"
        first = f"{options} -pass 1 {log} -f webm"
        problems += _run_ffmpeg(SOURCE.format(size="128x96"), first, folder / name)
        problems += _run_ffmpeg(
            SOURCE.format(size="128x96"), f"{options} -pass 2 {log}", folder / name
        )
    problems += _run_ffmpeg(SOURCE.format(size="176x144"), f"-c:v h263 {Q}", folder / "h263.3gp")
    options = "-c:v dnxhd -profile:v dnxhr_lb -pix_fmt yuv422p"
    problems += _run_ffmpeg(SOURCE.format(size="256x128"), options, folder / "dnxhr.mov")
    problems += _run_ffmpeg(SOURCE.format(size="720x576"), "-c:v dvvideo", folder / "dv.avi")
    for name, (source, before, after) in COPIED.items():
        before = f"{before} -i {shlex.quote(str(folder / source))}"
        problems += _run_ffmpeg(before, f"-c:v copy {after}", folder / name)
    for name, (source, first) in CUT.items():
        problems += _try(_make_cut, folder / source, folder / name, first)
    for make in (_make_oriented, _make_flagged, _make_fields, _make_streams):
        problems += _try(make, folder)
    return problems


def _run_ffmpeg(before: str, options: str, path: Path) -> list[str]:
    command = ["ffmpeg", "-nostdin", "-y", "-v", "error", *shlex.split(before)]
    done = subprocess.run(
        [*command, *shlex.split(options), str(path)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        path.unlink(missing_ok=True)
        return [f"{path.name} was not made: {done.stderr.strip()[-120:]}"]
    return []


def _try(make: Callable[..., None], *arguments) -> list[str]:
    try:
        make(*arguments)
    except (av.FFmpegError, OSError, ValueError) as error:
        return [f"{make.__name__} {arguments}: {error}"]
    return []


def _make_cut(source: Path, target: Path, first: int) -> None:
    odd_videos.copy_packets(source, target, first=first)


def _make_oriented(folder: Path) -> None:
    data = (folder / "h264.mp4").read_bytes()
    for name, matrix in odd_videos.MATRICES.items():
        (folder / f"matrix_{name}.mp4").write_bytes(odd_videos.set_matrix(data, matrix))


def _make_flagged(folder: Path) -> None:
    """Makes files with wrong key frame flags."""
    some, every = range(0, 50, 10), range(50)
    for source, target, keys in (
        ("h264.mkv", "h264_every_key.mkv", every),
        ("h264.mp4", "h264_some_keys.mp4", some),
        ("hevc.mp4", "hevc_every_key.mkv", every),
        ("mpeg4.mp4", "mpeg4_every_key.mp4", every),
        ("vp9.mp4", "vp9_every_key.mkv", every),
        ("h263.3gp", "h263_some_keys.3gp", some),
        ("msmpeg4v2.asf", "msmpeg4v2_every_key.asf", every),
        ("wmv2.wmv", "wmv2_every_key.asf", every),
        ("mpeg2.mkv", "mpeg2_every_key.mkv", every),
    ):
        odd_videos.copy_packets(folder / source, folder / target, keys=keys)
    odd_videos.split_superframes(folder / "vp9_superframes.webm", folder / "vp9_hidden.mp4")
    frames_nhwc = _draw(50)
    frames_nhwc[25:] = frames_nhwc[0:25]
    odd_videos.write_referring_past_intra(folder / "past_intra.mkv", frames_nhwc, 27)


def _make_fields(folder: Path) -> None:
    lumas_nhw = _draw(50)[..., 0].clip(16, 235)
    for ending in ("mp4", "mkv", "ts", "mts"):
        odd_videos.write_fields(folder / f"fields.{ending}", lumas_nhw)


def _make_streams(folder: Path) -> None:
    large = {"codec": "libx264", "frames": _draw(50), "options": {"g": "12"}}
    small = {**large, "frames": _draw(50)[:, ::2, ::2]}
    cover = {"codec": "mjpeg", "frames": 255 - _draw(1)}
    attached = {**cover, "disposition": Disposition.attached_pic}
    odd_videos.write_streams(folder / "small_first.mp4", [small, large])
    odd_videos.write_streams(folder / "small_first.mkv", [small, large])
    odd_videos.write_streams(folder / "large_first.ts", [large, small])
    odd_videos.write_streams(folder / "cover_last.mp4", [large, attached])
    odd_videos.write_streams(folder / "cover_first.mp4", [attached, large])


def _draw(count: int) -> np.ndarray:
    """Returns gray frames of moving stripes, uint8 [n 96 128 3]."""
    y, x = np.mgrid[:96, :128]
    values_nhw = np.stack([128 + 90 * np.sin((x + 3 * i) / 9 + y / (20 + i)) for i in range(count)])
    return np.repeat(values_nhw[..., None].astype(np.uint8), 3, -1)
