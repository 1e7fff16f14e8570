"""Videos inside ArrayRecord files: `path#record` instead of a file each.

A record is a `tf.train.Example`, as TFDS writes it; its longest value is the video.
"""

import functools
import os
import threading
from collections.abc import Iterator

from invnext_jax.data.frames import BadVideo

MAX_OPEN = 64  # shards held open by a process
_OPENING = threading.Lock()


def name_video(path: str, record: int | None) -> str:
    """What messages and lists call a video."""
    return path if record is None else f"{path}#{record}"


def read_video(path: str, record: int) -> bytes:
    """The video's bytes in a shard.

    Raises:
        BadVideo: The shard or the record is missing or damaged.
    """
    features = read_example(path, record)
    video = max((v for v in features.values() if isinstance(v, bytes)), key=len, default=b"")
    if not video:
        name = name_video(path, record)
        raise BadVideo(f"{name}: the record holds no video", "no video stream")
    return video


def read_example(path: str, record: int) -> dict[str, bytes | list]:
    """The values of a record by name: bytes if there is one of that kind, otherwise a list.

    Raises:
        BadVideo: The shard or the record is missing or damaged.
    """
    name = name_video(path, record)
    try:
        about = os.stat(path)
    except OSError as error:
        kind = "missing" if isinstance(error, FileNotFoundError) else "unreadable"
        raise BadVideo(f"{name}: {type(error).__name__}: {error}", kind) from error
    try:
        with _OPENING:
            reader = _open(path, about.st_size, about.st_mtime_ns)
        count = reader.num_records()
        if not 0 <= record < count:
            raise BadVideo(f"{name}: the shard has {count} records", "missing")
        return _parse(reader.read([record])[0])
    except (RuntimeError, ValueError, IndexError) as error:
        raise BadVideo(f"{name}: damaged record: {error}", "corrupt") from error


def iterate_records(path: str | os.PathLike) -> Iterator[tuple[dict[str, bytes | list], bytes]]:
    """The values, as in `read_example`, and the bytes of each record in order.

    Raises:
        BadVideo: The shard is damaged.
    """
    try:
        reader = _new_reader(os.fspath(path))
        for record in range(reader.num_records()):
            (data,) = reader.read([record])
            yield _parse(data), data
    except (RuntimeError, ValueError, IndexError) as error:
        raise BadVideo(f"{os.fspath(path)}: damaged: {error}", "corrupt") from error


def count_records(path: str | os.PathLike) -> int:
    """Records of a shard.

    Raises:
        ValueError: It is no ArrayRecord file, or a damaged one.
    """
    try:
        return _new_reader(os.fspath(path)).num_records()
    except (RuntimeError, IndexError) as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from error


def _parse(data: bytes) -> dict[str, bytes | list]:
    # Not before a shard is read: most worker processes never need what this imports.
    from google.protobuf.message import DecodeError
    from tensorflow_datasets.proto import tf_example_pb2

    try:
        example = tf_example_pb2.Example.FromString(data)
    except DecodeError as error:
        raise ValueError(str(error)) from error
    found = {}
    for name, feature in example.features.feature.items():
        kind = feature.WhichOneof("kind")
        values = getattr(feature, kind).value if kind else ()
        single = kind == "bytes_list" and len(values) == 1
        found[name] = values[0] if single else list(values)
    return found


@functools.lru_cache(maxsize=MAX_OPEN)
def _open(path: str, size: int, changed: int):
    """The reader of a file as it is now; one that is dropped closes itself."""
    del size, changed
    return _new_reader(path)


def _new_reader(path: str):
    from array_record.python import array_record_module

    # Random access: nothing is read ahead, and no threads but ours.
    options = "readahead_buffer_size:0,max_parallelism:0"
    reader = array_record_module.ArrayRecordReader(
        path, options=options, file_reader_buffer_size=32768
    )
    if not reader.ok():
        reader.read([0])  # raises, and tells why
    return reader
