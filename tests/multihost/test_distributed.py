"""Starts the processes of a run without training; test_train_multihost.py trains."""

import os
import pathlib
import socket
import subprocess
import sys

import pytest
from processes import FAST_TO_COMPILE

from invnext_jax.errors import UserError
from invnext_jax.multihost import distributed
from invnext_jax.multihost.distributed import DistributedConfig, find_distributed_config

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


@pytest.fixture
def find(monkeypatch):
    """Calls `find_distributed_config` in an environment with only these variables of a cluster."""

    def call(environ, *flags, **more):
        for name in list(os.environ):
            if name.startswith(("JAX_COORDINATOR", "JAX_NUM", "JAX_PROCESS", "SLURM_", "JOB_")):
                monkeypatch.delenv(name)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        return find_distributed_config(*flags, **more)

    return call


def test_without_settings_there_is_one_process(find):
    assert find({"JAX_NUM_PROCESSES": "1"}) is None
    assert find(SLURM, num_processes=1) is None
    # The shell of an allocation and the script of a batch job are not steps of srun.
    shell = {name: SLURM[name] for name in ("SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_PROCID")}
    assert find(shell) is None
    assert find({}) is None
    distributed.initialize()


def test_flags_override_the_environment(find):
    assert find(EXPLICIT) == DistributedConfig("node1:1234", 4, 2)
    assert find(EXPLICIT, "a:1", 8, 0) == DistributedConfig("a:1", 8, 0)
    assert find({**SLURM, **EXPLICIT}) == DistributedConfig("node1:1234", 4, 2)


def test_indexed_kubernetes_job_sets_the_process_number(find):
    environ = {**EXPLICIT, "JOB_COMPLETION_INDEX": "3"}
    del environ["JAX_PROCESS_ID"]
    assert find(environ) == DistributedConfig("node1:1234", 4, 3)
    assert find({"JOB_COMPLETION_INDEX": "3"}) is None  # a sweep of single-process runs


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node[007-015,020],other3", "node007"),
        ("node[1,5]", "node1"),
        ("alpha,beta", "alpha"),
        ("gpu-3", "gpu-3"),
    ],
)
def test_slurm_address_is_the_first_node_and_a_port_from_the_job_number(find, nodes, first):
    found = find({**SLURM, "SLURM_STEP_NODELIST": nodes})
    assert found == DistributedConfig(f"{first}:{61440 + 70001 % 4096}", 16, 9)


def test_slurm_tasks_on_one_node_use_one_gpu_each(find):
    shared = {**SLURM, "CUDA_VISIBLE_DEVICES": "0,1,2,3"}
    assert find(shared).local_device_ids == [1]
    assert find({**shared, "CUDA_VISIBLE_DEVICES": "1"}).local_device_ids is None
    # A single task on a node uses all of its GPUs.
    single = {**shared, "SLURM_NTASKS": "2", "SLURM_PROCID": "1"}
    assert find(single).local_device_ids is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"SLURM_NTASKS": None}, "SLURM_NTASKS is not set"),
        ({"SLURM_PROCID": None, "SLURM_LOCALID": ""}, "SLURM_PROCID is not set, SLURM_LOCALID is"),
        ({"SLURM_STEP_NODELIST": None}, "SLURM_STEP_NODELIST is not set"),
        ({"SLURM_NTASKS": "two"}, "SLURM_NTASKS='two' is not a number"),
    ],
)
def test_an_incomplete_slurm_step_is_one_process_and_a_warning(find, caplog, change, reason):
    environ = {name: value for name, value in {**SLURM, **change}.items() if value is not None}
    with caplog.at_level("WARNING"):
        assert find(environ) is None
    assert len(caplog.records) == 1
    assert f"because this is not an srun task ({reason}" in caplog.text
    assert "the run has one process" in caplog.text
    assert find({**environ, **EXPLICIT}) == DistributedConfig("node1:1234", 4, 2)
    assert find(environ, num_processes=1) is None
    assert len(caplog.records) == 1


def test_a_shell_of_a_slurm_job_with_one_task_is_no_warning(find, caplog):
    with caplog.at_level("WARNING"):
        assert find({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}) is None
    assert not caplog.records


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"JAX_PROCESS_ID": None}, r"also needs --process_id \(JAX_PROCESS_ID\)"),
        ({"JAX_COORDINATOR_ADDRESS": None, "JAX_PROCESS_ID": None}, "address .* and --process_id"),
        ({"JAX_COORDINATOR_ADDRESS": "node1"}, "'node1' must be host:port"),
        ({"JAX_PROCESS_ID": "4"}, "process_id=4 must be between 0 and 3"),
        ({"JAX_NUM_PROCESSES": "x"}, "JAX_NUM_PROCESSES='x' must be a number"),
        ({"JAX_NUM_PROCESSES": "0"}, "is 0, but must be at least 1"),
    ],
)
def test_invalid_setting_is_one_sentence(find, change, message):
    environ = {name: value for name, value in {**EXPLICIT, **change}.items() if value is not None}
    with pytest.raises(UserError, match=message):
        find(environ)


def free_port():
    with socket.create_server(("localhost", 0)) as server:
        return server.getsockname()[1]


def start(script, process, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", script, str(process), *map(str, arguments)],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "XLA_FLAGS": FAST_TO_COMPILE,
            "JAX_PLATFORMS": "cpu",
        },
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


CHECK = """
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
        ((0, 1, 1), 60, f"error: host {HOST} has process_id=1 of 4, as does host {HOST}: give"),
        ((2,), 1, f"error: process 2 (host {HOST}) could not reach process 0 at"),
    ],
)
def test_process_missing_at_the_start_is_named_by_all_others(present, seconds, message):
    port = free_port()
    ended = finish([start(CHECK, process, 4, port, seconds) for process in present])
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
    with consensus.all_hosts_agree("the first barrier", timeout_seconds=60):
        pass
    print("passed", flush=True)
    if process == 0:
        with consensus.all_hosts_agree("the second barrier", timeout_seconds=1):
            pass
    else:
        time.sleep(2)
"""


def test_missing_host_is_named():
    port = free_port()
    ended = finish([start(WAIT, process, port) for process in range(2)])
    assert [code for code, _, _ in ended] == [2, 0], ended
    assert [out for _, out, _ in ended] == ["passed\n"] * 2
    message = f"error: process 1 (host {HOST}) did not arrive at the second barrier within 1 s"
    assert message in ended[0][2]


def test_processes_that_share_cores_are_counted(monkeypatch):
    assert distributed.count_sharing_processes() == 1
    mine = distributed._describe_cores()
    assert mine.startswith(HOST)

    class Client:
        def key_value_dir_get(self, prefix):
            cores = [mine, "another [0, 1]", mine, f"{HOST} [99]"]
            return [(f"{prefix}{number}", value) for number, value in enumerate(cores)]

    monkeypatch.setattr(distributed.jax, "process_count", lambda: 4)
    monkeypatch.setattr(distributed, "key_value_client", Client)
    assert distributed.count_sharing_processes() == 2
