"""The cores, accelerators and memory of this machine, without starting JAX on them."""

import dataclasses
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path

from invnext_jax.planning import devices
from invnext_jax.workers import cpu_quota

_SHARE = 0.9  # usable fraction of the available memory


@dataclasses.dataclass(frozen=True)
class Machine:
    """Resources that the jobs of a machine share.

    Attributes:
      cores: numbers of the CPU cores.
      gpus: names of the GPUs, as in CUDA_VISIBLE_DEVICES.
      device: kind of the GPUs, a name in `devices.DEVICES`; "" if it is unknown.
      memory: bytes of memory that jobs can use now.
      total_memory: bytes of memory of the machine or container, which other programs may also use.
    """

    cores: tuple[int, ...]
    gpus: tuple[str, ...] = ()
    device: str = ""
    memory: float = math.inf
    total_memory: float = math.inf

    def describe_excess(self, name: str, memory: float) -> str:
        """Returns a clause that a job needs more memory than the machine has; "" if it does not.

        Args:
          name: the job.
          memory: bytes of memory that it needs.
        """
        if memory <= self.total_memory:
            return ""
        return (
            f"{name} needs {memory / 1e9:.1f} GB of memory by the estimate, and this machine has "
            f"{self.total_memory / 1e9:.1f} GB"
        )


def read_machine(environment: Mapping[str, str] = os.environ, root: Path = Path("/")) -> Machine:
    """Reads the resources of this machine that this process may use.

    Args:
      environment: the environment variables. CUDA_VISIBLE_DEVICES and JAX_PLATFORMS=cpu are read.
      root: the root of the file system.
    """
    gpus = _read_gpus(environment, root)
    device = _read_device(root) if gpus else ""
    memory, total = _read_memory(root, "MemAvailable"), _read_memory(root, "MemTotal")
    return Machine(_read_cores(), gpus, device, _SHARE * memory, total)


def _read_cores() -> tuple[int, ...]:
    cores = cpu_quota.allowed_cores()
    count = int(min(cpu_quota.read_cpu_quota(), len(cores)))
    return tuple(cores[: max(1, count)])


def _read_gpus(environment: Mapping[str, str], root: Path) -> tuple[str, ...]:
    if environment.get("JAX_PLATFORMS", "").strip() == "cpu":
        return ()
    if (visible := environment.get("CUDA_VISIBLE_DEVICES")) is not None:
        return tuple(name.strip() for name in visible.split(",") if name.strip() not in ("", "-1"))
    names = [path.name for path in (root / "dev").glob("nvidia*")]
    count = sum(bool(re.fullmatch(r"nvidia\d+", name)) for name in names)
    return tuple(map(str, range(count)))


def _read_device(root: Path) -> str:
    """Returns the kind of the NVIDIA GPUs; "" if it is unknown."""
    paths = sorted((root / "proc/driver/nvidia/gpus").glob("*/information"))
    models = re.findall(r"^Model:\s*(.+)$", paths[0].read_text(), re.MULTILINE) if paths else []
    return devices.find_name(models[0]) if models else ""


def _read_memory(root: Path, field: str) -> float:
    """Returns a field of /proc/meminfo in bytes, or the limit of the container if smaller."""
    limits = []
    try:
        text = (root / "proc/meminfo").read_text()
        limits += [1024.0 * int(n) for n in re.findall(rf"^{field}:\s*(\d+) kB$", text, re.M)]
    except OSError:
        pass
    try:
        limits.append(float((root / "sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # ValueError: "max", which means no limit
        pass
    return min(limits, default=math.inf)
