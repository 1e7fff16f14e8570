"""Faults of the drill. Each function injects a fault into a tiny run and returns the outcome."""

import contextlib
import dataclasses
import os
import pathlib
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator

from drill_run import SAVE_STEPS, DrillRun

DISK_BYTES = 64 * 2**20  # size of the small disk; a checkpoint takes about 8 MiB


@dataclasses.dataclass
class FaultResult:
    """The outcome of one fault.

    Attributes:
      outcome: description of what happened, for the table.
      passed: whether the outcome is the expected one.
      run: a completed run, which is compared with the uninterrupted one.
      lost_steps: number of steps in finished checkpoints that the next start did not find.
      skipped: whether the fault could not be injected.
    """

    outcome: str
    passed: bool = True
    run: DrillRun | None = None
    lost_steps: int = 0
    skipped: bool = False


Fault = Callable[[pathlib.Path, int], FaultResult]


class NeedsRootError(Exception):
    """A file system cannot be mounted without root."""


@contextlib.contextmanager
def small_disk(folder: pathlib.Path, options: str = "") -> Iterator[None]:
    """Mounts an in-memory file system at `folder`.

    Raises:
      NeedsRootError: the file system cannot be mounted. The folder has been created.
    """
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}{options}", "none", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        raise NeedsRootError("needs root to mount a small disk")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def find_line(run: DrillRun, pattern: str) -> str:
    """Returns the first line in the log of the last start that matches `pattern`, or ""."""
    lines = [line for line in run.logs[-1].splitlines() if re.search(pattern, line)]
    return re.sub(r"^W\d+ [\d:.]+ +\d+ \S+ ", "", lines[0])[:110] if lines else ""


def copy_run(run: DrillRun, folder: pathlib.Path) -> DrillRun:
    """Copies a run from the small disk to `folder`."""
    shutil.copytree(run.workdir, folder)
    run.workdir = folder
    return run


def disk_full(base: pathlib.Path, processes: int) -> FaultResult:
    """Fills the disk between two saves and frees the space later."""
    disk = base / "disk"
    with small_disk(disk):
        run = DrillRun(disk / "run", base, processes).start()
        run.wait_for(run.finished_saves)
        with contextlib.suppress(OSError), open(disk / "ballast", "wb", buffering=0) as ballast:
            while ballast.write(bytes(4096)):
                pass
        with contextlib.suppress(FileNotFoundError):
            run.wait_for(lambda: "could not be saved" in run.log())
            (disk / "ballast").unlink()
        code = run.end()
        warning = find_line(run, "could not be saved")
        return FaultResult(
            f"code {code}; {warning}", not code and bool(warning), copy_run(run, base / "full")
        )


def disk_always_full(base: pathlib.Path, processes: int) -> FaultResult:
    """Runs on a full disk: no checkpoint can be written, so the run ends with an error."""
    disk = base / "disk_always"
    with small_disk(disk):
        (disk / "ballast").write_bytes(bytes(DISK_BYTES - 2**20))
        run = DrillRun(disk / "run", base, processes, total_steps=12)
        code = run.finish()
        return FaultResult(f"code {code}; {find_line(run, '^error:')}", code == 2)


def read_only(base: pathlib.Path, processes: int) -> FaultResult:
    """Starts with a read-only workdir."""
    disk = base / "read_only"
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(small_disk(disk, ",ro"))
        except NeedsRootError:
            disk.chmod(0o555)
        run = DrillRun(disk / "run", base, processes)
        code = run.finish()
        return FaultResult(f"code {code}; {find_line(run, '^error:')}", code == 2)


