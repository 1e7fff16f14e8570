"""Reads and writes the metrics of a run: metrics.jsonl and TensorBoard events."""

import contextlib
import functools
import io
import json
import math
import os
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from absl import logging

from invnext_jax import atomic_file, file_lock, regular_file
from invnext_jax.errors import UserError
from invnext_jax.field_checks import MAX_NAME, NAME, is_number
from invnext_jax.monitoring.tensorboard_events import Event, EventsWriter, SessionLog, scalar

FILE = "metrics.jsonl"
MAX_LINE = 2**20  # a record has a few kB
MAX_VALUES = 2**24  # maximum number of values that a page reads
MAX_NAMES = 2**16  # maximum number of different names of metrics that a page reads
MAX_STEP = 2**53  # larger steps are not exact as floats, which charts use


class MetricWriter:
    """Writes each logged step to `<workdir>/metrics.jsonl` and to TensorBoard, in process 0 only.

    First removes the records after `step`, from which the run resumes, because later steps will be
    repeated. Records that cannot be written (full disk, missing folder) are kept and written later.

    Args:
      workdir: the run's folder.
      step: number of steps completed so far.

    Raises:
      UserError: the files cannot be opened.
    """

    def __init__(self, workdir: str | pathlib.Path, step: int):
        self._workdir, self._step = pathlib.Path(workdir), step
        self._file = self._board = None
        self._pending: list[dict[str, Any]] = []
        self._warned, self._times_opened = False, 0
        if jax.process_index() == 0:
            try:
                truncate_metrics(workdir, step)
                self._open()
            except OSError as error:
                raise UserError(
                    f"{self._workdir / FILE} cannot be written: {error.strerror}; free some "
                    "disk space or make the folder writable, then run the same command again"
                ) from error

    def _open(self) -> None:
        try:
            self._open_files()
        except OSError:
            self._drop_files()  # open both files or neither
            raise

    def _open_files(self) -> None:
        self._workdir.mkdir(parents=True, exist_ok=True)
        self._file = file_lock.open_file(self._workdir / FILE, "a")
        board = self._workdir / "tensorboard"
        board.mkdir(exist_ok=True)
        # SummaryWriter is not used, because its thread dies if the disk is full, and the run would
        # hang. The suffix gives two runs that start in the same second different files.
        self._board = EventsWriter(str(board / "events"), f".from{self._step}.{self._times_opened}")
        self._times_opened += 1
        start = SessionLog(status=SessionLog.START)
        self._board.write_event(
            Event(wall_time=time.time(), step=self._step + 1, session_log=start)
        )

    def write(self, record: Mapping[str, Any]) -> None:
        """Writes one flat record that has a "step". Non-finite numbers become null."""
        if jax.process_index() != 0:
            return
        self._pending.append({name: as_json_number(value) for name, value in record.items()})
        self.write_pending()

    def write_pending(self) -> None:
        """Writes the records that could not be written before. Warns if this fails again."""
        if not self._pending:
            return
        try:
            self._write_pending()
            self._warned = False
        except OSError as error:
            if not self._warned:
                logging.warning(
                    "%s cannot be written (%s): records are kept and written later",
                    self._workdir / FILE,
                    error.strerror,
                )
            self._warned = True

    def _write_pending(self) -> None:
        self._reopen_if_missing()
        while self._pending:
            record = self._pending[0]
            start = os.fstat(self._file.fileno()).st_size
            try:
                self._file.write(json.dumps(record, allow_nan=False) + "\n")
                self._file.flush()
            except OSError:
                # Otherwise, the file object would write its buffer twice. The event file stays
                # open: a full disk would get an empty one at each logged step.
                self._drop_file()
                os.truncate(self._workdir / FILE, start)  # remove a partial line
                raise
            self._pending.pop(0)
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

    def _reopen_if_missing(self) -> None:
        try:
            found = os.stat(self._workdir / FILE)
            if self._file is None and self._board is not None:  # dropped after a failed write
                self._file = file_lock.open_file(self._workdir / FILE, "a")
            exists = self._file is not None and os.path.samestat(
                os.fstat(self._file.fileno()), found
            )
        except FileNotFoundError:
            logging.warning(
                "%s was removed during the run; a new file is started", self._workdir / FILE
            )
            exists = False
        if not exists:
            self._drop_files()
            self._open()

    def _drop_files(self) -> None:
        self._drop_file()
        if self._board is not None:
            with contextlib.suppress(OSError):
                self._board.close()
        self._board = None

    def _drop_file(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
        self._file = None

    def close(self) -> None:
        """Tries to write pending records, and closes both files."""
        if jax.process_index() == 0:
            with contextlib.suppress(OSError):
                if self._pending:
                    self._write_pending()
            if self._pending:
                logging.warning("%d records could not be written", len(self._pending))
            self._drop_files()


def as_json_number(value: Any) -> int | float | None:
    """Converts a scalar to a JSON number, or to None if it is not finite."""
    number = value.item() if hasattr(value, "item") else value
    if isinstance(number, float) and not math.isfinite(number):
        return None
    return number


def read_metrics(workdir: str | pathlib.Path) -> list[dict[str, Any]]:
    """Reads metrics.jsonl, oldest record first. An incomplete last line is ignored.

    Raises:
      UserError: a complete line is not a record with a step, a line is too long, or the file is not
        a regular file.
    """
    return list(_read_records(pathlib.Path(workdir) / FILE))


def _read_records(path: pathlib.Path) -> Iterator[dict[str, Any]]:
    if not os.path.exists(path):
        return
    try:
        binary = regular_file.open_regular(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): move it away") from error
    with io.TextIOWrapper(binary, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE), ""), 1):
            if len(line) == MAX_LINE:
                raise UserError(
                    f"line {number} of {path} has {MAX_LINE} characters or more: remove that line, "
                    "or move the file away"
                )
            if not line.endswith("\n"):
                break
            try:
                record = json.loads(line)
                if not is_step(record["step"]):
                    raise ValueError("its step is not a whole number")
            except (ValueError, TypeError, LookupError, RecursionError) as error:
                raise UserError(
                    f"line {number} of {path} is not a record ({line[:40]!r}): remove that line, "
                    "or move the file away"
                ) from error
            yield record


