"""Action anticipation on EPIC-KITCHENS-100: clips that end before an action starts.

    <root>/EPIC_100_train.csv, <root>/EPIC_100_validation.csv      the annotations
    <videos>/<participant>/videos/<video>.MP4                      the videos

The clips become rows of a manifest with `start` and `end`, so that the usual input pipeline reads
them.

Shape key: b actions.
"""

import csv
import io
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from invnext_jax import atomic_file, csv_text, regular_file
from invnext_jax.data import columns
from invnext_jax.errors import UserError
from invnext_jax.evaluation.truth.truth import SkippedEntries

VERBS, NOUNS = 97, 300
SOURCE = "epic_kitchens"
COLUMNS = ("video_id", "verb_class", "noun_class")
TIMES = ("start_timestamp", "stop_timestamp")
FRAMES = ("start_frame", "stop_frame")
MAX_BYTES = 2**28  # maximum size of an annotation file; the official ones have 14 MB
MAX_NAME = 200  # characters of a video's name, which becomes a file name
MIN_SECONDS = 0.05  # minimum end time of a context, so that it contains the first frames


class Annotations(NamedTuple):
    """The annotated actions of a split.

    Attributes:
      videos: Name of the video of each action.
      start_b: Start of the action in seconds, float64.
      stop_b: End of the action in seconds, float64.
      verb_b: Class of the verb, int32.
      noun_b: Class of the noun, int32.
      skipped: Number of skipped rows, which are damaged or have an unknown class.
    """

    videos: list[str]
    start_b: np.ndarray
    stop_b: np.ndarray
    verb_b: np.ndarray
    noun_b: np.ndarray
    skipped: int


def read_annotations(path: str | os.PathLike, fps: float | None = None) -> Annotations:
    """Reads an annotation file. Damaged rows and unknown classes are logged and skipped.

    Args:
      path: CSV file with `video_id`, `verb_class`, `noun_class`, and times in the columns
          `start_timestamp` and `stop_timestamp`, or frames in `start_frame` and `stop_frame`.
      fps: Frames per second, used only if the file has no time stamps.

    Raises:
      UserError: The file cannot be read, a column is missing, or no row is valid.
    """
    rows, skipped = [], SkippedEntries(path)
    for line, names, cells in _read_rows(path, fps):
        try:
            csv_text.check_cells("the row", cells, names)
            rows.append(_parse_row(dict(zip(names, cells, strict=False)), fps))
        except (TypeError, ValueError, KeyError, OverflowError) as error:
            skipped.add(f"line {line}", error)
    if not rows:
        raise UserError(
            f"{path} has no valid action ({skipped.reason}): download the annotations again"
        )
    videos, start, stop, verb, noun = zip(*rows, strict=True)
    return Annotations(
        list(videos),
        np.array(start, np.float64),
        np.array(stop, np.float64),
        np.array(verb, np.int32),
        np.array(noun, np.int32),
        skipped.count,
    )


def action_classes(train: Annotations) -> dict[tuple[int, int], int]:
    """Returns the action class, from 0, of each (verb, noun) pair in the training split."""
    pairs = sorted(set(zip(train.verb_b.tolist(), train.noun_b.tolist(), strict=True)))
    return {pair: number for number, pair in enumerate(pairs)}


def action_labels(annotations: Annotations, classes: Mapping[tuple[int, int], int]) -> np.ndarray:
    """Returns the action class of each action, int32 [b]; -1 for pairs not in `classes`."""
    pairs = zip(annotations.verb_b.tolist(), annotations.noun_b.tolist(), strict=True)
    return np.array([classes.get(pair, -1) for pair in pairs], np.int32)


