"""Starts the process that draws clips of the newest checkpoint of a run, and writes events.

The process computes on the CPU with the lowest priority, so that it delays a run on the same
machine as little as possible.
"""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from absl import logging

from invnext_jax import sanitize
from invnext_jax.workers.worker_environment import python_path

_MODULE = "invnext_jax.watching.make_strips"
_MAX_SECONDS = 1800.0  # a large encoder on a busy CPU takes minutes
_ERROR_CHARACTERS = 300
_LAST_SECONDS = 300.0  # how long the end of a run waits for the clips of its last checkpoint


class StripsProcess:
    """A process that draws the clips of one checkpoint; see `watching.make_strips`.

    Args:
      arguments: command-line arguments of the module.
    """

    def __init__(self, arguments: Sequence[str]):
        with contextlib.ExitStack() as stack:
            self._output = stack.enter_context(tempfile.TemporaryFile())
            self._process = subprocess.Popen(
                # -P: do not import from the current folder, which may be that of a foreign run.
                [sys.executable, "-P", "-m", _MODULE, *arguments],
                env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": python_path()},
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the process that starts this one
            )
            stack.pop_all()
        self._end = time.monotonic() + _MAX_SECONDS

    def is_running(self) -> bool:
        """Returns whether the process runs. Kills it if it exceeds its time limit."""
        if self._process.poll() is None and time.monotonic() > self._end:
            self._kill()
        return self._process.poll() is None

    def wait(self, seconds: float) -> None:
        """Waits until the process ends, but not longer than `seconds`, then kills it."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._kill()

    def describe_failure(self) -> str:
        """Returns the reason of a failure after the end of the process; "" if it succeeded."""
        code = self._process.returncode
        if not code:
            return ""
        self._output.seek(0)
        lines = self._output.read().decode(errors="replace").strip().splitlines()
        reason = lines[-1] if lines else f"exit code {code}"
        return sanitize.shorten(
            sanitize.for_display(reason.removeprefix("error: ")), _ERROR_CHARACTERS
        )

    def close(self) -> None:
        """Kills the process if it runs, and removes its output."""
        if self._process.poll() is None:
            self._kill()
        self._output.close()

    def _kill(self) -> None:
        self._process.kill()
        self._process.wait()


class CheckpointStrips:
    """Writes clips of each checkpoint of a run to TensorBoard, from process 0.

    If the clips of a checkpoint are still being drawn when the next one is saved, the next one is
    left out. Failures are logged once and do not affect the run.

    Args:
      clips: number of clips; 0 for none.
      workdir: workdir of the run, local or in a bucket.
      records: local folder of the run's records; the events are written to `tensorboard/strips`.
    """

    def __init__(self, clips: int, workdir: Any, records: Path):
        self._is_on = clips > 0 and jax.process_index() == 0
        folder = records / "tensorboard" / "strips"
        self._arguments = [str(workdir), f"--clips={clips}", f"--tensorboard={folder}"]
        self._arguments.append("--trusted")  # the process belongs to the run
        self._process: StripsProcess | None = None
        self._step, self._warned = -1, False

    def start(self, step: int) -> None:
        """Starts to draw the checkpoint of a step, which may still be being written."""
        if not self._is_on or step <= self._step:
            return
        if self._process is not None and self._process.is_running():
            return
        self._end()
        try:
            self._process = StripsProcess([*self._arguments, f"--wait_for={step}"])
            self._step = step
        except OSError as error:
            self._warn(str(error))

    def finish(self, step: int) -> None:
        """Draws the last checkpoint of a run, and waits for it.

        Does nothing in runs with several processes, because the others would wait for this one.
        """
        if jax.process_count() == 1:
            self._wait()
            self.start(step)
            self._wait()

    def _wait(self) -> None:
        if self._process is not None:
            self._process.wait(_LAST_SECONDS)
            self._end()

    def close(self) -> None:
        """Stops drawing."""
        if self._process is not None:
            self._process.close()
            self._process = None

    def _end(self) -> None:
        """Logs the failure of the process, if it failed."""
        if self._process is not None and (reason := self._process.describe_failure()):
            self._warn(reason)
        self.close()

    def _warn(self, reason: str) -> None:
        if not self._warned:
            logging.warning("the clips of a checkpoint are not in TensorBoard: %s", reason)
        self._warned = True
