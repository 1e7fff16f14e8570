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

import jax
from absl import flags

from invnext_jax import errors
from invnext_jax.sweeps import commands
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
_EXECUTOR = flags.DEFINE_enum("executor", "local", ["local"], "Where the jobs run.")
_MAX_JOBS = flags.DEFINE_integer("max_jobs", 0, "Maximum number of jobs at a time. 0: no limit.")
_DEVICES = flags.DEFINE_integer("devices_per_job", 0, "GPUs of each job. 0: one, if there are any.")
_CORES = flags.DEFINE_integer(
    "cores_per_job", 0, "CPU cores of each job. 0: one, or the share of its GPUs."
)
_RETRIES = flags.DEFINE_integer("retries", 1, "Times that a failed job is started again.")
_DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Print the jobs and their predicted cost on --device, and exit."
)
_DEVICE = flags.DEFINE_string(
    "device", "h100", "For --dry_run: h200, h100, a100, b200, l40s, v4, v5e, v5p or v6e."
)
_STATUS = flags.DEFINE_bool("status", False, "Print the states of the jobs, and exit.")
_REPORT = flags.DEFINE_string(
    "report", None, "Write the table to this file (.html, .md or .csv), print it, and exit."
)
_BASELINE = flags.DEFINE_string(
    "baseline", "", "Arm that --report compares with, instead of that of the sweep file."
)
_RETRY = flags.DEFINE_bool("retry_failed", False, "Start failed jobs again.")
_CANCEL = flags.DEFINE_bool("cancel", False, "Let all jobs save and stop, and exit.")
# Flags that describe a sweep. Without --config, the sweep in the workdir has its own values.
_OF_SWEEPS = ("seeds", "set", "devices_per_job", "cores_per_job")


def main(argv: Sequence[str]) -> None:
    """Runs a sweep, or one of the other commands."""
    del argv
    jax.config.update("jax_platforms", "cpu")  # the accelerators belong to the jobs
    folder = SweepFolder(_WORKDIR.value)
    if _STATUS.value:
        print(commands.show_status(folder))
    elif _REPORT.value:
        print(sweep_page.write_tables(folder, _REPORT.value, _BASELINE.value))
    elif _DRY_RUN.value:
        print(commands.predict(folder.path, _read_request(required=True), _DEVICE.value))
    elif _CANCEL.value:
        print(commands.cancel(folder, _make_executor))
    else:
        options = RunOptions(retries=_RETRIES.value)
        if not commands.run_sweep(folder, _read_request(), _make_executor, options, _RETRY.value):
            sys.exit(1)


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
    )


def _make_executor() -> commands.Executor:
    return commands.make_local_executor(_MAX_JOBS.value)


if __name__ == "__main__":
    errors.run_command(main, local_paths=["workdir", "report"])
