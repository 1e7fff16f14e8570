"""What a run tells of its steps, while the next ones are under way."""

import collections
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections
from jax.sharding import Mesh

from invnext_jax.errors import NonFiniteError, UserError, check_minimums
from invnext_jax.monitoring import metrics_file, progress
from invnext_jax.monitoring import throughput as throughput_lib


def check_config(config: ml_collections.ConfigDict) -> None:
    """Checks the options of `config.log`.

    Raises:
        UserError: a value is out of range.
    """
    check_minimums(
        config,
        {
            "log.every_steps": 1,
            "log.diagnostics_every_steps": 0,
            "log.max_nonfinite_steps": 0,
            "log.watchdog_minutes": 0,
        },
    )


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
        throughput: throughput_lib.Throughput | None = None,
    ):
        self._config, self._first_step, self._best_metric = config, step, best_metric
        self._writer = metrics_file.MetricWriter(workdir, step)
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
            record = {name: metrics_file.as_json_number(value) for name, value in values.items()}
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

    def log(self, text: str) -> None:
        """Prints a line."""
        self._progress.log(text)

    def close(self) -> None:
        """Closes files and bar."""
        self._progress.close()
        self._writer.close()
