"""Sweeps of fake jobs, which take milliseconds; see sweeps/fake_job.py."""

import functools
import sys
from pathlib import Path

from invnext_jax.sweeps.executors.local_executor import LocalExecutor
from invnext_jax.sweeps.executors.machine import Machine
from invnext_jax.sweeps.expansion import ExpandedSweep, PlannedArm, PlannedJob
from invnext_jax.sweeps.job import Job, Resources
from invnext_jax.sweeps.runner import Runner, RunOptions
from invnext_jax.sweeps.step_config import Kind
from invnext_jax.sweeps.sweep_folder import SweepFolder

FAKE = Path(__file__).parents[1] / "sweeps/fake_job.py"
STEPS = 6


def make_job(folder, name, kind, dependencies=(), value=0.0, seconds=0.005):
    """A fake training or evaluation that starts from its only dependency."""
    workdir = folder / "runs" / name
    command = [sys.executable, str(FAKE), f"--workdir={workdir}"]
    if kind is Kind.TRAIN:
        command += [f"--config.total_steps={STEPS}", f"--config.init_gain={value}"]
    for source in dependencies:
        flag = "config.init_from" if kind is Kind.TRAIN else "checkpoint"
        command.append(f"--{flag}={workdir.with_name(source)}")
    job = Job(
        name=name,
        command=tuple(command),
        folder=folder,
        workdir=workdir,
        log=folder / "logs" / f"{name}.log",
        environment={"FAKE_STEP_SECONDS": str(seconds)},
        resources=Resources(cores=1),
        dependencies=tuple(dependencies),
    )
    return PlannedJob(job, kind, STEPS if kind is Kind.TRAIN else 0)


def make_sweep(folder, seeds=(0, 1), arms=("a", "b"), seconds=0.005, evaluate_stage1=False):
    """Chains Stage 1 -> Stage 2 -> evaluation. The arms share Stage 1 of each seed.

    With `evaluate_stage1`, a third chain evaluates Stage 1.
    """
    train = functools.partial(make_job, folder, kind=Kind.TRAIN, seconds=seconds)
    jobs, rows = [], []
    for seed in seeds:
        jobs.append(train(f"s1-{seed}", value=0.1 + seed))
        if evaluate_stage1:
            jobs.append(make_job(folder, f"eval-{seed}", Kind.EVALUATE, [f"s1-{seed}"]))
            used = {"s1": f"s1-{seed}", "probe": f"eval-{seed}"}
            rows.append(PlannedArm("Stage 1", "", seed, False, {}, used))
        for number, arm in enumerate(arms):
            jobs += [
                train(f"s2-{arm}{seed}", dependencies=[f"s1-{seed}"], value=number),
                make_job(folder, f"eval-{arm}{seed}", Kind.EVALUATE, [f"s2-{arm}{seed}"]),
            ]
            used = {"s1": f"s1-{seed}", "s2": f"s2-{arm}{seed}", "probe": f"eval-{arm}{seed}"}
            rows.append(PlannedArm(arm, "", seed, number == 0, {}, used))
    sweep = ExpandedSweep("fake", tuple(rows), {}, {planned.job.name: planned for planned in jobs})
    folder.mkdir(parents=True, exist_ok=True)
    SweepFolder(folder).write_sweep(sweep)
    return sweep


def run(folder, sweep, retries=0, cores=4, **options):
    executor = LocalExecutor(Machine(cores=tuple(range(cores))))
    settings = RunOptions(retries=retries, poll_seconds=0.02, stop_seconds=20.0)
    lines = []
    runner = Runner(SweepFolder(folder), sweep, executor, settings, log=lines.append, **options)
    return runner.run(), lines
