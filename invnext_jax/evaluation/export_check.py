"""Checks that an exported encoder computes the same features as the original on a fixed clip.

Shape key: b videos, t frames, h w pixels, c channels, n tokens, d width.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from invnext_jax.errors import UserError
from invnext_jax.evaluation import pretrained
from invnext_jax.models import encoder as encoder_model
from invnext_jax.models.patches import normalize
from invnext_jax.weights import export, files

# Maximum relative change of the features, by dtype of the tensors.
TOLERANCE = {"float32": 0.0, "float16": 1e-2, "bfloat16": 5e-2}


def check_export(
    path: Path,
    run: str | Path,
    config: Any,
    params: dict[str, Any],
    tensors: dict[str, Any],
    dtype: str,
) -> str:
    """Compares the written files with the weights and returns a description of the result.

    Empties `params` and `tensors` to avoid a second copy of the encoder in memory.

    Raises:
      UserError: a tensor or the features differ, or a weight is not finite.
    """
    if dtype == "float32":
        _check_same_tensors(path, tensors)
    if name := export.find_nonfinite(params):
        raise UserError(f"{run} has weights that are not finite in {name}: use an earlier step")
    if "encoder" not in params:
        return "all tensors are equal" if dtype == "float32" else "there is no encoder to compare"
    encoder = params["encoder"]
    params.clear()
    tensors.clear()  # `tensors` has references to the arrays
    before = clip_features(config, encoder)
    change = check_same_features(before, path, TOLERANCE[dtype])
    if change:
        return f"features of a fixed clip differ by {change:.2%} of the largest value"
    return "features of a fixed clip are equal"


def _check_same_tensors(path: Path, tensors: Mapping[str, files.LazyTensor]) -> None:
    if not export.same_tensors(files.open_checkpoint(path).tensors, tensors):
        raise UserError(f"{path.name} differs from the weights after writing: check the disk")


def clip_features(config: Any, params: Any) -> np.ndarray:
    """Computes the tokens of the fixed clip. Empties `params` to avoid a second copy."""
    encoder = encoder_model.from_config(config)
    clip_bthwc = normalize(fixed_clip(min(encoder.frames, 4), encoder.size))
    run = jax.jit(lambda params, x: encoder.apply({"params": params}, x).tokens_bnd)
    return np.asarray(run(_to_device(params), clip_bthwc))


def _to_device(tree: dict[str, Any]) -> dict[str, Any]:
    """Moves the leaves to the device one by one and frees each host copy."""
    moved = {}
    for name in list(tree):
        leaf = tree.pop(name)
        if isinstance(leaf, dict):
            moved[name] = _to_device(leaf)
        else:  # with an alias, the NumPy array would stay in memory and could be copied later
            moved[name] = jax.device_put(leaf, may_alias=False).block_until_ready()
    return moved


def check_same_features(before: np.ndarray, path: Path, tolerance: float) -> float:
    """Compares the features of the fixed clip from the original and the exported encoder.

    Args:
      before: tokens of the original encoder.
      path: an export.
      tolerance: maximum difference relative to the largest value; 0 for bitwise equality.

    Returns:
      The largest difference, relative to the largest value.

    Raises:
      UserError: the difference is larger than `tolerance`.
    """
    loaded = pretrained.load_encoder(path)
    after = clip_features(loaded.config, loaded.params)
    if before.shape == after.shape:
        worst = float(np.abs(before - after).max() / np.abs(before).max())
        if worst <= tolerance or np.array_equal(before, after):
            return worst
    cure = "please report this with the run's config"
    if tolerance:
        cure = f"use --dtype=float32, because the dtype changes them by more than {tolerance:.0%}"
    raise UserError(
        f"the features of the exported encoder {path.name} differ from those of the run, so "
        f"nothing was written: {cure}"
    )


def fixed_clip(frames: int, size: int) -> np.ndarray:
    """Returns a noise clip that is generated from a fixed seed: uint8 [1 t h w 3]."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, size=(1, frames, size, size, 3), dtype=np.uint8)