def read_only_later(base: pathlib.Path, processes: int) -> FaultResult:
    """Makes the workdir read-only during the run, then writable again."""
    disk = base / "read_only_later"
    with small_disk(disk):
        run = DrillRun(disk / "run", base, processes).start()
        run.wait_for(run.finished_saves)
        # A bind mount can become read-only while files are open; the file system itself cannot.
        subprocess.run(["mount", "--bind", disk, disk], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", disk], check=True)
        try:
            run.wait_for(lambda: "could not be saved" in run.log())
        finally:
            subprocess.run(["umount", "-l", disk], check=True)
        code = run.end()
        warning = find_line(run, "could not be saved")
        return FaultResult(
            f"code {code}; {warning}", not code and bool(warning), copy_run(run, base / "ro")
        )


def removed(base: pathlib.Path, processes: int) -> FaultResult:
    """Removes the workdir during the run."""
    run = DrillRun(base / "removed", base, processes).start()
    run.wait_for(run.finished_saves)
    os.rename(run.workdir, base / "removed.gone")
    run.was_removed = True
    code = run.end()
    warning = find_line(run, "was removed during the run")
    return FaultResult(f"code {code}; {warning}", not code and bool(warning), run)


def locked(base: pathlib.Path, processes: int) -> FaultResult:
    """Starts a second run in the same workdir."""
    run = DrillRun(base / "locked", base, processes).start()
    run.wait_for_step(1)
    second = DrillRun(base / "locked", base, 1)
    second._starts = 100  # gives its log file a different name
    refused = second.finish()
    code = run.end()
    return FaultResult(
        f"code {refused}; {find_line(second, '^error:')}", refused == 2 and not code, run
    )


def nan_gradients(base: pathlib.Path, processes: int) -> FaultResult:
    """Makes the loss diverge: steps are skipped, then the run saves and aborts."""
    rate = {"optimizer.learning_rate": 1e30, "log.max_nonfinite_steps": 3}
    run = DrillRun(base / "nan", base, processes, **rate)
    code = run.finish()
    newest = run.finished_saves()[-1:]
    text = f"code {code}; {find_line(run, '^error:')}"
    run.finish()
    has_reason = "when the run was aborted" in run.logs[-1]
    return FaultResult(text, code == 3 and bool(newest) and has_reason)


def worker_killed(base: pathlib.Path, processes: int) -> FaultResult:
    """Kills a data worker."""
    run = DrillRun(base / "worker", base, processes, **{"data.workers": 1}).start()
    run.wait_for_step(1)
    workers = [pid for process in run.processes for pid in data_workers(process.pid)]
    for pid in workers[:1]:
        os.kill(pid, signal.SIGKILL)
    code = run.end()
    summary = find_line(run, "workers replaced")
    return FaultResult(f"code {code}; {summary}", not code and bool(summary), run)


def data_workers(parent: int) -> list[int]:
    """Returns the process IDs of a run's data workers."""
    children = pathlib.Path(f"/proc/{parent}/task").glob("*/children")
    pids = [int(pid) for file in children for pid in file.read_text().split()]
    lines = {pid: pathlib.Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids}
    return [pid for pid, line in lines.items() if b"workers.worker_main" in line]


CLOCK = """
import threading, time
real, start = time.time, time.monotonic()
def jumping():
    past = time.monotonic() - start
    return real() + (86400 if int(past) % 4 < 2 else -86400)
time.time = jumping
"""


def clock_jumps(base: pathlib.Path, processes: int) -> FaultResult:
    """Moves the clock back and forth by two days, every two seconds, while saving by time."""
    (base / "clock").mkdir()
    (base / "clock/sitecustomize.py").write_text(CLOCK)
    run = DrillRun(base / "clocked", base, processes, **{"checkpoint.every_minutes": 0.01})
    code = run.start(FIRST=str(base / "clock")).end()
    return FaultResult(f"code {code}; {len(run.records())} steps logged", not code, run)


def stop_signal(base: pathlib.Path, processes: int) -> FaultResult:
    """Sends SIGTERM as in a preemption: the run saves, exits with code 0 and can be resumed."""
    run = DrillRun(base / "signal", base, processes).start()
    run.wait_for_step(SAVE_STEPS + 2)
    run.signal(signal.SIGTERM, 0)  # sent to one process; all processes stop after the same step
    code = run.end()
    line = find_line(run, "SIGTERM: stopped")
    stopped = run.finished_saves()[-1]
    run.finish()
    passed = not code and bool(line) and run.resumed_step() == stopped
    return FaultResult(f"code {code}; {line}", passed, run, stopped - (run.resumed_step() or 0))


def damaged(base: pathlib.Path, processes: int) -> FaultResult:
    """Flips one bit in the newest checkpoint's arrays: the run resumes from the previous one."""
    run = DrillRun(base / "damaged", base, processes).start()
    run.wait_for(lambda: len(run.finished_saves()) > 1)
    run.signal(signal.SIGTERM)
    run.end()
    largest = max(run.newest_checkpoint().rglob("d/*"), key=lambda path: path.stat().st_size)
    with open(largest, "r+b") as file:
        file.seek(largest.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    code = run.finish()
    line = find_line(run, "is damaged")
    return FaultResult(f"code {code}; {line[-110:]}", not code and bool(line), run)


FAULTS: dict[str, Fault] = {
    fault.__name__: fault
    for fault in (
        disk_full,
        disk_always_full,
        read_only,
        read_only_later,
        removed,
        locked,
        nan_gradients,
        worker_killed,
        clock_jumps,
        stop_signal,
        damaged,
    )
}
