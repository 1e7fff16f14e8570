"""Builds a manifest for an existing TFDS data set in ArrayRecord format, without copying videos.

One feature of the data set must contain encoded videos as bytes. Labels are `ClassLabel` features
and integer scalars named `label_<task>`.
"""

import contextlib
import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import logging
from etils import epath

from invnext_jax import csv_text
from invnext_jax.data import class_names, decode, shards
from invnext_jax.data import columns as columns_lib
from invnext_jax.dataset_prep import csv_files, indexing, tfds_metadata
from invnext_jax.dataset_prep.reencode import VIDEO_COLUMNS
from invnext_jax.dataset_prep.shard_files import write_text
from invnext_jax.dataset_prep.shard_writer import DATASET
from invnext_jax.dataset_prep.tfds_metadata import Feature
from invnext_jax.dataset_prep.worker_map import WorkerFailure, map_in_workers
from invnext_jax.errors import UserError
from invnext_jax.monitoring.progress import ProgressMeter


@dataclasses.dataclass(frozen=True)
class TfdsIndexSummary:
    """Counts of records; `listed` is the sum of `clean` and `quarantined`."""

    manifest: Path
    listed: int
    clean: int
    quarantined: int

    def __str__(self) -> str:
        quarantine = indexing.sidecar_path(self.manifest, "quarantine")
        return (
            f"{self.listed} records = {self.clean} clean + {self.quarantined} quarantined\n"
            f"manifest: {self.manifest}\nquarantine, with reasons: {quarantine}"
        )


def is_tfds_dataset(folder: str | os.PathLike) -> bool:
    """Returns whether a folder contains a TFDS data set."""
    return os.path.isfile(os.path.join(folder, tfds_metadata.INFO))


def index_dataset(
    folder: str | os.PathLike,
    out: str | os.PathLike,
    *,
    split: str = "",
    feature: str = "",
    source: str = "",
    options: indexing.IndexOptions | None = None,
) -> TfdsIndexSummary:
    """Opens the video of every record once and writes the manifest of the good ones.

    Args:
      folder: Folder of the data set, with dataset_info.json.
      out: The CSV file to write.
      split: Name of the split. "" selects the only split.
      feature: Name of the video feature. "" selects the longest bytes value of each record.
      source: Name of the data set in the manifest. "" selects its TFDS name.
      options: Options for probing the records.

    Raises:
      UserError: The metadata is damaged; the data set has a different file format, lacks the
          split or feature, or has no good video; or `out` exists with different content.
    """
    options, out = options or indexing.IndexOptions(), Path(out)
    indexing.check_options(options, out)
    info = tfds_metadata.read_metadata(folder, split)
    if feature and feature not in info.features:
        raise UserError(
            f"{folder} has no feature {feature!r}: set --feature to one of "
            f"{', '.join(info.features)}"
        )
    written = os.path.join(folder, f"{info.split}.csv")
    if info.name == DATASET and os.path.isfile(written):
        logging.warning(
            "%s is the manifest of these shards. Use it instead of %s, which will not say from "
            "which files the records were made, so that copies of them are not found.",
            written,
            out,
        )
    label_columns = _label_columns(info.features)
    records = [(file, i) for file, length in info.shards for i in range(length)]
    good, bad = _probe_records(records, RecordProbe(feature, tuple(label_columns)), options)
    quarantine = indexing.sidecar_path(out, "quarantine")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(epath.Path(quarantine), csv_text.format_csv([("path", "reason"), *bad]))
    if not good:
        raise UserError(
            f"none of {len(records)} records contains a good video: see the reasons in {quarantine}"
        )
    header = ("path", "record", "source", *label_columns.values(), *VIDEO_COLUMNS)
    rows = ((*record, source or info.name, *values) for record, values in good)
    text = csv_text.format_csv([header, *rows])
    texts = {out: text}
    if names := _class_ids(folder, info.features):
        content = class_names.format_class_names(names, label_columns.values())
        texts[Path(class_names.class_names_path(out))] = content
    csv_files.check_overwrite(out, text, options.overwrite)
    csv_files.check_class_names(out, texts)
    for path, content in reversed(texts.items()):  # the manifest marks a complete run
        write_text(epath.Path(path), content)
    return TfdsIndexSummary(out, len(records), len(good), len(bad))


