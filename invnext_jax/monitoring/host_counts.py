"""Counts kept by each host, such as dropped videos, summed over all hosts for the log.

The counts are metrics of `clu.metrics`. Their reduction is one small computation on the devices:
the loop starts it behind a step and reads the result together with the metrics of that step, so no
host waits for another.
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
    """A number of events, an int32 array; merging adds."""

    total: jax.Array

    @classmethod
    def empty(cls) -> "Count":
        """Returns a count of zero."""
        return cls(total=jnp.zeros((), jnp.int32))

    def merge(self, other: "Count") -> "Count":
        """Adds another count."""
        return Count(total=self.total + other.total)

    def reduce(self) -> "Count":
        """Sums over the first axis, which `metrics.Metric.reduce` would scan."""
        return Count(total=jnp.sum(self.total, axis=0))

    def compute(self) -> jax.Array:
        """Returns the number."""
        return self.total


class HostCounts:
    """Sums counts over all hosts.

    Args:
        mesh: the run's mesh; each host has devices in it.
    """

    def __init__(self, mesh: Mesh):
        self._rows = sum(d.process_index == jax.process_index() for d in mesh.devices.flat)
        self._sharding = NamedSharding(mesh, P(mesh.axis_names))
        self._reduce = jax.jit(_reduce, out_shardings=NamedSharding(mesh, P()))

    def sum(self, counts: Mapping[str, int]) -> dict[str, jax.Array]:
        """Starts the sum of each count; all hosts must call this with the same names.

        Args:
            counts: counts of this host, by name.

        Returns:
            The sums, int32 scalars that may still be being computed.
        """
        return self._reduce({name: Count(self._put(number)) for name, number in counts.items()})

    def _put(self, number: int) -> jax.Array:
        """Makes an array with one row per device: the number in this host's first row, else 0."""
        rows = np.zeros(self._rows, np.int32)
        rows[0] = number
        return jax.make_array_from_process_local_data(self._sharding, rows)


def _reduce(stacked: Mapping[str, Count]) -> dict[str, jax.Array]:
    """Sums counts with one row per device."""
    reduced = {name: count.reduce() for name, count in stacked.items()}
    return metrics.Collection.create_collection(**reduced).compute()
