"""Maps a function over videos in worker processes; a failure affects only the current video."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from invnext_jax.data.worker_pool import OrderedPool
from invnext_jax.data.workers import ProcessWorker, TimeLimitError, WorkerDiedError


@dataclasses.dataclass(frozen=True)
class WorkerFailure:
    """Result of a call that hung or crashed.

    Attributes:
        reason: Description for the quarantine list.
        timed_out: Whether the call timed out. False means that it crashed.
    """

    reason: str
    timed_out: bool


def map_in_workers(
    function: Callable[..., Any],
    tasks: Sequence[tuple],
    *,
    workers: int,
    timeout: float,
    ahead: int,
) -> Iterator[Any]:
    """Calls `function(*task)` for each task in worker processes.

    Args:
        function: Function to call; must be defined in an importable module.
        tasks: Arguments of each call.
        workers: Maximum number of processes.
        timeout: Time limit per call in seconds.
        ahead: Maximum number of prefetched results.

    Yields:
        The results in the order of the tasks, or a `WorkerFailure` for a call that exceeded the
        timeout or whose worker died twice.
    """
    if not tasks:
        return

    def run_task(index: int, call: Callable[..., Any]) -> Any:
        if index >= len(tasks):  # the pool prefetches beyond the last task
            return None
        try:
            return call(*tasks[index])
        except TimeLimitError:
            return WorkerFailure(f"no result within {timeout:g} seconds", timed_out=True)
        except WorkerDiedError as error:
            return WorkerFailure(f"the decoder crashed ({error})", timed_out=False)

    pool = OrderedPool(
        run_task,
        functools.partial(ProcessWorker, function),
        workers=min(workers, len(tasks)),
        ahead=ahead,
        timeout=timeout,
    )
    try:
        for _ in tasks:
            yield pool.next_result()
    finally:
        pool.close()
