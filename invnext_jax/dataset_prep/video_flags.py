"""Describes unusual good videos: short or small videos, and expensive decoding."""

from collections.abc import Mapping, Sequence
from typing import Any

from invnext_jax.data.clips import count_dense_span
from invnext_jax.video.frame_index import PacketIndex, describe_range
from invnext_jax.video_lists.video_list import VideoEntry

CLIP_FRAMES = 16  # frames of a clip, whose cost and length are estimated; as config.data.frames
CLIP_STRIDE = 4  # frames between those of a densely sampled clip; as config.data.stride
CLIP_SIDE = 224  # side of a clip in pixels; as config.data.size
LATE_SECONDS = 5  # the times of published lists are often rounded up
EXPENSIVE_PIXELS = 1e9  # decoded pixels per clip, which one core decodes in about a second
MIN_SIDE = 16  # pixels; smaller frames have less than one pixel per patch of a 224 px clip
ADVICE = {
    "one_frame": "have a single frame: every clip repeats it",
    "tiny": f"are less than {MIN_SIDE} pixels wide or high: smaller than the patch grid of a model",
    "expensive": "take a core more than about one second per clip: re-encode the videos with "
    "prepare_data.py shards, or start more data workers",
}


def describe_window(entry: VideoEntry, duration: float) -> str:
    """Returns why no frame of a video is between the start and the end of an entry, or ""."""
    start = entry.start or 0.0
    if problem := describe_range(start, entry.end):
        return problem
    if start >= duration or entry.end == start:
        return f"no frame between {start:g} and {entry.end} seconds of {duration:g}"
    return ""


def find_flags(index: PacketIndex, width: int, height: int) -> str:
    """Returns the flags of a video; see `VideoProbe.flags`."""
    flags = ["one_frame"] if len(index.times) == 1 else []
    if min(width, height) < MIN_SIDE:
        flags.append("tiny")
    if decoded_pixels(index, width, height) > EXPENSIVE_PIXELS:
        flags.append("expensive")
    return " ".join(flags)


def are_flags(flags: str) -> bool:
    """Returns whether a text consists of known flags."""
    return all(name in ADVICE for name in flags.split())


def decoded_pixels(index: PacketIndex, width: int, height: int) -> float:
    """Estimates how many pixels are decoded for a clip of 16 frames spread over the video.

    On average, half a group of pictures is decoded for each frame; no frame is decoded twice.
    """
    count = len(index.times)
    group = count / max(1, len(index.key_times))
    return min(count, CLIP_FRAMES * (group + 1) / 2) * width * height


def describe_flags(flags_by_path: Mapping[str, str]) -> list[str]:
    """Returns a sentence for each flag, with the number of files and an example.

    Args:
      flags_by_path: Dict from the path of each file to its flags.
    """
    paths = {name: [] for name in ADVICE}
    for path, flags in flags_by_path.items():
        for name in filter(paths.__contains__, flags.split()):
            paths[name].append(path)
    return [
        f"{len(found)} files (flag {name}) {ADVICE[name]}; e.g. {found[0]}"
        for name, found in paths.items()
        if found
    ]


def describe_clips(videos: Sequence[tuple[Any, Any]]) -> list[str]:
    """Returns sentences about videos that do not suit clips of the default length and size.

    They are shorter or smaller than a clip, or a row ends long after its video, which happens if
    its times are not in seconds.

    Args:
      videos: The `VideoEntry` and the `VideoProbe` of each row.
    """
    span = count_dense_span(CLIP_FRAMES, CLIP_STRIDE)
    effects = {
        CLIP_FRAMES: f"clips of {CLIP_FRAMES} frames (config.data.frames) repeat frames",
        span: f"densely sampled clips (config.data.sampling='dense') of {CLIP_FRAMES} frames with "
        f"a stride of {CLIP_STRIDE} repeat the last frame",
    }
    sentences, total = [], len(videos)
    frames = [(_count_frames(entry, probe), entry.path) for entry, probe in videos]
    for length, effect in effects.items():
        if short := [pair for pair in frames if pair[0] < length]:
            sentences.append(
                f"{len(short)} of {total} videos have fewer than {length} frames, so that "
                f"{effect}; the shortest is {min(short)[1]} with {min(short)[0]}"
            )
    sides = [(min(probe.width, probe.height), entry.path) for entry, probe in videos]
    if small := [pair for pair in sides if pair[0] < CLIP_SIDE]:
        sentences.append(
            f"{len(small)} of {total} videos are less than {CLIP_SIDE} pixels wide or high, so "
            f"that clips of {CLIP_SIDE} pixels (config.data.size) are enlarged; the smallest is "
            f"{min(small)[1]} with {min(small)[0]}"
        )
    late = [(e, p) for e, p in videos if e.end is not None and e.end > p.duration + LATE_SECONDS]
    if late:
        entry, probe = late[0]
        sentences.append(
            f"{len(late)} of {total} rows end more than {LATE_SECONDS} s after their video, such "
            f"as {entry.path}, which ends at {probe.duration:g} s instead of {entry.end:g} s: "
            "check that the times are in seconds"
        )
    return sentences


def _count_frames(entry: Any, probe: Any) -> int:
    """Estimates the number of frames between `start` and `end`."""
    end = probe.duration if entry.end is None else min(entry.end, probe.duration)
    return round(probe.frames * (end - (entry.start or 0.0)) / probe.duration)
