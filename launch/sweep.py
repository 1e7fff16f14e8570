"""Runs a sweep: many trainings and evaluations whose results become one table.

    python launch/sweep.py --config=configs/sweeps/paper.py:table1a --workdir=sweeps/t1a
    python launch/sweep.py --config=configs/sweeps/lr.py:tiny --workdir=sweeps/lr --seeds=0,1,2
    python launch/sweep.py --config=configs/sweeps/paper.py:all --workdir=sweeps/paper --dry_run
    python launch/sweep.py --workdir=sweeps/lr --status
    python launch/sweep.py --workdir=sweeps/lr --report=table.html

The same command resumes a sweep that was stopped or killed. docs/sweeps.md describes sweep files,
the folder of a sweep and the table.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import jax
from absl import flags

from invnext_jax import errors
from invnext_jax.sweeps import cluster_commands, commands, flag_checks
from invnext_jax.sweeps.executors.slurm import SlurmExecutor
from invnext_jax.sweeps.executors.slurm_script import SlurmOptions
from invnext_jax.sweeps.manifests.options import ClusterOptions
from invnext_jax.sweeps.manifests.write import System
from invnext_jax.sweeps.report import sweep_page
from invnext_jax.sweeps.runner import RunOptions
from invnext_jax.sweeps.sweep_folder import SweepFolder

_CONFIG = flags.DEFINE_string(
    "config",
    None,
    "Sweep file and sweep, such as configs/sweeps/paper.py:table1a. Without it, the sweep in the "
    "workdir continues.",
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the sweep.", required=True)
_SEEDS = flags.DEFINE_list("seeds", [], "Seeds for which each arm is repeated, such as 0,1,2.")
_SET = flags.DEFINE_multi_string(
    "set",
    [],
    "Option for several steps: train.OPTION=VALUE, eval.OPTION=VALUE or STEP.OPTION=VALUE. May be "
    "repeated.",
)
_EXECUTOR = flags.DEFINE_enum(
    "executor",
    "local",
    ["local", "slurm", "skypilot", "jobset"],
    "Where the jobs run. For skypilot and jobset (Kubernetes), files are written to --out.",
)
_MAX_JOBS = flags.DEFINE_integer(
    "max_jobs", 0, "Maximum number of jobs at a time. 0: no limit.", lower_bound=0
)
_DEVICES = flags.DEFINE_integer(
    "devices_per_job",
    0,
    "GPUs of each job, or accelerators of each of its hosts. 0: one, if this machine has GPUs; on "
    "clusters, none.",
    lower_bound=0,
)
_CORES = flags.DEFINE_integer(
    "cores_per_job",
    0,
    "CPU cores of each host of a job. 0: one, or the share of its GPUs.",
    lower_bound=0,
)
_HOSTS = flags.DEFINE_integer(
    "hosts_per_job", 1, "Machines of each job, on clusters.", lower_bound=1
)
_RETRIES = flags.DEFINE_integer(
    "retries", 1, "Times that a failed job is started again.", lower_bound=0
)
_DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Print the jobs and their predicted cost on --device, and exit."
)
_DEVICE = flags.DEFINE_string(
    "device",
    "h100",
    "Accelerators of --dry_run and of clusters: h200, h100, a100, b200, l40s, v4, v5e, v5p or v6e.",
)
_STATUS = flags.DEFINE_bool("status", False, "Print the states of the jobs, and exit.")
_REPORT = flags.DEFINE_string(
    "report", None, "Write the table to this file (.html, .md or .csv), print it, and exit."
)
_BASELINE = flags.DEFINE_string(
    "baseline", "", "Arm that --report compares with, instead of that of the sweep file."
)
_RETRY = flags.DEFINE_bool("retry_failed", False, "Start failed jobs again.")
_COLLECT = flags.DEFINE_bool(
    "collect", False, "Read which jobs SkyPilot or Kubernetes have finished, and exit."
)
_CANCEL = flags.DEFINE_bool("cancel", False, "Stop all jobs after they have saved, and exit.")
# Flags that describe a sweep. Without --config, the sweep in the workdir has its own values.
_OF_SWEEPS = ("seeds", "set", "devices_per_job", "cores_per_job", "hosts_per_job")

# Options of SLURM. The first three are names of sbatch.
flags.DEFINE_alias("slurm.nodes", "hosts_per_job")
flags.DEFINE_alias("slurm.gpus_per_node", "devices_per_job")
flags.DEFINE_alias("slurm.cpus_per_task", "cores_per_job")
_SLURM = {
    "partition": flags.DEFINE_string("slurm.partition", "", "Partition of the cluster."),
    "account": flags.DEFINE_string("slurm.account", "", "Account that is charged."),
    "qos": flags.DEFINE_string("slurm.qos", "", "Quality of service."),
    "time": flags.DEFINE_string(
        "slurm.time", "", "Time limit, such as 12:00:00. Longer jobs are requeued and resume."
    ),
    "gpu_type": flags.DEFINE_string("slurm.gpu_type", "", "Type of the GPUs, such as h100."),
    "mem": flags.DEFINE_string("slurm.mem", "", "Memory of each node, such as 200G."),
    "save_seconds": flags.DEFINE_integer(
        "slurm.save_seconds", 180, "Seconds before the time limit at which a job saves and stops."
    ),
    "extra": flags.DEFINE_multi_string(
        "slurm.extra", [], "Further option of sbatch, such as --constraint=ib. May be repeated."
    ),
    "setup": flags.DEFINE_multi_string(
        "slurm.setup",
        [],
        "Shell command before each job, such as 'module load cuda'. May be repeated.",
    ),
}

# Options of SkyPilot and JobSets.
_OUT = flags.DEFINE_string("out", None, "Folder of the files for SkyPilot or Kubernetes.")
_CLUSTER = {
    "storage": flags.DEFINE_string(
        "cluster.storage",
        "",
        "What is mounted as --cluster.folder: a bucket or a volume of SkyPilot, or the name of a "
        "PersistentVolumeClaim of Kubernetes.",
    ),
    "folder": flags.DEFINE_string(
        "cluster.folder", "/sweep", "Folder of the sweep on the machines of the cluster."
    ),
    "image": flags.DEFINE_string("cluster.image", "", "Container image, for Kubernetes."),
    "spot": flags.DEFINE_bool("cluster.spot", False, "Use preemptible machines."),
    "infra": flags.DEFINE_string("cluster.infra", "", "For SkyPilot: cloud/region."),
}
_SELECTOR = flags.DEFINE_multi_string(
    "cluster.node_selector", [], "For Kubernetes: label=value of the nodes. May be repeated."
)


def main(argv: Sequence[str]) -> None:
    """Runs a sweep, or one of the other commands."""
    del argv
    jax.config.update("jax_platforms", "cpu")  # the accelerators belong to the jobs
    flag_checks.check_flags(_list_given(), _EXECUTOR.value)
    folder = SweepFolder(_WORKDIR.value)
    if _STATUS.value:
        print(commands.show_status(folder))
    elif _REPORT.value:
        print(sweep_page.write_tables(folder, _REPORT.value, _BASELINE.value))
    elif _DRY_RUN.value:
        print(commands.predict(folder.path, _read_request(required=True), _DEVICE.value))
    elif _CANCEL.value:
        if not folder.is_locked():  # otherwise, the command that runs has the executor
            _check_executor(folder)
        print(commands.cancel(folder, _make_executor))
    elif _COLLECT.value:
        print(cluster_commands.collect(folder))
    elif _EXECUTOR.value in flag_checks.WRITES_FILES:
        print(_write_files(folder))
    else:
        _check_executor(folder)
        options = RunOptions(retries=_RETRIES.value)
        if not commands.run_sweep(folder, _read_request(), _make_executor, options, _RETRY.value):
            sys.exit(1)


def _list_given() -> list[str]:
    """Returns the names of the flags of this file that the command line sets."""
    module = flags.FLAGS.find_module_defining_flag("workdir")
    found = flags.FLAGS.flags_by_module_dict()[module]
    return [flag.name for flag in found if flag.present and flag.value is not False]


def _check_executor(folder: SweepFolder) -> None:
    flag_checks.check_executor(
        folder,
        _EXECUTOR.value,
        is_given=bool(flags.FLAGS["executor"].present),
        has_config=_CONFIG.value is not None,
    )


def _read_request(*, required: bool = False) -> commands.Request | None:
    if _CONFIG.value is None:
        given = [name for name in _OF_SWEEPS if flags.FLAGS[name].present]
        if required or given:
            reason = f", which --{given[0]} needs" if given else ""
            raise errors.UserError(f"--config is missing{reason}: set it to a sweep file")
        return None
    if not all(seed.isdigit() for seed in _SEEDS.value):
        raise errors.UserError(f"--seeds={','.join(_SEEDS.value)} must be numbers, such as 0,1,2")
    return commands.Request(
        source=_CONFIG.value,
        seeds=[int(seed) for seed in _SEEDS.value],
        settings=_SET.value,
        devices_per_job=_DEVICES.value,
        cores_per_job=_CORES.value,
        hosts_per_job=_HOSTS.value,
        executor=_EXECUTOR.value,
        device=_DEVICE.value if flags.FLAGS["device"].present else "",
    )


def _make_executor() -> commands.Executor:
    if _EXECUTOR.value == "slurm":
        given = {name: flag.value for name, flag in _SLURM.items()}
        given |= {name: tuple(given[name]) for name in ("extra", "setup")}
        return SlurmExecutor(SlurmOptions(**given), _MAX_JOBS.value)
    return commands.make_local_executor(_MAX_JOBS.value)


def _write_files(folder: SweepFolder) -> str:
    if _OUT.value is None:
        raise errors.UserError(f"--executor={_EXECUTOR.value} writes files: set --out to a folder")
    labels = dict(text.partition("=")[::2] for text in _SELECTOR.value)
    options = ClusterOptions(
        **{name: flag.value for name, flag in _CLUSTER.items()},
        retries=_RETRIES.value,
        node_selector=labels,
    )
    system = System[_EXECUTOR.value.upper()]
    return cluster_commands.write_files(
        folder, _read_request(required=True), Path(_OUT.value), system, options
    )


if __name__ == "__main__":
    errors.run_command(main, local_paths=["workdir", "report", "out"])
