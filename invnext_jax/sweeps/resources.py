"""The resources of a sweep's jobs: from options, from this machine, and predicted from shapes."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from invnext_jax.errors import UserError
from invnext_jax.sweeps import cost
from invnext_jax.sweeps.executors.machine import read_machine
from invnext_jax.sweeps.expansion import ExpandedSweep
from invnext_jax.sweeps.job import Resources
from invnext_jax.sweeps.step_config import StepConfig

_PROCESS_BYTES = 1.5e9  # memory of a job's processes without the arrays of its step


def read_local_resources(devices: int = 0, cores: int = 0) -> Resources:
    """Returns the resources of a job on this machine.

    Args:
      devices: number of its GPUs; 0 for one, if there are any.
      cores: number of its CPU cores; 0 for one, or the share of its GPUs.
    """
    machine = read_machine()
    devices = devices or min(1, len(machine.gpus))
    if not cores:
        share = devices / len(machine.gpus) if machine.gpus else 0
        cores = max(1, int(share * len(machine.cores)))
    return Resources(devices=devices, device=machine.device, cores=cores)


def add_resources(
    sweep: ExpandedSweep, configs: Mapping[str, StepConfig], base: Resources, folder: Path
) -> ExpandedSweep:
    """Adds resources to all jobs, with the predicted memory and duration.

    Args:
      sweep: the jobs.
      configs: the config of each job.
      base: resources of all jobs.
      folder: the folder of the sweep, which keeps the predictions.

    Raises:
      UserError: a job does not fit in the memory of its devices.
    """
    # Without accelerators, the device is only a name: the memory does not depend on it.
    devices = max(1, base.hosts * base.devices)
    costs = cost.predict_costs(sweep, configs, base.device or "h200", devices, folder)
    if base.device:
        cost.check_fit(configs, costs, base.device)
    jobs = {}
    for name, planned in sweep.jobs.items():
        resources = dataclasses.replace(
            base,
            memory=_host_bytes(costs[name], base.devices),
            hours=costs[name].hours if base.device else 0.0,
        )
        job = dataclasses.replace(planned.job, resources=resources)
        jobs[name] = dataclasses.replace(planned, job=job)
    return dataclasses.replace(sweep, jobs=jobs)


def _host_bytes(cost_: cost.Cost, devices: int) -> float:
    """Returns the host memory of a job. Without accelerators, it holds the arrays of the step."""
    return _PROCESS_BYTES + (0 if devices else cost_.peak_bytes)


def check_host_memory(costs: Mapping[str, cost.Cost]) -> None:
    """Checks that all jobs fit in the memory of this machine if they run on its CPU cores.

    Raises:
      UserError: some do not.
    """
    machine = read_machine()
    needed = {name: _host_bytes(found, devices=0) for name, found in costs.items()}
    large = [name for name, memory in needed.items() if memory > machine.total_memory]
    if large:
        most = max(large, key=needed.__getitem__)
        raise UserError(
            f"{len(large)} of {len(costs)} jobs do not fit on this machine, which has no GPU: "
            f"{machine.describe_excess(most, needed[most])}; reduce the batch size or increase "
            "accumulate with --set, or set --device for the cost on another machine"
        )
