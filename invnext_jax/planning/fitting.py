"""Search for options with which a run fits in the memory of its devices.

The search changes gradient accumulation, rematerialization and the mesh. They change the results of
a run only by rounding and by the keys of microbatches. The batch size is not changed: it changes
the learning rate, and saves no memory that accumulation does not save.
"""

import functools
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import ml_collections

from invnext_jax.planning import memory, plan
from invnext_jax.planning.devices import DEVICES, Device
from invnext_jax.planning.shapes import Shapes, make_shapes
from invnext_jax.training import mesh as mesh_lib
from invnext_jax.training import recipe as recipe_lib

REMATS = ("none", "dots", "full")  # values of `config.remat`, from most to least memory
_MAX_SEQUENCE = 8  # largest size of the mesh axis "sequence" in the search


class Fit(NamedTuple):
    """Options with which a run fits.

    Attributes:
      options: the options that differ from those of the config, by dotted name.
      plan: the plan of the run with these options, see `plan.describe_plan`.
    """

    options: dict[str, Any]
    plan: dict[str, Any]


def find_fit(
    config: ml_collections.ConfigDict,
    device_name: str,
    devices: int,
    videos: int = recipe_lib.PAPER_VIDEOS,
    max_devices: int | None = None,
) -> Fit | None:
    """Finds the options with which a run fits and has the shortest estimated step.

    If several are equally fast, the ones that change the fewest options of the config are returned,
    and among those the ones with the smallest sum of compute, memory and communication times. Clips
    are split over devices only if nothing else fits.

    Args:
      config: a config that passes `plan.make_plan`.
      device_name: a name in `devices.DEVICES`.
      devices: number of devices.
      videos: number of videos of the run's manifests.
      max_devices: if nothing fits, the number of devices is doubled up to this number. None keeps
        it.

    Returns:
      The options; None if nothing fits.
    """
    checked, recipe = plan.check_config(config, videos)
    shapes, device = make_shapes(checked, devices), DEVICES[device_name]
    remats = REMATS[REMATS.index(config.remat) :]
    activations = functools.cache(
        lambda remat: memory.activation_bytes(shapes.replace({"remat": remat}, devices))
    )
    counts = [devices]
    while 2 * counts[-1] <= (max_devices or 0):
        counts.append(2 * counts[-1])
    for count, split_clips in itertools.product(counts, (False, True)):
        best = None
        meshes = list(_mesh_options(checked, count, device.node, split_clips=split_clips))
        for remat, mesh in itertools.product(remats, meshes):
            made = shapes.replace({"remat": remat, **mesh}, count)
            products = plan.roofline(made, device, kept=0.0)["products"]
            if best and best.plan["step_seconds"] < products:
                continue  # recomputation takes longer
            accumulate = _least_accumulation(made, device, activations(remat))
            if accumulate is not None:
                made = made.replace({"accumulate": accumulate}, count)
                found = plan.describe_plan(made, device_name, recipe, activations(remat))
                fit = Fit(changed_options(config, found), found)
                best = min(best or fit, fit, key=_rank)
        if best:
            return best
    return None


def _rank(fit: Fit) -> tuple[float, int, float]:
    seconds = fit.plan["step_seconds"]
    rounded = float(f"{seconds:.2g}")  # the roofline is not more exact than this
    return rounded, len(fit.options), sum(fit.plan["seconds"].values())


def _mesh_options(
    config: Any, devices: int, node: int, *, split_clips: bool
) -> Iterator[dict[str, int]]:
    """Yields sizes of the mesh axes for a number of devices, with or without splitting clips."""
    heads = math.gcd(config.encoder.heads, config.predictor.heads)
    tensor_sizes = _divisors(math.gcd(heads, node))
    for tensor, sequence in itertools.product(tensor_sizes, _divisors(_MAX_SEQUENCE)):
        if config.sequence_attention == "all_to_all" and heads % (tensor * sequence):
            continue
        shards, rest = divmod(devices, tensor * sequence)
        if rest or config.batch_size % shards or (tensor * sequence > 1) != split_clips:
            continue
        for fsdp in _divisors(shards):
            sizes = (shards // fsdp, fsdp, tensor, sequence)
            yield {f"mesh.{axis}": n for axis, n in zip(mesh_lib.AXES, sizes, strict=True)}


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def _least_accumulation(
    shapes: Shapes, device: Device, activations: memory.ActivationBytes
) -> int | None:
    """Returns the smallest number of microbatches with which a step fits, or None."""
    config = shapes.config
    per_clip = activations.on_mesh(shapes.mesh).total
    clips = config.batch_size // mesh_lib.batch_shards(shapes.mesh)
    whole, split = (
        memory.clips_that_fit(
            device,
            memory.held_bytes(shapes.replace({"accumulate": accumulate}, shapes.mesh.size)),
            per_clip,
        )
        for accumulate in (1, 2)  # all numbers above 1 need the same memory
    )
    for accumulate in _divisors(clips):
        fitting = split if accumulate > 1 else whole
        if accumulate >= config.accumulate and clips // accumulate <= fitting:
            return accumulate
    return None


def changed_options(config: Any, found: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options of a plan that differ from those of a config."""
    options = {name: found[name] for name in ("accumulate", "remat") if config[name] != found[name]}
    for axis, size in found["mesh"].items():
        if config.mesh[axis] not in (size, -1):
            options[f"mesh.{axis}"] = size
    return options
