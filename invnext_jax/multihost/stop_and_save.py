"""When a run saves by the clock and stops for a signal: after the same step on all processes."""

import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from invnext_jax.multihost.preemption import Preemption

EVERY_STEPS = 4  # how often several processes ask each other


class HostFlags(NamedTuple):
    """What all processes do now."""

    stop: bool
    save: bool


class StopAndSave:
    """Asks between steps; a single process decides at once.

    Several processes add up their wishes on the devices, as a tiny computation behind the step
    under way, and read the sum one step later, when it is there: nobody waits.

    Args:
        preemption: tells of signals to this process.
        every_minutes: time between saves, by process 0's clock, which is no time of day and does
            not jump; 0: none by the clock.
        mesh: the run's mesh.
    """

    def __init__(self, preemption: Preemption, every_minutes: float, mesh: Mesh):
        self._preemption, self._seconds, self._mesh = preemption, 60 * every_minutes, mesh
        self._saved_at, self._saved_step = time.monotonic(), 0
        self._under_way = None
        self._add = jax.jit(lambda x: jnp.max(x, axis=0), out_shardings=NamedSharding(mesh, P()))

    def reset_timer(self, step: int) -> None:
        """Starts the clock anew; what stands after `step` is on its way, or was restored."""
        self._saved_at, self._saved_step = time.monotonic(), step

    def poll(self, step: int) -> HostFlags:
        """What to do after `step`; every process calls it after each of its steps.

        It is never to save what was saved or restored at this very step.
        """
        flags = self._agree(step)
        return flags._replace(save=flags.save and step > self._saved_step)

    def _agree(self, step: int) -> HostFlags:
        clock = jax.process_index() == 0 and self._seconds > 0
        mine = HostFlags(
            self._preemption.requested,
            clock and time.monotonic() - self._saved_at >= self._seconds,
        )
        if jax.process_count() == 1:
            return mine
        agreed = HostFlags(False, False)
        if self._under_way is not None:
            agreed = HostFlags(*np.asarray(jax.device_get(self._under_way)).astype(bool).tolist())
            self._under_way = None
        if step % EVERY_STEPS == 0:
            self._under_way = self._sum(mine)
        return agreed

    def _sum(self, mine: HostFlags) -> jax.Array:
        rows = sum(d.process_index == jax.process_index() for d in self._mesh.devices.flat)
        sharding = NamedSharding(self._mesh, P(self._mesh.axis_names))
        local = np.tile(np.array(mine, np.int32), (rows, 1))
        added = self._add(jax.make_array_from_process_local_data(sharding, local))
        # Two computations under way at once can deadlock on CPU devices.
        if self._mesh.devices.flat[0].platform == "cpu":
            added.block_until_ready()
        return added
