"""Profiler traces of selected steps, for XProf or TensorBoard."""

import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections

from invnext_jax.errors import UserError

FOLDER = "profile"


def check_config(config: ml_collections.ConfigDict) -> None:
    """Checks `config.profile_steps`.

    Raises:
      UserError: `config.profile_steps` is neither () nor two increasing step numbers.
    """
    window = config.profile_steps
    if window and (len(window) != 2 or not 0 <= window[0] < window[1]):
        raise UserError(f"config.profile_steps={window} must be two increasing step numbers, or ()")


def unused_options(config: ml_collections.ConfigDict) -> dict[str, str]:
    """Returns "profile_steps" with the reason if the run ends before the trace starts.

    Args:
      config: a config whose number of steps is resolved.
    """
    if not config.profile_steps or config.profile_steps[0] < config.total_steps:
        return {}
    reason = f"the run has {config.total_steps} steps: choose steps before the last one"
    return {"profile_steps": reason}


class Profiler:
    """Writes a trace of steps `window[0] + 1` to `window[1]` to `<workdir>/profile`.

    Args:
      window: the two step numbers.
      workdir: the run's folder.
    """

    def __init__(self, window: Sequence[int], workdir: str | pathlib.Path):
        self._window, self._running = tuple(window), False
        self._folder = pathlib.Path(workdir) / FOLDER

    def start_if_due(self, step: int) -> None:
        """Starts the trace before the first step of the window.

        The stacks of Python calls are not traced. Their tracer installs a profile function in every
        new thread, and Python 3.11 ends threads that start at the same time with a RuntimeError: a
        thread that saves a checkpoint would be lost.
        """
        if not self._running and self._window[0] < step <= self._window[1]:
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0
            jax.profiler.start_trace(str(self._folder), profiler_options=options)
            self._running = True

    def stop_if_due(self, step: int, arrays: Any) -> pathlib.Path | None:
        """Ends the trace after the last step of the window, once `arrays` have been computed.

        Returns:
          The folder of the trace that was ended, or None.
        """
        if not self._running or step < self._window[1]:
            return None
        jax.block_until_ready(arrays)
        self.close()
        return self._folder

    def close(self) -> None:
        """Ends the trace if one is running."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
