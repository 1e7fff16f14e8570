"""What a run tells: metrics.jsonl and TensorBoard events, while the next steps are under way."""

import collections
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
from jax.sharding import Mesh
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from invnext_jax import replacing
from invnext_jax.errors import NonFiniteError, UserError
from invnext_jax.runtime import devices, progress

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
                cut_metrics(workdir, step)
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


def set_aside(workdir: str | pathlib.Path) -> pathlib.Path:
    """Renames metrics.jsonl to a name that is free, which it gives."""
    path = pathlib.Path(workdir) / FILE
    target, number = path.with_name(FILE + ".old"), 1
    while target.exists():
        number += 1
        target = path.with_name(f"{FILE}.old-{number}")
    return path.rename(target)


def cut_metrics(workdir: str | pathlib.Path, step: int) -> None:
    """Cuts the records beyond `step` off metrics.jsonl; the file is replaced as a whole."""
    path = pathlib.Path(workdir) / FILE
    if not path.exists():
        return
    kept = [record for record in read_metrics(workdir) if record["step"] <= step]
    replacing.write_text(path, "".join(json.dumps(record) + "\n" for record in kept))


def is_due(step: int, every_steps: int) -> bool:
    """Whether step number `step`, counted from 1, is the first or a multiple; never for 0."""
    return every_steps > 0 and (step == 1 or step % every_steps == 0)


class Reporter:
    """Reports steps while the next ones run; the only place that waits for the device.

    A step is looked at once the step after it is dispatched, so that the device always has work.

    Args:
        config: the run's config.
        workdir: its folder.
        step: steps done so far.
        mesh: the run's mesh.
        best_metric: name of the logged metric that `take_score` gives; "": none.
        throughput: turns steps a second into more rates to log, if given.
    """

    def __init__(
        self,
        config: Any,
        workdir: str | pathlib.Path,
        step: int,
        mesh: Mesh,
        best_metric: str = "",
        throughput: devices.Throughput | None = None,
    ):
        self._config, self._first_step, self._best_metric = config, step, best_metric
        self._writer = MetricWriter(workdir, step)
        self._progress = progress.Progress(config.total_steps, step, config.batch_size)
        self._rates = progress.Rates(config.batch_size)
        self._throughput = throughput
        # Fake CPU devices share few threads, where collectives of two steps can wait for each
        # other for ever.
        self._steps_ahead = 0 if mesh.devices.flat[0].platform == "cpu" and mesh.size > 1 else 1
        self._under_way = collections.deque()
        self._scores: list[float] = []

    def start(self) -> None:
        """Starts the clock."""
        self._rates.restart(self._first_step)

    def waited(self, seconds: float) -> None:
        """Adds time spent waiting for a batch."""
        self._rates.waited(seconds)

    def settle(self, arrays: Any) -> None:
        """Waits for `arrays` where two computations under way are not safe."""
        if not self._steps_ahead:
            jax.block_until_ready(arrays)

    def push(
        self, step: int, measured: Mapping[str, Any], more: Mapping[str, Any], dropped: int
    ) -> None:
        """Takes the metrics of a step just dispatched, and reports the steps before it.

        Args:
            step: its number, from 1.
            measured: the step's metrics, on the device.
            more: diagnostics, on the device; a step that has any is logged.
            dropped: videos left out so far.

        Raises:
            NonFiniteError: too many steps in a row were skipped.
        """
        self._under_way.append((step, measured, more, dropped))
        self._progress.advance()
        self.drain(self._steps_ahead)

    def drain(self, leave: int = 0) -> None:
        """Reports all steps but the last `leave`; tries what is held again if none is left."""
        while len(self._under_way) > leave:
            self._report(*self._under_way.popleft())
        if not leave:
            self._writer.retry()

    def _report(
        self, step: int, measured: Mapping[str, Any], more: Mapping[str, Any], dropped: int
    ) -> None:
        log = self._config.log
        in_row = int(jax.device_get(measured["skipped_in_row"]))
        failed = in_row > log.max_nonfinite_steps
        last = step == self._config.total_steps
        if more or last or failed or is_due(step, log.every_steps):
            values = jax.device_get({**measured, **more})
            record = {name: as_json_number(value) for name, value in values.items()}
            rates = self._rates.measure(step)
            if self._throughput is not None:
                steps_per_second = rates["clips_per_second"] / self._config.batch_size
                rates |= self._throughput.rates(steps_per_second)
            record = {"step": step, **record, **rates, "dropped_videos": dropped}
            self._writer.write(record)
            self._progress.show(record)
            self._note_score(record)
        if failed:
            raise NonFiniteError(
                f"loss or gradient was not finite in {in_row} steps in a row, the last of them "
                f"step {step}; lower config.optimizer.learning_rate, or look at the videos"
            )

    def _note_score(self, record: Mapping[str, Any]) -> None:
        name = self._best_metric
        if not name:
            return
        if name not in record:
            raise UserError(
                f"config.checkpoint.best_metric={name!r} is none of the logged metrics: "
                + ", ".join(record)
            )
        if record[name] is not None:
            self._scores.append(float(record[name]))

    def take_score(self) -> float | None:
        """Mean of `best_metric` over the steps logged since the last call; None if none was."""
        scores, self._scores = self._scores, []
        return sum(scores) / len(scores) if scores else None

    def tell(self, text: str) -> None:
        """Prints a line."""
        self._progress.tell(text)

    def close(self) -> None:
        """Closes files and bar."""
        self._progress.close()
        self._writer.close()
