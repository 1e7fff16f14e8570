"""Runs a frozen encoder on batches of clips, on all devices of this process.

Shape key: b clips, t frames or time slots, h w pixels, c channels, s patches of a slot, n grid
tokens, d e width (e is the second axis of d x d matrices).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

from invnext_jax.evaluation.features import FeatureOptions
from invnext_jax.evaluation.frozen_encoder import FrozenEncoder
from invnext_jax.training import mesh as mesh_lib

MOMENTS = ("sum_nd", "second_dd")
Batch = Mapping[str, np.ndarray]


def local_mesh() -> jax.sharding.Mesh:
    """Returns a mesh that splits batches over all devices of this process."""
    sizes = {"data": -1, "fsdp": 1, "tensor": 1, "sequence": 1}
    return mesh_lib.make_mesh(sizes, jax.local_devices())


def shapes_of_clip(
    encoder: FrozenEncoder, clip_shape: tuple[int, ...], options: FeatureOptions
) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shape and dtype of the features of one clip [t h w c], by kind."""
    clip_bthwc = jax.ShapeDtypeStruct((1, *clip_shape), np.uint8)
    real_b = jax.ShapeDtypeStruct((1,), bool)
    found = jax.eval_shape(make_extractor(encoder, options), encoder.params, clip_bthwc, real_b)
    return {
        kind: jax.ShapeDtypeStruct(value.shape[1:], value.dtype)
        for kind, value in found.items()
        if kind not in MOMENTS
    }


def run_extractor(
    encoder: FrozenEncoder, batches: Iterable[Batch], options: FeatureOptions
) -> Iterator[tuple[dict[str, np.ndarray], Batch]]:
    """Yields the features of each batch together with the batch.

    While a batch is computed, the next one is read.

    Args:
      encoder: the encoder. All batches have the same size, so it is compiled once.
      batches: batches of the evaluation pipeline. Rows with index -1 are padding.
      options: what is extracted.
    """
    mesh = local_mesh()
    run = jax.jit(make_extractor(encoder, options))
    params = mesh_lib.replicate(encoder.params, mesh)
    sharding = mesh_lib.batch_sharding(mesh)
    started = None
    for batch in batches:
        real_b = pad_for_devices(np.asarray(batch["index"]) >= 0, mesh)
        video_bthwc = pad_for_devices(batch["video"], mesh)
        with mesh_lib.mesh_rules(mesh):
            outputs = run(params, *jax.device_put((video_bthwc, real_b), sharding))
        if started is not None:
            yield _fetch(*started)
        started = outputs, batch
    if started is not None:
        yield _fetch(*started)


def pad_for_devices(array: np.ndarray, mesh: jax.sharding.Mesh) -> np.ndarray:
    """Appends rows of zeros until their number is divisible by the number of devices."""
    spare = -len(array) % mesh.size
    return np.pad(array, [(0, spare), *[(0, 0)] * (array.ndim - 1)]) if spare else array


def _fetch(outputs, batch):
    """Copies outputs to the host and removes the rows that were added for the devices."""
    found = jax.device_get(outputs)
    rows = len(batch["index"])
    return {k: v if k in MOMENTS else v[:rows] for k, v in found.items()}, batch


def make_extractor(
    encoder: FrozenEncoder, options: FeatureOptions
) -> Callable[[Any, jax.Array, jax.Array], dict[str, jax.Array]]:
    """Returns a function (params, uint8 clips [b t h w c], bool real_b) -> features of the clips.

    Its result is a dict with the kinds of `VideoFeatures.arrays` as keys and arrays [b ...] without
    the axis of views. If `options.moments` is set, it also contains the float32 sums "sum_nd" and
    "second_dd" over the clips for which `real_b` is True.
    """
    layers = () if options.layer is None else (options.layer,)

    def run(params, video_bthwc, real_b):
        out = encoder.apply(params, video_bthwc, layers)
        tokens_btsd = out.layers_lbtnd[0] if layers else out.tokens_btnd
        found = {"tokens": tokens_btsd} if options.dense else {}
        found["frames"] = jnp.mean(tokens_btsd, axis=2)
        if out.pooled_bd is not None:
            found["pool"] = out.pooled_bd
        if out.class_bkd is not None:
            found["class"] = out.class_bkd
        found = {name: value.astype(options.dtype) for name, value in found.items()}
        if options.moments:
            tokens_bnd = rearrange(tokens_btsd, "b t s d -> b (t s) d")
            real_tokens = jnp.where(real_b[:, None, None], tokens_bnd, 0.0)
            highest = jax.lax.Precision.HIGHEST
            second_dd = jnp.einsum("bnd,bne->de", real_tokens, real_tokens, precision=highest)
            found |= {"sum_nd": jnp.sum(real_tokens, axis=0), "second_dd": second_dd}
        return found

    return run
