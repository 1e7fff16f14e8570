"""The faults of the drill: each breaks something under a tiny run and tells what came of it."""

import contextlib
import dataclasses
import os
import pathlib
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator

from drilled import SAVE_STEPS, DrilledRun

ROOM = 64 * 2**20  # bytes of the small disk; a checkpoint takes some 8 MiB


@dataclasses.dataclass
class FaultResult:
    """What a fault did; `run`, if it came to its end, is compared with the uninterrupted one."""

    happened: str
    good: bool = True
    run: DrilledRun | None = None
    lost: int = 0
    skipped: bool = False


Fault = Callable[[pathlib.Path, int], FaultResult]


class NeedsRootError(Exception):
    """This user may not mount a file system."""


@contextlib.contextmanager
def small_disk(folder: pathlib.Path, options: str = "") -> Iterator[None]:
    """A file system in memory at `folder`.

    Raises:
        NeedsRootError: It cannot be mounted; the folder is there.
    """
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={ROOM}{options}", "none", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        raise NeedsRootError("needs root, to mount a small disk")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def said(run: DrilledRun, pattern: str) -> str:
    """The first line of the last start that has the pattern, or ""."""
    lines = [line for line in run.said[-1].splitlines() if re.search(pattern, line)]
    return re.sub(r"^W\d+ [\d:.]+ +\d+ \S+ ", "", lines[0])[:110] if lines else ""


def keep(run: DrilledRun, folder: pathlib.Path) -> DrilledRun:
    """Copies a run off the small disk."""
    shutil.copytree(run.workdir, folder)
    run.workdir = folder
    return run


def disk_full(base: pathlib.Path, processes: int) -> FaultResult:
    """The disk fills up between two saves, and has room again later."""
    disk = base / "disk"
    with small_disk(disk):
        run = DrilledRun(disk / "run", base, processes).start()
        run.wait_for(run.finished_saves)
        with contextlib.suppress(OSError), open(disk / "ballast", "wb", buffering=0) as ballast:
            while ballast.write(bytes(4096)):
                pass
        with contextlib.suppress(FileNotFoundError):
            run.wait_for(lambda: "could not be saved" in run.log())
            (disk / "ballast").unlink()
        code = run.end()
        warned = said(run, "could not be saved")
        return FaultResult(
            f"code {code}; {warned}", not code and bool(warned), keep(run, base / "full")
        )


def disk_always_full(base: pathlib.Path, processes: int) -> FaultResult:
    """Nothing can ever be saved: the end is an error."""
    disk = base / "disk_always"
    with small_disk(disk):
        (disk / "ballast").write_bytes(bytes(ROOM - 2**20))
        run = DrilledRun(disk / "run", base, processes, total_steps=12)
        code = run.finish()
        return FaultResult(f"code {code}; {said(run, '^error:')}", code == 2)


def read_only(base: pathlib.Path, processes: int) -> FaultResult:
    """The workdir cannot be written from the start."""
    disk = base / "read_only"
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(small_disk(disk, ",ro"))
        except NeedsRootError:
            disk.chmod(0o555)
        run = DrilledRun(disk / "run", base, processes)
        code = run.finish()
        return FaultResult(f"code {code}; {said(run, '^error:')}", code == 2)


