"""Many hosts: one process a host (or accelerator) joins the others.

Who this process is comes from flags, else from JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
JAX_PROCESS_ID, else from SLURM, else from the TPU's own metadata. A Kubernetes indexed job gives
the first two and its JOB_COMPLETION_INDEX. Where nothing is said, there is one process.
"""

import glob
import importlib.util
import os
import re
import socket
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
from jax._src import distributed as jax_distributed  # as Orbax: there is no public way to its store

from invnext_jax.errors import UserError
from invnext_jax.multihost import host_check

TIMEOUT_SECONDS = 300.0
_SHUTDOWN_SECONDS = 60  # how long a process that ends waits for the others
_HOST = "invnext_jax/host/"


class Membership(NamedTuple):
    """Who this process is among how many, and where process 0 listens ("host:port")."""

    address: str
    processes: int
    process_id: int
    local_devices: Sequence[int] | None = None  # None: all that the process can see


def initialize(
    address: str | None = None,
    processes: int | None = None,
    process_id: int | None = None,
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> None:
    """Joins the other processes, if there are any; call it before anything touches a device.

    Args:
        address: host and port of process 0; like the next two, from the environment if None.
        processes: how many there are.
        process_id: number of this one, from 0.
        timeout_seconds: how long the others are waited for.

    Raises:
        UserError: what is given is incomplete or contradicts itself, or a process is missing.
    """
    member = find_membership(os.environ, address, processes, process_id)
    if member is not None:
        host_check.check_hosts(member.address, member.processes, member.process_id, timeout_seconds)
        jax.distributed.initialize(
            member.address,
            member.processes,
            member.process_id,
            local_device_ids=member.local_devices,
            cluster_detection_method="deactivate",
            initialization_timeout=int(timeout_seconds) + 1,
            shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
        )
    elif _several_are_ruled_out(os.environ, processes) or not _on_tpu():
        return
    else:
        jax.distributed.initialize(
            initialization_timeout=int(timeout_seconds) + 1,
            shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
        )
    if jax.process_count() > 1:
        key_value_client().key_value_set(_HOST + str(jax.process_index()), socket.gethostname())


def find_membership(
    environ: Mapping[str, str],
    address: str | None = None,
    processes: int | None = None,
    process_id: int | None = None,
) -> Membership | None:
    """Who this process is, from flags and environment; None if there are no others as far as told.

    Raises:
        UserError: a part is missing or wrong.
    """
    address = address or environ.get("JAX_COORDINATOR_ADDRESS")
    processes = _number(environ, processes, "--num_processes", "JAX_NUM_PROCESSES")
    process_id = _number(environ, process_id, "--process_id", "JAX_PROCESS_ID")
    devices = None
    # A batch script's own process has SLURM_PROCID too; only steps of srun have a list of nodes.
    if "SLURM_STEP_NODELIST" in environ:
        if None in (address, processes, process_id) and processes != 1:
            address = address or _slurm_address(environ)
            processes = processes or _number(environ, None, "", "SLURM_NTASKS")
            process_id = _number(environ, process_id, "", "SLURM_PROCID")
        devices = _slurm_devices(environ)
    if process_id is None:
        process_id = _number(environ, None, "", "JOB_COMPLETION_INDEX") if address else None
    if processes == 1 or address is processes is process_id is None:
        return None
    given = {
        "--coordinator_address (JAX_COORDINATOR_ADDRESS)": address,
        "--num_processes (JAX_NUM_PROCESSES)": processes,
        "--process_id (JAX_PROCESS_ID)": process_id,
    }
    missing = [name for name, value in given.items() if value is None]
    if missing:
        raise UserError(f"a run of several processes also needs {' and '.join(missing)}")
    if not re.fullmatch(r".+:\d{1,5}", address):
        raise UserError(f"the coordinator's address {address!r} must be host:port")
    if not 0 <= process_id < processes:
        raise UserError(f"process_id={process_id} must lie in 0 to {processes - 1}")
    return Membership(address, processes, process_id, devices)


def _number(environ: Mapping[str, str], given: int | None, flag: str, variable: str) -> int | None:
    if given is None and variable in environ:
        try:
            given = int(environ[variable])
        except ValueError as error:
            raise UserError(f"{variable}={environ[variable]!r} must be a number") from error
    if flag == "--num_processes" and given is not None and given < 1:
        raise UserError(f"{flag} ({variable}) is {given}, but must be at least 1")
    return given


def _slurm_address(environ: Mapping[str, str]) -> str:
    """The step's first node, and a port that follows from the job's number."""
    prefix, digits = re.match(r"([^,\[]+)(?:\[(\w+))?", environ["SLURM_STEP_NODELIST"]).groups()
    port = 61440 + int(environ.get("SLURM_JOB_ID", "0")) % 4096
    return f"{prefix}{digits or ''}:{port}"


def _slurm_devices(environ: Mapping[str, str]) -> Sequence[int] | None:
    """One GPU for each of several tasks on a node, unless SLURM has bound them already."""
    tasks, nodes = (int(environ.get(f"SLURM_{name}", "1")) for name in ("NTASKS", "STEP_NUM_NODES"))
    visible = environ.get("CUDA_VISIBLE_DEVICES", "")
    if tasks <= nodes or "," not in visible:
        return None
    return [int(environ.get("SLURM_LOCALID", "0"))]


def _several_are_ruled_out(environ: Mapping[str, str], processes: int | None) -> bool:
    return (processes or environ.get("JAX_NUM_PROCESSES")) in (1, "1")


def _on_tpu() -> bool:
    """Whether this machine has TPU chips and JAX means to use them."""
    if jax.config.jax_platforms and "tpu" not in jax.config.jax_platforms:
        return False
    chips = glob.glob("/dev/accel[0-9]*") + glob.glob("/dev/vfio/[0-9]*")
    return bool(chips) and importlib.util.find_spec("libtpu") is not None


def log_on_process_0(text: str) -> None:
    """Prints a line, in process 0 alone."""
    if jax.process_index() == 0:
        print(text, flush=True)


def describe_process(process: int) -> str:
    """A process for a message: its number and its host."""
    host = host_names().get(process)
    return f"process {process}" + (f" (host {host})" if host else "")


def host_names() -> dict[int, str]:
    """Host names of the processes of a run of several."""
    found = key_value_client().key_value_dir_get(_HOST)
    return {int(key.rpartition("/")[2]): host for key, host in found}


def key_value_client() -> "jax_distributed.DistributedRuntimeClient":
    """The key-value store that all processes of a run of several share."""
    return jax_distributed.global_state.client
