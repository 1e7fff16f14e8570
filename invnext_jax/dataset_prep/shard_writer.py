"""One shard: the rows of a manifest that belong to it, encoded anew into one ArrayRecord file.

Which rows these are follows from the shard's number alone. The file appears under its name when it
is whole, then the report on its rows; a shard without a report is written again. What can be read
of it keeps its place and new records follow, so that a manifest in use stays true.
"""

import dataclasses
import functools
import json
import os
import tempfile
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from etils import epath

from invnext_jax import atomic_file
from invnext_jax.data import manifest as manifest_lib
from invnext_jax.data import shards, video_io
from invnext_jax.data.demux import BadVideo
from invnext_jax.data.worker_pool import OrderedPool
from invnext_jax.data.workers import ProcessWorker, TimeLimitError, WorkerDiedError
from invnext_jax.dataset_prep.reencode import Encoding, Reencode
from invnext_jax.errors import UserError

DATASET = "videos"  # the name that TFDS knows
PARTS, REPORTS = "parts", "reports"
ROWS = ".rows"  # ends the file that tells how many rows of a part are done
FACTS = ("frames", "width", "height", "fps", "duration")  # of a video as encoded


@dataclasses.dataclass(frozen=True)
class ShardPlan:
    """What goes where: all that a worker on any machine needs besides a shard's number.

    Attributes:
        manifests: Paths of the CSV files, whose rows follow each other.
        sha256: Of the files' bytes, one after the other.
        out: Folder of the data set; may be remote, as `gs://...`.
        split: Name of the split.
        rows: Rows of the manifest.
        count: Shards.
        labels: Names of the label columns; -1 where the manifest has none.
        encoding: How videos are encoded.
        seconds: Limit for a video.
    """

    manifests: tuple[str, ...]
    sha256: str
    out: str
    split: str
    rows: int
    count: int
    labels: tuple[str, ...]
    encoding: Encoding
    seconds: float

    def span(self, number: int) -> range:
        """The rows of shard `number`."""
        return range(number * self.rows // self.count, (number + 1) * self.rows // self.count)

    def shard(self, number: int) -> epath.Path:
        """The file of shard `number`, named as TFDS does."""
        name = f"{DATASET}-{self.split}.array_record-{number:05d}-of-{self.count:05d}"
        return epath.Path(self.out) / name

    def report(self, number: int) -> epath.Path:
        """The report on shard `number`."""
        name = f"{self.split}-{number:05d}-of-{self.count:05d}.json"
        return epath.Path(self.out) / REPORTS / name


@dataclasses.dataclass(frozen=True)
class Report:
    """What became of the rows of a shard, each of which is either written or quarantined.

    Attributes:
        size: Bytes of the file.
        written: (row, *FACTS) of each record, in the order of the records.
        quarantined: (row, name of the video, reason).
    """

    size: int
    written: list[list[Any]]
    quarantined: list[list[Any]]


def read_report(plan: ShardPlan, number: int) -> Report | None:
    """The report on a shard that is whole and accounts for all its rows, else None."""
    try:
        report = Report(**json.loads(plan.report(number).read_text()))
        size = plan.shard(number).stat().length
    except (OSError, ValueError, TypeError):
        return None
    rows = sorted(entry[0] for entry in report.written + report.quarantined)
    if rows != list(plan.span(number)) or size != report.size:
        return None
    if not video_io.is_remote(plan.out):  # the reader wants a local file
        try:
            count = shards.count_records(plan.shard(number))
        except ValueError:
            return None
        if count != len(report.written):
            return None
    return report


def make_features(labels: tuple[str, ...]):
    """What a record holds, in TFDS's terms; the video is bytes, for which it has but `Text`."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets import features

    numbers = dict.fromkeys(("row", "frames", "width", "height", *labels), np.int64)
    numbers |= {"fps": np.float32, "duration": np.float32}
    texts = {name: features.Text() for name in ("video", "source", "original")}
    scalars = {name: features.Scalar(dtype=kind) for name, kind in numbers.items()}
    return tfds.features.FeaturesDict(texts | scalars)


def write_shard(plan: ShardPlan, number: int) -> None:
    """Writes shard `number` unless it is there; a row that cannot be encoded is quarantined."""
    if read_report(plan, number) is not None:
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = scratch if video_io.is_remote(plan.out) else os.path.join(plan.out, PARTS)
        part = os.path.join(folder, f"{plan.shard(number).name}.{uuid.uuid4().hex}")
        written, quarantined = _write_records(plan, number, part)
        report = Report(os.path.getsize(part), written, quarantined)
        if video_io.is_remote(plan.out):
            epath.Path(part).copy(plan.shard(number), overwrite=True)
        else:
            os.replace(part, plan.shard(number))
            epath.Path(part + ROWS).unlink(missing_ok=True)
    write_text(plan.report(number), json.dumps(dataclasses.asdict(report)) + "\n")


def _write_records(plan: ShardPlan, number: int, part: str) -> tuple[list, list]:
    from array_record.python import array_record_module
    from tensorflow_datasets.core import example_serializer

    manifest, features = _read_once(plan.manifests, plan.sha256), make_features(plan.labels)
    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
    quarantined = []
    # Records one by one, for training reads them in no order; video is compressed as it is.
    writer = array_record_module.ArrayRecordWriter(part, "group_size:1,uncompressed")
    written = _keep_records(plan, number, os.path.dirname(part), writer)
    there = {row for row, *_ in written}
    span = [row for row in plan.span(number) if row not in there]
    pool = OrderedPool(
        lambda index, call: _encode_row(manifest, span, index, call),
        functools.partial(ProcessWorker, Reencode(plan.encoding)),
        workers=1,
        ahead=2,
        timeout=plan.seconds,
    )
    try:
        for done, row in enumerate(span, start=len(written) + 1):
            record, made = manifest[row], pool.next_result()
            if "reason" in made:
                quarantined.append([row, record.name, made["reason"]])
            else:
                facts = {name: made[name] for name in FACTS}
                video = {"video": made["video"].tobytes(), **facts}
                about = {"row": row, "source": record.source, "original": record.name}
                labels = {name: record.labels.get(name, -1) for name in plan.labels}
                example = features.encode_example(about | video | labels)
                writer.write(serializer.serialize_example(example))
                written.append([row, *facts.values()])
            with open(part + ROWS, "w") as file:
                file.write(str(done))
    finally:
        pool.close()
        writer.close()
    return written, quarantined


def _keep_records(plan: ShardPlan, number: int, folder: str, writer) -> list[list[Any]]:
    """Copies the records of the shard that is there, if it is sound: (row, *FACTS) of each."""
    shard = plan.shard(number)
    if not shard.exists():
        return []
    if video_io.is_remote(plan.out):  # the reader wants a local file
        shard = shard.copy(epath.Path(folder) / "kept", overwrite=True)
    names, kept = ("row", *FACTS), []
    try:
        for example, _ in shards.iterate_records(shard):
            kept.append([round(example[name][0], 3) for name in names])
    except (BadVideo, KeyError):
        return []
    rows = {row for row, *_ in kept}
    if len(rows) != len(kept) or not rows <= set(plan.span(number)):
        return []
    for _, data in shards.iterate_records(shard):
        writer.write(data)
    return kept


def _encode_row(
    manifest: manifest_lib.Manifest, span: Sequence[int], index: int, call: Callable[..., Any]
) -> dict[str, Any]:
    if index >= len(span):  # the pool looks ahead
        return {}
    record = manifest[span[index]]
    try:
        return call(record.path, record.record, record.start, record.end)
    except TimeLimitError:
        return {"reason": "took longer than the time limit"}
    except WorkerDiedError:
        return {"reason": "the decoder crashed twice"}


@functools.lru_cache(maxsize=1)
def _read_once(manifests: tuple[str, ...], sha256: str) -> manifest_lib.Manifest:
    """The manifest that the plan was made for; another machine may hold other files."""
    if video_io.hash_files(manifests) != sha256:
        raise UserError(
            f"manifest {', '.join(manifests)} was changed since the command began, or differs "
            "between machines: give the same command again when it is the same everywhere"
        )
    return manifest_lib.read_manifest(manifests)


def write_text(path: epath.Path, text: str) -> None:
    """Writes a file that is whole whenever it is there."""
    if video_io.is_remote(os.fspath(path)):
        path.write_text(text)
    else:
        atomic_file.write_text(path, text)
