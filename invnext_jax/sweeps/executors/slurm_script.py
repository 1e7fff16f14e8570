"""The batch script of a job on SLURM, and the options of `sbatch`.

The script starts the command once on each node with `srun`. It handles three events:

- The time limit is near: SLURM sends SIGUSR1 to the script. The script sends SIGTERM to the
  command, which saves and stops, and requeues the job.
- The sweep is canceled: the executor sends SIGUSR2. The command saves and stops.
- The job is preempted or requeued: SLURM sends SIGTERM to the command, ends the job and starts the
  script again later.

At the end, the script writes the exit code of the command to a file, because `squeue` forgets ended
jobs and many clusters have no accounting database.
"""

import dataclasses
import shlex
from pathlib import Path

from invnext_jax.errors import UserError
from invnext_jax.sweeps.job import Job

_TEMPLATE = """\
#!/bin/bash
# Submitted with: {submission}

exit_file={exit_file}
rm -f -- "$exit_file"
interrupted=false stopped=false requeue=false
stop() {{
  interrupted=true stopped=true
  scancel --signal=TERM "$SLURM_JOB_ID" # to the tasks of srun; this script needs --batch
}}
trap 'requeue=true; stop' USR1
trap stop USR2
trap 'interrupted=true' TERM # SLURM also sends it to the tasks, so it is not repeated

cd -- {folder} || exit
{setup}
code=0
if ! $stopped; then
  srun {srun} {command} &
  task=$! code=127 again=true
  while $again; do # a trapped signal ends `wait`
    interrupted=false
    wait "$task"
    status=$?
    [ "$status" -eq 127 ] || code=$status # 127: an earlier `wait` returned the exit code
    again=$interrupted
  done
fi

if $requeue && scontrol requeue "$SLURM_JOB_ID"; then
  sleep 60 # SLURM ends this script, and starts the job again later
  exit 0
fi
printf '{{"exit_code": %d, "stopped": %s}}\\n' "$code" "$stopped" > "$exit_file.part"
mv -- "$exit_file.part" "$exit_file"
exit "$code"
"""


@dataclasses.dataclass(frozen=True)
class SlurmOptions:
    """Options of all jobs of a sweep. An empty value leaves the choice to the cluster.

    Attributes:
      partition: partition, or several that are separated by commas.
      account: account that is charged.
      qos: quality of service.
      time: time limit, such as 12:00:00 or 2-00:00:00. A longer job is requeued and resumes.
      gpu_type: type of the GPUs, such as h100, as the cluster names it.
      mem: host memory of each node, such as 200G.
      save_seconds: seconds before the time limit at which a job saves and stops. SLURM may send the
        signal up to 60 s earlier.
      extra: further options of `sbatch`, such as "--constraint=ib".
      setup: shell commands that run before the command, such as "module load cuda".
    """

    partition: str = ""
    account: str = ""
    qos: str = ""
    time: str = ""
    gpu_type: str = ""
    mem: str = ""
    save_seconds: int = 180
    extra: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()

    def __post_init__(self):
        for option in self.extra:
            if not option.startswith("-"):
                raise UserError(
                    f"--slurm.extra={option} must be an option of sbatch, such as --constraint=ib"
                )
        if self.save_seconds < 1:
            raise UserError(f"--slurm.save_seconds={self.save_seconds} must be at least 1")


def sbatch_flags(job: Job, slurm_name: str, options: SlurmOptions) -> list[str]:
    """Returns the options of `sbatch` for a job.

    Args:
      job: the job.
      slurm_name: name of the job in SLURM, which no other job of the user has.
      options: options of the sweep.
    """
    needed = job.resources
    gpus = f"{options.gpu_type}:" * bool(options.gpu_type) + str(needed.devices)
    named = {
        "partition": options.partition,
        "account": options.account,
        "qos": options.qos,
        "time": options.time,
        "gpus-per-node": gpus if needed.devices else "",
        "cpus-per-task": needed.cores or "",
        "mem": options.mem,
    }
    return [
        f"--job-name={slurm_name}",
        f"--output={_escape_pattern(job.log)}",
        "--open-mode=append",
        f"--nodes={needed.hosts}",
        "--ntasks-per-node=1",  # a process uses all GPUs of its node
        *(f"--{name}={value}" for name, value in named.items() if value),
        "--requeue",
        f"--signal=B:USR1@{options.save_seconds}",
        "--dependency=singleton",  # two jobs of the same name never run at the same time
        *options.extra,
    ]


def make_script(job: Job, exit_file: Path, flags: list[str], options: SlurmOptions) -> str:
    """Returns the batch script of a job.

    Args:
      job: the job.
      exit_file: path of the JSON file with the exit code, which the script writes at the end.
      flags: output of `sbatch_flags`.
      options: options of the sweep.
    """
    environment = {"PYTHONUNBUFFERED": "1", **job.environment}
    exports = [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
    # After the exit of one task, the others have 300 s to save and exit.
    srun = ["--wait=300", "--kill-on-bad-exit=0"]
    if job.resources.cores:
        srun.append(f"--cpus-per-task={job.resources.cores}")  # srun ignores the one of sbatch
    return _TEMPLATE.format(
        submission=shlex.join(["sbatch", *flags]).replace("\n", " "),
        exit_file=shlex.quote(str(exit_file)),
        folder=shlex.quote(str(job.folder)),
        setup="\n".join([*exports, *options.setup]),
        srun=shlex.join(srun),
        command=shlex.join(job.command),
    )


def _escape_pattern(path: Path) -> str:
    """Escapes the character that starts a replacement in file names of SLURM."""
    return str(path).replace("%", "%%")
