"""SkyPilot pipelines and JobSets of the same jobs, checked against published schemas."""

import os
import subprocess
from pathlib import Path

import pytest
import yaml

from invnext_jax.errors import UserError
from invnext_jax.sweeps.expansion import ExpandedSweep, PlannedJob
from invnext_jax.sweeps.job import Job, Resources
from invnext_jax.sweeps.manifests.options import ClusterOptions, command_on_cluster, group_jobs
from invnext_jax.sweeps.manifests.write import System, write_manifests
from invnext_jax.sweeps.step_config import Kind

SWEEP = Path("/home/me/sweep")
HASH = "0123456789ab"
# The fields that the files may have, with their types, from the documentation of SkyPilot
# (https://docs.skypilot.co/en/latest/reference/yaml-spec.html) ...
SKYPILOT_TASK = {
    "name": str,
    "workdir": str,
    "num_nodes": int,
    "resources": dict,
    "envs": dict,
    "setup": str,
    "run": str,
    "file_mounts": dict,
    "volumes": dict,
}
SKYPILOT_RESOURCES = {
    "use_spot": bool,
    "infra": str,
    "accelerators": str,
    "cpus": str,
    "memory": str,
    "job_recovery": dict,
}
# ... and of JobSet (https://jobset.sigs.k8s.io/docs/reference/jobset.v1alpha2). Their Jobs are
# checked with the schemas of Kubernetes.
JOBSET_SPEC = {"network": dict, "failurePolicy": dict, "replicatedJobs": list}
REPLICATED_JOB = {"name": str, "replicas": int, "dependsOn": list, "template": dict}
RULE = {"name": str, "action": str, "onJobFailureReasons": list}


def make_job(name, resources, source=None, script="launch/main.py", **environment):
    command = ["/venv/bin/python", script, f"--workdir={SWEEP}/runs/{name}", "--config.x=(1, 2)"]
    if source:
        command.append(f"--config.init_from={SWEEP}/runs/{source}")
    return Job(
        name=name,
        command=tuple(command),
        folder=Path("/home/me/invnext"),
        workdir=SWEEP / "runs" / name,
        log=SWEEP / "logs" / f"{name}.log",
        environment=environment,
        resources=resources,
        dependencies=(source,) if source else (),
    )


def make_sweep(resources):
    """Two trees of jobs: stage1 -> (stage2 -> eval, eval), and a separate training."""
    tree = {
        f"stage1-a{HASH[1:]}": None,
        f"stage2-b{HASH[1:]}": f"stage1-a{HASH[1:]}",
        f"eval-c{HASH[1:]}": f"stage2-b{HASH[1:]}",
        f"My_Stage.with_a_long_name-d{HASH[1:]}": None,
        f"eval-e{HASH[1:]}": f"stage1-a{HASH[1:]}",
    }
    jobs = [make_job(name, resources, source, NOTE="a 'b'") for name, source in tree.items()]
    planned = {job.name: PlannedJob(job, Kind.TRAIN, 3) for job in jobs}
    return ExpandedSweep("fake", (), {}, planned)


def write(tmp_path, system, resources, **options):
    options = ClusterOptions(**{"storage": "pool", "image": "registry/invnext:1", **options})
    paths = write_manifests(make_sweep(resources), SWEEP, tmp_path, system, options)
    return [list(yaml.safe_load_all(path.read_text())) for path in paths]


def check_fields(table, expected):
    for name, value in table.items():
        assert name in expected, name
        assert isinstance(value, expected[name]), name


GPUS = Resources(hosts=2, devices=8, device="h100", cores=32, memory=1.5e9)
TPUS = Resources(hosts=16, devices=4, device="v5p")
CPUS = Resources(cores=2, memory=4e9)
TOPOLOGY = {"cloud.google.com/gke-tpu-topology": "4x4x4"}


