"""`world:` URLs: clips of the synthetic world that are rendered when they are read.

`world:simple/train?videos=2000&size=64` refers to the first 2000 clips of a `WorldSpec`. Omitted
fields have their default values. The same URL with the suffix `#7` refers to clip 7. The keys are
those of `KEYS`, for example `world:full/val?videos=500&object_size=0.5&speed=2&clutter=4`.
"""

import dataclasses
import functools
import urllib.parse

import numpy as np

from invnext_jax.errors import UserError
from invnext_jax.synthetic_world import render, scene
from invnext_jax.synthetic_world.spec import WorldSpec

SCHEME = "world:"
INTEGERS = ("videos", "seed", "size", "frames", "clutter")
FACTORS = ("object_size", "speed")
KEYS = (*INTEGERS, *FACTORS)
MAX_VIDEOS = 100_000  # the labels of so many clips take 2.5 s
MAX_CHARACTERS = 1000


@dataclasses.dataclass(frozen=True)
class World:
    """The first `videos` clips of `spec`."""

    spec: WorldSpec
    videos: int


def parse(name: str) -> World:
    """Parses a `world:` URL.

    Raises:
      UserError: The URL is malformed or too long, or a field is out of range.
    """
    if len(name) > MAX_CHARACTERS:
        raise UserError(
            f"the world URL {name[:80]!r}... has {len(name)} characters: write at most "
            f"{MAX_CHARACTERS}"
        )
    values = {}
    try:
        parts = urllib.parse.urlsplit(name)
        level, _, split = parts.path.partition("/")
        pairs = urllib.parse.parse_qsl(parts.query, keep_blank_values=True, strict_parsing=True)
        for key, text in pairs:
            if key not in KEYS or key in values:
                raise ValueError(f"{key!r}")
            values[key] = int(text) if key in INTEGERS else float(text)
        videos = values.pop("videos", 0)
        if not 1 <= videos <= MAX_VIDEOS:
            raise ValueError(f"videos={videos} is not from 1 to {MAX_VIDEOS}")
    except ValueError as error:
        raise UserError(
            f"{name!r} is not a valid world URL ({error}): write {SCHEME}simple/train?videos=2000. "
            f"The keys {', '.join(INTEGERS)} have integer values, {' and '.join(FACTORS)} have "
            "numbers, and all are separated by &; launch/make_world.py writes larger worlds"
        ) from error
    return World(WorldSpec(level=level, split=split or "train", **values), videos)


def clip_name(name: str, index: int) -> str:
    """Returns the URL of clip `index` of the world `name`."""
    return f"{name}#{index}"


def render_frames(clip: str) -> np.ndarray:
    """Renders all frames of the clip with the URL `clip`: uint8 [t h w c]."""
    name, _, index = clip.rpartition("#")
    return render.render_clip(_parse_cached(name).spec, int(index)).video


def label_columns(world: World) -> dict[str, np.ndarray]:
    """Returns the class ids of all clips, int32 [videos] per task, in about 25 us per clip."""
    rows = [scene.sample_labels(world.spec, index) for index in range(world.videos)]
    return {task: np.array([row[task] for row in rows], np.int32) for task in world.spec.classes}


_parse_cached = functools.lru_cache(maxsize=64)(parse)
