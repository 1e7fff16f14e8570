"""Flags unusual good videos: those with a single frame, tiny frames or expensive decoding."""

from collections.abc import Mapping

from invnext_jax.data.frame_index import PacketIndex

CLIP_FRAMES = 16  # number of frames of the clip whose cost is estimated
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
        for name in flags.split():
            paths[name].append(path)
    return [
        f"{len(found)} files (flag {name}) {ADVICE[name]}; e.g. {found[0]}"
        for name, found in paths.items()
        if found
    ]
