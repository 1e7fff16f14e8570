"""A tiny Stage 1 run in subprocesses, for the fault drill."""

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

from invnext_jax.checkpointing import reader, storage
from invnext_jax.monitoring import metrics_file

ROOT = pathlib.Path(__file__).parents[1]
TOTAL_STEPS = 120
SAVE_STEPS = 5
TIMINGS = {"clips_per_second", "data_wait", "tflops_per_device", "mfu", "ceiling_share"}
TIMINGS |= {"step_seconds", "decode_rate"}
WAIT_SECONDS = 600  # maximum time to wait for an event in a run
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


class DrillRun:
    """A run that is started several times: its workdir and its training processes.

    Attributes:
      logs: the output of process 0, one string per finished start.
      was_removed: whether the workdir was removed during the run.

    Args:
      workdir: the run's folder.
      base: the folder of the drill, with the synthetic world, compiled programs and logs.
      processes: the number of processes per start.
      options: config fields that override `TINY`.
    """

    def __init__(self, workdir: pathlib.Path, base: pathlib.Path, processes: int = 1, **options):
        self.workdir, self.base, self.count = workdir, base, processes
        self.options = {**TINY, **{name.replace("__", "."): v for name, v in options.items()}}
        self.processes: list[subprocess.Popen] = []
        self.logs: list[str] = []
        self.was_removed = False
        self._starts = 0
        self._log = None

    def start(self, **environ: str) -> "DrillRun":
        """Starts the training command in each process.

        Args:
          environ: additional environment variables; FIRST is prepended to PYTHONPATH.
        """
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
        """Returns the output of process 0 of the current start so far."""
        return self._log.read_text(errors="replace")

    def wait_for(self, condition: Callable[[], object]) -> bool:
        """Waits until a condition holds; returns False if the run ends first."""
        deadline = time.monotonic() + WAIT_SECONDS
        while not condition():
            if self.processes[0].poll() is not None:
                return bool(condition())
            if time.monotonic() > deadline:
                raise TimeoutError(f"nothing happened within {WAIT_SECONDS} s: see {self._log}")
            time.sleep(0.002)
        return True

    def wait_for_step(self, step: int) -> bool:
        """Waits until a step is logged; returns False if the run ends first."""
        return self.wait_for(lambda: self.last_logged() >= step)

    def last_logged(self) -> int:
        """Returns the last step that the current start has logged, or -1 if there is none."""
        steps = re.findall(r"^step (\d+)/", self.log(), re.MULTILINE)
        return int(steps[-1]) if steps else -1

    def signal(self, number: int, process_index: int | None = None) -> None:
        """Sends a signal to one process, or to all."""
        for index, process in enumerate(self.processes):
            if process_index in (None, index) and process.poll() is None:
                process.send_signal(number)

    def kill(self, rng: random.Random) -> None:
        """Kills all processes at once, or one of them first and the others later."""
        if self.count > 1 and rng.random() < 0.5:
            self.signal(signal.SIGKILL, rng.randrange(self.count))
            time.sleep(rng.uniform(0, 2))
        self.signal(signal.SIGKILL)
        self.end()

    def end(self) -> int:
        """Waits until all processes have ended; returns the exit code of process 0."""
        try:
            codes = [process.wait(WAIT_SECONDS) for process in self.processes]
        finally:
            self.signal(signal.SIGKILL)
        self.logs.append(self.log())
        return codes[0]

    def finish(self) -> int:
        """Starts the run and waits for its end; returns the exit code of process 0."""
        return self.start().end()

    @property
    def folder(self) -> pathlib.Path:
        """The folder of the checkpoints."""
        return self.workdir / reader.CHECKPOINTS_FOLDER

    def finished_saves(self) -> list[int]:
        """Lists the steps of the finished checkpoints."""
        return reader.finished_steps(self.folder)

    def newest_checkpoint(self) -> pathlib.Path:
        """Returns the newest finished checkpoint."""
        return self.folder / str(self.finished_saves()[-1])

    def is_saving(self) -> bool:
        """Returns whether an incomplete checkpoint exists."""
        folder = self.folder
        return folder.is_dir() and any(storage.INCOMPLETE in path.name for path in folder.iterdir())

    def resumed_step(self, start: int = -1) -> int | None:
        """Returns the step from which an ended launch resumed; None if it logged no step."""
        resumed = re.search(r"after step (\d+), from ", self.logs[start])
        finished = re.search(r"is finished: (\d+) steps", self.logs[start])
        return int((resumed or finished)[1]) if resumed or finished else None

    def records(self) -> list[dict]:
        """Reads the records of metrics.jsonl without the timings."""
        return [
            {
                name: value
                for name, value in record.items()
                if name not in TIMINGS and not name.startswith("hosts/")
            }
            for record in metrics_file.read_metrics(self.workdir)
        ]
