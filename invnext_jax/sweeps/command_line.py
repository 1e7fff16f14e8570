"""Runs what the flags of `launch/sweep.py` ask for."""

import sys
from pathlib import Path

import jax
from absl.flags import FLAGS

from invnext_jax import errors
from invnext_jax.sweeps import cluster_commands, commands, flag_checks
from invnext_jax.sweeps.executors.slurm import SlurmExecutor
from invnext_jax.sweeps.executors.slurm_script import SlurmOptions
from invnext_jax.sweeps.manifests.options import ClusterOptions
from invnext_jax.sweeps.manifests.write import System
from invnext_jax.sweeps.runner import RunOptions
from invnext_jax.sweeps.sweep_folder import SweepFolder

# Flags that describe a sweep. Without --config, the sweep in the workdir has its own values.
_OF_SWEEPS = ("seeds", "set", "devices_per_job", "cores_per_job", "hosts_per_job")
# Flags --slurm.NAME and --cluster.NAME that are fields of `SlurmOptions` and `ClusterOptions`.
_OF_SLURM = ("partition", "account", "qos", "time", "gpu_type", "mem", "save_seconds")
_OF_SLURM += ("extra", "setup")
_OF_CLUSTERS = ("storage", "folder", "image", "spot", "infra")


def run() -> None:
    """Runs a sweep, or one of the other commands.

    The flags must have been parsed, and checked by `flag_checks.check_flags`.
    """
    jax.config.update("jax_platforms", "cpu")  # the accelerators belong to the jobs
    folder = SweepFolder(FLAGS.workdir)
    if FLAGS.status:
        print(commands.show_status(folder))
    elif FLAGS.report:
        from invnext_jax.sweeps.report import sweep_page  # imports Matplotlib

        print(sweep_page.write_tables(folder, FLAGS.report, FLAGS.baseline))
    elif FLAGS.dry_run:
        print(commands.predict(folder.path, _read_request(required=True), FLAGS.device))
    elif FLAGS.cancel:
        if not folder.is_locked():  # otherwise, the command that runs has the executor
            _check_executor(folder)
        print(commands.cancel(folder, _make_executor))
    elif FLAGS.collect:
        print(cluster_commands.collect(folder))
    elif FLAGS.executor in flag_checks.WRITES_FILES:
        print(_write_files(folder))
    else:
        _check_executor(folder)
        options = RunOptions(retries=FLAGS.retries)
        if not commands.run_sweep(
            folder, _read_request(), _make_executor, options, FLAGS.retry_failed
        ):
            sys.exit(1)


def _check_executor(folder: SweepFolder) -> None:
    flag_checks.check_executor(
        folder,
        FLAGS.executor,
        is_given=bool(FLAGS["executor"].present),
        has_config=FLAGS.config is not None,
    )


def _read_request(*, required: bool = False) -> commands.Request | None:
    if FLAGS.config is None:
        present = [name for name in _OF_SWEEPS if FLAGS[name].present]
        if required or present:
            reason = f", which --{present[0]} needs" if present else ""
            raise errors.UserError(f"--config is missing{reason}: set it to a sweep file")
        return None
    if not all(seed.isdigit() for seed in FLAGS.seeds):
        raise errors.UserError(f"--seeds={','.join(FLAGS.seeds)} must be numbers, such as 0,1,2")
    return commands.Request(
        source=FLAGS.config,
        seeds=[int(seed) for seed in FLAGS.seeds],
        settings=FLAGS.set,
        devices_per_job=FLAGS.devices_per_job,
        cores_per_job=FLAGS.cores_per_job,
        hosts_per_job=FLAGS.hosts_per_job,
        executor=FLAGS.executor,
        device=FLAGS.device if FLAGS["device"].present else "",
    )


def _make_executor() -> commands.Executor:
    if FLAGS.executor == "slurm":
        options = {name: FLAGS[f"slurm.{name}"].value for name in _OF_SLURM}
        options |= {name: tuple(options[name]) for name in ("extra", "setup")}
        return SlurmExecutor(SlurmOptions(**options), FLAGS.max_jobs)
    return commands.make_local_executor(FLAGS.max_jobs)


def _write_files(folder: SweepFolder) -> str:
    if FLAGS.out is None:
        raise errors.UserError(f"--executor={FLAGS.executor} writes files: set --out to a folder")
    labels = dict(text.partition("=")[::2] for text in FLAGS["cluster.node_selector"].value)
    options = ClusterOptions(
        **{name: FLAGS[f"cluster.{name}"].value for name in _OF_CLUSTERS},
        retries=FLAGS.retries,
        node_selector=labels,
    )
    system = System[FLAGS.executor.upper()]
    return cluster_commands.write_files(
        folder, _read_request(required=True), Path(FLAGS.out), system, options
    )
