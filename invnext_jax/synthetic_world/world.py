"""The embedded procedural video world: endless clips with labels, captions and ground truths.

`make_clip(spec, index)` draws a clip from nothing but its arguments; `write_world` puts clips on
disk as real H.264 files; manifests named `world:...` do without a disk. The level "simple" (one
bright shape on a nearly plain background, 8 directions) is for demos and tests; "full" has digits,
textures, parallax, distractors, occlusion and 10 motions. On both no single frame tells the motion:
only the order of the frames does.

The work stands in world_scene (what happens), world_captions, world_render (drawing), world_files
(disk) and world_urls (names of clips drawn while they are read); this file is the door.
"""

from invnext_jax.synthetic_world.captions import (
    Caption,
    all_image_captions,
    image_captions,
    label_matrix,
    video_caption,
)
from invnext_jax.synthetic_world.files import encode_mp4, write_world
from invnext_jax.synthetic_world.render import Clip, make_clip
from invnext_jax.synthetic_world.scene import (
    BACKGROUNDS,
    COLORS,
    DIGITS,
    FULL_MOTIONS,
    LEVELS,
    MOTIONS,
    SHAPES,
    SPLITS,
    Scene,
    WorldSpec,
    make_scene,
)

__all__ = [
    "BACKGROUNDS",
    "COLORS",
    "DIGITS",
    "FULL_MOTIONS",
    "LEVELS",
    "MOTIONS",
    "SHAPES",
    "SPLITS",
    "Caption",
    "Clip",
    "Scene",
    "WorldSpec",
    "all_image_captions",
    "encode_mp4",
    "image_captions",
    "label_matrix",
    "make_clip",
    "make_scene",
    "video_caption",
    "write_world",
]
