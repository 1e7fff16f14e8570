"""Retries reads and distinguishes a failure of one file from a failure of the whole storage.

If a read fails or does not return, another file is read as a test. If that succeeds, the first file
is tried again at once. It counts as bad if it fails again and the next test succeeds too. If a test
fails, the storage is unavailable, and the task is repeated with growing pauses until the storage
responds.

Reads that do not return are repeated without a limit. Errors of local files are repeated
`MAX_ERRORS` times: a damaged disk does not recover. The same limit applies to remote storage from
which nothing has been read yet, because its address or the credentials may be wrong.
"""

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from absl import logging

from invnext_jax.data import video_io
from invnext_jax.data.bad_videos import STALLED
from invnext_jax.data.clips import BadClip, Seed
from invnext_jax.data.manifest import Manifest, split_names
from invnext_jax.workers.process_worker import WorkerDiedError
from invnext_jax.workers.supervisor import SupervisedWorker
from invnext_jax.workers.time_limits import ReadStalledError, TimeLimitError

MIN_PAUSE, MAX_PAUSE = 1.0, 60.0  # seconds; each pause is twice as long as the previous one
LOG_SECONDS = 30.0  # minimum time between two equal log lines
MAX_ERRORS = 15  # tries of a file whose reads fail; takes about 9 minutes with the pauses
OTHER_FILES = 16  # number of files that are read in turn to test the storage


class StorageMonitor:
    """Counts and logs the failed reads of a data set. Its methods are thread-safe.

    Attributes:
      failed_reads: Number of reads that did not return in time or failed.
      readable: Sources of which a file has been read.
      given_up: Sources whose latest file was given up after `MAX_ERRORS` errors. Further errors
          are not retried until a file can be read.
    """

    def __init__(self):
        self.failed_reads = 0
        self.readable: set[str] = set()
        self.given_up: set[str] = set()
        self._lock, self._next_log = threading.Lock(), {}

    def count(self) -> None:
        """Counts a failed read."""
        with self._lock:
            self.failed_reads += 1

    def record_success(self, source: str) -> None:
        """Records that a file of a source was read."""
        if source in self.given_up or source not in self.readable:
            with self._lock:
                self.readable.add(source)
                self.given_up.discard(source)

    def give_up(self, source: str) -> None:
        """Records that a file of a source was given up after `MAX_ERRORS` errors."""
        with self._lock:
            self.given_up.add(source)

    def log(self, message: str, *arguments: Any, key: Any = None) -> None:
        """Logs a warning.

        It is omitted if a warning with the same message and key was logged less than `LOG_SECONDS`
        before.
        """
        with self._lock:
            now = time.monotonic()
            if now < self._next_log.get((message, key), 0.0):
                return
            self._next_log[message, key] = now + LOG_SECONDS
        logging.warning(message + " (%d failed reads so far)", *arguments, self.failed_reads)


def protocols_of(manifest: Manifest) -> list[str]:
    """Returns the protocols of the remote files among the manifest's files and videos."""
    return video_io.protocols_of(itertools.chain(split_names(manifest.file), manifest.paths))


def load_in_worker(
    worker: SupervisedWorker,
    manifest: Manifest,
    row: int,
    seeds: Sequence[Seed | None],
    timeout: float,
    monitor: StorageMonitor,
) -> dict[str, Any] | BadClip:
    """Loads clips in a worker. If the worker hangs or dies, the video counts as bad.

    While the storage does not respond, the function waits and tries again.

    Args:
      worker: Worker that runs the loading function.
      manifest: The manifest.
      row: Number of the row to load.
      seeds: As in `LoadClip`.
      timeout: Time limit in seconds, for the error message.
      monitor: Counter of failed reads.
    """
    record = manifest[row]
    others = ((manifest[r], seeds) for r in other_rows(row, manifest.sources, manifest.paths))
    try:
        return call_with_retries(
            worker,
            (record, seeds),
            others,
            name_file=lambda video, _: video.name,
            find_error=_find_error,
            monitor=monitor,
            source=record.source,
        )
    except ReadStalledError:
        reason = (
            f"{record.name}: a read took longer than {timeout:g} s, but other files can be read"
        )
        return BadClip(record.name, STALLED, reason)
    except TimeLimitError:
        reason = f"{record.name}: took longer than {timeout:g} s"
        return BadClip(record.name, "time limit", reason)
    except WorkerDiedError:
        return BadClip(record.name, "worker died", f"{record.name}: its worker died twice")


