"""A tiny Stage 1 run in processes of its own, for the fault drill."""

import os
import pathlib
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable

from invnext_jax.monitoring import metrics_file

ROOT = pathlib.Path(__file__).parents[1]
TOTAL_STEPS = 120
SAVE_STEPS = 5
SPEEDS = {"clips_per_second", "data_wait", "tflops_per_device", "mfu", "ceiling_share"}
WAIT_SECONDS = 600  # longest wait for anything that a run shall do
TINY = {
    "total_steps": TOTAL_STEPS,
    "batch_size": 4,
    "data.frames": 2,
    "data.workers": 0,
    "encoder.frames": 2,
    "encoder.depth": 2,
    "predictor.depth": 1,
    "decoder.depth": 1,
    "optimizer.warmup_steps": 2,
    "checkpoint.every_steps": SAVE_STEPS,
    "log.every_steps": 1,
    "log.diagnostics_every_steps": 0,
}


class DrilledRun:
    """One run's folder and the processes that train in it, one start after the other.

    Args:
        workdir: the run's folder.
        base: folder of the drill: the embedded world, compiled programs, logs.
        processes: how many take part in each start.
        options: fields of the config that differ from `TINY`.
    """

    def __init__(self, workdir: pathlib.Path, base: pathlib.Path, processes: int = 1, **options):
        self.workdir, self.base, self.count = workdir, base, processes
        self.options = {**TINY, **{name.replace("__", "."): v for name, v in options.items()}}
        self.processes: list[subprocess.Popen] = []
        self.said: list[str] = []  # what each start said
        self.was_removed = False  # its folder, under it
        self._starts = 0
        self._log = None

    def start(self, **environ: str) -> "DrilledRun":
        """Starts the command that a user would give, in each process."""
        self._starts += 1
        self._log = self.base / f"{self.workdir.name}.{self._starts}.log"
        flags = [f"--config.{name}={value}" for name, value in self.options.items()]
        command = [
            *(sys.executable, str(ROOT / "launch/main.py"), f"--workdir={self.workdir}"),
            *("--config=configs/stage1.py:tiny", *flags),
            f"--config.data.manifest={self.base / 'world/train.csv'}",
        ]
        environ = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([*filter(None, [environ.pop("FIRST", "")]), str(ROOT)]),
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(self.base / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            **environ,
        }
        if self.count > 1:
            with socket.create_server(("localhost", 0)) as server:
                environ["JAX_COORDINATOR_ADDRESS"] = f"localhost:{server.getsockname()[1]}"
            environ["JAX_NUM_PROCESSES"] = str(self.count)
        self.processes = []
        for number in range(self.count):
            log = self._log if number == 0 else self._log.with_suffix(f".{number}.log")
            with open(log, "w") as out:
                self.processes.append(
                    subprocess.Popen(
                        command,
                        cwd=ROOT,
                        env={**environ, "JAX_PROCESS_ID": str(number)}
                        if self.count > 1
                        else environ,
                        stdout=out,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )
        return self

    def log(self) -> str:
        """What process 0 of this start has said so far."""
        return self._log.read_text(errors="replace")

    def wait_for(self, happened: Callable[[], object]) -> bool:
        """Waits until something has happened; false if the run ended before."""
        deadline = time.monotonic() + WAIT_SECONDS
        while not happened():
            if self.processes[0].poll() is not None:
                return bool(happened())
            if time.monotonic() > deadline:
                raise TimeoutError(f"nothing in {WAIT_SECONDS} s: see {self._log}")
            time.sleep(0.002)
        return True

    def wait_for_step(self, step: int) -> bool:
        """Waits until a step is logged; false if the run ended before."""
        return self.wait_for(lambda: self.last_logged() >= step)

    def last_logged(self) -> int:
        """The last step that this start has told."""
        steps = re.findall(r"^step (\d+)/", self.log(), re.MULTILINE)
        return int(steps[-1]) if steps else -1

    def signal(self, number: int, which: int | None = None) -> None:
        """Sends a signal to all processes, or to one."""
        for index, process in enumerate(self.processes):
            if which in (None, index) and process.poll() is None:
                process.send_signal(number)

    def kill(self, chance: random.Random) -> None:
        """Kills all processes, or one of them and then those that cannot go on without it."""
        if self.count > 1 and chance.random() < 0.5:
            self.signal(signal.SIGKILL, chance.randrange(self.count))
            time.sleep(chance.uniform(0, 2))
        self.signal(signal.SIGKILL)
        self.end()

    def end(self) -> int:
        """Waits for the end of all processes; gives the exit code of the first."""
        try:
            codes = [process.wait(WAIT_SECONDS) for process in self.processes]
        finally:
            self.signal(signal.SIGKILL)
        self.said.append(self.log())
        return codes[0]

    def finish(self) -> int:
        """Starts once more and waits for the end."""
        return self.start().end()

    def finished_saves(self) -> list[int]:
        """Steps of the checkpoints on the disk."""
        folder = self.workdir / "checkpoints"
        if not folder.is_dir():
            return []
        return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())

    def is_saving(self) -> bool:
        """Whether a half-written checkpoint lies on the disk, made by this start."""
        folder = self.workdir / "checkpoints"
        return folder.is_dir() and any("-tmp" in path.name for path in folder.iterdir())

    def resumed_at(self) -> int | None:
        """The step after which the last start went on; None if it started anew."""
        found = re.search(r"going on after step (\d+)", self.said[-1])
        done = re.search(r"is finished: (\d+) steps", self.said[-1])
        return int((found or done)[1]) if found or done else None

    def records(self) -> list[dict]:
        """What metrics.jsonl holds but for the speeds."""
        return [
            {name: value for name, value in record.items() if name not in SPEEDS}
            for record in metrics_file.read_metrics(self.workdir)
        ]
