"""Captions of the videos of a manifest, and the candidates of multiple choice.

A file of captions is a JSON list, or one JSON object per line:

    {"video": "clips/a.mp4", "caption": "a dog runs"}                  or a list of captions
    {"video": "clips/a.mp4", "caption": [...], "answer": 3}            multiple choice

`video` is the path in the manifest relative to its folder, or the end of this path, with or without
the extension; see `video_rows`. A video in another folder is another video.

Shape key: j captions, b videos.
"""

import collections
import functools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from invnext_jax import json_file, regular_file
from invnext_jax.data import columns, video_io
from invnext_jax.data.manifest import LABEL_PREFIX, Manifest
from invnext_jax.errors import UserError
from invnext_jax.evaluation.truth.truth import SkippedEntries
from invnext_jax.evaluation.truth.video_rows import VideoRows
from invnext_jax.field_checks import is_text
from invnext_jax.synthetic_world import captions as world_captions
from invnext_jax.synthetic_world import files, urls
from invnext_jax.synthetic_world.spec import WorldSpec

MAX_BYTES = 2**30  # maximum size of a file with one object per line
# Maximum size of a JSON list. It is parsed as a whole, which needs several times more memory.
MAX_JSON_BYTES = 2**26
MAX_LINE_BYTES = 2**22
MAX_CAPTIONS = 2**24  # maximum number of captions of a file
MAX_CAPTIONS_PER_VIDEO = 2**10
ADVICE = 'write a JSON list of objects with "video", a path of the manifest, and "caption"'
CHOICES_ADVICE = (
    'write a JSON list of objects with "video", a path of the manifest, "caption", a list of '
    'candidates, and "answer", the position of the correct one'
)


class Captions(NamedTuple):
    """Captions of the videos of a manifest.

    Attributes:
      texts: The captions.
      row_j: Row of the video that each caption describes, int64.
      group_j: Captions with the same text have the same number, int64.
      skipped: Number of entries that are damaged or whose video is not in the manifest.
    """

    texts: list[str]
    row_j: np.ndarray
    group_j: np.ndarray
    skipped: int


class Choices(NamedTuple):
    """Candidate captions of videos.

    Attributes:
      row_b: Row of each video, int64.
      candidates: Candidates of each video.
      answer_b: Index of the correct candidate, int64.
      skipped: Number of entries that are damaged or whose video is not in the manifest.
    """

    row_b: np.ndarray
    candidates: list[list[str]]
    answer_b: np.ndarray
    skipped: int


def read_captions(path: str | os.PathLike, manifest: Manifest, *, join: bool = False) -> Captions:
    """Reads the captions of the videos of a manifest. Damaged entries are logged and skipped.

    Args:
      path: JSON file, or ".jsonl".
      manifest: The videos.
      join: Whether all captions of a video are joined into one text, as in paragraph retrieval on
          ActivityNet and DiDeMo. They may be in one entry or in several.

    Raises:
      UserError: The file cannot be read, no entry describes a video of the manifest, or entries
          describe segments of videos and are not joined.
    """

    def parse(entry: dict[str, Any]) -> list[str]:
        texts = entry["caption"]
        return _check_texts([texts] if isinstance(texts, str) else texts)

    found, skipped = _read_entries(path, manifest, parse, ADVICE, segments=join)
    if join:
        texts_of_row = collections.defaultdict(list)
        for row, texts in found:
            texts_of_row[row] += texts
        found = [(row, [" ".join(texts)]) for row, texts in texts_of_row.items()]
    rows_j = np.repeat([row for row, _ in found], [len(texts) for _, texts in found])
    return make_captions([text for _, texts in found for text in texts], rows_j, skipped)


def read_choices(path: str | os.PathLike, manifest: Manifest) -> Choices:
    """Reads the candidates of multiple choice. Damaged entries are logged and skipped.

    Equal texts of an entry are one candidate.

    Raises:
      UserError: The file cannot be read, or no entry describes a video of the manifest.
    """

    def parse(entry: dict[str, Any]) -> tuple[list[str], int]:
        texts, answer = _check_texts(entry["caption"]), entry["answer"]
        if type(answer) is not int or not 0 <= answer < len(texts):
            raise ValueError(f"the answer {answer!r} is not one of {len(texts)} candidates")
        candidates = list(dict.fromkeys(texts))
        return candidates, candidates.index(texts[answer])

    found, skipped = _read_entries(path, manifest, parse, CHOICES_ADVICE)
    return Choices(
        row_b=np.array([row for row, _ in found], np.int64),
        candidates=[texts for _, (texts, _) in found],
        answer_b=np.array([answer for _, (_, answer) in found], np.int64),
        skipped=skipped,
    )


def describe_world(manifest: Manifest) -> Captions:
    """Returns the video-level caption of each clip of a rendered or written world.

    Raises:
      UserError: A row is not a clip of a world.
    """
    texts = [
        world_captions.video_caption(find_level(path), _world_labels(manifest, row)).text
        for row, path in enumerate(manifest.paths)
    ]
    return make_captions(texts, np.arange(len(texts)), 0)


