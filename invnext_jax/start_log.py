"""Logs the model size, the devices, the recipe and the restored checkpoint when a run starts."""

from typing import Any

import jax
import jax.numpy as jnp
from absl import logging

from invnext_jax import loop
from invnext_jax.checkpointing import aborted_runs, evaluated_videos, reader, run_metadata
from invnext_jax.monitoring import parameter_table
from invnext_jax.multihost.distributed import log_on_process_0
from invnext_jax.objectives import masks
from invnext_jax.stages import image_teacher
from invnext_jax.training import mesh as mesh_lib
from invnext_jax.training import recipe as recipe_lib


def log_start(run: loop.Run) -> None:
    """Logs the size of the model, the devices, the recipe and the restored checkpoint, if any."""

    def size(tree: Any) -> str:
        return f"{sum(leaf.size for leaf in jax.tree.leaves(tree)) / 1e6:.2f} M"

    groups = run.state.params, run.frozen, run.training.untrained_groups
    trained, frozen = parameter_table.split_trained(*groups)
    axes = ", ".join(f"{axis} {size}" for axis, size in run.mesh.shape.items() if size > 1)
    devices = f"{run.mesh.size} x {run.mesh.devices.flat[0].device_kind}"
    log_on_process_0(
        f"{run.config.stage} {run.config.variant}: {size(trained)} trained "
        f"parameters, {size(frozen)} frozen; batch {run.config.batch_size} on {devices}"
        + (f" ({axes})" if axes else "")
    )
    if mesh_lib.shares_shards(run.mesh):
        log_on_process_0(
            "the mesh axes tensor and sequence extend over several processes, which therefore load "
            "the same clips"
        )
    log_on_process_0(describe_clips(run.config))
    log_on_process_0(describe_mask(run.config))
    if "teacher" in run.frozen:
        log_on_process_0(image_teacher.describe_teacher(run.config))
    if run.config.quantize_frozen:
        log_on_process_0(f"8-bit products of the frozen networks: {run.config.quantize_frozen}")
    log_on_process_0(run.recipe.describe())
    for warning in filter(None, (run.recipe.warning(), describe_initial_share(run.config))):
        if jax.process_index() == 0:
            logging.warning("%s", warning)
    if run.step:
        log_on_process_0(
            f"resumes after step {run.step}, from {run.checkpointer.folder / str(run.step)}"
        )
        _warn_of_changes(run)
    if reason := run.checkpointer.abort_reason:
        advice = aborted_runs.describe_restart(run.checkpointer.folder)
        log_on_process_0(f"this checkpoint was saved when the run was aborted: {reason}. {advice}")


def describe_clips(config: Any) -> str:
    """Returns a sentence with the clips, and the encoder's position table if it is interpolated."""
    own = {"data": (config.data.frames, config.data.size)}
    own["encoder"] = config.encoder.frames, config.encoder.size
    clips, table = (f"{n} frames of {side} x {side}" for n, side in own.values())
    text = f"clips of {clips} pixels"
    if own["data"] != own["encoder"]:
        text += f": the encoder's position table for {table} is interpolated"
    return text


def describe_mask(config: Any) -> str:
    """Returns a sentence with the numbers of patches that the masks leave visible.

    Fractions are rounded to whole patches, so different fractions can give equal masks.
    """
    side, frames = config.data.size // config.encoder.patch, config.data.frames
    grid, positions = (frames, side, side), side**2
    shapes = jax.eval_shape(
        lambda key, attention_bts: masks.sample_masks(key, 1, grid, config.mask, attention_bts),
        jax.random.key(0),
        jax.ShapeDtypeStruct((1, frames, positions), jnp.float32),
    )
    used = shapes[:1] if config.stage == "stage1" else shapes
    visible = [keep_bk.shape[1] for keep_bk, _ in used]
    first = masks.visible_frames(config.mask, frames)
    counts = " and ".join(f"{count / first:g}" for count in visible)
    masked = " and ".join(f"{1 - count / (frames * positions):.1%}" for count in visible)
    where = f" in the first {first} of {frames} frames" if first < frames else ""
    return (
        f"mask {config.mask.kind}: {counts} of the {positions} patches of a frame are visible"
        f"{where}, {masked} are masked"
    )


def describe_initial_share(config: Any) -> str:
    """Returns a warning if the moving average of the parameters is too slow for the run, or ""."""
    share = config.ema.decay**config.total_steps  # what remains of the initial values at the end
    if not config.ema.decay or share < 0.01:
        return ""
    return (
        f"the moving average of the parameters still consists of {share:.0%} initial values after "
        f"all steps of the run ({config.total_steps:,}): lower config.ema.decay={config.ema.decay}"
    )


def _warn_of_changes(run: loop.Run) -> None:
    """Warns of changes since the checkpoint in the learning rate and in the evaluated videos."""
    if jax.process_index() == 0:
        record = reader.read_json(run.checkpointer.folder / str(run.step), "meta")
        saved = run_metadata.config_from_json(record["config"])
        updates = run.step - int(run.state.skipped)
        if change := recipe_lib.describe_change(saved, run.config, updates):
            logging.warning("%s", change)
        if change := evaluated_videos.describe_change(record, run.checkpointer.record):
            logging.warning("%s", change)
