"""Starts `jax.distributed` in a run with one process per host or per accelerator.

The coordinator's address, the number of processes and the process number are each read from the
first of these sources that sets them: flags; JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
JAX_PROCESS_ID; SLURM; and the TPU's metadata. In a Kubernetes indexed job, the process number is
read from JOB_COMPLETION_INDEX. If no source is set, the run has one process.

JAX's cluster detection reads the settings of SLURM and TPUs. `jax.distributed.initialize` alone is
not sufficient, for three reasons. The host check needs the address first. Incomplete settings must
cause a one-sentence error. Under SLURM, JAX assigns one GPU to each process even if it is the only
process on its node.
"""

import glob
import importlib.util
import os
import re
import socket
from collections.abc import Sequence
from typing import NamedTuple

import jax
from absl import logging
from jax._src import (
    distributed as jax_distributed,
)  # the key-value store has no public API; Orbax uses this one too
from jax._src.clusters import SlurmCluster

from invnext_jax.errors import UserError
from invnext_jax.multihost import host_check

TIMEOUT_SECONDS = 300.0
_SHUTDOWN_SECONDS = 60  # how long an exiting process waits for the others
_HOST_PREFIX, _CORES_PREFIX = "invnext_jax/host/", "invnext_jax/cores/"
# Environment variables of an srun task, which JAX also reads.
_SLURM_NUMBERS = ("SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
_SLURM_VARIABLES = ("SLURM_STEP_NODELIST", *_SLURM_NUMBERS)


class DistributedConfig(NamedTuple):
    """The arguments of `jax.distributed.initialize` for this process."""

    coordinator_address: str  # address "host:port" on which process 0 listens
    num_processes: int
    process_id: int
    local_device_ids: Sequence[int] | None = None  # None for all visible devices


def initialize(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> None:
    """Connects to the other processes, if any. Call it before any JAX computation.

    Args:
      coordinator_address: host and port of process 0. Read from the environment if None.
      num_processes: the number of processes. Read from the environment if None.
      process_id: the number of this process, from 0. Read from the environment if None.
      timeout_seconds: the longest time to wait for the other processes.

    Raises:
      UserError: a setting is missing or contradicts another one, or a process does not connect in
          time.
    """
    found = find_distributed_config(coordinator_address, num_processes, process_id)
    if found is not None:
        host_check.check_hosts(
            found.coordinator_address, found.num_processes, found.process_id, timeout_seconds
        )
        jax.distributed.initialize(
            **found._asdict(),
            coordinator_bind_address=host_check.bind_address(found.coordinator_address),
            cluster_detection_method="deactivate",
            initialization_timeout=int(timeout_seconds) + 1,
            shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
        )
    elif _is_single_process(num_processes) or not _on_tpu():
        return
    else:
        jax.distributed.initialize(
            initialization_timeout=int(timeout_seconds) + 1,
            shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
        )
    if jax.process_count() > 1:
        index = str(jax.process_index())
        key_value_client().key_value_set(_HOST_PREFIX + index, socket.gethostname())
        key_value_client().key_value_set(_CORES_PREFIX + index, _describe_cores())


def find_distributed_config(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> DistributedConfig | None:
    """Returns the settings of `jax.distributed` from the arguments, the environment or SLURM.

    Returns:
      The settings, or None if these sources specify no other processes.

    Raises:
      UserError: a setting is missing or invalid.
    """
    address = coordinator_address or os.environ.get("JAX_COORDINATOR_ADDRESS")
    count = _read_number(num_processes, "JAX_NUM_PROCESSES")
    number = _read_number(process_id, "JAX_PROCESS_ID")
    if count is not None and count < 1:
        raise UserError(f"--num_processes (JAX_NUM_PROCESSES) is {count}, but must be at least 1")
    devices = None
    # SLURM_PROCID is also set in batch scripts. Only an srun step has the node list that JAX
    # requires.
    is_complete = None not in (address, count, number) or count == 1
    if _in_slurm_step(warn=not is_complete):
        if not is_complete:
            address = address or SlurmCluster.get_coordinator_address(
                None, os.environ.get("JAX_COORDINATOR_PORT")
            )
            count = count or SlurmCluster.get_process_count()
            number = SlurmCluster.get_process_id() if number is None else number
        devices = _slurm_device_ids()
    if number is None and address:
        number = _read_number(None, "JOB_COMPLETION_INDEX")
    if count == 1 or address is count is number is None:
        return None
    settings = {
        "--coordinator_address (JAX_COORDINATOR_ADDRESS)": address,
        "--num_processes (JAX_NUM_PROCESSES)": count,
        "--process_id (JAX_PROCESS_ID)": number,
    }
    missing = [name for name, value in settings.items() if value is None]
    if missing:
        raise UserError(f"a run with several processes also needs {' and '.join(missing)}")
    if not re.fullmatch(r".+:\d{1,5}", address):
        raise UserError(f"the coordinator's address {address!r} must be host:port")
    if not 0 <= number < count:
        raise UserError(f"process_id={number} must be between 0 and {count - 1}")
    return DistributedConfig(address, count, number, devices)


def _read_number(flag: int | None, variable: str) -> int | None:
    """Returns the value of the flag or, if that is None, of the environment variable."""
    if flag is not None or variable not in os.environ:
        return flag
    try:
        return int(os.environ[variable])
    except ValueError as error:
        raise UserError(f"{variable}={os.environ[variable]!r} must be a number") from error


def _in_slurm_step(*, warn: bool) -> bool:
    """Returns whether the environment has all variables of a SLURM step.

    A shell may have inherited only some of them.

    Args:
      warn: whether to log a warning if the variables of a job with several tasks, or an
          incomplete set of variables, are ignored.
    """
    given = {name: os.environ[name] for name in _SLURM_VARIABLES if os.environ.get(name)}
    missing = [name for name in _SLURM_VARIABLES if name not in given]
    invalid = [name for name in _SLURM_NUMBERS if not given.get(name, "0").isdigit()]
    if not missing and not invalid:
        return True
    wants_several = given.get("SLURM_NTASKS", "1") != "1"
    in_job = "SLURM_STEP_NODELIST" in given or ("SLURM_JOB_ID" in given and wants_several)
    if warn and (invalid or in_job):
        reasons = [f"{name} is not set" for name in missing]
        reasons += [f"{name}={given[name]!r} is not a number" for name in invalid]
        logging.warning(
            "the SLURM variables are ignored, because this is not an srun task (%s); without "
            "other settings, the run has one process",
            ", ".join(reasons),
        )
    return False


def _slurm_device_ids() -> Sequence[int] | None:
    """Returns this task's GPU if the node has several tasks to which SLURM did not assign GPUs.

    Otherwise returns None. JAX's own detection always selects one GPU, so a single task on a node
    would leave the other GPUs unused.
    """
    tasks = SlurmCluster.get_process_count()
    nodes = int(os.environ.get("SLURM_STEP_NUM_NODES", "1"))
    if tasks <= nodes or "," not in os.environ.get("CUDA_VISIBLE_DEVICES", ""):
        return None
    return [SlurmCluster.get_local_process_id()]


def _is_single_process(num_processes: int | None) -> bool:
    return (num_processes or os.environ.get("JAX_NUM_PROCESSES")) in (1, "1")


def _on_tpu() -> bool:
    """Returns whether this machine has TPU chips that JAX will use."""
    if jax.config.jax_platforms and "tpu" not in jax.config.jax_platforms:
        return False
    chips = glob.glob("/dev/accel[0-9]*") + glob.glob("/dev/vfio/[0-9]*")
    return bool(chips) and importlib.util.find_spec("libtpu") is not None


def log_on_process_0(text: str) -> None:
    """Prints a line in process 0 only."""
    if jax.process_index() == 0:
        print(text, flush=True)


def describe_process(process: int) -> str:
    """Returns the number and host name of a process, for messages."""
    host = host_names().get(process)
    return f"process {process}" + (f" (host {host})" if host else "")


def host_names() -> dict[int, str]:
    """Returns the host names of the processes of a multi-process run."""
    entries = key_value_client().key_value_dir_get(_HOST_PREFIX)
    return {int(key.rpartition("/")[2]): host for key, host in entries}


def count_sharing_processes() -> int:
    """Returns the number of processes, including this one, that may use the cores of this one.

    Call it after all processes have started, for example after the first consensus.
    """
    if jax.process_count() == 1:
        return 1
    found = [cores for _, cores in key_value_client().key_value_dir_get(_CORES_PREFIX)]
    return max(1, found.count(_describe_cores()))


def _describe_cores() -> str:
    """Returns the host of this process and the cores to which it is bound, as text."""
    bound = hasattr(os, "sched_getaffinity")
    return f"{socket.gethostname()} {sorted(os.sched_getaffinity(0)) if bound else []}"


def key_value_client() -> "jax_distributed.DistributedRuntimeClient":
    """Returns the client of the key-value store that all processes of a run share."""
    return jax_distributed.global_state.client
