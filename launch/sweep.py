"""Runs a sweep: many trainings and evaluations whose results become one table.

    python launch/sweep.py --config=configs/sweeps/paper.py:table1a --workdir=sweeps/t1a
    python launch/sweep.py --config=configs/sweeps/lr.py:tiny --workdir=sweeps/lr --seeds=0,1,2
    python launch/sweep.py --config=configs/sweeps/paper.py:all --workdir=sweeps/paper --dry_run
    python launch/sweep.py --workdir=sweeps/lr --status
    python launch/sweep.py --workdir=sweeps/lr --report=table.html

The same command resumes a sweep that was stopped or killed. docs/sweeps.md describes sweep files,
the folder of a sweep and the table.
"""

from collections.abc import Sequence

from absl import flags

from invnext_jax import errors

flags.DEFINE_string(
    "config",
    None,
    "Sweep file and sweep, such as configs/sweeps/paper.py:table1a. Without it, the sweep in the "
    "workdir continues.",
)
flags.DEFINE_string("workdir", None, "Folder of the sweep.", required=True)
flags.DEFINE_list("seeds", [], "Seeds for which each arm is repeated, such as 0,1,2.")
flags.DEFINE_multi_string(
    "set",
    [],
    "Option for several steps: train.OPTION=VALUE, eval.OPTION=VALUE or STEP.OPTION=VALUE. May be "
    "repeated.",
)
flags.DEFINE_enum(
    "executor",
    "local",
    ["local", "slurm", "skypilot", "jobset"],
    "Where the jobs run. For skypilot and jobset (Kubernetes), files are written to --out.",
)
flags.DEFINE_integer("max_jobs", 0, "Maximum number of jobs at a time. 0: no limit.", lower_bound=0)
flags.DEFINE_integer(
    "devices_per_job",
    0,
    "GPUs of each job, or accelerators of each of its hosts. 0: one, if this machine has GPUs; on "
    "clusters, none.",
    lower_bound=0,
)
flags.DEFINE_integer(
    "cores_per_job",
    0,
    "CPU cores of each host of a job. 0: one, or the share of its GPUs.",
    lower_bound=0,
)
flags.DEFINE_integer("hosts_per_job", 1, "Machines of each job, on clusters.", lower_bound=1)
flags.DEFINE_integer("retries", 1, "Times that a failed job is started again.", lower_bound=0)
flags.DEFINE_bool(
    "dry_run", False, "Print the jobs and their predicted cost on --device, and exit."
)
flags.DEFINE_string(
    "device",
    "h100",
    "Accelerators of --dry_run and of clusters: h200, h100, a100, b200, l40s, v4, v5e, v5p or v6e.",
)
flags.DEFINE_bool("status", False, "Print the states of the jobs, and exit.")
flags.DEFINE_string(
    "report", None, "Write the table to this file (.html, .md or .csv), print it, and exit."
)
flags.DEFINE_string(
    "baseline", "", "Arm that --report compares with, instead of that of the sweep file."
)
flags.DEFINE_bool("retry_failed", False, "Start failed jobs again.")
flags.DEFINE_bool(
    "collect", False, "Read which jobs SkyPilot or Kubernetes have finished, and exit."
)
flags.DEFINE_bool("cancel", False, "Stop all jobs after they have saved, and exit.")

# Options of SLURM. The first three are names of sbatch.
flags.DEFINE_alias("slurm.nodes", "hosts_per_job")
flags.DEFINE_alias("slurm.gpus_per_node", "devices_per_job")
flags.DEFINE_alias("slurm.cpus_per_task", "cores_per_job")
flags.DEFINE_string("slurm.partition", "", "Partition of the cluster.")
flags.DEFINE_string("slurm.account", "", "Account that is charged.")
flags.DEFINE_string("slurm.qos", "", "Quality of service.")
flags.DEFINE_string(
    "slurm.time", "", "Time limit, such as 12:00:00. Longer jobs are requeued and resume."
)
flags.DEFINE_string("slurm.gpu_type", "", "Type of the GPUs, such as h100.")
flags.DEFINE_string("slurm.mem", "", "Memory of each node, such as 200G.")
flags.DEFINE_integer(
    "slurm.save_seconds", 180, "Seconds before the time limit at which a job saves and stops."
)
flags.DEFINE_multi_string(
    "slurm.extra", [], "Further option of sbatch, such as --constraint=ib. May be repeated."
)
flags.DEFINE_multi_string(
    "slurm.setup",
    [],
    "Shell command before each job, such as 'module load cuda'. May be repeated.",
)

# Options of SkyPilot and JobSets.
flags.DEFINE_string("out", None, "Folder of the files for SkyPilot or Kubernetes.")
flags.DEFINE_string(
    "cluster.storage",
    "",
    "What is mounted as --cluster.folder: a bucket or a volume of SkyPilot, or the name of a "
    "PersistentVolumeClaim of Kubernetes.",
)
flags.DEFINE_string(
    "cluster.folder", "/sweep", "Folder of the sweep on the machines of the cluster."
)
flags.DEFINE_string("cluster.image", "", "Container image, for Kubernetes.")
flags.DEFINE_bool("cluster.spot", False, "Use preemptible machines.")
flags.DEFINE_string("cluster.infra", "", "For SkyPilot: cloud/region.")
flags.DEFINE_multi_string(
    "cluster.node_selector", [], "For Kubernetes: label=value of the nodes. May be repeated."
)


def main(argv: Sequence[str]) -> None:
    """Runs a sweep, or one of the other commands."""
    del argv
    from invnext_jax.sweeps import flag_checks

    flag_checks.check_flags(_list_given(), flags.FLAGS.executor)
    from invnext_jax.sweeps import command_line  # imports JAX

    command_line.run()


def _list_given() -> list[str]:
    """Returns the names of the flags of this file that the command line sets."""
    module = flags.FLAGS.find_module_defining_flag("workdir")
    found = flags.FLAGS.flags_by_module_dict()[module]
    return [flag.name for flag in found if flag.present and flag.value is not False]


if __name__ == "__main__":
    errors.run_command(main, local_paths=["workdir", "report", "out"])
