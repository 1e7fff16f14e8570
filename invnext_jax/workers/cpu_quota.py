"""Reads the cores that this process may use, and the quota of its Linux cgroups.

Containers (`docker --cpus`, `limits.cpu` in Kubernetes) are limited by a quota that the CPU
affinity does not show.
"""

import contextlib
import math
import os
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

_PROC = pathlib.Path("/proc/self")


def allowed_cores() -> list[int]:
    """Returns the numbers of the cores that this process may use, without regard to its quota."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def read_cpu_quota(proc: pathlib.Path = _PROC) -> float:
    """Returns the smallest CPU quota of this process's cgroups in cores; infinity if none.

    Args:
      proc: The process's folder in /proc.
    """
    quotas = [math.inf]
    with contextlib.suppress(OSError, ValueError, IndexError):  # not Linux, or /proc is not mounted
        for folder in _cgroup_folders(proc):
            quotas.append(_read_quota(folder))
    return min(quotas)


class _Mount(NamedTuple):
    """A mounted cgroup hierarchy with a CPU controller.

    Attributes:
      version: 1 or 2.
      root: The cgroup that is mounted.
      folder: The folder where it is mounted.
    """

    version: int
    root: pathlib.PurePosixPath
    folder: pathlib.Path


def _cgroup_folders(proc: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields the folders of the process's cgroups that may have a CPU quota, and of their parents.

    A quota of a parent also limits its children.
    """
    groups = {}  # cgroup version -> path of the process's cgroup
    for line in (proc / "cgroup").read_text().splitlines():
        hierarchy, controllers, path = line.split(":", 2)
        if hierarchy == "0":
            groups[2] = pathlib.PurePosixPath(path)
        elif "cpu" in controllers.split(","):
            groups[1] = pathlib.PurePosixPath(path)
    for mount in _mounts(proc):
        group = groups.get(mount.version)
        if group is None:
            continue
        # In a container, the mount may contain only the container's cgroup, without the path to it.
        inside = group.relative_to(mount.root) if group.is_relative_to(mount.root) else ""
        folder = mount.folder / inside
        while folder != mount.folder:
            yield folder
            folder = folder.parent
        yield mount.folder


def _mounts(proc: pathlib.Path) -> Iterator[_Mount]:
    for line in (proc / "mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        root, folder = before.split(" ")[3:5]
        if kind == "cgroup2" or (kind == "cgroup" and "cpu" in options.split(",")):
            version = 2 if kind == "cgroup2" else 1
            yield _Mount(version, pathlib.PurePosixPath(root), pathlib.Path(folder))


def _read_quota(folder: pathlib.Path) -> float:
    """Returns the quota that the files of a cgroup specify, in cores; infinity if there is none."""
    with contextlib.suppress(OSError, ValueError):
        if os.path.exists(folder / "cpu.max"):
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text()
        if quota not in ("max", "-1"):
            return int(quota) / int(period)
    return math.inf
