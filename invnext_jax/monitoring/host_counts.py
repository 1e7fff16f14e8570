"""Sums per-host counts, such as dropped videos, over all hosts for the log.

The counts are `clu.metrics` metrics, which are summed in a small computation on the devices. The
training loop dispatches it after a step and reads the result together with the metrics of that
step, so that no host waits for another.
"""

from collections.abc import Mapping

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from clu import metrics
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P


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