def read_only_later(base: pathlib.Path, processes: int) -> FaultResult:
    """The workdir becomes read-only under the run, and writable again."""
    disk = base / "read_only_later"
    with small_disk(disk):
        run = DrilledRun(disk / "run", base, processes).start()
        run.wait_for(run.finished_saves)
        # A bind mount on top: the file system itself stays busy while files are open for writing.
        subprocess.run(["mount", "--bind", disk, disk], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", disk], check=True)
        try:
            run.wait_for(lambda: "could not be saved" in run.log())
        finally:
            subprocess.run(["umount", "-l", disk], check=True)
        code = run.end()
        warned = said(run, "could not be saved")
        return FaultResult(
            f"code {code}; {warned}", not code and bool(warned), keep(run, base / "ro")
        )


def removed(base: pathlib.Path, processes: int) -> FaultResult:
    """The workdir is removed under the run."""
    run = DrilledRun(base / "removed", base, processes).start()
    run.wait_for(run.finished_saves)
    os.rename(run.workdir, base / "removed.gone")
    run.was_removed = True
    code = run.end()
    warned = said(run, "was removed under the run")
    return FaultResult(f"code {code}; {warned}", not code and bool(warned), run)


def locked(base: pathlib.Path, processes: int) -> FaultResult:
    """A second run starts in the same workdir."""
    run = DrilledRun(base / "locked", base, processes).start()
    run.wait_for_step(1)
    second = DrilledRun(base / "locked", base, 1)
    second._starts = 100  # a log of its own
    refused = second.finish()
    code = run.end()
    return FaultResult(f"code {refused}; {said(second, '^error:')}", refused == 2 and not code, run)


def nan_gradients(base: pathlib.Path, processes: int) -> FaultResult:
    """The loss comes apart: steps are skipped, then the run is aborted and its state saved."""
    rate = {"optimizer.learning_rate": 1e30, "log.max_nonfinite_steps": 3}
    run = DrilledRun(base / "nan", base, processes, **rate)
    code = run.finish()
    newest = run.finished_saves()[-1:]
    text = f"code {code}; {said(run, '^error:')}"
    run.finish()
    marked = "when the run was aborted" in run.said[-1]
    return FaultResult(text, code == 3 and bool(newest) and marked)


def worker_killed(base: pathlib.Path, processes: int) -> FaultResult:
    """A data worker is killed."""
    run = DrilledRun(base / "worker", base, processes, **{"data.workers": 1}).start()
    run.wait_for_step(1)
    workers = [pid for process in run.processes for pid in data_workers(process.pid)]
    for pid in workers[:1]:
        os.kill(pid, signal.SIGKILL)
    code = run.end()
    counted = said(run, "workers replaced")
    return FaultResult(f"code {code}; {counted}", not code and bool(counted), run)


def data_workers(parent: int) -> list[int]:
    """Process numbers of the data workers of a run."""
    children = pathlib.Path(f"/proc/{parent}/task").glob("*/children")
    pids = [int(pid) for file in children for pid in file.read_text().split()]
    lines = {pid: pathlib.Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids}
    return [pid for pid, line in lines.items() if b"data.worker_main" in line]


CLOCK = """
import threading, time
real, start = time.time, time.monotonic()
def jumping():
    past = time.monotonic() - start
    return real() + (86400 if int(past) % 4 < 2 else -86400)
time.time = jumping
"""


def clock_jumps(base: pathlib.Path, processes: int) -> FaultResult:
    """The time of day jumps by two days, to and fro, every two seconds; saves by the clock too."""
    (base / "clock").mkdir()
    (base / "clock/sitecustomize.py").write_text(CLOCK)
    run = DrilledRun(base / "clocked", base, processes, **{"checkpoint.every_minutes": 0.01})
    code = run.start(FIRST=str(base / "clock")).end()
    return FaultResult(f"code {code}; {len(run.records())} steps logged", not code, run)


def stop_signal(base: pathlib.Path, processes: int) -> FaultResult:
    """SIGTERM, as before a preemption: saved, code 0, and the same command goes on."""
    run = DrilledRun(base / "signal", base, processes).start()
    run.wait_for_step(SAVE_STEPS + 2)
    run.signal(signal.SIGTERM, 0)  # one process is told, all stop after the same step
    code = run.end()
    told = said(run, "SIGTERM: stopped")
    stopped = run.finished_saves()[-1]
    run.finish()
    good = not code and bool(told) and run.resumed_at() == stopped
    return FaultResult(f"code {code}; {told}", good, run, stopped - (run.resumed_at() or 0))


def damaged(base: pathlib.Path, processes: int) -> FaultResult:
    """One byte of the newest checkpoint's arrays is flipped: the one before it is taken."""
    run = DrilledRun(base / "damaged", base, processes).start()
    run.wait_for(lambda: len(run.finished_saves()) > 1)
    run.signal(signal.SIGTERM)
    run.end()
    newest = run.workdir / "checkpoints" / str(run.finished_saves()[-1])
    largest = max(newest.rglob("d/*"), key=lambda path: path.stat().st_size)
    with open(largest, "r+b") as file:
        file.seek(largest.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    code = run.finish()
    told = said(run, "is damaged")
    return FaultResult(f"code {code}; {told[-110:]}", not code and bool(told), run)


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
