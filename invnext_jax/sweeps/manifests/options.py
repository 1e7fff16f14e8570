"""Options of the files, and the jobs as the containers of a cluster run them."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from invnext_jax.errors import UserError
from invnext_jax.sweeps.job import Job

COORDINATOR_PORT = 8476  # of the first host of a job


@dataclasses.dataclass(frozen=True)
class ClusterOptions:
    """Options of all jobs of a sweep.

    Attributes:
      storage: what is mounted at `folder`. JobSet: the name of a PersistentVolumeClaim. SkyPilot: a
        bucket such as gs://BUCKET/FOLDER, or the name of a volume.
      folder: absolute path of the sweep's folder on the machines of the cluster.
      image: container image, in whose working folder is this repository.
      retries: number of times that a job that fails is started again.
      spot: whether preemptible machines are used.
      infra: cloud and region for SkyPilot, such as gcp/us-east5.
      node_selector: labels of the nodes for Kubernetes.
    """

    storage: str
    folder: str = "/sweep"
    image: str = ""
    retries: int = 3
    spot: bool = False
    infra: str = ""
    node_selector: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if not self.storage:
            raise UserError(
                "--cluster.storage is missing: set it to the storage that all machines mount"
            )
        if not PurePosixPath(self.folder).is_absolute():
            raise UserError(f"--cluster.folder={self.folder} must be an absolute path")


def command_on_cluster(job: Job, sweep_folder: Path, options: ClusterOptions) -> tuple[str, ...]:
    """Returns the command of a job with the paths and the Python of the cluster.

    Args:
      job: the job. The first part of its command is a Python interpreter.
      sweep_folder: the folder of the sweep on this machine.
      options: options of the sweep.
    """
    old, new = f"{sweep_folder}/", f"{options.folder.rstrip('/')}/"
    moved = []
    for part in job.command[1:]:
        name, equals, value = part.partition("=")
        moved.append(name + equals + value.replace(old, new, 1) if value.startswith(old) else part)
    return ("python", *moved)


def group_jobs(jobs: Iterable[Job]) -> dict[str, list[Job]]:
    """Groups jobs that depend on each other, directly or indirectly.

    Args:
      jobs: the jobs of a sweep; dependencies come first, and a job has at most one.

    Returns:
      The jobs of each group in the same order. The key is the name of the first job of the group,
      on which all others depend.
    """
    root: dict[str, str] = {}
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        root[job.name] = root[job.dependencies[0]] if job.dependencies else job.name
        groups.setdefault(root[job.name], []).append(job)
    return groups
