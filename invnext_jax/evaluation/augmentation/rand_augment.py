"""RandAugment (arXiv 1909.13719): random image operations, the same for all frames of a clip.

Operations and strengths are those of timm's "increasing" variant, in which a larger magnitude
always means a stronger change. It is commonly used for video transformers (rand-m9-mstd0.5-inc1).

Shape key: b clips, t frames, h w pixels, c channels.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from invnext_jax.errors import UserError
from invnext_jax.evaluation.augmentation import image_operations as ops

Operation = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


class RandAugment(NamedTuple):
    """Options of RandAugment. The defaults are those of the paper's Table 15, RandAug(9, 0.5).

    Attributes:
      magnitude: mean strength, from 0 to 10.
      deviation: standard deviation of the strength.
      operations: number of operations per clip; 0 for none.
      probability: probability with which each operation is applied.
    """

    magnitude: float = 9.0
    deviation: float = 0.5
    operations: int = 2
    probability: float = 0.5


def check_options(options: RandAugment, name: str) -> None:
    """Checks the options; `name` is the config section for the error message.

    Raises:
      UserError: an option has an invalid value.
    """
    limits = {"magnitude": 10, "deviation": 10, "operations": 16, "probability": 1}
    for field, most in limits.items():
        value = getattr(options, field)
        if not 0 <= value <= most:
            raise UserError(f"{name}.{field}={value} must be between 0 and {most}")


def _fixed(change: Callable[[jax.Array], jax.Array]) -> Operation:
    return lambda video, _level, _sign: change(video)


def _one_way(change: Callable[[jax.Array, jax.Array], jax.Array]) -> Operation:
    return lambda video, level, _sign: change(video, level)


def _enhancing(adjust: Callable[[jax.Array, jax.Array], jax.Array]) -> Operation:
    return lambda video, level, sign: adjust(video, jnp.maximum(0.1, 1 + 0.9 * level * sign))


def _geometric(make_matrix: Callable[..., jax.Array]) -> Operation:
    """Makes an operation from a function (level, height, width) -> affine matrix."""

    def apply(video_thwc, level, sign):
        return ops.transform(video_thwc, make_matrix(level * sign, *video_thwc.shape[1:3]))

    return apply


def _matrix(b=0.0, c=0.0, d=0.0, f=0.0) -> jax.Array:
    """Returns the matrix [2, 3] with rows (1, b, c) and (d, 1, f)."""
    return jnp.stack([jnp.asarray(x, jnp.float32) for x in (1, b, c, d, 1, f)]).reshape(2, 3)


def _whole(value: jax.Array) -> jax.Array:
    return jnp.floor(value).astype(jnp.int32)


# Name -> function of (uint8 clip [t h w c], level from 0 to 1, sign 1 or -1).
OPERATIONS: dict[str, Operation] = {
    "auto_contrast": _fixed(ops.auto_contrast),
    "equalize": _fixed(ops.equalize),
    "invert": _fixed(ops.invert),
    "posterize": _one_way(lambda video, level: ops.posterize(video, 4 - _whole(4 * level))),
    "solarize": _one_way(lambda video, level: ops.solarize(video, 256 - _whole(256 * level))),
    "solarize_add": _one_way(lambda video, level: ops.solarize_add(video, _whole(110 * level))),
    "color": _enhancing(ops.adjust_color),
    "contrast": _enhancing(ops.adjust_contrast),
    "brightness": _enhancing(ops.adjust_brightness),
    "sharpness": _enhancing(ops.adjust_sharpness),
    "rotate": _geometric(lambda level, h, w: ops.rotation(30 * level, h, w)),
    "shear_x": _geometric(lambda level, _h, _w: _matrix(b=0.3 * level)),
    "shear_y": _geometric(lambda level, _h, _w: _matrix(d=0.3 * level)),
    "translate_x": _geometric(lambda level, _h, w: _matrix(c=0.45 * level * w)),
    "translate_y": _geometric(lambda level, h, _w: _matrix(f=0.45 * level * h)),
}


def rand_augment(key: jax.Array, video_bthwc: jax.Array, options: RandAugment) -> jax.Array:
    """Augments each clip. The result of a clip depends on the key and its position in the batch.

    Args:
      key: random key.
      video_bthwc: uint8 RGB clips. In a mesh, they are split over the axes data and fsdp.
      options: see `RandAugment`.

    Returns:
      uint8 [b t h w c].
    """
    if not options.operations:
        return video_bthwc
    branches = [_fixed(lambda video: video), *OPERATIONS.values()]

    def augment(clip):
        key, video_thwc = clip

        def apply(i, video_thwc):
            which, apply_key, noise, sign = jax.random.split(jax.random.fold_in(key, i), 4)
            applied = jax.random.bernoulli(apply_key, options.probability)
            index = jax.random.randint(which, (), 1, len(branches))
            level = options.magnitude + options.deviation * jax.random.normal(noise)
            level = jnp.clip(level / 10, 0.0, 1.0)
            sign = jnp.where(jax.random.bernoulli(sign), 1.0, -1.0)
            return jax.lax.switch(jnp.where(applied, index, 0), branches, video_thwc, level, sign)

        return jax.lax.fori_loop(0, options.operations, apply, video_thwc)

    # This is a loop, because `vmap` would compute all operations for each clip.
    run = functools.partial(jax.lax.map, augment)
    mesh = jax.sharding.get_abstract_mesh()
    # Each device loops over its own clips.
    if not mesh.empty and mesh.size > 1 and len(video_bthwc) % mesh.size == 0:
        spec = P(("data", "fsdp"))
        run = jax.shard_map(run, in_specs=((spec, spec),), out_specs=spec, check_vma=False)
    return run((jax.random.split(key, len(video_bthwc)), video_bthwc))
