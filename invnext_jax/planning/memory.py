"""Memory of a training step on one device, computed from shapes.

Shape key: b clips.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh

from invnext_jax.planning import flops as flops_lib
from invnext_jax.planning.devices import Device
from invnext_jax.planning.shapes import Shapes
from invnext_jax.training import mesh as mesh_lib

# Clips of the traced step: a prime number that divides no other size, so that arrays with a batch
# axis are those whose size it divides.
_CLIPS = 1009
_USABLE = 0.92  # usable fraction of the memory; the rest is for the runtime and fragmentation


class ActivationBytes(NamedTuple):
    """Bytes of activations per clip.

    Attributes:
      total: saved arrays and working set together.
      kept: the saved arrays alone.
      gathered: the part of `total` that the mesh axis "sequence" does not split.
    """

    total: float
    kept: float
    gathered: float = 0.0

    def on_mesh(self, mesh: Mesh | AbstractMesh) -> "ActivationBytes":
        """Returns the bytes on each device of a mesh, whose token axes split a clip."""
        tensor, sequence = mesh.shape["tensor"], mesh.shape["sequence"]
        gathered = self.gathered / tensor
        total = (self.total - self.gathered) / (tensor * sequence) + gathered
        return ActivationBytes(total, self.kept / (tensor * sequence), gathered)


def clips_that_fit(device: Device, held: Mapping[str, float], per_clip: float) -> int:
    """Returns the number of clips whose activations fit in the memory of a device.

    Args:
      device: the device.
      held: the output of `held_bytes`.
      per_clip: bytes of activations per clip on one device.
    """
    return max(int((_USABLE * device.memory - sum(held.values())) // per_clip), 0)


def held_bytes(shapes: Shapes) -> dict[str, float]:
    """Returns the bytes per device that do not depend on the number of microbatches, by purpose."""
    state, width = shapes.state, jnp.dtype(shapes.config.dtype).itemsize
    params = tree_bytes(state.params)
    # The stacked weights are cast to the compute dtype before the loop over layers.
    cast = (params + tree_bytes(shapes.step_frozen)) * width / 4 if width < 4 else 0.0
    return {
        "parameters": params,
        "optimizer": tree_bytes(state.opt_state),
        "gradients": params * (2 if shapes.config.accumulate > 1 else 1),
        "frozen": tree_bytes(shapes.frozen),
        "copies": tree_bytes((state.follow, state.ema)),
        "cast": cast,
        "stored_outputs": _stored_output_bytes(shapes),
    }


def _stored_output_bytes(shapes: Shapes) -> float:
    """Returns the bytes of the image teacher's stored outputs for two batches on one device.

    The outputs for the next batch are sent while the step runs.
    """
    outputs = [x for name, x in shapes.clip.items() if name != "video"]
    clips = shapes.config.batch_size / mesh_lib.batch_shards(shapes.mesh)
    return 2 * clips * sum(math.prod(x.shape) * x.dtype.itemsize for x in outputs)


def activation_bytes(shapes: Shapes) -> ActivationBytes:
    """Returns the bytes of activations per clip, without sequence or tensor parallelism.

    The saved arrays are those that `jax.vjp` of the loss stores, so they depend on the `remat`
    policy. Attention weights (tokens by tokens) are not counted, because fused kernels do not store
    them. The working set is the temporary arrays of one layer on the longest sequence, in the
    forward and backward pass.
    """
    tokens = flops_lib.token_lengths(shapes.config)
    n, kept = tokens.patches + tokens.class_tokens, 0.0
    for leaf in _saved_arrays(shapes, _CLIPS):
        if leaf.size % _CLIPS:  # it has no batch axis
            continue
        pairs = [axis for axis in leaf.shape[-2:] if axis > 4 * n**0.5]
        if len(leaf.shape) >= 4 and len(pairs) == 2 and leaf.shape[-1] == leaf.shape[-2]:
            continue
        kept += leaf.size / _CLIPS * leaf.dtype.itemsize
    gathered = gathered_bytes(shapes.config, n)
    return ActivationBytes(kept + working_bytes(shapes.config, n), kept, gathered)


def _saved_arrays(shapes: Shapes, clips: int) -> list[jax.ShapeDtypeStruct]:
    """Returns the arrays that the forward pass saves for the backward pass."""
    config, training = shapes.config, shapes.training

    def backward_pass(params: Any, frozen: Any, batch: Any, key: jax.Array) -> Any:
        def loss(params: Any) -> jax.Array:
            return training.stage.loss_fn(config, training.model, params, frozen, batch, key)[0]

        return jax.vjp(loss, params)[1]

    batch = {
        name: jax.ShapeDtypeStruct((clips, *x.shape), x.dtype) for name, x in shapes.clip.items()
    }
    key = jax.eval_shape(lambda: jax.random.key(0))
    unsharded = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype),
        (shapes.state.params, {**shapes.frozen, **shapes.state.follow}),
    )
    return jax.tree.leaves(jax.eval_shape(backward_pass, *unsharded, batch, key))


def working_bytes(config: Any, n: int) -> float:
    """Returns the bytes for one clip of a layer's temporary arrays and of the input pixels."""
    width = jnp.dtype(config.dtype).itemsize
    streams = [(n, config.predictor), (n, config.encoder)]
    layer = max(
        k * (8 * 4 + 10 * width) * s.width + k * 4 * width * s.mlp_width for k, s in streams
    )
    pixels = 3 * config.data.frames * config.data.size**2
    return layer + pixels * (1 + 2 * 4)


def gathered_bytes(config: Any, n: int) -> float:
    """Returns the bytes for one clip of a layer's arrays that devices gather, for n tokens.

    These are keys, values and their gradients, unless `config.sequence_attention` splits the heads.
    """
    if config.sequence_attention == "all_to_all":
        return 0.0
    width = max(config.encoder.width, config.predictor.width)
    return 4.0 * n * width * jnp.dtype(config.dtype).itemsize


def tree_bytes(tree: Any) -> float:
    """Returns the bytes of a tree of arrays on one device."""
    return float(
        sum(
            math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(tree)
        )
    )