def _find_error(clips: dict[str, Any] | BadClip) -> str:
    is_error = isinstance(clips, BadClip) and clips.kind == "unreadable"
    return clips.reason if is_error else ""


def call_with_retries(
    worker: Callable[..., Any],
    task: tuple,
    others: Iterator[tuple],
    *,
    name_file: Callable[..., str],
    find_error: Callable[[Any], str],
    monitor: StorageMonitor,
    source: str = "",
) -> Any:
    """Runs a task in a worker and repeats it while the storage does not respond.

    Args:
      worker: The worker, a `SupervisedWorker`.
      task: Arguments of the worker's function.
      others: Iterator of tasks that read other files of the same storage. When it is exhausted,
          the storage counts as unavailable until `task` succeeds.
      name_file: Function that returns the name of a task's file, for messages.
      find_error: Function that returns the reason if a result is a failed read, and "" otherwise.
      monitor: Counter of failed reads.
      source: Source of the task's file.

    Returns:
      The result. It is a read error only if other files can be read, or after `MAX_ERRORS` tries.

    Raises:
      ReadStalledError: The reads of this file do not return, but those of other files do.
      TimeLimitError: As raised by the worker.
      WorkerDiedError: As raised by the worker.
    """
    pause, answered, errors, start = MIN_PAUSE, False, 0, time.monotonic()
    while True:
        result, stalled, reason = None, None, "the read does not return"
        try:
            result = worker(*task)
            if not (error := find_error(result)):
                monitor.record_success(source)
                return result
            reason = error.removeprefix(f"{name_file(*task)}: ")
        except ReadStalledError as error:
            stalled = error
        monitor.count()
        name = name_file(*task)
        errors += stalled is None
        if stalled is None and _is_lost(errors, name, source, monitor):
            monitor.give_up(source)
            return result
        monitor.log("a read of %s failed (%s); reading another file as a test", name, reason)
        answered_before, answered = answered, _answers(worker, next(others, None), find_error)
        if answered_before and answered:
            if stalled is not None:
                raise stalled
            return result
        if not answered:
            monitor.log(
                "the storage of %s has not responded for %.0f s (%s); trying again in %g s",
                *(name, time.monotonic() - start, reason, pause),
                key=pause,
            )
            worker.pause(pause)
            pause = min(2 * pause, MAX_PAUSE)


def _is_lost(errors: int, name: str, source: str, monitor: StorageMonitor) -> bool:
    """Returns whether to give up on a file after `errors` failed reads."""
    if video_io.is_remote(name) and source in monitor.readable:
        return False
    return errors >= MAX_ERRORS or source in monitor.given_up


def _answers(
    worker: Callable[..., Any], task: tuple | None, find_error: Callable[[Any], str]
) -> bool:
    """Returns whether the storage delivers another file, even if its content is bad."""
    if task is None:
        return False
    try:
        return not find_error(worker(*task))
    except ReadStalledError:
        return False
    except (TimeLimitError, WorkerDiedError):  # caused by decoding
        return True


def other_rows(row: int, sources: list[str], paths: list[str]) -> Iterator[int]:
    """Cycles forever through rows with other files, which are read to test the storage of `row`.

    Most of them are of the same source, which is usually on one storage. The last ones are of other
    sources, so that the files of one bad source cannot make it look as if the storage failed.

    Args:
      row: Number of a row.
      sources: Source of each row.
      paths: File of each row.

    Yields:
      `OTHER_FILES` rows of the same source, with repetitions if it has fewer; then a row of each
      of as many other sources, twice, because a bad file is given up after two such tests. If
      the source has no other file, `row` is the row of the same source.
    """
    following = [*range(row + 1, len(paths)), *range(row)]
    same = (r for r in following if sources[r] == sources[row] and paths[r] != paths[row])
    first_of_source = {}
    for other in following:
        if sources[other] != sources[row] and paths[other] != paths[row]:
            first_of_source.setdefault(sources[other], other)
            if len(first_of_source) == OTHER_FILES:
                break
    others = [other for other in first_of_source.values() for _ in range(2)]
    same = list(itertools.islice(same, OTHER_FILES)) or [row] * bool(others)
    yield from itertools.cycle([*itertools.islice(itertools.cycle(same), OTHER_FILES), *others])
