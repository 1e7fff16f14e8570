"""Writes the files next to the shards: TFDS metadata, the manifest and the quarantine list."""

import collections
import csv
import dataclasses
import json
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

from absl import logging
from etils import epath

from invnext_jax import csv_text, sanitize
from invnext_jax.data import class_names, video_io
from invnext_jax.data import manifest as manifest_lib
from invnext_jax.data.columns import ORIGINAL_TIMES
from invnext_jax.data.copies import name_originals
from invnext_jax.dataset_prep.reencode import VIDEO_COLUMNS
from invnext_jax.dataset_prep.shard_files import read_json, write_text
from invnext_jax.dataset_prep.shard_writer import (
    DATASET,
    REPORTS,
    ShardPlan,
    ShardReport,
    make_features,
)
from invnext_jax.errors import UserError
from invnext_jax.field_checks import COUNT, check_fields, list_of

VERSION = "1.0.0"
KEPT_COLUMNS = ("sar", "transfer", "flags")  # of the input manifest: they describe the original


@dataclasses.dataclass(frozen=True)
class ShardSummary:
    """Counts of manifest rows; `listed` is the sum of `written` and `quarantined`."""

    manifest: str
    listed: int
    written: int
    quarantined: int
    size: int
    reused: int
    damaged: int = 0

    def __str__(self) -> str:
        reused = f" ({self.reused} shards existed)" if self.reused else ""
        prefix = self.manifest.removesuffix(".csv")
        damaged = (
            f"\n{self.damaged} of the written videos were cut at a damaged frame: "
            f"{prefix}.damaged.csv"
        )
        return (
            f"{self.listed} listed = {self.written} written + {self.quarantined} quarantined"
            f"{reused}, {self.size / 2**20:.1f} MiB\nmanifest: {self.manifest}\n"
            f"quarantine, with reasons: {prefix}.quarantine.csv" + damaged * bool(self.damaged)
        )


def write_metadata(
    plan: ShardPlan, manifest: manifest_lib.Manifest, reports: Sequence[ShardReport], reused: int
) -> ShardSummary:
    """Checks that no row is missing, then writes all files next to the shards of a split.

    Raises:
      UserError: No video could be encoded.
      RuntimeError: The counts do not add up.
    """
    written = sum(len(report.written) for report in reports)
    quarantined = sum(len(report.quarantined) for report in reports)
    if written + quarantined != plan.rows:
        raise RuntimeError(
            f"the counts do not add up: {plan.rows} input rows, but {written} written and "
            f"{quarantined} quarantined"
        )
    out = epath.Path(plan.out)
    rows = [(name, reason) for report in reports for _, name, reason in report.quarantined]
    path = out / f"{plan.split}.quarantine.csv"
    write_text(path, csv_text.format_csv([("path", "reason"), *rows]))
    damaged = [(name, text) for report in reports for _, name, text in report.damaged]
    text = csv_text.format_csv([("path", "damage"), *damaged])
    write_text(out / f"{plan.split}.damaged.csv", text)
    if not written:
        reason, count = collections.Counter(reason for _, reason in rows).most_common(1)[0]
        raise UserError(
            f"none of {plan.rows} videos could be encoded ({count}: {reason}): see the reasons in "
            f"{path}"
        )
    size = sum(report.size for report in reports)
    lengths = {"lengths": [len(report.written) for report in reports], "size": size}
    write_text(_lengths_path(plan), json.dumps(lengths) + "\n")
    _write_dataset_info(plan)
    copy_class_names(plan.manifests, out / f"{plan.split}{class_names.CLASS_NAMES_SUFFIX}")
    path = out / f"{plan.split}.csv"
    write_text(path, _format_manifest(plan, manifest, reports))
    return ShardSummary(str(path), plan.rows, written, quarantined, size, reused, len(damaged))


def copy_class_names(manifests: Sequence[str], path: epath.Path) -> None:
    """Writes the class names of each label column to `path`.

    A column is left out if a manifest with this column has no class names, or other numbers. Names
    that an earlier command wrote are removed.
    """
    path.unlink(missing_ok=True)
    found, notes = [], []
    for name in manifests:
        if video_io.is_remote(name) or video_io.is_world(name):
            return
        columns = class_names.read_label_columns(name)
        found.append((columns, class_names.read_manifest_classes(name, columns, notes)))
    for note in notes:
        logging.warning("%s", note)
    merged, all_columns = {}, list(dict.fromkeys(c for columns, _ in found for c in columns))
    for column in all_columns:
        parts = [by_column.get(column) for columns, by_column in found if column in columns]
        if ids := _merge_names(parts, ", ".join(manifests)):
            merged[column] = ids
    if merged:
        write_text(path, class_names.format_class_names(merged, all_columns))


