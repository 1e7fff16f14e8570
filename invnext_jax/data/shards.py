"""Reads videos stored as records of ArrayRecord files. Their names are `path#record`.

A record is a `tf.train.Example`, as written by TFDS. The longest bytes value in it is the video.
"""

import contextlib
import dataclasses
import errno
import functools
import hashlib
import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from absl import logging

from invnext_jax import regular_file, sanitize
from invnext_jax.data import columns
from invnext_jax.data import files as files_lib
from invnext_jax.video.demux import BadVideo, error_kind
from invnext_jax.workers.process_worker import ProcessWorker, WorkerDiedError, WorkerStartError
from invnext_jax.workers.supervisor import SupervisedWorker
from invnext_jax.workers.time_limits import ReadStalledError, TimeLimitError, reading

# Storage errors, which the reader reports only in the text of its messages.
STORAGE_ERRNOS = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN)
WHOLE_FILE, UNKNOWN_TIMES = (math.nan, math.nan), (-math.inf, math.inf)
WORKER_SECONDS = 60.0  # time limit for counting the records of a shard, or hashing a record
MAX_OPEN = 64  # maximum number of shards that a process keeps open
_OPEN_LOCK = threading.Lock()
_IMPORT_LOCK = threading.Lock()


def name_video(path: str, record: int | None) -> str:
    """Returns the name of a video for messages and lists, without secrets from its URL."""
    return sanitize.redact_urls(path) if record is None else f"{path}#{record}"


def hash_name(name: str | None) -> int:
    """Returns a 64-bit hash of the name of a file, or 0 for no name.

    Other spellings of a local path, such as `a/../b.mp4`, have the same hash.
    """
    if not name:
        return 0
    path = name if "://" in name else os.path.normpath(name)
    digest = hashlib.blake2b(path.encode(errors="surrogateescape"), digest_size=8)
    return int.from_bytes(digest.digest(), signed=True)


def parse_original(row: Mapping[str, str], line: str) -> tuple[int, tuple[float, float]]:
    """Returns the hash of the file from which a record was made, and its times in that file.

    Args:
      row: The cells of the record in its manifest. Shards of earlier versions lack the times.
      line: Place of the row, for messages.

    Raises:
      UserError: A time cannot be parsed.
    """
    original = hash_name(row.get("original"))
    if not row.keys() >= set(columns.ORIGINAL_TIMES):
        return original, UNKNOWN_TIMES
    cells = ((row[name], name) for name in columns.ORIGINAL_TIMES)
    start, end = (columns.parse_seconds_cell(text, line, name) for text, name in cells)
    return original, WHOLE_FILE if math.isnan(start) and math.isnan(end) else (start, end)


def read_video(path: str, record: int) -> bytes:
    """Reads the bytes of a video from a shard.

    Raises:
      BadVideo: The shard or the record is missing or damaged.
    """
    features = read_example(path, record)
    video = max((v for v in features.values() if isinstance(v, bytes)), key=len, default=b"")
    if not video:
        name = name_video(path, record)
        raise BadVideo(f"{name}: the record has no bytes value for a video", "no video stream")
    return video


def open_digester() -> contextlib.AbstractContextManager[Callable[[str, int], str]]:
    """Yields a function that returns a hash of the bytes of a record; "" if it cannot be read.

    A record is read with the other records of its chunk, which may be tiny on the disk, but need
    any amount of memory after decompression. They are therefore read in a worker process. After a
    record has ended it, or exceeded the time limit, all records of its shard count as unreadable.
    """
    return open_worker(DigestRecord(), "")


@contextlib.contextmanager
def open_worker(function: Callable[..., Any], failed: str) -> Iterator[Callable[..., Any]]:
    """Yields `function`, called in a worker process; it returns `failed` for shards that end it."""
    with contextlib.ExitStack() as stack:
        skipped = set()

        @functools.cache  # the process starts with the first call
        def start() -> SupervisedWorker:
            worker = SupervisedWorker(functools.partial(ProcessWorker, function), WORKER_SECONDS)
            return stack.enter_context(contextlib.closing(worker))

        def call(path: str, *task: Any) -> Any:
            if path in skipped:
                return failed
            try:
                return start()(path, *task)
            except (TimeLimitError, ReadStalledError, WorkerDiedError, WorkerStartError) as error:
                logging.warning("the records of %s are not read: %s", path, type(error).__name__)
                skipped.add(path)
                return failed

        yield call


@dataclasses.dataclass(frozen=True)
class DigestRecord:
    """Hashes the bytes of records. It is called in a worker process."""

    def __call__(self, path: str, record: int) -> str:
        """Returns the hash of a record, 32 hexadecimal digits; "" if it cannot be read."""
        try:
            data = read_video(path, record)
        except (BadVideo, MemoryError):
            return ""
        return hashlib.blake2b(data, digest_size=16).hexdigest()

    def is_valid(self, result: Any, *_: Any) -> bool:
        """Returns whether a result of the worker is a hash, or ""."""
        return isinstance(result, str) and len(result) in (0, 32)


