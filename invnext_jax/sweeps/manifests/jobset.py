"""Writes jobs as JobSets of Kubernetes (https://jobset.sigs.k8s.io, version 0.8 or later).

A JobSet has one replicated job for each job of a group. `dependsOn` lets it start when the job that
it depends on is complete. Each host is a pod of an indexed job, from whose variables
`multihost.distributed` reads the number of the process.
"""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from invnext_jax.errors import UserError
from invnext_jax.sweeps.job import Job, Resources
from invnext_jax.sweeps.manifests.options import (
    COORDINATOR_PORT,
    ClusterOptions,
    command_on_cluster,
)

SAVE_SECONDS = 300  # that a pod has to save after SIGTERM
# Exit codes of `errors.exit_on_user_error`. Such a job has the same result if it is repeated.
_FINAL_CODES = [2, 3]
# Labels of the nodes of Google Kubernetes Engine by name in `planning.devices.DEVICES`.
_TPUS = {
    "v4": "tpu-v4-podslice",
    "v5e": "tpu-v5-lite-podslice",
    "v5p": "tpu-v5p-slice",
    "v6e": "tpu-v6e-slice",
}
_TOPOLOGY = "cloud.google.com/gke-tpu-topology"
_NAME_LENGTH = 21  # of jobs; names of pods have at most 63 characters


def make_jobset(
    name: str, jobs: Sequence[Job], sweep_folder: Path, options: ClusterOptions
) -> dict[str, Any]:
    """Returns the manifest of a JobSet.

    Args:
      name: name of the group of jobs.
      jobs: jobs, in an order in which dependencies come first.
      sweep_folder: the folder of the sweep on this machine.
      options: options of the sweep.

    Raises:
      UserError: an option is missing.
    """
    if not options.image:
        raise UserError("--cluster.image is missing: set it to an image made with the Dockerfile")
    # Equal jobs of sweeps in other folders have the same names.
    suffix = hashlib.sha256(f"{sweep_folder} {options.storage}".encode()).hexdigest()[:6]
    jobset = f"{_kubernetes_name(name)}-{suffix}"
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": jobset},
        "spec": {
            "network": {"enableDNSHostnames": True},
            "failurePolicy": {
                "maxRestarts": options.retries,
                "rules": [
                    {
                        "name": "finalExitCode",
                        "action": "FailJobSet",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                    }
                ],
            },
            "replicatedJobs": [
                _make_replicated_job(jobset, job, sweep_folder, options) for job in jobs
            ],
        },
    }


def _make_replicated_job(
    jobset: str, job: Job, sweep_folder: Path, options: ClusterOptions
) -> dict[str, Any]:
    name, hosts = _kubernetes_name(job.name), job.resources.hosts
    variables = {"PYTHONUNBUFFERED": "1", **job.environment}
    if hosts > 1:
        variables["JAX_COORDINATOR_ADDRESS"] = f"{jobset}-{name}-0-0.{jobset}:{COORDINATOR_PORT}"
        variables["JAX_NUM_PROCESSES"] = str(hosts)
    container = {
        "name": "job",
        "image": options.image,
        "command": list(command_on_cluster(job, sweep_folder, options)),
        "env": [{"name": key, "value": value} for key, value in variables.items()],
        "resources": _make_resources(job.resources),
        "volumeMounts": [{"name": "sweep", "mountPath": options.folder}],
    }
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": SAVE_SECONDS,
        "containers": [container],
        "volumes": [{"name": "sweep", "persistentVolumeClaim": {"claimName": options.storage}}],
    }
    if selector := _make_node_selector(job.resources, options):
        pod["nodeSelector"] = selector
    replicated = {"name": name, "replicas": 1}
    if job.dependencies:
        source = _kubernetes_name(job.dependencies[0])
        replicated["dependsOn"] = [{"name": source, "status": "Complete"}]
    return replicated | {"template": {"spec": _make_job_spec(hosts, pod, options)}}


def _make_job_spec(hosts: int, pod: dict[str, Any], options: ClusterOptions) -> dict[str, Any]:
    rules: list[dict[str, Any]] = [
        {
            "action": "FailJob",
            "onExitCodes": {"containerName": "job", "operator": "In", "values": _FINAL_CODES},
        }
    ]
    if hosts == 1:  # a preempted pod is replaced, and does not count as a failure
        condition = {"type": "DisruptionTarget", "status": "True"}
        rules.append({"action": "Ignore", "onPodConditions": [condition]})
    return {
        "completionMode": "Indexed",
        "completions": hosts,
        "parallelism": hosts,
        # If one of several pods fails, the JobSet starts all of them again.
        "backoffLimit": options.retries if hosts == 1 else 0,
        "podFailurePolicy": {"rules": rules},
        "template": {"spec": pod},
    }


def _make_resources(needed: Resources) -> dict[str, Any]:
    limits, requests = {}, {}
    if needed.devices:
        name = "google.com/tpu" if needed.device in _TPUS else "nvidia.com/gpu"
        limits[name] = str(needed.devices)
    if needed.cores:
        requests["cpu"] = str(needed.cores)
    if needed.memory and not needed.devices:
        requests["memory"] = f"{needed.memory / 2**20:.0f}Mi"
    return {"limits": limits, "requests": requests | limits}


def _make_node_selector(needed: Resources, options: ClusterOptions) -> dict[str, str]:
    selector = dict(options.node_selector)
    if needed.devices and needed.device in _TPUS:
        selector = {"cloud.google.com/gke-tpu-accelerator": _TPUS[needed.device], **selector}
        if _TOPOLOGY not in selector:
            raise UserError(
                f"--cluster.node_selector has no {_TOPOLOGY}: set it to the topology of the "
                "slice, such as 4x4x4"
            )
    if options.spot:
        selector["cloud.google.com/gke-spot"] = "true"
    return selector


def _kubernetes_name(name: str) -> str:
    """Returns a valid name that ends with the hash of the job."""
    label, _, digits = name.rpartition("-")
    label = re.sub("[^a-z0-9]+", "-", label.lower())[: _NAME_LENGTH - len(digits) - 1]
    return f"{label.strip('-') or 'job'}-{digits.lower()}"
