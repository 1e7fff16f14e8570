"""Memory, communication and roofline of a run, computed from shapes. Needs no accelerator.

Shape key: b clips.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from invnext_jax import config_checks
from invnext_jax.errors import UserError
from invnext_jax.planning import flops as flops_lib
from invnext_jax.planning import memory
from invnext_jax.planning.devices import DEVICES, Device
from invnext_jax.planning.shapes import Shapes, make_shapes
from invnext_jax.stages import registry
from invnext_jax.training import mesh as mesh_lib
from invnext_jax.training import recipe as recipe_lib


def make_plan(
    config: ml_collections.ConfigDict,
    device_name: str,
    videos: int = recipe_lib.PAPER_VIDEOS,
    overrides: Sequence[str] = (),
    devices: int | None = None,
) -> dict[str, Any]:
    """Plans a run.

    Args:
      config: the run's config; `config.mesh` sets the device layout.
      device_name: a name in `devices.DEVICES`.
      videos: number of videos of the run's manifests.
      overrides: see `train.train`.
      devices: number of devices; None for that of the available JAX devices.

    Returns:
      See `describe_plan`.

    Raises:
      UserError: the device is unknown, or the mesh or another option is invalid.
    """
    if device_name not in DEVICES:
        raise UserError(f"--device={device_name} must be one of {', '.join(DEVICES)}")
    config, recipe = check_config(config, videos, overrides)
    shapes = make_shapes(config, devices)
    return describe_plan(shapes, device_name, recipe, memory.activation_bytes(shapes))


def describe_plan(
    shapes: Shapes,
    device_name: str,
    recipe: recipe_lib.Recipe,
    activations: memory.ActivationBytes,
) -> dict[str, Any]:
    """Describes the memory and the time of a run.

    Args:
      shapes: the arguments of the step.
      device_name: a name in `devices.DEVICES`.
      recipe: the recipe of the run.
      activations: the output of `memory.activation_bytes`.

    Returns:
      A JSON-compatible dict with bytes per device, FLOPs of a step on all devices, and seconds.
    """
    config, mesh, device = shapes.config, shapes.mesh, DEVICES[device_name]
    held = memory.held_bytes(shapes)
    per_clip, kept, _ = activations.on_mesh(mesh)
    shards = mesh_lib.batch_shards(mesh)
    part = config.batch_size / shards / config.accumulate
    fits = memory.clips_that_fit(device, held, per_clip)
    times = roofline(shapes, device, kept)
    counts = shapes.training.stage.count_flops(config)
    flops = flops_lib.split_flops(counts, config.batch_size)
    return {
        "stage": config.stage,
        "variant": config.variant,
        "frames": config.data.frames,
        "remat": config.remat,
        "device": device_name,
        "devices": mesh.size,
        "mesh": dict(mesh.shape),
        "recipe": recipe.to_json(),
        "batch": config.batch_size,
        "accumulate": config.accumulate,
        "clips_of_a_device": part,
        "parameters": {name: _count(tree) for name, tree in shapes.state.params.items()},
        "untrained_groups": shapes.training.untrained_groups,
        "frozen_parameters": {name: _count(tree) for name, tree in shapes.frozen.items()},
        "held_bytes": held,
        "activation_bytes_per_clip": per_clip,
        "peak_bytes": sum(held.values()) + part * per_clip,
        "memory_bytes": device.memory,
        "clips_that_fit_a_device": fits,
        "batch_that_fits": fits * shards,
        "fits": fits >= part,
        "flops": {
            name: config.batch_size * (count.forward + count.backward)
            for name, count in counts.items()
        },
        "step_flops": sum(flops.values()),
        "float32_flops": flops["float32"],
        "recomputed_flops": flops_lib.sum_recomputed_flops(counts, config.batch_size, config.remat),
        "sent_bytes": sent_bytes(shapes),
        "seconds": times,
        "step_seconds": max(times.values()),
        "run_seconds": config.total_steps * max(times.values()),
        "clips_per_second": config.batch_size / max(times.values()),
        "mfu": device.product_seconds(flops) / (mesh.size * max(times.values())),
    }


def check_config(
    config: ml_collections.ConfigDict,
    videos: int = recipe_lib.PAPER_VIDEOS,
    overrides: Sequence[str] = (),
) -> tuple[ml_collections.FrozenConfigDict, recipe_lib.Recipe]:
    """Runs the checks of a training run, except for input files and the attention kernel.

    Returns:
      The config with its recipe as numbers, and the recipe.

    Raises:
      UserError: an option has an invalid value.
    """
    given, config = config, ml_collections.ConfigDict(config)
    config.attention = "auto"
    for group, name in (
        (config, "init_from"),
        (config.data, "manifest"),
        (config.teacher, "weights"),
    ):
        group[name] = group[name] or "not read"
    config_checks.check_config(config)
    stage = registry.find_stage(config)
    stage.check_config(config)
    config_checks.check_overrides(config, overrides, config_checks.unused_options(given, stage))
    return recipe_lib.resolve_config(config, videos)


def sent_bytes(shapes: Shapes) -> dict[str, float]:
    """Returns the bytes that one device sends over each mesh axis per step, for ring algorithms."""
    config, mesh = shapes.config, shapes.mesh
    data, fsdp, tensor, sequence = (mesh.shape[axis] for axis in mesh_lib.AXES)
    width = jnp.dtype(config.dtype).itemsize
    tokens = flops_lib.token_lengths(config)
    masks = len(tokens.visible)  # the parameters are used once for each mask
    used = shapes.state.params, shapes.step_frozen
    params, frozen = (4.0 * _count(tree) / tensor for tree in used)
    ring = {
        name: (size - 1) / size for name, size in zip(mesh_lib.AXES, mesh.axis_sizes, strict=True)
    }
    gathered = config.accumulate * (2 * masks * params + frozen) * width / 4
    sent = {
        "data": 2 * ring["data"] * masks * params / fsdp,
        "fsdp": ring["fsdp"] * (gathered + config.accumulate * masks * params),
    }
    clips = config.batch_size / data / fsdp
    e, p, n = config.encoder, config.predictor, tokens.patches + tokens.class_tokens
    streams = [(k + tokens.class_tokens, e, 4) for k in tokens.visible]
    streams += [(n, p, 4)] * masks
    if "target" in shapes.frozen or "target" in shapes.state.follow:
        streams.append((n, e, 2))
    t = config.teacher
    if "teacher" in shapes.step_frozen:
        frames = flops_lib.count_teacher_frames(config)
        streams.append((frames * (t.size // t.patch) ** 2, t, 2))
    sizes = [clips * k * s.width * s.depth * width for k, s, _ in streams]
    times = [times for *_, times in streams]
    reduced = sum(size * count for size, count in zip(sizes, times, strict=True))
    sent["tensor"] = 2 * ring["tensor"] * reduced / sequence
    # Keys and values are sent in the forward pass, and their gradients in the backward pass. An
    # all-to-all also sends queries and outputs, but only the part of a device.
    exchanged = config.sequence_attention == "all_to_all"
    sent["sequence"] = ring["sequence"] * reduced / tensor * (2 / sequence if exchanged else 1)
    return sent


def roofline(shapes: Shapes, device: Device, kept: float) -> dict[str, float]:
    """Returns the step time in seconds if it is limited by compute, memory or communication."""
    config, mesh = shapes.config, shapes.mesh
    counts = shapes.training.stage.count_flops(config)
    flops = flops_lib.split_flops(counts, config.batch_size)
    flops[config.dtype] += flops_lib.sum_recomputed_flops(counts, config.batch_size, config.remat)
    clips = config.batch_size / mesh_lib.batch_shards(mesh)
    held = memory.held_bytes(shapes)
    # The update reads parameters, gradients and moments, and writes parameters and moments.
    moved = 2 * (held["parameters"] + held["optimizer"]) + held["gradients"]
    read = held["parameters"] + memory.tree_bytes(shapes.step_frozen)
    moved += config.accumulate * 2 * read + 4 * clips * kept
    local = mesh.size <= device.node
    link = device.link if local else device.network
    return {
        "products": device.product_seconds(flops) / mesh.size,
        "memory": moved / device.bandwidth,
        "sending": sum(sent_bytes(shapes).values()) / link,
    }


def _count(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