def is_step(value: Any) -> bool:
    """Returns whether a value is a step."""
    return type(value) is int and 0 <= value <= MAX_STEP  # bool is a subclass of int


def read_numbers(workdir: str | pathlib.Path) -> list[dict[str, Any]]:
    """Reads the records of a run that may come from an untrusted source, for charts and tables.

    Values other than null and the numbers of `field_checks.is_number` are left out, as are those
    whose name is not a line of at most `field_checks.MAX_NAME` printable characters.

    Raises:
      UserError: see `read_metrics`, or there are more than `MAX_VALUES` values, or more than
        `MAX_NAMES` different names.
    """
    records, count, path = [], 0, pathlib.Path(workdir) / FILE
    names: dict[str, str] = {}  # equal names of all records share their memory
    for record in _read_records(path):
        found = {names.setdefault(n, n): value for n, value in keep_numbers(record).items()}
        records.append(found)
        count += len(found)
        if count > MAX_VALUES or len(names) > MAX_NAMES:
            raise UserError(
                f"{path} has more than {MAX_VALUES:,} values or {MAX_NAMES:,} different names: "
                "remove lines that you do not need"
            )
    return records


def keep_numbers(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values of a record that a page can show: null and numbers with short names."""
    return {
        name: value
        for name, value in record.items()
        if (value is None or is_number(value)) and len(name) <= MAX_NAME and _is_name(name)
    }


_is_name = functools.lru_cache(2**12)(NAME[0])  # the records of a run have the same names


def rename_metrics_file(workdir: str | pathlib.Path) -> pathlib.Path:
    """Renames metrics.jsonl to an unused name and returns the new path."""
    path = pathlib.Path(workdir) / FILE
    target, number = path.with_name(FILE + ".old"), 1
    while os.path.exists(target):
        number += 1
        target = path.with_name(f"{FILE}.old-{number}")
    return path.rename(target)


def truncate_metrics(workdir: str | pathlib.Path, step: int) -> None:
    """Removes the records after `step` from metrics.jsonl. Replaces the file atomically."""
    path = pathlib.Path(workdir) / FILE
    if not os.path.exists(path):
        return
    kept = [record for record in read_metrics(workdir) if record["step"] <= step]
    atomic_file.write_text(path, "".join(json.dumps(record) + "\n" for record in kept))
