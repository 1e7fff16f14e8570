"""Measures how closely cheaper image teachers agree with the full teacher, on real clips.

    python -m benchmarks.teacher_options --config=configs/stage1.py:tiny --run=runs/stage1 \
        --config.data.manifest=videos.csv --config.data.workers=0

For each option, it prints a row with

- the FLOPs of the teacher and of the step, as fractions of those of the full teacher;
- the cosine similarity of the teacher's tokens and pooled features with those of the full teacher;
- the correlation of its attention maps, as the masks use them, with those of the full teacher;
- the cosine similarity of the encoder's gradient of the Stage 1 loss with that of the full teacher,
  for the same clips and random keys: the mean over steps, and that of the sums over all steps;
- the CPU time of loss and gradient, as a fraction of that of the full teacher.

The row "other keys" compares the full teacher with itself for other random keys. It shows how much
gradients vary with masks and noise alone. The last line is a JSON object.
"""

import functools
import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import app, flags
from einops import rearrange
from ml_collections import config_flags

from invnext_jax.checkpointing import reader
from invnext_jax.data import pipeline
from invnext_jax.models.patches import normalize
from invnext_jax.stages import image_teacher, registry
from invnext_jax.training import mesh as mesh_lib

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config of a Stage 1 run.")
_RUN = flags.DEFINE_string("run", "", "Workdir of a Stage 1 run with the parameters; '': random.")
_STEPS = flags.DEFINE_integer("steps", 8, "Number of steps, each with its own clips and key.")

OPTIONS: dict[str, dict[str, Any]] = {
    "frames_share=0.5": {"teacher.frames_share": 0.5},
    "frames_share=0.25": {"teacher.frames_share": 0.25},
    "int8": {"quantize_frozen": "int8"},
    "float8": {"quantize_frozen": "float8"},
    "images of half the size": {"teacher.resample": True, "teacher.size": 0.5},
}


def apply_option(config: Any, changes: dict[str, Any]) -> ml_collections.FrozenConfigDict:
    """Returns a config with other values of options; the teacher's size is a fraction."""
    config = ml_collections.ConfigDict(config).copy_and_resolve_references()
    if "teacher.size" in changes:
        changes = {**changes, "teacher.size": int(changes["teacher.size"] * config.teacher.size)}
    config.update_from_flattened_dict(changes)
    return ml_collections.FrozenConfigDict(config)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the cosine similarity of two vectors."""
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def flatten(tree: Any) -> np.ndarray:
    """Returns all leaves of a tree as one float64 vector."""
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]).astype(np.float64)


def make_gradient(config: Any) -> Callable[..., Any]:
    """Returns the compiled function (params, frozen, batch, key) -> gradient of the loss."""
    stage = registry.find_stage(config)
    loss_fn = functools.partial(stage.loss_fn, config, stage.make_model(config))
    return jax.jit(lambda *arguments: jax.grad(loss_fn, has_aux=True)(*arguments)[0]["encoder"])


def make_teacher(config: Any) -> Callable[..., Any]:
    """Returns the compiled function (frozen, batch, key) -> output of `apply_to_clips`."""

    def apply(frozen, batch, key):
        clips = normalize(batch["video"])
        return image_teacher.apply_to_clips(config, frozen["teacher"], clips, key)

    return jax.jit(apply)


def compare_outputs(found: Any, full: Any) -> dict[str, float]:
    """Returns the similarities of the teacher's outputs for a batch, with those of all frames."""
    (output, attention_bts), (full_output, full_bts) = found, full
    b, t = full_bts.shape[:2]
    frames_bf = output.frames_bf
    if frames_bf is None:
        frames_bf = jnp.tile(jnp.arange(t), (b, 1))
    taps_lbtsd = rearrange(full_output.taps_lbnd, "l (b t) s d -> l b t s d", b=b)
    pooled_btd = rearrange(full_output.pooled_bd, "(b t) d -> b t d", b=b)
    own = [taps_lbtsd[:, i, frames] for i, frames in enumerate(frames_bf)]
    own_pooled = [pooled_btd[i, frames] for i, frames in enumerate(frames_bf)]
    tokens = jnp.sum(output.taps_lbnd * jnp.concatenate(own, axis=1), axis=-1)
    pooled = jnp.sum(output.pooled_bd * jnp.concatenate(own_pooled), axis=-1)
    maps_bts = zip(attention_bts.reshape(b * t, -1), full_bts.reshape(b * t, -1), strict=True)
    return {
        "token_cosine": float(jnp.mean(tokens)),
        "smallest_token_cosine": float(jnp.min(tokens)),
        "pooled_cosine": float(jnp.mean(pooled)),
        "attention_correlation": float(np.mean([np.corrcoef(*maps)[0, 1] for maps in maps_bts])),
    }


