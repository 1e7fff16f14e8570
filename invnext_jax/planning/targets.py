"""Descriptions of TPU slices and GPU nodes, for which programs are compiled without the devices.

The compilers are optional dependencies: libtpu for TPUs, JAX's CUDA plugin for GPUs.
"""

import importlib.util
import math
import os
import re

import jax
from jax.experimental import topologies

from invnext_jax.errors import UserError

TPUS = ("v5e", "v5p", "v6e")
# Memory in bytes, bandwidth in bytes/s, and name; the other properties are those of `_HOPPER`.
GPUS = {
    "h100": (84_978_434_048, 3_352_320_000_000, "NVIDIA H100 80GB HBM3"),
    "h200": (150_754_820_096, 4_800_000_000_000, "NVIDIA H200"),
}
# Fields of XLA's GpuTargetConfigProto for the SXM modules with compute capability 9.0.
_HOPPER = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472 registers_per_block_limit: 65536 registers_per_core_limit: 65536
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98 l2_cache_size: 52428800
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  cuda_compute_capability {{ major: 9 }} device_memory_size: {} memory_bandwidth: {}
}}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 8 }} device_description_str: "{}"
"""


def count_devices(topology: str) -> int:
    """Returns the number of devices of a topology.

    Args:
      topology: numbers of chips of a TPU slice along its axes, such as "2x2x1", or numbers of nodes
        and GPUs per node, such as "1x8".

    Raises:
      UserError: the topology is invalid.
    """
    if not re.fullmatch(r"[1-9]\d{0,3}(x[1-9]\d{0,3}){1,2}", topology):
        raise UserError(
            f"--topology={topology} must be the axes of a TPU slice, such as 2x2x1, or numbers of "
            "nodes and GPUs per node, such as 1x8"
        )
    return math.prod(map(int, topology.split("x")))


def describe_devices(device: str, topology: str) -> list[jax.Device]:
    """Returns devices that programs can be compiled for, but not executed on.

    Args:
      device: name of the device, one of `TPUS` or `GPUS`.
      topology: see `count_devices`.

    Raises:
      UserError: the device or the topology is not supported, or its compiler is not installed.
    """
    if device not in (*TPUS, *GPUS):
        raise UserError(
            f"--device={device} has no compiler for --topology: use one of "
            f"{', '.join((*TPUS, *GPUS))}, or remove --topology"
        )
    count = count_devices(topology)
    try:
        devices = (_tpus if device in TPUS else _gpus)(device, topology)
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--topology={topology} of --device={device}: {reason}") from error
    if len(devices) != count:
        raise UserError(f"--topology={topology} of {device} has {len(devices)} devices")
    return devices


def _tpus(device: str, topology: str) -> list[jax.Device]:
    if not os.environ.get("TPU_LIBRARY_PATH") and not importlib.util.find_spec("libtpu"):
        raise _missing("TPU", "aot-tpu")
    # By default, libtpu asks the metadata server of a TPU VM, and only one process may load it.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", f"{device}-8")
    name = f"{device}:{topology}"
    return topologies.get_topology_desc(platform="tpu", topology_name=name).devices


def _gpus(device: str, topology: str) -> list[jax.Device]:
    plugins = ("jax_plugins.xla_cuda13", "jax_plugins.xla_cuda12")
    if not importlib.util.find_spec("jax_plugins") or not any(
        map(importlib.util.find_spec, plugins)
    ):
        raise _missing("GPU", "aot-gpu")
    nodes, _, gpus = topology.partition("x")
    if "x" in gpus:
        raise UserError(f"--topology={topology} of GPUs must be nodes and GPUs per node, as in 1x8")
    config = _HOPPER.format(*GPUS[device])
    return topologies.get_topology_desc(
        device, platform="cuda", target_config=config, topology=f"1x{nodes}x{gpus}"
    ).devices


def _missing(platform: str, extra: str) -> UserError:
    return UserError(
        f"--topology needs the {platform} compiler, which is not installed: run "
        f"pip install -e '.[{extra}]'"
    )