def _merge_names(parts: Sequence[dict[str, int] | None], manifests: str) -> dict[str, int] | None:
    """Returns the class ids of all parts; None if a part is missing or contradicts another one."""
    ids: dict[str, int] = {}
    for own in parts:
        if own is None:
            return None
        if conflict := class_names.describe_class_conflict(ids, own):
            logging.warning("%s number classes differently: %s", manifests, conflict)
            return None
        ids |= own
    return ids


def mark_incomplete(plan: ShardPlan) -> None:
    """Removes the files that mark a split as complete. Call it before a shard is changed."""
    (epath.Path(plan.out) / f"{plan.split}.csv").unlink(missing_ok=True)
    if _lengths_path(plan).exists():
        _lengths_path(plan).unlink()
        _write_dataset_info(plan)


def _lengths_path(plan: ShardPlan) -> epath.Path:
    """Returns the path of the file with the shard lengths of a complete split."""
    return epath.Path(plan.out) / REPORTS / f"{plan.split}.done.json"


def _format_manifest(
    plan: ShardPlan, manifest: manifest_lib.Manifest, reports: Sequence[ShardReport]
) -> str:
    columns = ("path", "record", "source", *plan.labels, *VIDEO_COLUMNS, "codec", *KEPT_COLUMNS)
    rows: list[Sequence[Any]] = [(*columns, "original", *ORIGINAL_TIMES)]
    texts = list(_read_texts(plan.manifests, (*KEPT_COLUMNS, "original")))
    _, times_n2 = name_originals(manifest)
    for index, report in enumerate(reports):
        shard = plan.shard_path(index).name
        # A retry appends records to a shard, but the manifest is in the order of the rows.
        for position, (row, *values) in sorted(enumerate(report.written), key=lambda e: e[1][0]):
            record = manifest[row]
            labels = (record.labels.get(name, -1) for name in plan.labels)
            *kept, original = texts[row]
            cells = (shard, position, record.source, *labels, *values, "h264", *kept)
            rows.append((*cells, *_describe_original(record, original, times_n2[row].tolist())))
    return csv_text.format_csv(rows)


def _read_texts(manifests: Sequence[str], columns: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Yields the cells of some columns in each row; "" for those that a manifest does not have."""
    for name in manifests:
        with video_io.open_text(name) as file:
            rows = csv.reader(csv_text.read_lines(file))
            header = next(rows)
            for cells in filter(None, rows):
                row = dict(zip(header, cells, strict=False))
                yield tuple(row.get(column, "") for column in columns)


def _describe_original(
    record: manifest_lib.VideoRecord, original: str, times: Sequence[float]
) -> tuple[str, float | None, float | None]:
    """Returns the file from which a record was made, and its start and end in that file.

    Args:
      record: The row from which the record was made, which may itself be a record.
      original: The file from which that record was made, or "".
      times: Start and end of the row in `original`, as in `copies.name_originals`.
    """
    if record.record is None or not original or math.isinf(times[0]):
        return record.name, record.start, record.end
    start, end = times
    return sanitize.redact_urls(original), start or None, None if math.isinf(end) else end


def _read_lengths(path: epath.Path) -> dict[str, Any]:
    """Reads the number of records of each shard and the size of a complete split.

    Raises:
      UserError: The file or its name is damaged.
    """
    advice = "remove it, and repeat the command for this split"
    found = read_json(path, advice)
    if not isinstance(found, dict) or not is_split(path.name.removesuffix(".done.json")):
        raise UserError(f"{path} does not describe a split: {advice}")
    fields = {"lengths": list_of(COUNT, "a list of integers that are at least 0"), "size": COUNT}
    check_fields(found, fields, f"{path}: ", advice, fields)
    return found


def is_split(name: str) -> bool:
    """Returns whether a split can have this name."""
    return re.fullmatch("[a-z][a-z0-9_]*", name) is not None


def _write_dataset_info(plan: ShardPlan) -> None:
    """Writes the metadata of all complete splits for `tfds.builder_from_directory`."""
    import tensorflow_datasets as tfds

    out = epath.Path(plan.out)
    identity = tfds.core.dataset_info.DatasetIdentity(
        name=DATASET, version=tfds.core.Version(VERSION), data_dir=plan.out, module_name=""
    )
    info = tfds.core.DatasetInfo(
        builder=identity,
        features=make_features(plan.labels),
        description="Videos re-encoded by prepare_data.py shards; `video` is an MP4 file.",
    )
    info.set_file_format("array_record")
    template = tfds.core.ShardedFileTemplate(
        data_dir=out, dataset_name=DATASET, filetype_suffix="array_record"
    )
    splits = []
    for path in sorted((out / REPORTS).glob("*.done.json")):
        lengths, split = _read_lengths(path), path.name.removesuffix(".done.json")
        splits.append(
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=lengths["lengths"],
                num_bytes=lengths["size"],
                filename_template=template.replace(split=split),
            )
        )
    info.set_splits(tfds.core.splits.SplitDict(splits))
    info.write_to_directory(plan.out)
