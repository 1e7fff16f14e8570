"""Writes the metrics of each step to the screen and to files while the next step runs."""

import collections
import contextlib
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import ml_collections
from jax.sharding import Mesh

from invnext_jax.errors import NonFiniteError, UserError, check_minimums
from invnext_jax.monitoring import collapse_alarm, host_metrics, metrics_file, progress, tracker
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
            "log.collapse_ratio": 0,
            "log.watchdog_minutes": 0,
            "log.strips": 0,
        },
    )
    if config.log.collapse_ratio >= 1:
        raise UserError(
            f"config.log.collapse_ratio={config.log.collapse_ratio} must be below 1, because the "
            "alarm compares a value with its largest value so far"
        )
    tracker.parse_setting(config.log.tracker)


def is_due(step: int, every_steps: int) -> bool:
    """Returns whether a step is the first one or a multiple of `every_steps`.

    Returns False if `every_steps` is 0.

    Args:
      step: number of the step, from 1.
      every_steps: interval in steps.
    """
    return every_steps > 0 and (step == 1 or step % every_steps == 0)


LONG_WAIT = 0.5  # a data wait above this share of the time is long
LONG_WAITS = 3  # consecutive logged steps with a long wait after which its cause is logged


class Reporter:
    """Reports the metrics of each step while the next step runs.

    The metrics of a step are read after the next step is dispatched, so that the device always has
    work. Reading them is the only point at which the training loop waits for the device.

    Args:
      config: the run's config.
      workdir: the run's folder.
      step: number of steps completed so far.
      mesh: the run's mesh.
      best_metric: name of the logged metric that `pop_score` returns. "" for none.
      throughput: converts steps per second to FLOP/s and MFU for the log. None logs neither.
      describe_wait: function that returns why the data is slow, for the log of this process.
      rare_metrics: names of the metrics of the evaluation during the run.
    """

    def __init__(
        self,
        config: Any,
        workdir: str | pathlib.Path,
        step: int,
        mesh: Mesh,
        best_metric: str = "",
        throughput: throughput_lib.Throughput | None = None,
        describe_wait: Callable[[], str] = lambda: "",
        rare_metrics: Sequence[str] = (),
    ):
        self._config, self._first_step, self._best_metric = config, step, best_metric
        self._rare_metrics = tuple(rare_metrics)
        self._writer = metrics_file.MetricWriter(workdir, step)
        self._tracker = tracker.Tracker(config, workdir)
        # The other processes print nothing, so they need no records.
        records = metrics_file.read_metrics(workdir) if step and jax.process_index() == 0 else ()
        self._collapse = collapse_alarm.CollapseAlarm(config.log.collapse_ratio, records)
        self._progress = progress.TrainingProgress(
            config.total_steps, step, config.batch_size, quiet=jax.process_index() != 0
        )
        self._timer = throughput_lib.StepTimer(config.batch_size)
        self._host_timer = throughput_lib.HostTimer()
        self._throughput = throughput
        self._host_counts = host_metrics.HostCounts(mesh)
        self._host_times = host_metrics.HostTimes(mesh)
        # The CPU devices of a process share few threads, on which the collectives of two concurrent
        # steps can deadlock.
        self._steps_ahead = 0 if mesh.devices.flat[0].platform == "cpu" and mesh.size > 1 else 1
        self._pending = collections.deque()
        self._counts: dict[str, int] = {}
        self._scores: list[float] = []
        self._describe_wait, self._long_waits = describe_wait, 0

    def start(self, metrics: Iterable[str] = ()) -> None:
        """Starts the timer.

        Args:
          metrics: names of the metrics and diagnostics of the steps.

        Raises:
          UserError: there is no such metric as `best_metric`.
        """
        known = dict.fromkeys([*metrics, *self._rare_metrics])
        if self._best_metric and self._best_metric not in known:
            raise UserError(
                f"config.checkpoint.best_metric={self._best_metric!r} is not a metric of this run; "
                f"choose one of {', '.join(known)}"
            )
        self._timer.restart(self._first_step)
        self._host_timer.restart(self._first_step)

    def add_data_wait(self, seconds: float) -> None:
        """Adds the time that the loop waited for a batch."""
        self._timer.add_data_wait(seconds)
        self._host_timer.add_data_wait(seconds)

    @contextlib.contextmanager
    def pause(self, arrays: Any) -> Iterator[None]:
        """Excludes the time of a computation that is not training from the measured speed.

        Reports all pending steps and waits for `arrays` first. Call it between two steps.

        Args:
          arrays: outputs of the last dispatched step.
        """
        self.flush()
        jax.block_until_ready(arrays)
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        self._timer.exclude(seconds)
        self._host_timer.exclude(seconds)

    def wait_if_serial(self, arrays: Any) -> None:
        """Waits for `arrays` on devices that must not run two computations at the same time."""
        if not self._steps_ahead:
            jax.block_until_ready(arrays)

    def add_step(
        self,
        step: int,
        metrics: Mapping[str, Any],
        diagnostics: Mapping[str, Any],
        counts: Mapping[str, int],
        decoded: tuple[int, float] = (0, 0.0),
    ) -> None:
        """Adds a step that was just dispatched, and reports the steps before it.

        Args:
          step: number of the step, from 1.
          metrics: metrics of the step, on the device.
          diagnostics: diagnostics of the step, on the device. A step with diagnostics is logged.
          counts: counts of this host so far. Their sums over all hosts are logged.
          decoded: number of clips that this host has decoded so far, and the busy time in
              seconds.

        Raises:
          NonFiniteError: too many steps in a row were skipped.
        """
        sums, times = counts if jax.process_count() == 1 else {}, None
        if diagnostics or self._is_scheduled(step):
            times = self._host_timer.measure(step, counts, decoded)
            if jax.process_count() > 1:  # collectives, which all hosts must call at the same steps
                self.wait_if_serial(metrics)
                sums = self._host_counts.sum(counts)
                self.wait_if_serial(sums)
                times = self._host_times.gather(times)
                self.wait_if_serial(times)
        self._pending.append((step, metrics, diagnostics, sums, times))
        self._progress.advance()
        self.flush(self._steps_ahead)

    def flush(self, keep: int = 0) -> None:
        """Reports all pending steps except the last `keep`."""
        while len(self._pending) > keep:
            self._report(*self._pending.popleft())
        if not keep:
            self._writer.write_pending()

    def _is_scheduled(self, step: int) -> bool:
        return step == self._config.total_steps or is_due(step, self._config.log.every_steps)

    def _report(
        self,
        step: int,
        metrics: Mapping[str, Any],
        diagnostics: Mapping[str, Any],
        sums: Mapping[str, Any],
        times: Any,
    ) -> None:
        in_row = int(jax.device_get(metrics["skipped_in_row"]))
        failed = in_row > self._config.log.max_nonfinite_steps
        if diagnostics or failed or self._is_scheduled(step):
            self._counts |= {name: int(count) for name, count in jax.device_get(sums).items()}
            self._log_step(step, jax.device_get({**metrics, **diagnostics}), times)
        if failed:
            raise NonFiniteError(
                f"loss or gradient was not finite in {in_row} consecutive steps, up to step "
                f"{step}; lower config.optimizer.learning_rate, or check the videos"
            )

    def _log_step(self, step: int, values: Mapping[str, Any], times: Any) -> None:
        record = {name: metrics_file.as_json_number(value) for name, value in values.items()}
        rates = self._timer.measure(step)
        if self._throughput is not None:
            steps_per_second = rates["clips_per_second"] / self._config.batch_size
            rates |= self._throughput.compute_rates(steps_per_second)
        record = {"step": step, **record, **rates, **self._counts}
        record |= self._describe_hosts(times)
        self._writer.write(record)
        self._tracker.write(record)
        self._progress.show(record)
        self._explain_wait(record["data_wait"])
        if warning := self._collapse.check(record):
            self.log(warning)
        if jax.process_index() == 0 and jax.process_count() > 1 and times is not None:
            if line := self._host_times.describe_slow_host(record):
                self._progress.log(line)
        self._add_score(record)

    def _explain_wait(self, data_wait: float) -> None:
        """Logs the cause of slow data once, after several consecutive long waits."""
        if self._long_waits < LONG_WAITS:
            self._long_waits = self._long_waits + 1 if data_wait > LONG_WAIT else 0
            if self._long_waits == LONG_WAITS and (reason := self._describe_wait()):
                self.log(
                    f"data {100 * data_wait:.0f} %: for this share of the time, the devices had no "
                    f"batch to work on; {reason}"
                )

    def _describe_hosts(self, times: Any) -> dict[str, float]:
        if times is None:
            return {}
        if jax.process_count() == 1:
            return throughput_lib.own_record(times)
        return self._host_times.summarize(jax.device_get(times))

    def _add_score(self, record: Mapping[str, Any]) -> None:
        # The record of step 1 has the evaluation of the initial encoder.
        is_initial = record["step"] == 1 and self._best_metric in self._rare_metrics
        if record.get(self._best_metric) is not None and not is_initial:
            self._scores.append(float(record[self._best_metric]))

    def pop_score(self) -> float | None:
        """Returns the mean of `best_metric` over the steps logged since the last call, or None."""
        scores, self._scores = self._scores, []
        return sum(scores) / len(scores) if scores else None

    def log(self, text: str) -> None:
        """Prints a line."""
        self._progress.log(text)

    def close(self) -> None:
        """Closes the files and the progress bar."""
        self._progress.close()
        self._writer.close()
        self._tracker.close()
