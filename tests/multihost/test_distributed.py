"""Joining processes and waiting for them; what several of them train is in test_hosts.py."""

import os
import pathlib
import socket
import subprocess
import sys

import pytest

from invnext_jax.errors import UserError
from invnext_jax.multihost import distributed
from invnext_jax.multihost.distributed import Membership, find_membership

HOST = socket.gethostname()
ROOT = pathlib.Path(__file__).parents[2]
EXPLICIT = {
    "JAX_COORDINATOR_ADDRESS": "node1:1234",
    "JAX_NUM_PROCESSES": "4",
    "JAX_PROCESS_ID": "2",
}
SLURM = {
    "SLURM_JOB_ID": "70001",
    "SLURM_STEP_NODELIST": "node[007-015,020],other3",
    "SLURM_NTASKS": "16",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
}


def test_nothing_said_means_one_process():
    assert find_membership({}) is None
    assert find_membership({"JAX_NUM_PROCESSES": "1"}) is None
    assert find_membership(SLURM, processes=1) is None
    # The shell of an allocation, and the script of a batch job, are no step of srun.
    shell = {name: SLURM[name] for name in ("SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_PROCID")}
    assert find_membership(shell) is None
    distributed.initialize()


def test_flags_go_before_the_environment():
    assert find_membership(EXPLICIT) == Membership("node1:1234", 4, 2)
    assert find_membership(EXPLICIT, "a:1", 8, 0) == Membership("a:1", 8, 0)


def test_an_indexed_kubernetes_job_gives_the_number():
    environ = {**EXPLICIT, "JOB_COMPLETION_INDEX": "3"}
    del environ["JAX_PROCESS_ID"]
    assert find_membership(environ) == Membership("node1:1234", 4, 3)
    assert find_membership({"JOB_COMPLETION_INDEX": "3"}) is None  # a sweep of single runs


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node[007-015,020],other3", "node007"),
        ("node[1,5]", "node1"),
        ("alpha,beta", "alpha"),
        ("gpu-3", "gpu-3"),
    ],
)
def test_slurm_gives_its_first_node_and_a_port_of_the_job(nodes, first):
    found = find_membership({**SLURM, "SLURM_STEP_NODELIST": nodes})
    assert found == Membership(f"{first}:{61440 + 70001 % 4096}", 16, 9)


def test_slurm_tasks_that_share_a_node_take_a_gpu_each():
    shared = {**SLURM, "CUDA_VISIBLE_DEVICES": "0,1,2,3"}
    assert find_membership(shared).local_devices == [1]
    assert find_membership({**shared, "CUDA_VISIBLE_DEVICES": "1"}).local_devices is None
    # One task a node has all of its GPUs.
    assert (
        find_membership({**shared, "SLURM_NTASKS": "2", "SLURM_PROCID": "1"}).local_devices is None
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"JAX_PROCESS_ID": None}, r"also needs --process_id \(JAX_PROCESS_ID\)"),
        ({"JAX_COORDINATOR_ADDRESS": None, "JAX_PROCESS_ID": None}, "address .* and --process_id"),
        ({"JAX_COORDINATOR_ADDRESS": "node1"}, "'node1' must be host:port"),
        ({"JAX_PROCESS_ID": "4"}, "process_id=4 must lie in 0 to 3"),
        ({"JAX_NUM_PROCESSES": "x"}, "JAX_NUM_PROCESSES='x' must be a number"),
        ({"JAX_NUM_PROCESSES": "0"}, "is 0, but must be at least 1"),
    ],
)
def test_what_does_not_fit_is_one_sentence(change, message):
    environ = {name: value for name, value in {**EXPLICIT, **change}.items() if value is not None}
    with pytest.raises(UserError, match=message):
        find_membership(environ)


def free_port():
    with socket.create_server(("localhost", 0)) as server:
        return server.getsockname()[1]


def start(script, process, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", script, str(process), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(processes):
    try:
        ended = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *texts) for process, texts in zip(processes, ended, strict=True)]


ROLL = """
import sys
from invnext_jax import errors
from invnext_jax.multihost import host_check
process, processes, port, seconds = map(int, sys.argv[1:])
with errors.exit_on_user_error():
    print(host_check.check_hosts(f"localhost:{port}", processes, process, seconds))
"""


@pytest.mark.parametrize(
    ("present", "seconds", "message"),
    [
        ((0, 2), 5, "error: processes 1, 3 did not arrive within 5 s\n"),
        ((0, 1, 1), 60, f"error: host {HOST} calls itself process 1 of 4, as on host {HOST}: give"),
        ((2,), 1, f"error: process 2 (host {HOST}) could not reach process 0 at"),
    ],
)
def test_whoever_is_missing_at_the_start_is_named_by_all_others(present, seconds, message):
    port = free_port()
    ended = finish([start(ROLL, process, 4, port, seconds) for process in present])
    assert [code for code, _, _ in ended] == [2] * len(present)
    assert all(error.startswith(message) for _, _, error in ended), ended


WAIT = """
import sys, time
from invnext_jax import errors
from invnext_jax.multihost import distributed
from invnext_jax.multihost import consensus
process, port = map(int, sys.argv[1:])
with errors.exit_on_user_error():
    distributed.initialize(f"localhost:{port}", 2, process, 60)
    with consensus.all_hosts_agree("the first stop", timeout_seconds=60):
        pass
    print("passed", flush=True)
    if process == 0:
        with consensus.all_hosts_agree("the second stop", timeout_seconds=1):
            pass
    else:
        time.sleep(2)
"""


def test_a_host_that_does_not_come_is_named():
    port = free_port()
    ended = finish([start(WAIT, process, port) for process in range(2)])
    assert [code for code, _, _ in ended] == [2, 0], ended
    assert [out for _, out, _ in ended] == ["passed\n"] * 2
    said = f"error: process 1 (host {HOST}) did not arrive at the second stop within 1 s"
    assert said in ended[0][2]
