"""A manifest of a TFDS data set of ArrayRecord files that others made; the videos stay in it.

One of its features must hold encoded videos as bytes; labels are the `ClassLabel` features and the
scalars of whole numbers called `label_<task>`.
"""

import dataclasses
import functools
import os
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from etils import epath

from invnext_jax.data import decode, shards
from invnext_jax.data.manifest import LABEL_PREFIX, LABELS
from invnext_jax.data.worker_pool import OrderedPool
from invnext_jax.data.workers import ProcessWorker, TimeLimitError, WorkerDiedError
from invnext_jax.dataset_prep import indexing
from invnext_jax.dataset_prep.shard_writer import FACTS, write_text
from invnext_jax.errors import UserError
from invnext_jax.monitoring.progress_meter import ProgressMeter


@dataclasses.dataclass(frozen=True)
class TfdsIndexSummary:
    """What became of the records; `listed` is the sum of `clean` and `quarantined`."""

    manifest: Path
    listed: int
    clean: int
    quarantined: int

    def __str__(self) -> str:
        return (
            f"{self.listed} records = {self.clean} clean + {self.quarantined} quarantined\n"
            f"manifest: {self.manifest}\nquarantine, with reasons: {_quarantine(self.manifest)}"
        )


def is_dataset(folder: str | os.PathLike) -> bool:
    """Whether TFDS made the folder."""
    return os.path.isfile(os.path.join(folder, "dataset_info.json"))


def index_dataset(
    folder: str | os.PathLike,
    out: str | os.PathLike,
    *,
    split: str = "",
    feature: str = "",
    source: str = "",
    options: indexing.IndexOptions | None = None,
) -> TfdsIndexSummary:
    """Opens the video of every record, once, and writes the manifest of those that are good.

    Args:
        folder: The data set's folder, with dataset_info.json.
        out: The CSV file to write.
        split: Which split; "" is the only one.
        feature: Which feature holds the videos; "" is the longest one of bytes.
        source: Name of the data set; "" is TFDS's.
        options: How the records are probed.

    Raises:
        UserError: The data set has another format, no such split or feature, or no good video; or
            `out` is there with other content.
    """
    import tensorflow_datasets as tfds

    options, out = options or indexing.IndexOptions(), Path(out)
    if out.suffix != ".csv" or options.workers < 1 or options.seconds <= 0:
        raise UserError("--out must name a .csv file, --workers and --seconds be above 0")
    info = tfds.builder_from_directory(os.path.abspath(folder)).info
    if info.file_format.value != "array_record":
        raise UserError(
            f"{folder} holds {info.file_format.value} files, which cannot be read in any order: "
            "make it with TFDS's file_format='array_record'"
        )
    split = split or (next(iter(info.splits)) if len(info.splits) == 1 else "")
    if split not in info.splits:
        raise UserError(f"{folder} has the splits {', '.join(info.splits)}: name one by --split")
    if feature and feature not in info.features:
        raise UserError(f"{folder} has no feature {feature!r}, but {', '.join(info.features)}")
    names = _choose_labels(info.features)
    about = info.splits[split]
    files = zip(about.filepaths, about.shard_lengths, strict=True)
    places = [(os.fspath(file), i) for file, length in files for i in range(length)]
    rows, bad = _probe(places, RecordProbe(feature, tuple(names)), options)
    path = _quarantine(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(epath.Path(path), indexing.csv_text([("path", "reason"), *bad]))
    if not rows:
        raise UserError(f"none of {len(places)} records holds a good video, {path} tells why")
    header = ("path", "record", "source", *names.values(), *FACTS)
    text = indexing.csv_text(
        [header, *((*place, source or info.name, *facts) for place, facts in rows)]
    )
    if not options.overwrite and out.exists() and out.read_text(encoding="utf-8") != text:
        raise UserError(f"{out} exists and has other content: give --overwrite to replace it")
    write_text(epath.Path(out), text)
    return TfdsIndexSummary(out, len(places), len(rows), len(bad))


def _choose_labels(features) -> dict[str, str]:
    """The manifest's columns by the names of the features that are labels."""
    import tensorflow_datasets as tfds

    names = {}
    for name, kind in features.items():
        if isinstance(kind, tfds.features.ClassLabel):
            names[name] = LABEL_PREFIX + name.removeprefix(LABEL_PREFIX)
        elif name.startswith(LABEL_PREFIX):
            scalar = isinstance(kind, tfds.features.Tensor) and kind.shape == ()
            if scalar and np.issubdtype(kind.np_dtype, np.integer):
                names[name] = name
            else:
                logging.warning("feature %r is left out: it is not one whole number", name)
    return names


def _quarantine(manifest: Path) -> Path:
    return manifest.with_name(f"{manifest.stem}.quarantine.csv")


@dataclasses.dataclass(frozen=True)
class RecordProbe:
    """Looks at one record after the other; worker processes call it."""

    feature: str
    labels: tuple[str, ...]

    def __call__(self, path: str, record: int) -> dict[str, Any]:
        """The record's labels and facts, or the reason why it is of no use."""
        try:
            data = shards.read_video(path, record)
            example = shards.read_example(path, record)
            if self.feature and example.get(self.feature) != data:
                return {"reason": f"feature {self.feature!r} is not the longest one of bytes"}
            with decode.open_video(data) as video:
                facts = _measure(video)
        except decode.BadVideo as error:
            return {"reason": str(error).partition(": ")[2]}
        except (ValueError, ArithmeticError, MemoryError) as error:  # of odd headers
            return {"reason": f"{type(error).__name__}: {error}"}
        labels = {name: example.get(name) for name in self.labels}
        for name, found in labels.items():
            if not isinstance(found, list) or len(found) != 1:
                return {"reason": f"the record has no label {name!r}"}
            if not LABELS.min <= found[0] <= LABELS.max:
                return {"reason": f"label {name!r} is {found[0]}, beyond 32 bits"}
        return {"row": [*(int(found[0]) for found in labels.values()), *facts]}


def _measure(video: decode.VideoReader) -> list[Any]:
    *_, (_, frame) = video.frames([0])
    times = video.times
    span = times[len(times) - 1]
    fps = (len(times) - 1) / span if span > 0 else times.fps
    return [len(times), frame.width, frame.height, round(fps, 3), round(span + 1 / fps, 3)]


def _probe(places: list[tuple[str, int]], probe: RecordProbe, options: indexing.IndexOptions):
    rows, bad = [], []

    def look(index: int, call) -> dict[str, Any]:
        if index >= len(places):  # the pool looks ahead
            return {}
        try:
            return call(*places[index])
        except TimeLimitError:
            return {"reason": f"no answer in {options.seconds:g} seconds"}
        except WorkerDiedError:
            return {"reason": "the decoder crashed twice"}

    workers = min(options.workers, len(places)) or 1
    pool = OrderedPool(
        look,
        functools.partial(ProcessWorker, probe),
        workers=workers,
        ahead=2 * workers,
        timeout=options.seconds,
    )
    try:
        with ProgressMeter(len(places), "record", quiet=not options.progress) as meter:
            for done, place in enumerate(places, start=1):
                made = pool.next_result()
                if "row" in made:
                    rows.append((place, made["row"]))
                else:
                    bad.append((shards.name_video(*place), made["reason"]))
                    logging.warning("%s: %s", *bad[-1])
                meter.update(done)
    finally:
        pool.close()
    return rows, bad
