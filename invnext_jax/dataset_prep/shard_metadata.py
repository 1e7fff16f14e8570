"""What stands beside the shards of a data set: TFDS's metadata, the manifest, the quarantine."""

import collections
import dataclasses
import json
from collections.abc import Sequence

from etils import epath

from invnext_jax.data import manifest as manifest_lib
from invnext_jax.dataset_prep import indexing
from invnext_jax.dataset_prep.shard_writer import (
    DATASET,
    FACTS,
    REPORTS,
    Report,
    ShardPlan,
    make_features,
    write_text,
)
from invnext_jax.errors import UserError

VERSION = "1.0.0"
COLUMNS = ("codec", "original")  # of the manifest, besides what was measured


@dataclasses.dataclass(frozen=True)
class ShardSummary:
    """What became of the rows; `listed` is the sum of `written` and `quarantined`."""

    manifest: str
    listed: int
    written: int
    quarantined: int
    size: int
    reused: int

    def __str__(self) -> str:
        known = f" ({self.reused} shards were there)" if self.reused else ""
        return (
            f"{self.listed} listed = {self.written} written + {self.quarantined} quarantined"
            f"{known}, {self.size / 2**20:.1f} MiB\nmanifest: {self.manifest}\n"
            f"quarantine, with reasons: {self.manifest.removesuffix('.csv')}.quarantine.csv"
        )


def write_tables(
    plan: ShardPlan, manifest: manifest_lib.Manifest, reports: Sequence[Report], reused: int
) -> ShardSummary:
    """Checks that no row is lost, then writes all that stands beside the shards of a split.

    Raises:
        UserError: Not one video could be encoded.
        RuntimeError: The counts do not agree.
    """
    written = sum(len(report.written) for report in reports)
    quarantined = sum(len(report.quarantined) for report in reports)
    if written + quarantined != plan.rows:
        raise RuntimeError(f"{plan.rows} rows in, {written} written + {quarantined} quarantined")
    out = epath.Path(plan.out)
    rows = [(name, reason) for report in reports for _, name, reason in report.quarantined]
    path = out / f"{plan.split}.quarantine.csv"
    write_text(path, indexing.csv_text([("path", "reason"), *rows]))
    if not written:
        reason, count = collections.Counter(reason for _, reason in rows).most_common(1)[0]
        raise UserError(
            f"none of {plan.rows} videos could be encoded, {count}: {reason}; see {path}"
        )
    _write_metadata(plan, reports)
    path = out / f"{plan.split}.csv"
    write_text(path, _manifest_text(plan, manifest, reports))
    size = sum(report.size for report in reports)
    return ShardSummary(str(path), plan.rows, written, quarantined, size, reused)


def remove_tables(plan: ShardPlan) -> None:
    """Takes back what tells that the split is complete, before one of its shards is changed."""
    (epath.Path(plan.out) / f"{plan.split}.csv").unlink(missing_ok=True)
    if _done(plan).exists():
        _done(plan).unlink()
        _write_info(plan)


def _done(plan: ShardPlan) -> epath.Path:
    return epath.Path(plan.out) / REPORTS / f"{plan.split}.done.json"


def _manifest_text(
    plan: ShardPlan, manifest: manifest_lib.Manifest, reports: Sequence[Report]
) -> str:
    rows = [("path", "record", "source", *plan.labels, *FACTS, *COLUMNS)]
    for number, report in enumerate(reports):
        shard = plan.shard(number).name
        # A retry appends to a shard; the manifest stays in the order of the rows.
        for place, (row, *facts) in sorted(enumerate(report.written), key=lambda e: e[1][0]):
            record = manifest[row]
            labels = (record.labels.get(name, -1) for name in plan.labels)
            rows.append((shard, place, record.source, *labels, *facts, "h264", record.name))
    return indexing.csv_text(rows)


def _write_metadata(plan: ShardPlan, reports: Sequence[Report]) -> None:
    lengths = {"lengths": [len(r.written) for r in reports], "size": sum(r.size for r in reports)}
    write_text(_done(plan), json.dumps(lengths) + "\n")
    _write_info(plan)


def _write_info(plan: ShardPlan) -> None:
    """Makes the folder one that `tfds.builder_from_directory` reads, with all whole splits."""
    import tensorflow_datasets as tfds

    out = epath.Path(plan.out)
    identity = tfds.core.dataset_info.DatasetIdentity(
        name=DATASET, version=tfds.core.Version(VERSION), data_dir=plan.out, module_name=""
    )
    info = tfds.core.DatasetInfo(
        builder=identity,
        features=make_features(plan.labels),
        description="Videos encoded anew by prepare_data.py shards; `video` is an MP4 file.",
    )
    info.set_file_format("array_record")
    template = tfds.core.ShardedFileTemplate(
        data_dir=out, dataset_name=DATASET, filetype_suffix="array_record"
    )
    splits = []
    for path in sorted((out / REPORTS).glob("*.done.json")):
        done, split = json.loads(path.read_text()), path.name.removesuffix(".done.json")
        splits.append(
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=done["lengths"],
                num_bytes=done["size"],
                filename_template=template.replace(split=split),
            )
        )
    info.set_splits(tfds.core.splits.SplitDict(splits))
    info.write_to_directory(plan.out)
