"""From a run to a file that others load: writes an export and proves that it gives equal features.

Shape key: b videos, t frames, h w pixels, c channels, n tokens, d width.
"""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from invnext_jax.errors import UserError
from invnext_jax.evaluation import features, runs
from invnext_jax.models import encoder as encoder_model
from invnext_jax.models.pixels import IMAGENET_MEAN, IMAGENET_STD, normalize
from invnext_jax.runtime import provenance
from invnext_jax.weights import export

# What of a run's config the parts need; paths of the run's machine stay out of the file.
KEPT = ("stage", "variant", "dtype", "remat")


def export_run(
    run: str | Path,
    out: str | Path,
    *,
    parts: Sequence[str] = ("encoder",),
    overwrite: bool = False,
) -> str:
    """Writes `parts` of a run's newest checkpoint to `out` and a JSON beside it.

    The files are first written to a folder beside `out`, loaded back, and compared by their
    features on a fixed clip; only then do they take their place.

    Args:
      run: workdir of a pretraining run.
      out: the .safetensors file.
      parts: top-level names of the parameter tree: "encoder", "predictor", "decoder", "pool".
      overwrite: whether other files of that name may be replaced.

    Returns:
      A sentence that says what was done.

    Raises:
      UserError: a part is missing, other weights lie at `out`, or the loaded features differ.
    """
    out, json_path = Path(out), export.description_path(out)
    params, config = features.load_params(run)
    missing = [part for part in parts if part not in params]
    if missing:
        raise UserError(f"{run} holds no {missing[0]}, only {', '.join(sorted(params))}")
    chosen = {part: params[part] for part in parts}
    if (out.exists() or json_path.exists()) and not overwrite:
        if out.exists() and json_path.exists() and export.holds(out, chosen):
            return f"{out} holds these very weights already; nothing was written."
        raise UserError(
            f"{out} or its .json exists with other content: name another or --overwrite"
        )

    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.stem}-", dir=out.parent) as folder:
        draft = Path(folder) / out.name
        export.write_export(draft, chosen, describe(run, config, parts))
        check_same_features(config, params["encoder"], draft)
        for source, target in ((draft, out), (export.description_path(draft), json_path)):
            os.replace(source, target)
    count = sum(leaf.size for leaf in jax.tree.leaves(chosen))
    return (
        f"Wrote {out} ({' and '.join(parts)}, {count:,} parameters) and {json_path.name}; "
        "loaded back, the features of a fixed clip are equal."
    )


def describe(run: str | Path, config: Any, parts: Sequence[str]) -> dict[str, Any]:
    """What stands in the JSON: the config of the parts, and where they come from."""
    record = runs.read_record(run)
    names = dict.fromkeys((*KEPT, *parts, "encoder"))
    kept = provenance.as_json(
        type(config)({name: config[name] for name in names if name in config})
    )
    kept.get("predictor", {}).pop("weights", None)  # a path
    return {
        "config": kept,
        "input": {
            "shape": "video [b t h w c] RGB / 255, then (x - mean) / std",
            "mean": [round(float(x), 3) for x in IMAGENET_MEAN],
            "std": [round(float(x), 3) for x in IMAGENET_STD],
        },
        "source": {
            "run": Path(run).resolve().name,
            "step": record["step"],
            "git": record["git"],
            "versions": record["versions"],
        },
    }


def check_same_features(config: Any, params: Any, path: Path) -> None:
    """Compares the encoder's output before and after, bit for bit, on a fixed clip.

    Raises:
      UserError: they differ.
    """
    encoder = encoder_model.from_config(config)
    clip_bthwc = normalize(fixed_clip(encoder.frames, encoder.size))
    loaded = features.load_encoder(path)
    run = jax.jit(lambda params, x: encoder.apply({"params": params}, x).tokens_bnd)
    before = np.asarray(run(params, clip_bthwc))
    run = jax.jit(lambda params, x: loaded.encoder.apply({"params": params}, x).tokens_bnd)
    after = np.asarray(run(loaded.params, clip_bthwc))
    if before.shape != after.shape or not np.array_equal(before, after):
        raise UserError(
            f"the encoder loaded from {path.name} gives other features than the run's: nothing was "
            "written; please report this with the run's config"
        )


def fixed_clip(frames: int, size: int) -> np.ndarray:
    """A clip of noise that is the same everywhere: uint8 [1 t h w 3]."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, size=(1, frames, size, size, 3), dtype=np.uint8)
