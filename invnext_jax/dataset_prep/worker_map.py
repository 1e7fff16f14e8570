"""Maps a function over videos in worker processes; a failure affects only the current video."""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from invnext_jax.data import video_io
from invnext_jax.data.storage_retries import StorageMonitor, call_with_retries, other_rows
from invnext_jax.workers.process_worker import ProcessWorker, WorkerDiedError
from invnext_jax.workers.supervisor import SupervisedWorker
from invnext_jax.workers.time_limits import ReadStalledError, TimeLimitError
from invnext_jax.workers.worker_pool import OrderedPool


@dataclasses.dataclass(frozen=True)
class WorkerFailure:
    """Result of a call that hung or crashed.

    Attributes:
      reason: Description for the quarantine list.
      timed_out: Whether decoding timed out. False means that the worker crashed or that a read
          did not return.
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
    find_error: Callable[[Any], str] = lambda result: "",  # noqa: ARG005
) -> Iterator[Any]:
    """Calls `function(*task)` for each task in worker processes.

    While the storage does not respond, the function waits and tries again.

    Args:
      function: Function to call, as in `ProcessWorker`.
      tasks: Arguments of each call. The first argument is the path of the file that the call
          reads.
      workers: Maximum number of processes.
      timeout: Time limit per call in seconds.
      ahead: Maximum number of prefetched results.
      find_error: Function that returns the reason if a result is a failed read, and "" otherwise.

    Yields:
      The results in the order of the tasks, or a `WorkerFailure` for a call that exceeded the
      timeout or whose worker died twice.
    """
    if not tasks:
        return

    paths, monitor = [path for path, *_ in tasks], StorageMonitor()
    sources = [os.path.dirname(path) for path in paths]

    def run_task(index: int, worker: SupervisedWorker) -> Any:
        if index >= len(tasks):  # the pool prefetches beyond the last task
            return None
        others = (tasks[row] for row in other_rows(index, sources, paths))
        try:
            return call_with_retries(
                worker,
                tasks[index],
                others,
                name_file=lambda path, *_: path,
                find_error=find_error,
                monitor=monitor,
                source=sources[index],
            )
        except ReadStalledError:
            reason = f"a read does not return within {timeout:g} seconds"
            return WorkerFailure(reason, timed_out=False)
        except TimeLimitError:
            return WorkerFailure(f"no result within {timeout:g} seconds", timed_out=True)
        except WorkerDiedError as error:
            return WorkerFailure(f"the decoder crashed ({error})", timed_out=False)

    pool = OrderedPool(
        run_task,
        functools.partial(ProcessWorker, function, video_io.protocols_of(paths)),
        workers=min(workers, len(tasks)),
        ahead=ahead,
        timeout=timeout,
    )
    try:
        for _ in tasks:
            yield pool.next_result()
    finally:
        pool.close()
