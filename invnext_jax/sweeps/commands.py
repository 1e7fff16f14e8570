"""The commands of `launch/sweep.py`: run, show, cancel and report a sweep."""

import dataclasses
import functools
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from invnext_jax.errors import UserError
from invnext_jax.sweeps import cost, identity, status_table
from invnext_jax.sweeps.executors import local_executor
from invnext_jax.sweeps.executors.local_executor import LocalExecutor
from invnext_jax.sweeps.executors.machine import read_machine
from invnext_jax.sweeps.expansion import ExpandedSweep, expand
from invnext_jax.sweeps.job import Executor, Resources
from invnext_jax.sweeps.resources import add_resources, check_host_memory, read_local_resources
from invnext_jax.sweeps.runner import Runner, RunOptions, retry_failed
from invnext_jax.sweeps.settings import Setting
from invnext_jax.sweeps.status_table import count_noun
from invnext_jax.sweeps.step_config import SCRIPTS, StepConfig
from invnext_jax.sweeps.sweep_file import load_sweep
from invnext_jax.sweeps.sweep_folder import JobState, Status, SweepFolder

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclasses.dataclass(frozen=True)
class Request:
    """A sweep, as the command line describes it.

    Attributes:
      source: see `sweep_file.load_sweep`.
      seeds: see `sweep_file.load_sweep`.
      settings: options that are set in several steps, as "<scope>.<option>=<value>".
      devices_per_job: accelerators of each job; 0 for one, if there are any.
      cores_per_job: CPU cores of each job; 0 for the default.
      hosts_per_job: machines of each job.
      executor: the system that runs the jobs, a value of --executor.
      device: kind of the accelerators of a cluster; "" if it is unknown.
    """

    source: str
    seeds: Sequence[int] = ()
    settings: Sequence[str] = ()
    devices_per_job: int = 0
    cores_per_job: int = 0
    hosts_per_job: int = 1
    executor: str = "local"
    device: str = ""

    @property
    def on_cluster(self) -> bool:
        """Whether the jobs run on other machines than this one."""
        return self.executor != local_executor.SYSTEM


def parse_settings(texts: Sequence[str]) -> list[Setting]:
    """Parses texts such as "train.data.manifest=/data/kmash.csv".

    Raises:
      UserError: a text has another form.
    """
    settings = []
    for text in texts:
        name, equals, value = text.partition("=")
        scope, _, option = name.partition(".")
        if not equals or not option:
            raise UserError(
                f"--set={text} must have the form <step>.<option>=<value>, where <step> is train, "
                "eval or the name of a step"
            )
        settings.append(Setting(scope, option, value))
    return settings


def expand_request(request: Request, folder: Path) -> tuple[ExpandedSweep, dict[str, StepConfig]]:
    """Loads a sweep and expands it to jobs; see `expansion.expand`."""
    sweep = load_sweep(request.source, request.seeds)
    expanded, configs = expand(sweep, folder.absolute(), parse_settings(request.settings))
    return dataclasses.replace(expanded, executor=request.executor), configs


def find_missing_files(configs: Mapping[str, StepConfig]) -> list[str]:
    """Returns the input files of all jobs that do not exist on this machine."""
    files = (path for config in configs.values() for path in identity.missing_files(config))
    return list(dict.fromkeys(files))


class StopSignals:
    """Context manager in which the first signal sets `requested`, and the second one is fatal."""

    def __init__(self):
        self.requested, self._old = False, {}

    def __enter__(self) -> "StopSignals":
        for number in _SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
                self._old[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        self._restore()

    def _handle(self, *_: object) -> None:
        self.requested = True
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)


def run_sweep(
    folder: SweepFolder,
    request: Request | None,
    make_executor: Callable[[], Executor],
    options: RunOptions,
    retry: bool = False,
) -> bool:
    """Runs a sweep, or continues it, and prints a line for each change.

    Args:
      folder: the folder of the sweep.
      request: the sweep; None continues the one in the folder.
      make_executor: function that returns the system that runs the jobs.
      options: options of the runner.
      retry: whether failed jobs start again.

    Returns:
      Whether all jobs are finished.

    Raises:
      UserError: the sweep is invalid, or another command runs in the folder.
    """
    log = functools.partial(print, flush=True)
    with StopSignals() as signals, folder.lock():
        folder.clear_stop_request()
        if request is None:
            sweep = folder.read_sweep()
            _check_commands(sweep)
        else:
            sweep, configs = expand_request(request, folder.path)
            if missing := find_missing_files(configs):
                raise UserError(
                    f"{len(missing)} input file(s) of the sweep do not exist: "
                    f"{', '.join(missing)}; create them, or set other paths, as in "
                    "--set=train.data.manifest=FILE"
                )
            log(f"estimating the memory of {count_noun(len(sweep.jobs), 'job')} (see {cost.PLANS})")
            sweep = add_resources(sweep, configs, find_resources(request), folder.path)
            folder.write_sweep(sweep)
        if retry:
            retry_failed(folder, sweep)
        arms = {(arm.group, arm.name) for arm in sweep.arms}
        counts = count_noun(len(arms), "arm"), count_noun(len(sweep.jobs), "different job")
        log(f"{', '.join(counts)} in {folder.path}")
        runner = Runner(folder, sweep, make_executor(), options, lambda: signals.requested, log)
        states = runner.run()
    print(_describe_end(sweep, states))
    return all(state.status is Status.FINISHED for state in states.values())


