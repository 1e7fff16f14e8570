"""Describes unusual good videos: short videos, tiny frames and expensive decoding."""

from collections.abc import Mapping, Sequence

from invnext_jax.data.clips import count_dense_span
from invnext_jax.video.frame_index import PacketIndex

CLIP_FRAMES = 16  # frames of a clip, whose cost and length are estimated; as config.data.frames
CLIP_STRIDE = 4  # frames between those of a densely sampled clip; as config.data.stride
EXPENSIVE_PIXELS = 1e9  # decoded pixels per clip, which one core decodes in about a second
MIN_SIDE = 16  # pixels; smaller frames have less than one pixel per patch of a 224 px clip
ADVICE = {
    "one_frame": "have a single frame: every clip repeats it",
    "tiny": f"are less than {MIN_SIDE} pixels wide or high: smaller than the patch grid of a model",
    "expensive": "take a core more than about one second per clip: re-encode the videos with "
    "prepare_data.py shards, or start more data workers",
}


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


def describe_short(frames: Sequence[tuple[str, int]]) -> list[str]:
    """Returns sentences about videos that are shorter than a clip of the default length.

    Args:
      frames: The path of each video and the number of frames in its time range.
    """
    span = count_dense_span(CLIP_FRAMES, CLIP_STRIDE)
    effects = {
        CLIP_FRAMES: f"clips of {CLIP_FRAMES} frames (config.data.frames) repeat frames",
        span: f"densely sampled clips (config.data.sampling='dense') of {CLIP_FRAMES} frames with "
        f"a stride of {CLIP_STRIDE} repeat the last frame",
    }
    sentences = []
    for length, effect in effects.items():
        short = [(count, path) for path, count in frames if count < length]
        if short:
            count, path = min(short)
            sentences.append(
                f"{len(short)} of {len(frames)} videos have fewer than {length} frames, so that "
                f"{effect}; the shortest is {path} with {count}"
            )
    return sentences