def _label_columns(features: Mapping[str, Feature]) -> dict[str, str]:
    """Returns a dict from the name of each label feature to its column in the manifest."""
    columns = {}
    for name, feature in features.items():
        if feature.class_label:
            columns[name] = columns_lib.LABEL_PREFIX + name.removeprefix(columns_lib.LABEL_PREFIX)
        elif name.startswith(columns_lib.LABEL_PREFIX):
            if feature.integer:
                columns[name] = name
            else:
                logging.warning("feature %r is ignored: it is not an integer scalar", name)
    return columns


def _class_ids(
    folder: str | os.PathLike, features: Mapping[str, Feature]
) -> dict[str, dict[str, int]]:
    """Returns the class ids by name of the column of each `ClassLabel` that has names."""
    found = {}
    for feature, column in _label_columns(features).items():
        is_class = features[feature].class_label
        names = tfds_metadata.read_class_names(folder, feature) if is_class else []
        if any(name != str(number) for number, name in enumerate(names)):
            found[column] = {name: number for number, name in enumerate(names)}
    return found


@dataclasses.dataclass(frozen=True)
class RecordProbe:
    """Probes one record. It is called in worker processes."""

    feature: str
    labels: tuple[str, ...]

    def __call__(self, path: str, record: int) -> dict[str, Any]:
        """Returns a dict with `row` (labels and video columns), or with `reason` if it is bad."""
        try:
            data = shards.read_video(path, record)
            example = shards.read_example(path, record)
            if self.feature and example.get(self.feature) != data:
                return {"reason": f"feature {self.feature!r} is not the longest bytes feature"}
            with decode.open_video(data) as video:
                values = _video_columns(video)
        except decode.BadVideo as error:
            return {"reason": str(error).partition(": ")[2]}
        except (ValueError, ArithmeticError, MemoryError) as error:  # caused by damaged headers
            return {"reason": f"{type(error).__name__}: {error}"}
        labels = {name: example.get(name) for name in self.labels}
        for name, label in labels.items():
            if not isinstance(label, list) or len(label) != 1:
                return {"reason": f"the record has no label {name!r}"}
            if not columns_lib.is_class_id(label[0]):
                return {"reason": f"label {name!r} is {label[0]}, which is not a class number"}
        return {"row": [*(int(label[0]) for label in labels.values()), *values]}

    def is_valid(self, result: Any, path: str, record: int) -> bool:
        """Returns whether a worker's result has the structure that `__call__` returns."""
        del path, record
        if not isinstance(result, dict) or len(result) != 1:
            return False
        if "reason" in result:
            return isinstance(result["reason"], str)
        row, count = result.get("row"), len(self.labels)
        return (
            isinstance(row, list)
            and len(row) == count + len(VIDEO_COLUMNS)
            and all(type(n) is int and columns_lib.is_class_id(n) for n in row[:count])
            and all(type(n) in (int, float) and 0 < n <= columns_lib.MAX_CLASS for n in row[count:])
        )


def _video_columns(video: decode.VideoReader) -> list[Any]:
    """Returns the values of `VIDEO_COLUMNS`. Decodes the first frame."""
    *_, (_, frame) = video.frames([0])
    times = video.times
    span = times[len(times) - 1]
    fps = (len(times) - 1) / span if span > 0 else times.fps
    return [len(times), frame.width, frame.height, round(fps, 3), round(span + 1 / fps, 3)]


def _probe_records(
    records: list[tuple[str, int]], probe: RecordProbe, options: indexing.IndexOptions
) -> tuple[list[tuple[tuple[str, int], list[Any]]], list[tuple[str, str]]]:
    """Returns the good records with their rows, and the names of bad records with reasons."""
    good, bad = [], []
    results = map_in_workers(
        probe,
        records,
        workers=options.workers,
        timeout=options.timeout,
        ahead=len(records),  # results are small, and a slow record must not delay the others
    )
    with (
        contextlib.closing(results),
        ProgressMeter(len(records), "record", quiet=not options.progress) as meter,
    ):
        for done, (record, result) in enumerate(zip(records, results, strict=True), start=1):
            if isinstance(result, WorkerFailure):
                result = {"reason": result.reason}
            if "row" in result:
                good.append((record, result["row"]))
            else:
                bad.append((shards.name_video(*record), result["reason"]))
                logging.warning("%s: %s", *bad[-1])
            meter.update(done)
    return good, bad
