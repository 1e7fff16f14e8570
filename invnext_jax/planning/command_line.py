"""Runs what the flags of `launch/plan.py` ask for."""

import json
import math
import pathlib
import shlex
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
from absl.flags import FLAGS
from ml_collections import config_flags

from invnext_jax import config_checks, errors, init_source
from invnext_jax.data import access_rules, held_out, manifest, sources, video_io
from invnext_jax.planning import compiled_step, fitting, plan, plan_table, targets
from invnext_jax.training import recipe

_MAX_DEVICES = 256  # if nothing fits on the given devices, up to this number is tried


def run() -> None:
    """Makes the plan and prints it. The flags must have been parsed."""
    if not FLAGS.compile and (FLAGS.topology or FLAGS.save_program):
        raise errors.UserError("--topology and --save_program need --compile")
    overrides = errors.list_overrides()
    config = init_source.copy_sizes(FLAGS.config, overrides)
    without_mesh = config.copy_and_resolve_references()
    if FLAGS.mesh:
        config.mesh.update(_mesh_sizes(FLAGS.mesh))
    devices = math.prod(max(size, 1) for size in config.mesh.values())
    simulated = FLAGS.compile and not FLAGS.topology
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices if simulated else 1)
    jax.config.update("jax_traceback_in_locations_limit", -1)  # for the source lines of a program
    if FLAGS.topology:
        devices = targets.count_devices(FLAGS.topology)

    videos = _read_manifest(config.data)
    if videos is not None:
        sources.check_names(config.data, videos.sources)
        unused = sources.unused_options(config.data, videos)
        config_checks.check_overrides(config, overrides, unused)
    count = recipe.PAPER_VIDEOS
    if videos is not None:
        count = held_out.count_training_videos(videos, config.data.held_out)
    result = plan.make_plan(config, FLAGS.device, count, overrides, devices)
    if FLAGS.compile:
        result |= _compile(config)
    print(plan_table.format_plan(result))
    if not result["fits"]:
        fit = fitting.find_fit(config, FLAGS.device, devices, count, _MAX_DEVICES)
        result["fitting_command"] = _training_command(without_mesh, fit) if fit else ""
        print(plan_table.format_fit(result, fit and fit.plan, _MAX_DEVICES))
    if FLAGS.json:
        print(json.dumps(result))


def _compile(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Compiles the step and returns its description."""
    described = None
    if FLAGS.topology:
        described = targets.describe_devices(FLAGS.device, FLAGS.topology)
    step = compiled_step.compile_step(config, described)
    if FLAGS.save_program:
        pathlib.Path(FLAGS.save_program).write_text(step.text)
    result = compiled_step.describe_memory(step)
    return result | compiled_step.describe_program(step, FLAGS.device) if described else result


def _training_command(config: ml_collections.ConfigDict, fit: fitting.Fit) -> str:
    """Returns the command of the run that was planned, with the options that fit.

    Args:
      config: the config, without the mesh of --mesh.
      fit: the options that fit.
    """
    options = dict(config_flags.get_override_values(FLAGS["config"]))
    options |= fitting.changed_options(config, fit.plan)
    arguments = [f"--config={config_flags.get_config_filename(FLAGS['config'])}"]
    arguments += [f"--config.{name}={value}" for name, value in options.items()]
    arguments.append(f"--workdir=runs/{fit.plan['stage']}")
    return shlex.join(["python", "launch/main.py", *arguments])


def _read_manifest(data: ml_collections.ConfigDict) -> manifest.Manifest | None:
    """Returns the rows of the manifests of `config.data`, or None if they do not exist here."""
    manifests = data.manifest
    if manifests and all(map(video_io.may_exist, manifest.list_manifests(manifests))):
        return manifest.read_manifest(manifests, access_rules.AccessRules.from_config(data))
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
