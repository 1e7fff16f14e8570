"""The records of a run: metrics.jsonl and TensorBoard events, written, read, cut."""

import contextlib
import json
import math
import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax
from absl import logging
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from invnext_jax import atomic_file
from invnext_jax.errors import UserError

FILE = "metrics.jsonl"


class MetricWriter:
    """Writes each logged step to `<workdir>/metrics.jsonl` and to TensorBoard, in process 0 alone.

    What lies in the file beyond `step`, the step that the run goes on from, is cut first: these
    steps will be made again. What cannot be written now (disk full, folder gone) is held and
    written with a later record.
    """

    def __init__(self, workdir: str | pathlib.Path, step: int):
        self._workdir, self._step = pathlib.Path(workdir), step
        self._file = self._board = None
        self._held: list[dict[str, Any]] = []
        self._told, self._opened = False, 0
        if jax.process_index() == 0:
            try:
                truncate_metrics(workdir, step)
                self._open()
            except OSError as error:
                raise UserError(
                    f"{self._workdir / FILE} cannot be written: {error.strerror}; make room or "
                    "mend the folder, then give the same command again"
                ) from error

    def _open(self) -> None:
        try:
            self._open_files()
        except OSError:
            self._drop_files()  # both or none
            raise

    def _open_files(self) -> None:
        self._workdir.mkdir(parents=True, exist_ok=True)
        self._file = open(self._workdir / FILE, "a")
        board = self._workdir / "tensorboard"
        board.mkdir(exist_ok=True)
        # Not SummaryWriter: its thread dies of a full disk, and then the run waits for it for ever.
        # Two starts in a second must not share a file, hence the suffix.
        self._board = EventsWriter(str(board / "events"), f".from{self._step}.{self._opened}")
        self._opened += 1
        start = SessionLog(status=SessionLog.START)
        self._board.write_event(
            Event(wall_time=time.time(), step=self._step + 1, session_log=start)
        )

    def write(self, record: Mapping[str, Any]) -> None:
        """Writes one flat record with a "step"; numbers that are not finite become null."""
        if jax.process_index() != 0:
            return
        self._held.append({name: as_json_number(value) for name, value in record.items()})
        self.retry()

    def retry(self) -> None:
        """Writes the records that are held, if there are any and it is possible by now."""
        if not self._held:
            return
        try:
            self._write_held()
            self._told = False
        except OSError as error:
            if not self._told:
                logging.warning(
                    "%s cannot be written (%s): records are held and written later",
                    self._workdir / FILE,
                    error.strerror,
                )
            self._told = True

    def _write_held(self) -> None:
        self._reopen_if_gone()
        while self._held:
            record = self._held[0]
            start = os.fstat(self._file.fileno()).st_size
            try:
                self._file.write(json.dumps(record, allow_nan=False) + "\n")
                self._file.flush()
            except OSError:
                # A new file object: the old one would write what it still holds once more.
                self._drop_files()
                os.truncate(self._workdir / FILE, start)  # no half line stays
                raise
            self._held.pop(0)
            self._write_events(record)
        self._board.flush()

    def _write_events(self, record: Mapping[str, Any]) -> None:
        values = [
            scalar(name, value).value[0]
            for name, value in record.items()
            if name != "step" and value is not None
        ]
        event = Event(wall_time=time.time(), step=record["step"])
        event.summary.value.extend(values)
        self._board.write_event(event)

    def _reopen_if_gone(self) -> None:
        try:
            there = self._file is not None and os.path.samestat(
                os.fstat(self._file.fileno()), os.stat(self._workdir / FILE)
            )
        except FileNotFoundError:
            logging.warning("%s was removed under the run: a new one begins", self._workdir / FILE)
            there = False
        if not there:
            self._drop_files()
            self._open()

    def _drop_files(self) -> None:
        for file in (self._file, self._board):
            with contextlib.suppress(OSError):
                if file is not None:
                    file.close()
        self._file = self._board = None

    def close(self) -> None:
        """Writes what is held, if that is possible by now, and closes both."""
        if jax.process_index() == 0:
            with contextlib.suppress(OSError):
                if self._held:
                    self._write_held()
            if self._held:
                logging.warning("%d records were never written", len(self._held))
            self._drop_files()


def as_json_number(value: Any) -> int | float | None:
    """A scalar as JSON knows it: None for what is not finite, never 0."""
    number = value.item() if hasattr(value, "item") else value
    if isinstance(number, float) and not math.isfinite(number):
        return None
    return number


def read_metrics(workdir: str | pathlib.Path) -> list[dict[str, Any]]:
    """The records of a run's metrics.jsonl, oldest first; a last line cut short is left out.

    Raises:
        UserError: another line is no record.
    """
    path = pathlib.Path(workdir) / FILE
    if not path.exists():
        return []
    records = []
    with open(path, errors="replace") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith("\n"):
                break
            try:
                records.append(json.loads(line))
                records[-1]["step"]
            except (ValueError, TypeError, LookupError) as error:
                raise UserError(
                    f"line {number} of {path} is no record ({line[:40]!r}): remove that line, or "
                    "move the file away"
                ) from error
    return records


def rename_metrics_file(workdir: str | pathlib.Path) -> pathlib.Path:
    """Renames metrics.jsonl to a name that is free, which it gives."""
    path = pathlib.Path(workdir) / FILE
    target, number = path.with_name(FILE + ".old"), 1
    while target.exists():
        number += 1
        target = path.with_name(f"{FILE}.old-{number}")
    return path.rename(target)


def truncate_metrics(workdir: str | pathlib.Path, step: int) -> None:
    """Cuts the records beyond `step` off metrics.jsonl; the file is replaced as a whole."""
    path = pathlib.Path(workdir) / FILE
    if not path.exists():
        return
    kept = [record for record in read_metrics(workdir) if record["step"] <= step]
    atomic_file.write_text(path, "".join(json.dumps(record) + "\n" for record in kept))
