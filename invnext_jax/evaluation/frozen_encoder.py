"""The interface of frozen encoders, which all evaluators use.

`pretrained.load_frozen` makes a `FrozenEncoder` from a run, an export, a published folder or an
image encoder. Frozen encoders of other projects follow the same interface.

Shape key: b clips, t time slots, h w pixels, c channels, n tokens of a time slot, d width, k class
tokens, l layers.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from invnext_jax import json_file
from invnext_jax.checkpointing import frozen_hashes, run_metadata

# Sections of a run's config that determine how it predicts.
PREDICTOR_SECTIONS = ("stage", "dtype", "predictor", "target")


class FrozenOutput(NamedTuple):
    """Output of a frozen encoder, float32.

    Attributes:
      tokens_btnd: final tokens of the patches, in raster order (time slot, row, column).
      class_bkd: class tokens; None if the encoder has none. An image encoder has one per frame.
      layers_lbtnd: outputs of the requested layers, with the same tokens as `tokens_btnd`.
      pooled_bd: pooled output; None if the checkpoint has no pooling layer. For an image encoder,
        the mean over frames.
    """

    tokens_btnd: jax.Array
    class_bkd: jax.Array | None
    layers_lbtnd: jax.Array
    pooled_bd: jax.Array | None


@dataclasses.dataclass(frozen=True, eq=False)
class FrozenEncoder:
    """An encoder with fixed parameters.

    Attributes:
      name: short name of the encoder, for tables.
      width: width d of the tokens.
      patch: height and width of a patch in pixels; frames must be divisible by it.
      size: height and width in pixels of the frames that the encoder was built for.
      frames: number of frames that the encoder was built for; for an image encoder, a default.
      tubelet: number of frames in a time slot.
      depth: number of layers.
      class_tokens: whether the output has class tokens.
      pool_width: width of the pooled output; 0 for none.
      params: parameters, float32 NumPy arrays.
      record: JSON-serializable description, from which the same module can be built.
      forward: function (params, uint8 clips [b t h w c], layers) -> FrozenOutput. It can be traced.
      init_params: function seed -> parameters of the same module with random initialization.
      loaded: the module, parameters and config of a checkpoint of this package
        (`pretrained.LoadedEncoder`); None for other encoders.
    """

    name: str
    width: int
    patch: int
    size: int
    frames: int
    tubelet: int
    depth: int
    class_tokens: bool
    pool_width: int
    params: Any
    record: Mapping[str, Any]
    forward: Callable[[Any, jax.Array, tuple[int, ...]], FrozenOutput]
    init_params: Callable[[int], Any]
    loaded: Any = None

    def apply(
        self, params: Any, video_bthwc: jax.Array, layers: Sequence[int] = ()
    ) -> FrozenOutput:
        """Encodes clips. The function can be traced; gradients do not reach the parameters.

        Args:
          params: `self.params`, usually on the devices.
          video_bthwc: uint8 RGB clips. The number of frames is a multiple of `tubelet`; height and
            width are multiples of `patch`.
          layers: layers whose outputs are returned, in this order; 0 is the first layer after the
            patch embedding, `depth - 1` the last.

        Raises:
          ValueError: a layer does not exist.
        """
        if any(not 0 <= layer < self.depth for layer in layers):
            raise ValueError(f"{layers=} must be between 0 and {self.depth - 1}")
        out = self.forward(jax.lax.stop_gradient(params), video_bthwc, tuple(layers))
        return out if self.pool_width else out._replace(pooled_bd=None)

    @functools.cached_property
    def key(self) -> str:
        """Hash of the record and the parameters, SHA-256."""
        digest = frozen_hashes.hash_groups({"params": self.params})["params"]
        return json_file.hash_json([self.record, digest])

    @functools.cached_property
    def predictor_key(self) -> str:
        """Hash of the config and the parameters of the checkpoint's predictor; "" without a config.

        `key` does not contain them, because most evaluators use the encoder only.
        """
        if self.loaded is None:
            return ""
        config = run_metadata.config_to_json(self.loaded.config)
        sections = {name: config.get(name) for name in PREDICTOR_SECTIONS}
        sections["frames"] = (config.get("data") or {}).get("frames")
        found = self.loaded.predictor
        params = {} if found is None else {"params": found.params}
        return json_file.hash_json([sections, frozen_hashes.hash_groups(params)])

    def describe_damaged(self, checkpoint: str) -> list[str]:
        """Returns a note if newer checkpoints of the run are damaged and were skipped."""
        if not self.loaded or not self.loaded.damaged:
            return []
        steps = ", ".join(map(str, self.loaded.damaged))
        return [
            f"{checkpoint} has damaged checkpoints, which were skipped (step {steps}), so that the "
            f"checkpoint of step {self.loaded.step} is evaluated."
        ]

    def with_random_params(self, seed: int) -> "FrozenEncoder":
        """Returns the same encoder with random initialization, without its pool and predictor."""
        loaded = self.loaded and self.loaded._replace(pool=None, predictor=None)
        params = self.init_params(seed)
        return dataclasses.replace(self, name="random", params=params, pool_width=0, loaded=loaded)


def select_states(states_kbnd: jax.Array, layers: Sequence[int]) -> jax.Array:
    """Selects the states of the requested layers from those of the sorted, unique layers.

    Args:
      states_kbnd: states of `sorted(set(layers))`.
      layers: the requested layers.

    Returns:
      The state of each entry of `layers`.
    """
    order = sorted(set(layers))
    return states_kbnd[np.array([order.index(layer) for layer in layers], np.int32)]
