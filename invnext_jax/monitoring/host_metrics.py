"""Sums the counts of all hosts of a run, and compares their times.

In a logged step, each host contributes its counts, such as dropped videos, and one row of times.
Small computations on the devices sum the counts and gather the rows. Their results are read
together with the metrics of that step, so that no host waits for another.

A host with slow data delays all others, which wait for it in the collectives of the step. Only the
data wait of the slow host itself shows the cause.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from clu import metrics
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from invnext_jax.monitoring.throughput import QUANTITIES
from invnext_jax.multihost import distributed

PREFIX = "hosts/"
# A host is slow if its data wait exceeds the mean of all hosts by more than this share of the time.
_SLOW_SHARE = 0.1


@flax.struct.dataclass
class Count(metrics.Metric):
    """A number of events, as an int32 array. Merging adds two counts."""

    total: jax.Array

    @classmethod
    def empty(cls) -> "Count":
        """Returns a count of zero."""
        return cls(total=jnp.zeros((), jnp.int32))

    def merge(self, other: "Count") -> "Count":
        """Returns the sum of both counts."""
        return Count(total=self.total + other.total)

    def reduce(self) -> "Count":
        """Sums over the first axis, without the scan that `metrics.Metric.reduce` uses."""
        return Count(total=jnp.sum(self.total, axis=0))

    def compute(self) -> jax.Array:
        """Returns the number."""
        return self.total


class HostCounts:
    """Sums counts over all hosts.

    Args:
      mesh: the run's mesh. Each host has devices in it.
    """

    def __init__(self, mesh: Mesh):
        self._rows = sum(d.process_index == jax.process_index() for d in mesh.devices.flat)
        self._sharding = NamedSharding(mesh, P(mesh.axis_names))
        self._reduce = jax.jit(_reduce, out_shardings=NamedSharding(mesh, P()))

    def sum(self, counts: Mapping[str, int]) -> dict[str, jax.Array]:
        """Dispatches the sum of each count. All hosts must call this with the same names.

        Args:
          counts: counts of this host, by name.

        Returns:
          The sums, as int32 scalars that the devices may still be computing.
        """
        return self._reduce({name: Count(self._put(number)) for name, number in counts.items()})

    def _put(self, number: int) -> jax.Array:
        """Makes an array with a row per device: `number` in the host's first row, 0 elsewhere."""
        rows = np.zeros(self._rows, np.int32)
        rows[0] = number
        return jax.make_array_from_process_local_data(self._sharding, rows)


def _reduce(stacked: Mapping[str, Count]) -> dict[str, jax.Array]:
    """Sums counts that have one row per device."""
    reduced = {name: count.reduce() for name, count in stacked.items()}
    return metrics.Collection.create_collection(**reduced).compute()


class HostTimes:
    """Gathers and compares the times that each host measures with a `throughput.HostTimer`.

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

    def gather(self, values: np.ndarray) -> jax.Array:
        """Dispatches an all-gather of the hosts' numbers. All hosts must call it together.

        Args:
          values: the result of `HostTimer.measure` on this host.

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

        The message describes the host that waits longest for data, or states that none is slow any
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