def count_fractions(config: Any, full: Any) -> dict[str, float]:
    """Returns the FLOPs of teacher and step, as fractions of those of the config `full`."""
    teacher, step = [], []
    for c in (config, full):
        count = registry.find_stage(c).count_flops(c)["teacher"]
        teacher.append(count.forward)
        step.append(registry.step_flops(c))
    return {"teacher_flops": teacher[0] / teacher[1], "step_flops": step[0] / step[1]}


class Option:
    """Measurements of one option.

    Attributes:
      config: the config with the option.
      cosines: cosine similarity of the gradients of each step.
      seconds: CPU time of the gradient of each step.
      outputs: output of `compare_outputs` of each step.
      sum: sum of the gradients over all steps.
    """

    def __init__(self, config: Any) -> None:
        """Compiles nothing yet."""
        self.config = config
        self.cosines, self.seconds, self.outputs, self.sum = [], [], [], 0.0
        self._gradient, self._teacher = make_gradient(config), make_teacher(config)

    def teach(self, frozen: Any, batch: Any, key: jax.Array) -> Any:
        """Returns the output of the teacher."""
        return self._teacher(frozen, batch, key)

    def differentiate(self, *arguments: Any) -> np.ndarray:
        """Returns the gradient and measures its CPU time, after a first call that compiles."""
        if not self.seconds:
            jax.block_until_ready(self._gradient(*arguments))
        start = time.process_time()
        gradient = jax.block_until_ready(self._gradient(*arguments))
        self.seconds.append(time.process_time() - start)
        return flatten(gradient)

    def summarize(self, full: "Option") -> dict[str, float]:
        """Returns the row of the table."""
        row = count_fractions(self.config, full.config)
        for field in self.outputs[0]:
            reduce = min if field.startswith("smallest") else statistics.mean
            row[field] = reduce(outputs[field] for outputs in self.outputs)
        row["gradient_cosine"] = statistics.mean(self.cosines)
        row["summed_gradient_cosine"] = cosine(self.sum, full.sum)
        row["cpu_time"] = statistics.median(self.seconds) / statistics.median(full.seconds)
        return row


def measure(
    config: Any, params: Any, frozen: Any, batches: Sequence[Any], options: dict[str, dict]
) -> dict[str, dict[str, float]]:
    """Returns the measurements of each option by name, and those for other keys."""
    full = Option(apply_option(config, {}))
    measured = {name: Option(apply_option(config, changes)) for name, changes in options.items()}
    others, sums = [], [0.0, 0.0]
    for step, batch in enumerate(batches):
        key, other_key = jax.random.key(step), jax.random.key(len(batches) + step)
        expected = full.differentiate(params, frozen, batch, key)
        full_output = full.teach(frozen, batch, key)
        full.sum = full.sum + expected
        for option in measured.values():
            gradient = option.differentiate(params, frozen, batch, key)
            option.sum = option.sum + gradient
            option.cosines.append(cosine(gradient, expected))
            output = option.teach(frozen, batch, key)
            option.outputs.append(compare_outputs(output, full_output))
        other = full.differentiate(params, frozen, batch, other_key)
        others.append(cosine(other, expected))
        sums = [sums[0] + expected, sums[1] + other]
    rows = {name: option.summarize(full) for name, option in measured.items()}
    rows["other keys"] = {
        "gradient_cosine": statistics.mean(others),
        "summed_gradient_cosine": cosine(*sums),
    }
    return rows


def main(_: Sequence[str]) -> None:
    """Prints the table and the JSON object."""
    config = ml_collections.FrozenConfigDict(_CONFIG.value)
    dataset = iter(
        pipeline.make_train_dataset(config.data, seed=config.seed, batch_size=config.batch_size)
    )
    batches = [{"video": next(dataset)["video"].copy()} for _ in range(_STEPS.value)]
    dataset.close()
    frozen = registry.find_stage(config).init_frozen(config, None)
    if _RUN.value:
        params, _ = reader.restore_params(_RUN.value)
    else:
        params = mesh_lib.unbox(jax.jit(registry.make_setup(config).init_fn)(jax.random.key(0)))
    rows = measure(config, params, frozen, batches, OPTIONS)
    for name, row in rows.items():
        print(f"{name:26}", "  ".join(f"{field} {value:.4f}" for field, value in row.items()))
    print(json.dumps(rows))


if __name__ == "__main__":
    app.run(main)
