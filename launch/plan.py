"""Estimates the memory and step time of a run from shapes, without an accelerator.

    python launch/plan.py --config=configs/stage2.py:base --device=h200
    python launch/plan.py --config=configs/stage2.py:1b --device=v5p --mesh=fsdp=16

docs/scaling.md explains the output.
"""

import json
import math
import os
from collections.abc import Sequence

import jax
from absl import flags
from ml_collections import config_flags

from invnext_jax import config_checks, errors
from invnext_jax.data import manifest, sources
from invnext_jax.planning import plan, plan_table
from invnext_jax.training import recipe

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file and variant, such as configs/stage2.py:base."
)
_DEVICE = flags.DEFINE_string(
    "device", None, "One of h200, h100, a100, b200, l40s, v4, v5e, v5p, v6e."
)
_MESH = flags.DEFINE_list(
    "mesh", [], "Sizes of the mesh axes, such as data=2,fsdp=8. Others are 1."
)
_COMPILE = flags.DEFINE_bool(
    "compile", False, "Also compile the step for the same number of simulated CPU devices."
)
_JSON = flags.DEFINE_bool("json", False, "Print the result as JSON in the last line.")
flags.mark_flags_as_required(["config", "device"])


def main(argv: Sequence[str]) -> None:
    """Makes the plan and prints it."""
    del argv
    config, sizes = _CONFIG.value, _mesh_sizes(_MESH.value)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", math.prod(sizes.values()))
    config.mesh.update(sizes)

    overrides, videos = errors.list_overrides(), _read_manifest(config.data.manifest)
    if videos is not None:
        sources.check_names(config.data, videos.sources)
        unused = sources.unused_options(config.data, videos)
        config_checks.check_overrides(config, overrides, unused)
    count = recipe.PAPER_VIDEOS if videos is None else len(videos)
    result = plan.make_plan(config, _DEVICE.value, count, overrides)
    if _COMPILE.value:
        result |= plan.compile_step(config)
    print(plan_table.format_plan(result))
    if _JSON.value:
        print(json.dumps(result))


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
