"""Writes one shard: re-encodes its part of a manifest's rows into an ArrayRecord file.

The index of a shard determines its rows. The shard is written atomically, followed by a report on
its rows. A shard without a report is rewritten. Readable records of an existing shard keep their
positions, and new records are appended, so that a manifest in use remains valid.
"""

import contextlib
import dataclasses
import functools
import json
import os
import tempfile
import threading
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from etils import epath

from invnext_jax import atomic_file, sanitize
from invnext_jax.data import manifest as manifest_lib
from invnext_jax.data import shards, video_io
from invnext_jax.data.access_rules import DEFAULT_RULES, AccessRules
from invnext_jax.dataset_prep import shard_files, source_digests
from invnext_jax.dataset_prep.reencode import VIDEO_COLUMNS, Encoding, Reencoder
from invnext_jax.dataset_prep.worker_map import WorkerFailure, map_in_workers
from invnext_jax.errors import UserError
from invnext_jax.field_checks import is_number
from invnext_jax.video.demux import BadVideo

DATASET = "videos"  # name of the TFDS data set
PARTS, REPORTS = "parts", "reports"
ROW_COUNT_SUFFIX = ".rows"  # suffix of the file with the row count of a temporary shard


@dataclasses.dataclass(frozen=True)
class ShardPlan:
    """Assignment of rows to shards. To write a shard, a worker needs only the plan and its index.

    Attributes:
      manifests: Paths of the CSV files, whose rows are concatenated.
      sha256: Hash of the manifests, see `manifest.hash_manifests`.
      out: Local or remote (`gs://...`) folder of the data set.
      split: Name of the split.
      rows: Number of rows.
      count: Number of shards.
      labels: Names of the label columns. Rows without a label have the value -1.
      encoding: Options of the encoder.
      timeout: Time limit per video in seconds.
      access: Rules for which files the manifests may refer to.
    """

    manifests: tuple[str, ...]
    sha256: str
    out: str
    split: str
    rows: int
    count: int
    labels: tuple[str, ...]
    encoding: Encoding
    timeout: float
    access: AccessRules = AccessRules()

    def shard_rows(self, index: int) -> range:
        """Returns the rows of a shard."""
        return range(index * self.rows // self.count, (index + 1) * self.rows // self.count)

    def shard_path(self, index: int) -> epath.Path:
        """Returns the path of a shard. The file name is the one that TFDS expects."""
        name = f"{DATASET}-{self.split}.array_record-{index:05d}-of-{self.count:05d}"
        return epath.Path(self.out) / name

    def report_path(self, index: int) -> epath.Path:
        """Returns the path of the report on a shard."""
        name = f"{self.split}-{index:05d}-of-{self.count:05d}.json"
        return epath.Path(self.out) / REPORTS / name

    def damaged_path(self, index: int) -> epath.Path:
        """Returns the path of a shard's list of damaged videos, which retries preserve."""
        path = self.report_path(index)
        return path.with_name(f"{path.name}.damaged")

    def digests_path(self, index: int) -> epath.Path:
        """Returns the path of the digests of a shard's source videos, which retries preserve."""
        path = self.report_path(index)
        return path.with_name(f"{path.name}.digests")


@dataclasses.dataclass(frozen=True)
class ShardReport:
    """Outcome of each row of a shard, which is either written or quarantined.

    Attributes:
      size: Size of the shard in bytes.
      written: (row, *VIDEO_COLUMNS) of each record, in the order of the records.
      quarantined: (row, name of the video, reason) of each bad video.
      damaged: (row, name of the video, damage) of each written video that was cut at a damaged
          frame.
    """

    size: int
    written: list[list[Any]]
    quarantined: list[list[Any]]
    damaged: list[list[Any]] = dataclasses.field(default_factory=list)


def read_report(plan: ShardPlan, index: int, count: shard_files.Counter) -> ShardReport | None:
    """Returns the report on a shard, or None if it is incomplete or does not match the file."""
    try:
        report = ShardReport(**shard_files.read_json(plan.report_path(index)))
        size = plan.shard_path(index).stat().length
        rows = sorted(entry[0] for entry in report.written + report.quarantined)
    except (OSError, ValueError, TypeError, LookupError, UserError):
        return None
    if rows != list(plan.shard_rows(index)) or size != report.size:
        return None
    others = (report.quarantined, report.damaged)
    are_valid = _are_rows(report.written, 1 + len(VIDEO_COLUMNS), is_number)
    if not are_valid or not all(_are_rows(entries, 3, _is_string) for entries in others):
        return None
    if not video_io.is_remote(plan.out):  # the reader needs a local file
        try:
            if count(plan.shard_path(index)) != len(report.written):
                return None
        except ValueError:
            return None
    return report


def make_features(labels: tuple[str, ...]):
    """Returns the TFDS features of a record. The video is `Text`, the only TFDS type for bytes."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets import features

    dtypes = dict.fromkeys(("row", "frames", "width", "height", *labels), np.int64)
    dtypes |= {"fps": np.float32, "duration": np.float32}
    texts = {name: features.Text() for name in ("video", "source", "original")}
    scalars = {name: features.Scalar(dtype=dtype) for name, dtype in dtypes.items()}
    return tfds.features.FeaturesDict(texts | scalars)


def write_shard(plan: ShardPlan, index: int, stop: threading.Event | None = None) -> None:
    """Writes a shard and its report unless both exist. Quarantines rows that cannot be encoded.

    Args:
      plan: Assignment of rows to shards.
      index: Number of the shard.
      stop: If it is set, writing stops after the current row.

    Raises:
      InterruptedError: `stop` was set.
    """
    with shard_files.open_counter() as count:
        if read_report(plan, index, count) is not None:
            return
    path, remote = plan.shard_path(index), video_io.is_remote(plan.out)
    manifest = _load_manifest(plan.manifests, plan.sha256, plan.access)
    digests = source_digests.hash_sources(manifest, plan.shard_rows(index), plan.timeout)
    with tempfile.TemporaryDirectory() as scratch:
        folder = scratch if remote else os.path.join(plan.out, PARTS)
        temporary = os.path.join(folder, f"{path.name}.{uuid.uuid4().hex}")
        written, quarantined, damaged = _write_records(plan, index, temporary, stop)
        # Written first, so that a shard never contains videos that are missing in its digests.
        known = [(row, digests[row]) for row, *_ in written if digests[row]]
        shard_files.write_text(plan.digests_path(index), json.dumps(known) + "\n")
        report = ShardReport(os.path.getsize(temporary), written, quarantined, damaged)
        if remote:
            epath.Path(temporary).copy(path, overwrite=True)
        else:
            atomic_file.replace(temporary, path)
            epath.Path(temporary + ROW_COUNT_SUFFIX).unlink(missing_ok=True)
    shard_files.write_text(plan.damaged_path(index), json.dumps(damaged) + "\n")
    shard_files.write_text(plan.report_path(index), json.dumps(dataclasses.asdict(report)) + "\n")


def _write_records(
    plan: ShardPlan, index: int, temporary: str, stop: threading.Event | None
) -> tuple[list, list, list]:
    from tensorflow_datasets.core import example_serializer

    manifest = _load_manifest(plan.manifests, plan.sha256, plan.access)
    features = make_features(plan.labels)
    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
    quarantined, damaged = [], _read_damaged(plan, index)
    with shard_files.open_writer(temporary) as write:
        written = _copy_records(plan, index, os.path.dirname(temporary), write)
        existing = {row for row, *_ in written}
        damaged = [entry for entry in damaged if entry[0] in existing]
        pending = [row for row in plan.shard_rows(index) if row not in existing]
        encoded = _encode_rows(plan, [manifest[row] for row in pending])
        with contextlib.closing(encoded):
            for done, (row, video) in enumerate(
                zip(pending, encoded, strict=True), start=len(written) + 1
            ):
                if stop is not None and stop.is_set():
                    raise InterruptedError(f"writing of shard {index} was cancelled")
                record = manifest[row]
                if "reason" in video:
                    reason = sanitize.shorten(sanitize.redact_error(video["reason"], record.path))
                    quarantined.append([row, record.name, reason])
                else:
                    values = {name: video[name] for name in VIDEO_COLUMNS}
                    original = record.name.encode(errors="backslashreplace").decode()
                    fields = {"row": row, "source": record.source, "original": original}
                    fields |= {name: record.labels.get(name, -1) for name in plan.labels}
                    fields |= {"video": video["video"].tobytes(), **values}
                    example = features.encode_example(fields)
                    write(serializer.serialize_example(example))
                    written.append([row, *values.values()])
                    if "damage" in video:
                        damaged.append([row, record.name, video["damage"]])
                with open(temporary + ROW_COUNT_SUFFIX, "w") as file:
                    file.write(str(done))
    return written, quarantined, damaged


def _read_damaged(plan: ShardPlan, index: int) -> list[list[Any]]:
    """Returns the damaged videos of an existing shard."""
    try:
        found = shard_files.read_json(plan.damaged_path(index))
    except UserError:
        return []
    return found if _are_rows(found, 3, _is_string) else []


def _is_string(value: Any) -> bool:
    """Returns whether a value is a string, which may contain surrogates as in names of files."""
    return isinstance(value, str)


def _are_rows(entries: Any, width: int, is_valid: Callable[[Any], bool]) -> bool:
    """Returns whether a value read from a report is a list of rows: an integer and valid values."""
    return isinstance(entries, list) and all(
        isinstance(entry, list)
        and len(entry) == width
        and type(entry[0]) is int
        and all(map(is_valid, entry[1:]))
        for entry in entries
    )


def _encode_rows(plan: ShardPlan, records: Sequence[manifest_lib.VideoRecord]):
    """Yields the result of `Reencoder` for each record; a dict with `reason` after a failure."""
    results = map_in_workers(
        Reencoder(plan.encoding),
        [(record.path, record.record, record.start, record.end) for record in records],
        workers=1,
        timeout=plan.timeout,
        ahead=2,
        find_error=lambda result: result["reason"] if result.get("kind") == "unreadable" else "",
    )
    with contextlib.closing(results):
        for result in results:
            yield {"reason": result.reason} if isinstance(result, WorkerFailure) else result


def _copy_records(
    plan: ShardPlan, index: int, folder: str, write: Callable[[bytes], None]
) -> list[list[Any]]:
    """Copies the records of a valid existing shard and returns their (row, *VIDEO_COLUMNS)."""
    shard = plan.shard_path(index)
    if not shard.exists():
        return []
    if video_io.is_remote(plan.out):  # the reader needs a local file
        shard = shard.copy(epath.Path(folder) / "kept", overwrite=True)
    names = ("row", *VIDEO_COLUMNS)
    try:
        shard_files.check_readable(os.fspath(shard))
        kept = [[round(e[name][0], 3) for name in names] for e, _ in shards.iterate_records(shard)]
    # A damaged record may have no or other values.
    except (BadVideo, LookupError, TypeError, ValueError, OverflowError):
        return []
    rows = {row for row, *_ in kept}
    if (
        not _are_rows(kept, len(names), is_number)
        or len(rows) != len(kept)
        or not rows <= set(plan.shard_rows(index))
    ):
        return []
    for _, data in shards.iterate_records(shard):
        write(data)
    return kept


@functools.lru_cache(maxsize=1)
def _load_manifest(
    manifests: tuple[str, ...], sha256: str, access: AccessRules = DEFAULT_RULES
) -> manifest_lib.Manifest:
    """Reads the manifests of the plan and checks that they are the same on this machine."""
    if video_io.hash_files(manifests) != sha256:
        raise UserError(
            f"manifest {', '.join(manifests)} has changed since the command started, or differs "
            "between machines: use the same file everywhere, then repeat the command"
        )
    return manifest_lib.read_manifest(manifests, access)