def _check_commands(sweep: ExpandedSweep) -> None:
    """Checks that the commands of a sweep that is read from its folder are those of this package.

    Raises:
      UserError: a command is a different program.
    """
    for planned in sweep.jobs.values():
        command = planned.job.command
        if tuple(command[:2]) != (sys.executable, SCRIPTS[planned.kind]):
            raise UserError(
                f"the job {planned.job.name} of the sweep starts {' '.join(command[:2])}, which is "
                "not a script of this installation: start the sweep with --config"
            )
        if planned.job.folder != Path.cwd():  # the path of the script is relative to it
            raise UserError(
                f"the jobs of the sweep start in {planned.job.folder}: change to this folder, or "
                "start the sweep with --config"
            )


def find_resources(request: Request) -> Resources:
    """Returns the resources of each job, without those that are predicted.

    Raises:
      UserError: the options do not fit this machine.
    """
    if request.on_cluster:
        return Resources(
            hosts=request.hosts_per_job,
            devices=request.devices_per_job,
            device=request.device if request.devices_per_job else "",
            cores=request.cores_per_job,
        )
    if request.hosts_per_job > 1:
        raise UserError(
            f"--hosts_per_job={request.hosts_per_job} needs several machines: choose an --executor"
        )
    return read_local_resources(request.devices_per_job, request.cores_per_job)


def predict(folder: Path, request: Request, device: str) -> str:
    """Predicts the cost of a sweep without running it, and writes nothing.

    Args:
      folder: the folder of the sweep, which need not exist.
      request: the sweep.
      device: a name in `planning.devices.DEVICES`.

    Returns:
      A table for the terminal.

    Raises:
      UserError: a job does not fit in the memory of its devices, or of this machine if no device
        is chosen. The table is printed before.
    """
    sweep, configs = expand_request(request, folder)
    devices = request.hosts_per_job * max(1, request.devices_per_job)
    costs = cost.predict_costs(sweep, configs, device, devices)
    table = cost.describe_costs(sweep, configs, costs)
    missing = find_missing_files(configs)
    if missing:
        table += f"\nnot found here: {', '.join(missing)}"
    try:
        cost.check_fit(configs, costs, device)
        if not (request.on_cluster or request.device or find_resources(request).devices):
            check_host_memory(costs)
    except UserError:
        print(table)
        raise
    return table


def _describe_end(sweep: ExpandedSweep, states: dict[str, JobState]) -> str:
    failed = any(state.status is Status.FAILED for state in states.values())
    advice = "; --status shows the reasons, --retry_failed starts them again" if failed else ""
    return f"jobs: {status_table.count_states(sweep, states)}{advice}"


def make_local_executor(max_jobs: int = 0) -> Executor:
    """Returns the executor for this machine."""
    return LocalExecutor(read_machine(), max_jobs)


def show_status(folder: SweepFolder) -> str:
    """Returns the states of all jobs as text."""
    return status_table.format_status(folder, folder.read_sweep())


def cancel(folder: SweepFolder, make_executor: Callable[[], Executor]) -> str:
    """Stops all jobs of a sweep, and the command that runs it. The jobs save first.

    Returns:
      A sentence for the user.
    """
    sweep = folder.read_sweep()
    if folder.is_locked():
        folder.request_stop()
        while folder.is_locked():
            time.sleep(0.2)
    else:  # jobs may still run if the command was killed
        with folder.lock():
            runner = Runner(folder, sweep, make_executor(), RunOptions())
            runner.restore_states(only_active=True)
            runner.stop()
    states = folder.read_states(sweep)
    return f"{_describe_end(sweep, states)}; the same command as before continues the sweep"
