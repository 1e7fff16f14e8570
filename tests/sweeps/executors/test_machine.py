"""Cores, GPUs and memory of a machine, read from files."""

import math
import os

import pytest

from invnext_jax.sweeps.executors.machine import read_machine


@pytest.fixture
def root(tmp_path):
    """The files of a machine with four H200."""
    (tmp_path / "dev").mkdir()
    for name in ("nvidia0", "nvidia1", "nvidia2", "nvidia3", "nvidiactl", "nvidia-uvm"):
        (tmp_path / "dev" / name).touch()
    folder = tmp_path / "proc/driver/nvidia/gpus/0000:01:00.0"
    folder.mkdir(parents=True)
    (folder / "information").write_text("Model: \t\t NVIDIA H200\nIRQ: 5\n")
    (tmp_path / "proc/meminfo").write_text("MemTotal: 900 kB\nMemAvailable:     500 kB\n")
    return tmp_path


def test_gpus_of_a_machine_are_found(root):
    machine = read_machine({}, root)
    assert machine.gpus == ("0", "1", "2", "3") and machine.device == "h200"
    assert machine.memory == pytest.approx(0.9 * 500 * 1024)
    assert machine.total_memory == 900 * 1024


@pytest.mark.parametrize(
    ("environment", "gpus"),
    [
        ({"CUDA_VISIBLE_DEVICES": "2, GPU-8f"}, ("2", "GPU-8f")),
        ({"CUDA_VISIBLE_DEVICES": ""}, ()),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, ()),
        ({"JAX_PLATFORMS": "cpu"}, ()),
    ],
)
def test_environment_restricts_the_gpus(root, environment, gpus):
    machine = read_machine(environment, root)
    assert machine.gpus == gpus
    assert bool(machine.device) == bool(gpus)


def test_limit_of_a_container_counts(root):
    folder = root / "sys/fs/cgroup"
    folder.mkdir(parents=True)
    (folder / "memory.max").write_text("1000\n")
    machine = read_machine({}, root)
    assert machine.memory == 900.0 and machine.total_memory == 1000.0
    (folder / "memory.max").write_text("max\n")
    assert read_machine({}, root).memory == pytest.approx(0.9 * 500 * 1024)


def test_a_machine_without_these_files_has_no_gpus(tmp_path):
    machine = read_machine({}, tmp_path)
    assert machine.gpus == () and machine.memory == math.inf
    assert set(machine.cores) <= set(range(os.cpu_count()))
