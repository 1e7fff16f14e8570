"""Writes the files of a sweep for SkyPilot or Kubernetes."""

import enum
from pathlib import Path
from typing import Any

import yaml

from invnext_jax import atomic_file
from invnext_jax.sweeps.expansion import ExpandedSweep
from invnext_jax.sweeps.manifests.jobset import make_jobset
from invnext_jax.sweeps.manifests.options import ClusterOptions, group_jobs
from invnext_jax.sweeps.manifests.skypilot import make_pipeline


class System(enum.Enum):
    """A system whose files can be written, and the command that starts one of them."""

    SKYPILOT = "sky jobs launch"
    JOBSET = "kubectl apply -f"


class _Dumper(yaml.SafeDumper):
    """Writes text with several lines as a block, and equal values without references."""

    def ignore_aliases(self, data: object) -> bool:
        """Returns that a value is written in full wherever it is used."""
        del data
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def write_manifests(
    sweep: ExpandedSweep, sweep_folder: Path, out: Path, system: System, options: ClusterOptions
) -> list[Path]:
    """Writes a file for each group of jobs that depend on each other, and returns the paths.

    Args:
      sweep: the jobs.
      sweep_folder: the folder of the sweep.
      out: folder of the files.
      system: the system that runs the jobs.
      options: options of all jobs.
    """
    paths = []
    for name, jobs in group_jobs(planned.job for planned in sweep.jobs.values()).items():
        if system is System.SKYPILOT:
            documents = make_pipeline(name, jobs, sweep_folder, options)
        else:
            documents = [make_jobset(name, jobs, sweep_folder, options)]
        path = out / f"{name}.yaml"
        atomic_file.write_text(path, f"# {system.value} {path.name}\n" + _to_yaml(documents))
        paths.append(path)
    return paths


def _to_yaml(documents: list[dict[str, Any]]) -> str:
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, width=1000)