def test_jobs_are_grouped_by_their_first_job():
    jobs = [planned.job for planned in make_sweep(CPUS).jobs.values()]
    groups = group_jobs(jobs)
    assert [len(group) for group in groups.values()] == [4, 1]
    assert list(groups) == [group[0].name for group in groups.values()]
    for group in groups.values():
        names = [job.name for job in group]
        for job in group[1:]:
            assert names.index(job.dependencies[0]) < names.index(job.name)


def test_command_has_the_paths_of_the_cluster():
    job = make_job("stage2-x", CPUS, source="stage1-y")
    options = ClusterOptions(storage="pool", folder="/mnt/t1a/")
    assert command_on_cluster(job, SWEEP, options) == (
        *("python", "launch/main.py", "--workdir=/mnt/t1a/runs/stage2-x", "--config.x=(1, 2)"),
        "--config.init_from=/mnt/t1a/runs/stage1-y",
    )


@pytest.mark.parametrize("resources", [GPUS, TPUS, CPUS])
def test_skypilot_pipelines_have_documented_fields(tmp_path, resources):
    for name, *tasks in write(tmp_path, System.SKYPILOT, resources, infra="gcp/us-east5"):
        assert list(name) == ["name"]
        for task in tasks:
            check_fields(task, SKYPILOT_TASK)
            check_fields(task["resources"], SKYPILOT_RESOURCES)
            assert all(isinstance(value, str) for value in task["envs"].values())
            for script in (task["setup"], task["run"]):
                assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0


def test_skypilot_accelerators_and_hosts(tmp_path):
    def first(resources, **options):
        return write(tmp_path, System.SKYPILOT, resources, **options)[0][1]

    gpus, tpus, cpus = first(GPUS, storage="gs://b/s"), first(TPUS, spot=True), first(CPUS)
    assert (gpus["resources"]["accelerators"], gpus["num_nodes"]) == ("H100:8", 2)
    assert gpus["file_mounts"] == {"/sweep": {"source": "gs://b/s", "mode": "MOUNT"}}
    # A pod is one node for SkyPilot. 64 chips of v5p have 128 cores.
    assert (tpus["resources"]["accelerators"], tpus["num_nodes"]) == ("tpu-v5p-128", 1)
    assert tpus["resources"]["use_spot"] is True
    assert tpus["volumes"] == {"/sweep": "pool"}
    assert cpus["resources"] == {
        "use_spot": False,
        "cpus": "2+",
        "memory": "4+",
        "job_recovery": {"max_restarts_on_errors": 3},
    }
    assert "'.[cuda]'" in gpus["setup"] and "'.[tpu]'" in tpus["setup"]
    assert "pip install -e" not in cpus["setup"].replace("--no-deps -e", "")


@pytest.mark.parametrize("rank", [0, 1])
def test_skypilot_hosts_connect_to_the_first_one(tmp_path, rank):
    """Runs the script of a task with a fake Python, and reads the settings of `jax.distributed`."""
    run = write(tmp_path, System.SKYPILOT, GPUS)[0][1]["run"]
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/activate").write_text('python() { printf "%s\\n" "$@"; env; }\n')
    variables = {
        "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
        "SKYPILOT_NUM_NODES": "2",
        "SKYPILOT_NODE_RANK": str(rank),
    }
    done = subprocess.run(
        ["bash", "-c", run],
        env=os.environ | variables,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    lines = done.stdout.splitlines()
    assert lines[0] == "launch/main.py"
    assert "--config.x=(1, 2)" in lines
    assert {
        *("JAX_COORDINATOR_ADDRESS=10.0.0.1:8476", "JAX_NUM_PROCESSES=2"),
        f"JAX_PROCESS_ID={rank}",
    } <= set(lines)


@pytest.mark.parametrize("resources", [GPUS, TPUS, CPUS])
def test_jobsets_match_the_schemas(tmp_path, resources):
    kubernetes = pytest.importorskip("kubernetes_validate")
    selector = TOPOLOGY if resources is TPUS else {}
    for (jobset,) in write(tmp_path, System.JOBSET, resources, spot=True, node_selector=selector):
        assert jobset["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
        assert jobset["kind"] == "JobSet"
        check_fields(jobset["spec"], JOBSET_SPEC)
        for rule in jobset["spec"]["failurePolicy"]["rules"]:
            check_fields(rule, RULE)
        for replicated in jobset["spec"]["replicatedJobs"]:
            check_fields(replicated, REPLICATED_JOB)
            job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}}
            job["spec"] = replicated["template"]["spec"]
            kubernetes.validate(job, "1.34", strict=True)


