"""Names of worlds that are drawn while they are read: no clip of theirs is on a disk.

`world:simple/train?videos=2000&size=64` stands for the first 2000 clips of a `WorldSpec`, whose
other fields keep their defaults; the same with `#7` behind it for clip 7.
"""

import dataclasses
import functools
import urllib.parse

import numpy as np

from invnext_jax.errors import UserError
from invnext_jax.synthetic_world import render, scene
from invnext_jax.synthetic_world.scene import WorldSpec

SCHEME = "world:"
KEYS = ("videos", "seed", "size", "frames")
MAX_VIDEOS = 2**31 - 1  # rows are numbered in int32


@dataclasses.dataclass(frozen=True)
class World:
    """The first `videos` clips of `spec`."""

    spec: WorldSpec
    videos: int


def is_world(name: str) -> bool:
    """Whether a manifest's or a video's name stands for a world."""
    return name.startswith(SCHEME)


def parse(name: str) -> World:
    """The world that a name stands for.

    Raises:
        UserError: The name has another form, or asks for a world that cannot be.
    """
    parts = urllib.parse.urlsplit(name)
    level, _, split = parts.path.partition("/")
    values = {}
    try:
        pairs = urllib.parse.parse_qsl(parts.query, keep_blank_values=True, strict_parsing=True)
        for key, text in pairs:
            if key not in KEYS or key in values:
                raise ValueError(f"{key!r}")
            values[key] = int(text)
        videos = values.pop("videos", 0)
        if not 1 <= videos <= MAX_VIDEOS:
            raise ValueError(f"videos={videos}")
    except ValueError as error:
        raise UserError(
            f"{name!r} names no world ({error}): write {SCHEME}simple/train?videos=2000, and more "
            f"of {', '.join(KEYS)}, each once and a whole number, joined by &"
        ) from error
    return World(WorldSpec(level=level, split=split or "train", **values), videos)


def clip_name(name: str, index: int) -> str:
    """The name of a clip of the world `name`."""
    return f"{name}#{index}"


def render_frames(clip: str) -> np.ndarray:
    """All frames of the clip that `clip_name` named: uint8 [t h w c]."""
    name, _, index = clip.rpartition("#")
    return render.render_clip(_parse_once(name).spec, int(index)).video


def label_columns(world: World) -> dict[str, np.ndarray]:
    """The class numbers of all clips, int32 [clips] for each task; some 25 us a clip."""
    rows = [scene.sample_labels(world.spec, index) for index in range(world.videos)]
    return {task: np.array([row[task] for row in rows], np.int32) for task in world.spec.classes}


_parse_once = functools.lru_cache(maxsize=64)(parse)