def make_world_choices(manifest: Manifest, task: str = "motion") -> Choices:
    """Makes a multiple choice for each clip of a world.

    The candidates are the video-level captions with all classes of a task. They differ only in this
    attribute, so the correct one can only be found by an encoder that represents the attribute.

    Args:
      manifest: The clips.
      task: "motion", "color" or another attribute of the video-level captions.

    Raises:
      UserError: A row is not a clip of a world, or its captions do not mention the task.
    """
    candidates, answers = [], []
    for row, path in enumerate(manifest.paths):
        level, labels = find_level(path), _world_labels(manifest, row)
        if task not in world_captions.video_caption(level, labels).attributes:
            raise UserError(f"the captions of the world level {level!r} do not mention {task!r}")
        classes = range(len(WorldSpec(level=level).classes[task]))
        captions = (world_captions.video_caption(level, {**labels, task: c}) for c in classes)
        candidates.append([caption.text for caption in captions])
        answers.append(labels[task])
    rows = np.arange(len(answers), dtype=np.int64)
    return Choices(rows, candidates, np.array(answers, np.int64), 0)


def _world_labels(manifest: Manifest, row: int) -> dict[str, int]:
    labels = manifest.labels.items()
    return {name.removeprefix(LABEL_PREFIX): int(values[row]) for name, values in labels}


def is_world_clip(path: str) -> bool:
    """Returns whether a video is a clip of a synthetic world, rendered or read from a file."""
    return video_io.is_world(path) or os.path.isfile(Path(path).parent.parent / "spec.json")


def find_level(path: str) -> str:
    """Returns the level of the world of a rendered or written clip.

    Raises:
      UserError: The video is not a clip of a world.
    """
    if video_io.is_world(path):
        return _level_of_url(path.rpartition("#")[0])
    return _level_of_folder(Path(path).parent.parent)


@functools.lru_cache(maxsize=16)
def _level_of_url(name: str) -> str:
    return urls.parse(name).spec.level


@functools.lru_cache(maxsize=16)
def _level_of_folder(folder: Path) -> str:
    if not os.path.isfile(folder / "spec.json"):
        raise UserError(
            f"{folder} is not a world that launch/make_world.py wrote: it has no spec.json"
        )
    return files.read_spec(folder, "train").level


def make_captions(texts: list[str], row_j: np.ndarray, skipped: int) -> Captions:
    """Returns captions, with equal numbers `group_j` for equal texts."""
    _, group_j = np.unique(np.array(texts, dtype=object), return_inverse=True)
    return Captions(texts, row_j.astype(np.int64), group_j.astype(np.int64), skipped)


def _check_texts(texts: Any) -> list[str]:
    if not isinstance(texts, list) or not texts:
        raise ValueError("the caption is neither text nor a list of texts")
    if not all(is_text(text) and text.strip() for text in texts):
        raise ValueError("a caption is empty or not text")
    return texts


def _read_entries(
    path, manifest: Manifest, parse: Callable, advice: str, *, segments: bool = False
) -> tuple[list[tuple[int, Any]], int]:
    """Returns (row, parsed entry) of each valid entry, in the order of the file.

    Entries with a start or end are refused unless `segments` is set.
    """
    rows, found, skipped = VideoRows(manifest), [], SkippedEntries(path)
    counts, total = collections.Counter(), 0
    for number, entry in enumerate(_load(path, advice), start=1):
        if isinstance(entry, dict) and not segments:
            columns.refuse_segments(f"captions {path}", entry)
        try:
            if not isinstance(entry, dict):
                raise ValueError("it is not a JSON object")
            video = str(entry["video"])
            row = rows.find(video)
            if row is None:
                raise ValueError(f"{video!r} is not in the manifest, or is ambiguous")
            count = len(entry["caption"]) if isinstance(entry["caption"], list) else 1
            if counts[row] + count > MAX_CAPTIONS_PER_VIDEO:
                raise ValueError(f"{video!r} has more than {MAX_CAPTIONS_PER_VIDEO} captions")
            found.append((row, parse(entry)))
            counts[row], total = counts[row] + count, total + count
        except KeyError as error:
            skipped.add(f"entry {number}", f"it has no field {error}")
        except ValueError as error:
            skipped.add(f"entry {number}", error)
        if total > MAX_CAPTIONS:
            raise UserError(f"{path} has more than {MAX_CAPTIONS} captions: split the file")
    if not found:
        raise UserError(
            f"{path} has no valid entry for {manifest.file} ({skipped.reason}): {advice}"
        )
    return found, skipped.count


def _load(path: str | os.PathLike, advice: str) -> Iterator[Any]:
    if not os.fspath(path).endswith(".jsonl"):
        content = json_file.read_value(path, advice, MAX_JSON_BYTES)
        if not isinstance(content, list):
            raise UserError(f"{path} does not contain a JSON list: {advice}")
        yield from content
        return
    try:
        with regular_file.open_binary(path, MAX_BYTES) as file:
            while line := file.readline(MAX_LINE_BYTES):
                if line.strip():
                    yield _parse(line)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}): {advice}") from error


def _parse(line: bytes) -> Any:
    """Returns the value of a line, or None (a damaged entry) if the line is not JSON."""
    try:
        return json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None
