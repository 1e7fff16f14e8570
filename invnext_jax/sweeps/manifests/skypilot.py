"""Writes jobs as pipelines of SkyPilot's managed jobs.

A pipeline is a YAML file with several documents: its name, and tasks that run one after the other.
The fields are those of https://docs.skypilot.co/en/latest/reference/yaml-spec.html.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from invnext_jax.errors import UserError
from invnext_jax.sweeps.job import Job, Resources
from invnext_jax.sweeps.manifests.options import (
    COORDINATOR_PORT,
    ClusterOptions,
    command_on_cluster,
)

# Names of accelerators by name in `planning.devices.DEVICES`, and the number that a TPU's name has
# for each chip: v4 and v5p count TensorCores, of which a chip has two.
_GPUS = {"a100": "A100-80GB", "h100": "H100", "h200": "H200", "b200": "B200", "l40s": "L40S"}
_TPUS = {
    "v4": ("tpu-v4", 2),
    "v5e": ("tpu-v5litepod", 1),
    "v5p": ("tpu-v5p", 2),
    "v6e": ("tpu-v6e", 1),
}
_EXTRAS = {**dict.fromkeys(_GPUS, "cuda"), **dict.fromkeys(_TPUS, "tpu")}

_SETUP = """\
python3 -m venv .venv && . .venv/bin/activate
pip install --require-hashes -r requirements.txt
pip install --no-deps -e .
"""
_COORDINATOR = f"""\
export JAX_COORDINATOR_ADDRESS="$(echo "$SKYPILOT_NODE_IPS" | head -n1):{COORDINATOR_PORT}"
export JAX_NUM_PROCESSES="$SKYPILOT_NUM_NODES" JAX_PROCESS_ID="$SKYPILOT_NODE_RANK"
"""


def make_pipeline(
    name: str, jobs: Sequence[Job], sweep_folder: Path, options: ClusterOptions
) -> list[dict[str, Any]]:
    """Returns the documents of a pipeline.

    Args:
      name: name of the pipeline.
      jobs: jobs, in an order in which dependencies come first.
      sweep_folder: the folder of the sweep on this machine.
      options: options of the sweep.

    Raises:
      UserError: the kind of the accelerators is unknown.
    """
    return [{"name": name}, *(_make_task(job, sweep_folder, options) for job in jobs)]


def _make_task(job: Job, sweep_folder: Path, options: ClusterOptions) -> dict[str, Any]:
    needed = job.resources
    on_tpu = needed.device in _TPUS
    extra = _EXTRAS.get(needed.device, "") if needed.devices else ""
    run = ". .venv/bin/activate\n"
    if not on_tpu:  # JAX reads the addresses of the hosts of a TPU pod from its metadata
        run += _COORDINATOR
    run += shlex.join(command_on_cluster(job, sweep_folder, options)) + "\n"
    task = {
        "name": job.name,
        "workdir": ".",
        "num_nodes": 1 if on_tpu else needed.hosts,
        "resources": _make_resources(needed, options),
        "envs": {"PYTHONUNBUFFERED": "1", **job.environment},
        "setup": _SETUP + f"pip install -e '.[{extra}]'\n" * bool(extra),
        "run": run,
    }
    if "://" in options.storage:
        mount = {"source": options.storage, "mode": "MOUNT"}
        return task | {"file_mounts": {options.folder: mount}}
    return task | {"volumes": {options.folder: options.storage}}


def _make_resources(needed: Resources, options: ClusterOptions) -> dict[str, Any]:
    resources: dict[str, Any] = {"use_spot": options.spot}
    if options.infra:
        resources["infra"] = options.infra
    if needed.devices and needed.device in _TPUS:
        name, cores = _TPUS[needed.device]
        resources["accelerators"] = f"{name}-{cores * needed.devices * needed.hosts}"
    elif needed.devices:
        if needed.device not in _GPUS:
            raise UserError(f"--device={needed.device} is not one of {', '.join(_EXTRAS)}")
        resources["accelerators"] = f"{_GPUS[needed.device]}:{needed.devices}"
    if needed.cores:
        resources["cpus"] = f"{needed.cores}+"
    if needed.memory and not needed.devices:
        resources["memory"] = f"{needed.memory / 1e9:.0f}+"
    resources["job_recovery"] = {"max_restarts_on_errors": options.retries}
    return resources
