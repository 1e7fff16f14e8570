"""Saves the training state of an evaluation in one file, from which a repeated command resumes."""

import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from invnext_jax import atomic_file, regular_file
from invnext_jax.evaluation.feature_store import npz_file
from invnext_jax.multihost import consensus

SAVE_SECONDS = 120.0  # time between two saves
MAX_BYTES = 2**36  # maximum size of a file, before and after decompression


class StateFile(NamedTuple):
    """A .npz file with the leaves of a tree of arrays.

    Attributes:
      path: path of the file.
      key: hash of everything that the state depends on. The state in a file with another key is
        not used.
    """

    path: Path
    key: str

    def save(self, step: int, state: Any) -> None:
        """Writes the state after `step` steps. Only process 0 writes the file."""
        if jax.process_index() > 0:
            return
        leaves = jax.device_get(jax.tree.leaves(state))
        named = {f"leaf{i}": leaf for i, leaf in enumerate(leaves)}
        atomic_file.remove_temporary_files(self.path)
        npz_file.write_arrays(self.path, key=np.array(self.key), step=np.array(step), **named)

    def restore(self, state: Any) -> tuple[Any, int]:
        """Returns the saved state and its step; if there is none, `state` and 0.

        Args:
          state: tree of arrays with the shapes of the saved state.
        """
        # No process may replace the file before all processes have read it.
        with consensus.all_hosts_agree(f"reading {self.path.name}"):
            if not os.path.isfile(self.path):
                return state, 0
            try:
                return self._read(state)
            except regular_file.DAMAGE as error:
                print(f"{self.path} is damaged ({error}). Training restarts.", flush=True)
                return state, 0

    def find_step(self) -> int:
        """Returns the step of the saved state; 0 if there is none with this key."""
        try:
            with npz_file.open_arrays(self.path, MAX_BYTES) as archive:
                return int(archive["step"]) if str(archive["key"]) == self.key else 0
        except regular_file.DAMAGE:
            return 0

    def _read(self, state: Any) -> tuple[Any, int]:
        with npz_file.open_arrays(self.path, MAX_BYTES) as archive:
            if str(archive["key"]) != self.key:
                return state, 0
            like, tree = jax.tree.flatten(state)
            leaves = [archive[f"leaf{i}"] for i in range(len(like))]
            if [x.shape for x in leaves] != [np.shape(x) for x in like]:
                return state, 0
            if any(x.dtype.kind in "SUMmO" for x in leaves):
                raise ValueError("an array is not numeric")
            return jax.tree.unflatten(tree, leaves), int(archive["step"])


class SaveTimer:
    """Saves a state at regular intervals.

    Args:
      saved: the file; None to save nothing.
      seconds: minimum time between two saves.
    """

    def __init__(self, saved: StateFile | None, seconds: float = SAVE_SECONDS):
        self._saved, self._seconds, self._last = saved, seconds, time.monotonic()

    def save_if_due(self, step: int, state: Any) -> None:
        """Saves the state if the last save was more than `seconds` ago."""
        if time.monotonic() - self._last > self._seconds:
            self.save(step, state)

    def save(self, step: int, state: Any) -> None:
        """Saves the state after `step` steps, and restarts the timer."""
        if self._saved is not None:
            self._saved.save(step, state)
        self._last = time.monotonic()