def test_jobset_of_hosts_with_gpus(tmp_path):
    (jobset,), _ = write(tmp_path, System.JOBSET, GPUS)
    name = jobset["metadata"]["name"]
    stage1, stage2, *_ = jobset["spec"]["replicatedJobs"]
    assert "dependsOn" not in stage1
    assert stage2["dependsOn"] == [{"name": stage1["name"], "status": "Complete"}]
    spec = stage2["template"]["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 2, 2)
    (container,) = spec["template"]["spec"]["containers"]
    variables = {entry["name"]: entry["value"] for entry in container["env"]}
    # The name of pod 0: <JobSet>-<replicated job>-<job index>-<pod index>.<network>
    address = f"{name}-{stage2['name']}-0-0.{name}:8476"
    assert variables["JAX_COORDINATOR_ADDRESS"] == address
    assert variables["JAX_NUM_PROCESSES"] == "2"
    assert container["resources"]["limits"] == {"nvidia.com/gpu": "8"}
    assert container["command"][:2] == ["python", "launch/main.py"]


def test_jobset_names_are_valid_and_short_enough(tmp_path):
    sets = [jobset for (jobset,) in write(tmp_path, System.JOBSET, GPUS)]
    for jobset in sets:
        for replicated in jobset["spec"]["replicatedJobs"]:
            pod = f"{jobset['metadata']['name']}-{replicated['name']}-0-127-abcde"
            assert len(pod) <= 63
            assert pod[0].isalpha() and pod.replace("-", "").isalnum() and pod.islower()
    names = [
        replicated["name"] for jobset in sets for replicated in jobset["spec"]["replicatedJobs"]
    ]
    assert len(set(names)) == 5


def test_preempted_pod_of_one_host_is_replaced(tmp_path):
    (jobset,), _ = write(tmp_path, System.JOBSET, CPUS, retries=2)
    spec = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert spec["backoffLimit"] == 2
    exit_codes, disruption = spec["podFailurePolicy"]["rules"]
    assert exit_codes["onExitCodes"]["values"] == [2, 3]
    assert disruption["action"] == "Ignore"
    assert spec["template"]["spec"]["containers"][0]["resources"] == {
        "limits": {},
        "requests": {"cpu": "2", "memory": "3815Mi"},
    }


def test_missing_options_are_errors(tmp_path):
    with pytest.raises(UserError, match=r"--cluster.storage is missing"):
        ClusterOptions(storage="")
    with pytest.raises(UserError, match=r"--cluster.folder=runs must be an absolute path"):
        ClusterOptions(storage="a", folder="runs")
    with pytest.raises(UserError, match=r"--cluster.image is missing"):
        write(tmp_path, System.JOBSET, CPUS, image="")
    with pytest.raises(UserError, match=r"no cloud.google.com/gke-tpu-topology"):
        write(tmp_path, System.JOBSET, TPUS)
    with pytest.raises(UserError, match=r"--device= is not one of a100, h100"):
        write(tmp_path, System.SKYPILOT, Resources(devices=8))


def test_repeated_values_are_written_in_full(tmp_path):
    write(tmp_path, System.JOBSET, CPUS)
    assert not any("&id" in path.read_text() for path in tmp_path.glob("*.yaml"))
