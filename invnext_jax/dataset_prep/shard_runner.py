"""Writes shards in parallel, with threads on this machine or with Apache Beam on a cluster.

Beam is used only with a runner that the user specifies. Its local runners listen on all network
interfaces and serve files without authentication, so they are rejected.
"""

import contextlib
import functools
import logging
import re
import threading
from collections.abc import Iterator, Sequence
from concurrent import futures

from etils import epath

from invnext_jax.data import video_io
from invnext_jax.dataset_prep.shard_writer import (
    PARTS,
    REPORTS,
    ROW_COUNT_SUFFIX,
    ShardPlan,
    write_shard,
)
from invnext_jax.errors import UserError
from invnext_jax.monitoring.progress import ProgressMeter

_POLL_SECONDS = 1.0
_LOCAL_RUNNERS = ("direct", "fnapi", "prism", "interactive")


def write_shards(plan: ShardPlan, pending: Sequence[int], workers: int) -> None:
    """Writes shards on this machine, without Beam and without a network connection.

    The first error stops the other shards after their current video.

    Args:
      plan: Assignment of rows to shards.
      pending: Indices of the shards.
      workers: Maximum number of shards written at the same time. Each has a separate encoder
          process.
    """
    # The package replaces Python's import function during its import, so it must not be imported
    # while other threads import modules.
    import tensorflow_datasets  # noqa: F401

    stop = threading.Event()
    pool = futures.ThreadPoolExecutor(min(workers, len(pending)))
    try:
        tasks = [pool.submit(write_shard, plan, index, stop) for index in pending]
        for task in futures.as_completed(tasks):
            task.result()
    except BaseException as error:
        stop.set()
        # Ctrl-C does not wait, because encoding the current videos may take minutes.
        pool.shutdown(wait=isinstance(error, Exception), cancel_futures=True)
        raise
    pool.shutdown()


def check_beam(flags: Sequence[str]) -> None:
    """Checks the flags for Beam, and that Beam is installed.

    Raises:
      UserError: No runner is specified, the runner is local, or Beam is not installed.
    """
    match = re.search(r"(?:^|\s)--runner[=\s]+(\S+)", " ".join(flags))
    if match is None:
        raise UserError(
            f"--beam={' '.join(flags)} has no runner: add --beam=--runner=DataflowRunner or a "
            "different cluster's runner, or leave out --beam to encode on this machine"
        )
    if match[1].rpartition(".")[2].lower().startswith(_LOCAL_RUNNERS):
        raise UserError(
            f"--beam=--runner={match[1]} runs on this machine and serves its files to the network: "
            "leave out --beam to encode on this machine without Beam"
        )
    logging.disable(logging.WARNING)  # Beam warns that Google packages are missing
    try:
        import apache_beam  # noqa: F401
    except ImportError as error:
        raise UserError(
            "Apache Beam is not installed: run pip install 'invnext-jax[prepare]'"
        ) from error
    finally:
        logging.disable(logging.NOTSET)


def write_shards_with_beam(plan: ShardPlan, pending: Sequence[int], flags: Sequence[str]) -> None:
    """Writes shards with the runner that the Beam flags specify."""
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions

    with beam.Pipeline(options=PipelineOptions(list(flags))) as pipeline:
        indices = pipeline | beam.Create(list(pending)) | beam.Reshuffle()
        indices | beam.Map(functools.partial(write_shard, plan))


@contextlib.contextmanager
def show_progress(plan: ShardPlan, pending: Sequence[int], progress: bool) -> Iterator[None]:
    """Shows the number of processed rows, polled in a thread."""
    stop = threading.Event()

    def poll() -> None:
        total, stopped = sum(len(plan.shard_rows(index)) for index in pending), False
        with ProgressMeter(total, "video", quiet=not progress) as meter:
            while not stopped:
                stopped = stop.wait(_POLL_SECONDS)
                meter.update(_count_rows(plan, pending))

    thread = threading.Thread(target=poll, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _count_rows(plan: ShardPlan, pending: Sequence[int]) -> int:
    """Counts the rows of shards with a report, and of temporary shards on this machine."""
    names = {path.name for path in (epath.Path(plan.out) / REPORTS).iterdir()}
    done = sum(len(plan.shard_rows(n)) for n in pending if plan.report_path(n).name in names)
    if not video_io.is_remote(plan.out):
        for path in (epath.Path(plan.out) / PARTS).glob(f"*{ROW_COUNT_SUFFIX}"):
            with contextlib.suppress(
                OSError, ValueError
            ):  # the file is being written or was already removed
                done += int(path.read_text())
    return done
