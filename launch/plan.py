"""Estimates the memory and step time of a run from shapes, without an accelerator.

    python launch/plan.py --config=configs/stage2.py:base --device=h200
    python launch/plan.py --config=configs/stage2.py:1b --device=v5p --mesh=fsdp=16
    python launch/plan.py --config=configs/stage2.py:base --config.batch_size=32 --device=v5p \
        --mesh=fsdp=4 --compile --topology=2x2x1

If the run does not fit, the last line is the command of a run that does. docs/scaling.md explains
the output.
"""

import json
import math
import os
import pathlib
import shlex
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
from absl import flags
from ml_collections import config_flags

from invnext_jax import config_checks, errors, init_source
from invnext_jax.data import held_out, manifest, sources
from invnext_jax.planning import compiled_step, fitting, plan, plan_table, targets
from invnext_jax.training import recipe

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file and variant, such as configs/stage2.py:base."
)
_DEVICE = flags.DEFINE_string(
    "device", None, "One of h200, h100, a100, b200, l40s, v4, v5e, v5p, v6e."
)
_MESH = flags.DEFINE_list(
    "mesh", [], "Sizes of the mesh axes, such as data=2,fsdp=8. Others are 1. Default: config.mesh."
)
_COMPILE = flags.DEFINE_bool(
    "compile",
    False,
    "Also compile the step, for the same number of simulated CPU devices or for --topology.",
)
_TOPOLOGY = flags.DEFINE_string(
    "topology",
    None,
    "With --compile: compile with the TPU or GPU compiler for the chips of a slice, such as 2x2x1, "
    "or for nodes and GPUs per node, such as 1x8.",
)
_SAVE_PROGRAM = flags.DEFINE_string(
    "save_program", None, "With --compile: file to which the compiled program is written as text."
)
_MAX_DEVICES = 256  # if nothing fits on the given devices, up to this number is tried
_JSON = flags.DEFINE_bool("json", False, "Print the result as JSON in the last line.")
flags.mark_flags_as_required(["config", "device"])


def main(argv: Sequence[str]) -> None:
    """Makes the plan and prints it."""
    del argv
    if not _COMPILE.value and (_TOPOLOGY.value or _SAVE_PROGRAM.value):
        raise errors.UserError("--topology and --save_program need --compile")
    overrides = errors.list_overrides()
    config = init_source.copy_sizes(_CONFIG.value, overrides)
    given = config.copy_and_resolve_references()
    if _MESH.value:
        config.mesh.update(_mesh_sizes(_MESH.value))
    devices = math.prod(max(size, 1) for size in config.mesh.values())
    simulated = _COMPILE.value and not _TOPOLOGY.value
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices if simulated else 1)
    jax.config.update("jax_traceback_in_locations_limit", -1)  # for the source lines of a program
    if _TOPOLOGY.value:
        devices = targets.count_devices(_TOPOLOGY.value)

    videos = _read_manifest(config.data.manifest)
    if videos is not None:
        sources.check_names(config.data, videos.sources)
        unused = sources.unused_options(config.data, videos)
        config_checks.check_overrides(config, overrides, unused)
    count = recipe.PAPER_VIDEOS
    if videos is not None:
        count = held_out.count_training_videos(videos, config.data.held_out)
    result = plan.make_plan(config, _DEVICE.value, count, overrides, devices)
    if _COMPILE.value:
        result |= _compile(config)
    print(plan_table.format_plan(result))
    if not result["fits"]:
        fit = fitting.find_fit(config, _DEVICE.value, devices, count, _MAX_DEVICES)
        result["fitting_command"] = _training_command(given, fit) if fit else ""
        print(plan_table.format_fit(result, fit and fit.plan, _MAX_DEVICES))
    if _JSON.value:
        print(json.dumps(result))


def _compile(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Compiles the step and returns its description."""
    described = None
    if _TOPOLOGY.value:
        described = targets.describe_devices(_DEVICE.value, _TOPOLOGY.value)
    step = compiled_step.compile_step(config, described)
    if _SAVE_PROGRAM.value:
        pathlib.Path(_SAVE_PROGRAM.value).write_text(step.text)
    result = compiled_step.describe_memory(step)
    return result | compiled_step.describe_program(step, _DEVICE.value) if described else result


def _training_command(given: ml_collections.ConfigDict, fit: fitting.Fit) -> str:
    """Returns the command of the run that was planned, with the options that fit.

    Args:
      given: the config, without the mesh of --mesh.
      fit: the options that fit.
    """
    options = dict(config_flags.get_override_values(flags.FLAGS["config"]))
    options |= fitting.changed_options(given, fit.plan)
    arguments = [f"--config={config_flags.get_config_filename(flags.FLAGS['config'])}"]
    arguments += [f"--config.{name}={value}" for name, value in options.items()]
    arguments.append(f"--workdir=runs/{fit.plan['stage']}")
    return shlex.join(["python", "launch/main.py", *arguments])


def _read_manifest(manifests: str) -> manifest.Manifest | None:
    """Returns the rows of the manifests, or None if they do not exist here."""
    if manifests and all(map(os.path.exists, manifest.list_manifests(manifests))):
        return manifest.read_manifest(manifests)
    missing = f"{manifests} does not exist here" if manifests else "config.data.manifest is empty"
    print(f"{missing}: planned for {recipe.PAPER_VIDEOS:,} videos, as in the paper")
    return None


def _mesh_sizes(axis_sizes: Sequence[str]) -> dict[str, int]:
    sizes = {"data": 1, "fsdp": 1, "tensor": 1, "sequence": 1}
    for part in axis_sizes:
        axis, _, size = part.partition("=")
        if axis not in sizes or not size.isdigit() or int(size) < 1:
            raise errors.UserError(
                f"--mesh={','.join(axis_sizes)} must set sizes of {', '.join(sizes)}, such as "
                "fsdp=8"
            )
        sizes[axis] = int(size)
    return sizes


if __name__ == "__main__":
    errors.run_command(main)
