import os
import pathlib
import socket
import subprocess
import sys

import jax
from clu import metrics

from invnext_jax.monitoring import host_counts
from invnext_jax.monitoring.host_counts import Count

ROOT = pathlib.Path(__file__).parents[2]

SCRIPT = """
import jax
from invnext_jax.monitoring.host_counts import HostCounts
from invnext_jax.multihost import distributed
from invnext_jax.training import mesh as mesh_lib
distributed.initialize(timeout_seconds=60)
mesh = mesh_lib.make_mesh({"data": 2, "fsdp": 2, "tensor": 1, "sequence": 1})
counts = HostCounts(mesh)
for dropped in (3, 5):
    sums = counts.sum({"dropped": dropped + jax.process_index(), "clips": 100})
    print({name: int(jax.device_get(total)) for name, total in sorted(sums.items())})
"""


def test_sum_on_the_mesh_counts_this_host_once(toy_mesh):
    counts = host_counts.HostCounts(toy_mesh)
    assert int(counts.sum({"dropped": 3})["dropped"]) == 3
    assert int(counts.sum({"dropped": 4})["dropped"]) == 4


def test_count_merges_like_other_clu_metrics():
    counts = metrics.Collection.create_collection(dropped=Count(jax.numpy.int32(2)))
    merged = counts.merge(counts).merge(type(counts).empty())
    assert int(merged.compute()["dropped"]) == 4


def test_counts_of_two_processes_are_added():
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    environ = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "PYTHONPATH": str(ROOT),
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
        "JAX_NUM_PROCESSES": "2",
    }
    started = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            env={**environ, "JAX_PROCESS_ID": str(process)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=200)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    # Gloo prints to standard output too.
    printed = [[line for line in text.splitlines() if line[0] == "{"] for text in outputs]
    expected = ["{'clips': 200, 'dropped': 7}", "{'clips': 200, 'dropped': 11}"]
    assert printed == [expected, expected]