def clip_times(
    start_b: np.ndarray,
    stop_b: np.ndarray,
    *,
    context: float = 4.0,
    anticipation: float = 1.0,
    point: float = 0.0,
    from_end: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Computes the start and end times of the context of each action.

    The context ends `anticipation` seconds before the anticipated moment, which the official
    protocol places at the start of the action. For training, it may also be inside the action.

    Args:
      start_b: Start of the actions in seconds.
      stop_b: End of the actions in seconds.
      context: Length of the context in seconds.
      anticipation: Time between the end of the context and the moment in seconds.
      point: Position of the moment in the action, from 0 (start) to 1 (end).
      from_end: Whether `point` is measured from the end of the action instead. The released
          evaluation code of V-JEPA 2 does this, so that its clips with `point` = 0 end near the
          end of the action.

    Returns:
      Start and end in seconds, each float64 [b], not before the start of the video.
    """
    share = 1 - point if from_end else point
    moment_b = (1 - share) * start_b + share * stop_b
    end_b = np.maximum(moment_b - anticipation, MIN_SECONDS)
    return np.maximum(end_b - context, 0.0), end_b


def write_manifests(
    root: str | os.PathLike,
    videos: str | os.PathLike,
    out_dir: str | os.PathLike,
    *,
    fps: float | None = None,
    **times,
) -> dict[str, Path]:
    """Writes the manifests `train.csv` and `val.csv` of anticipation clips.

    The columns are those of any manifest, with the labels `label_verb`, `label_noun` and
    `label_action`. Actions of the validation split without training videos have the label -1.

    Args:
      root: Folder of the annotations.
      videos: Folder of the participants.
      out_dir: Output folder.
      fps: See `read_annotations`.
      **times: Options of `clip_times`.

    Returns:
      The manifest of each split.

    Raises:
      UserError: The annotations cannot be read, or `videos` does not exist.
    """
    root, videos, out_dir = Path(root), Path(videos), Path(out_dir)
    if not os.path.isdir(videos):
        raise UserError(f"{videos} does not exist: use the folder with <participant>/videos")
    names = {"train": "EPIC_100_train.csv", "val": "EPIC_100_validation.csv"}
    parts = {split: read_annotations(root / name, fps) for split, name in names.items()}
    classes, found = action_classes(parts["train"]), {}
    for split, part in parts.items():
        start_b, end_b = clip_times(part.start_b, part.stop_b, **times)
        labels = part.verb_b, part.noun_b, action_labels(part, classes)
        table = io.StringIO()
        # The csv module does not quote a lone carriage return, which may be in the folder's name.
        quoting = csv.QUOTE_ALL if "\r" in os.path.abspath(videos) else csv.QUOTE_MINIMAL
        writer = csv.writer(table, lineterminator="\n", quoting=quoting)
        tasks = ("verb", "noun", "action")
        writer.writerow(["path", "source", "start", "end", *(f"label_{task}" for task in tasks)])
        for row, name in enumerate(part.videos):
            path = os.path.abspath(videos / name.partition("_")[0] / "videos" / f"{name}.MP4")
            span = f"{start_b[row]:.3f}", f"{end_b[row]:.3f}"
            writer.writerow([path, SOURCE, *span, *(int(label_b[row]) for label_b in labels)])
        found[split] = out_dir / f"{split}.csv"
        atomic_file.write_text(found[split], table.getvalue())
    return found


def _read_rows(
    path: str | os.PathLike, fps: float | None
) -> Iterator[tuple[int, list[str], list[str]]]:
    """Yields the line number, the names of the columns, and the cells of each row."""
    try:
        with (
            regular_file.open_binary(path, MAX_BYTES) as source,
            io.TextIOWrapper(source, encoding="utf-8-sig", newline="") as file,
        ):
            rows = csv.reader(csv_text.read_lines(file))
            names = next(rows, [])
            _check_columns(path, names, fps)
            for cells in filter(None, rows):
                yield rows.line_num, names, cells
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path} cannot be read ({reason}): download the annotations") from error


def _check_columns(path: str | os.PathLike, names: Sequence[str], fps: float | None) -> None:
    columns.check_count(os.fspath(path), names)
    csv_text.check_repeated(os.fspath(path), names)
    needed = [*COLUMNS, *(FRAMES if fps else TIMES)]
    if set(FRAMES) <= set(names) and set(TIMES) <= set(names):
        needed = COLUMNS
    if missing := [name for name in needed if name not in names]:
        raise UserError(
            f"{path} has no column {missing[0]!r}: use EPIC_100_*.csv, or set --fps if the "
            "file has frame numbers only"
        )


def _parse_row(row: Mapping[str, str], fps: float | None) -> tuple[str, float, float, int, int]:
    verb, noun = int(row["verb_class"]), int(row["noun_class"])
    if not 0 <= verb < VERBS or not 0 <= noun < NOUNS:
        raise ValueError(f"the class (verb {verb}, noun {noun}) is unknown")
    if row.get(TIMES[0]):
        start, stop = (_parse_time(row[name]) for name in TIMES)
    elif fps:
        start, stop = (int(row[name]) / fps for name in FRAMES)
    else:
        raise ValueError("the row has no time stamps")
    video = row["video_id"]
    # A name such as ".._1" would lead to the folder above that of the participants.
    is_name = 0 < len(video) <= MAX_NAME and "/" not in video and not video.startswith(".")
    if not is_name or not video.isprintable():
        raise ValueError(f"{video[:MAX_NAME]!r} is not the name of a video")
    if not 0 <= start < stop:
        raise ValueError(f"video {video!r} has no action from {start} s to {stop} s")
    return video, start, stop, verb, noun


def _parse_time(text: str) -> float:
    """Converts "hours:minutes:seconds" to seconds."""
    hours, minutes, seconds = (float(part) for part in text.split(":"))
    total = 3600 * hours + 60 * minutes + seconds
    if not math.isfinite(total):
        raise ValueError(f"the time {text!r} is not finite")
    return total
