"""Compares the step time, wait for data, decode rate and dropped videos of a run's hosts.

In a logged step, each host contributes one row of numbers. A small computation on the devices
gathers the rows. Its result is read together with the metrics of that step, so that no host waits
for another. A host with slow data delays all others, which wait for it in the collectives of the
step. Only the data wait of the slow host itself shows the cause.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from invnext_jax.multihost import distributed

PREFIX = "hosts/"
# The numbers of a host, in this order. The worst host has the highest value, except for the rate.
QUANTITIES = ("step_seconds", "data_wait", "decode_rate", "dropped_videos", "failed_reads")
# A host is slow if its data wait exceeds the mean of all hosts by more than this share of the time.
_SLOW_SHARE = 0.1


def own_record(values: np.ndarray) -> dict[str, float]:
    """Returns the step time and the decode rate from a result of `HostTimes.measure`.

    Used in single-process runs, in which the record already contains the other numbers.
    """
    record = {
        name: float(values[QUANTITIES.index(name)]) for name in ("step_seconds", "decode_rate")
    }
    return {name: value for name, value in record.items() if not np.isnan(value)}


class HostTimes:
    """Measures the times of this host between logged steps, and gathers those of all hosts.

    Args:
        mesh: the run's mesh. Each host has devices in it.
    """

    def __init__(self, mesh: Mesh):
        processes = [device.process_index for device in mesh.devices.flat]
        self._row_of = {process: processes.index(process) for process in sorted(set(processes))}
        self._rows = processes.count(jax.process_index())
        self._sharding = NamedSharding(mesh, P(mesh.axis_names))
        # The identity with a replicated output is an all-gather.
        self._gather = jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, P()))
        self._slow_host: int | None = None
        self._decoded = (0, 0.0)
        self.restart(0)

    def restart(self, step: int) -> None:
        """Starts a new measurement after `step` steps."""
        self._start, self._step, self._data_wait = time.perf_counter(), step, 0.0

    def add_data_wait(self, seconds: float) -> None:
        """Adds the time that the loop waited for a batch."""
        self._data_wait += seconds

    def measure(
        self, step: int, counts: Mapping[str, int], decoded: tuple[int, float]
    ) -> np.ndarray:
        """Ends the measurement after `step` steps and starts the next one.

        Args:
            step: number of the step that was just dispatched.
            counts: dropped videos and failed reads of this host so far.
            decoded: number of clips that this host has decoded so far, and the busy time in seconds
                (see `OrderedPool.work_done`).

        Returns:
            The numbers listed in `QUANTITIES`, float32 [5]. The decode rate is the number of clips
            per second that the workers would deliver if they never waited; NaN if no clip was
            decoded.
        """
        seconds = max(time.perf_counter() - self._start, 1e-9)
        clips, busy = (new - old for new, old in zip(decoded, self._decoded, strict=True))
        rate = clips / busy if clips > 0 and busy > 0 else np.nan
        share = min(self._data_wait / seconds, 1.0)
        own = [counts.get(name, 0) for name in QUANTITIES[3:]]
        values = (seconds / max(step - self._step, 1), share, rate, *own)
        self._decoded = decoded
        self.restart(step)
        return np.array(values, np.float32)

    def gather(self, values: np.ndarray) -> jax.Array:
        """Dispatches an all-gather of the hosts' numbers. All hosts must call it together.

        Args:
            values: the result of `measure` on this host.

        Returns:
            One row of numbers per device, float32 [devices 5], which may still be computing.
        """
        local = np.tile(values, (self._rows, 1))
        return self._gather(jax.make_array_from_process_local_data(self._sharding, local))

    def summarize(self, gathered: np.ndarray) -> dict[str, float]:
        """Returns the minimum, mean and maximum of each quantity, and the number of the worst host.

        Args:
            gathered: the result of `gather`, read from the devices.
        """
        processes = list(self._row_of)
        rows = np.asarray(gathered)[list(self._row_of.values())]
        record = {}
        for name, values in zip(QUANTITIES, rows.T, strict=True):
            if np.isnan(values).all():
                continue
            worst = np.nanargmin(values) if name == "decode_rate" else np.nanargmax(values)
            record |= {
                f"{PREFIX}{name}/min": float(np.nanmin(values)),
                f"{PREFIX}{name}/mean": float(np.nanmean(values)),
                f"{PREFIX}{name}/max": float(np.nanmax(values)),
                f"{PREFIX}{name}/worst_host": processes[int(worst)],
            }
        return record

    def describe_slow_host(
        self,
        record: Mapping[str, Any],
        describe: Callable[[int], str] = distributed.describe_process,
    ) -> str:
        """Returns a message if the slow host changed since the last call, otherwise "".

        The message describes the host that waits longest for data, or says that none is slow any
        more.

        Args:
            record: the result of `summarize`.
            describe: function that returns the description of a process, with its host name.
        """
        wait = {key: record[f"{PREFIX}data_wait/{key}"] for key in ("mean", "max", "worst_host")}
        slow = wait["worst_host"] if wait["max"] - wait["mean"] > _SLOW_SHARE else None
        before, self._slow_host = self._slow_host, slow
        if slow == before:
            return ""
        if slow is None:
            return "no host waits longer for its data than the others any more"
        line = (
            f"slow host: {describe(slow)} waits for data {100 * wait['max']:.0f} % of the time, "
            f"compared with a mean of {100 * wait['mean']:.0f} % over all hosts, and delays them"
        )
        if record.get(f"{PREFIX}decode_rate/worst_host") == slow:
            rate, mean = (record[f"{PREFIX}decode_rate/{key}"] for key in ("min", "mean"))
            line += f"; it decodes {rate:.3g} clips/s, compared with a mean of {mean:.3g}"
        return line
