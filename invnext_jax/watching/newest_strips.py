"""The clips of a run's newest checkpoint, drawn by a separate process."""

import tempfile
import time
from pathlib import Path
from typing import Any

from invnext_jax import json_file
from invnext_jax.errors import UserError
from invnext_jax.monitoring.strips_process import StripsProcess

_RETRY_SECONDS = 60.0  # after a failure, such as a checkpoint that was removed while it was read


class NewestStrips:
    """Draws clips each time that a run has a new checkpoint.

    Args:
      workdir: workdir of the run.
      count: number of clips; 0 for none.

    Attributes:
      clips: the newest clips, see `make_strips.draw_newest`; None if there are none yet.
      problem: reason why the newest checkpoint could not be drawn; "" if it could.
    """

    def __init__(self, workdir: Path, count: int):
        self._workdir, self._count = workdir, count
        self._folder = tempfile.TemporaryDirectory(prefix="invnext_jax_watch_")
        self._out = Path(self._folder.name) / "strips.json"
        self._process: StripsProcess | None = None
        self._step: int | None = None  # of the checkpoint that was drawn last
        self._retry = 0.0
        self.clips: dict[str, Any] | None = None
        self.problem = ""

    @property
    def is_drawing(self) -> bool:
        """Whether clips are being drawn."""
        return self._process is not None

    def update(self, step: int | None) -> None:
        """Reads clips that are ready, and draws those of a new checkpoint.

        Args:
          step: step of the newest checkpoint; None if there is none.
        """
        if self._process is not None and not self._process.is_running():
            self._read(self._process.describe_failure())
            self._process.close()
            self._process = None
        is_new = step != self._step or (self.problem and time.monotonic() > self._retry)
        if self._count and step is not None and is_new and self._process is None:
            self._step, self._out = step, self._out.with_name(f"{step}.json")
            arguments = [str(self._workdir), f"--clips={self._count}", f"--out={self._out}"]
            self._process = StripsProcess(arguments)

    def _read(self, problem: str) -> None:
        if not problem:
            try:
                self.clips = json_file.read_object(self._out, "draw the clips again")
                self._out.unlink()
            except (UserError, OSError) as error:
                problem = str(error)
        self.problem = problem
        self._retry = time.monotonic() + _RETRY_SECONDS

    def close(self) -> None:
        """Stops drawing and removes the temporary files."""
        if self._process is not None:
            self._process.close()
        self._folder.cleanup()