def read_example(path: str, record: int) -> dict[str, bytes | list]:
    """Reads the features of a record as a dict: bytes for a single bytes value, otherwise a list.

    Raises:
      BadVideo: The shard or the record is missing or damaged.
    """
    name = name_video(path, record)
    try:
        with reading():
            status = os.stat(path)
        files_lib.check_kind(status, path)
    except OSError as error:
        kind = error_kind(error)
        raise BadVideo(f"{name}: {type(error).__name__}: {error}", kind) from error
    except ValueError as error:
        raise files_lib.bad_name(name, error) from error
    try:
        with reading():
            with _OPEN_LOCK:
                reader = _cached_reader(path, status.st_size, status.st_mtime_ns)
            count = reader.num_records()
            if not 0 <= record < count:
                raise BadVideo(f"{name}: the shard has {count} records", "missing")
            data = _read_record(reader, record)
        return _parse(data)
    except OSError as error:
        raise BadVideo(f"{name}: {error.strerror}", error_kind(error)) from error
    except (RuntimeError, ValueError, IndexError) as error:
        # A file in /proc has the size 0; its I/O errors are not those of the storage.
        if status.st_size and any(os.strerror(number) in str(error) for number in STORAGE_ERRNOS):
            raise BadVideo(f"{name}: {error}", "unreadable") from error
        raise BadVideo(f"{name}: damaged record: {error}", "corrupt") from error


@functools.lru_cache(maxsize=MAX_OPEN)
def read_ahead(path: str) -> None:
    """Starts to read a whole file into the page cache, unless this process did so before.

    The operating system reads in the background. It ignores the request if memory is scarce.

    Args:
      path: The file, or "" for none.
    """
    if not path or not hasattr(os, "posix_fadvise"):
        return
    with contextlib.suppress(OSError):  # reported when a record is read
        with regular_file.open_regular(path) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


def iterate_records(path: str | os.PathLike) -> Iterator[tuple[dict[str, bytes | list], bytes]]:
    """Yields the features, as in `read_example`, and the bytes of each record in order.

    Raises:
      BadVideo: The shard is damaged.
    """
    try:
        reader = _new_reader(path)
        for record in range(reader.num_records()):
            data = _read_record(reader, record)
            yield _parse(data), data
    except (OSError, RuntimeError, ValueError, IndexError) as error:
        raise BadVideo(f"{os.fspath(path)}: damaged: {error}", "corrupt") from error


def count_records(path: str | os.PathLike) -> int:
    """Returns the number of records of a shard.

    Raises:
      ValueError: The file is not an ArrayRecord file, or is damaged.
    """
    try:
        return _new_reader(path).num_records()
    except (OSError, RuntimeError, IndexError) as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from error


def _parse(data: bytes) -> dict[str, bytes | list]:
    # Imported on first use: most worker processes never read a shard. The package replaces Python's
    # import function during its import, so other threads must not import modules at the same time.
    with _IMPORT_LOCK:
        from google.protobuf.message import DecodeError
        from tensorflow_datasets.proto import tf_example_pb2

    try:
        example = tf_example_pb2.Example.FromString(data)
    except DecodeError as error:
        raise ValueError(str(error)) from error
    features = {}
    for name, feature in example.features.feature.items():
        kind = feature.WhichOneof("kind")
        values = getattr(feature, kind).value if kind else ()
        single = kind == "bytes_list" and len(values) == 1
        features[name] = values[0] if single else list(values)
    return features


@functools.lru_cache(maxsize=MAX_OPEN)
def _cached_reader(path: str, size: int, changed: int):
    """Returns a cached reader for a file with the given size and modification time.

    A reader is closed after it is evicted from the cache and no longer used.
    """
    del size, changed
    return _new_reader(path)


def _new_reader(path: str | os.PathLike):
    from array_record.python import array_record_module

    # Random access: no read-ahead and no extra threads.
    options = "readahead_buffer_size:0,max_parallelism:0"
    try:
        with regular_file.name_for_library(path) as name:
            reader = array_record_module.ArrayRecordReader(
                name, options=options, file_reader_buffer_size=32768
            )
    except MemoryError as error:
        raise ValueError("its footer declares too many chunks") from error
    if not reader.ok():
        reader.read([0])  # raises an error that states the reason
    return reader


def _read_record(reader, record: int) -> bytes:
    """Returns the bytes of a record.

    Raises:
      ValueError: The record is damaged; for other damages, the reader raises other errors.
    """
    try:
        (data,) = reader.read([record])
    except MemoryError as error:
        raise ValueError("its chunk declares too many bytes") from error
    if not data:  # also returned for records that the footer counts, but are in no chunk
        raise ValueError("the record is empty")
    return data
