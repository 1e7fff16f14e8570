"""Builds a manifest: probes every listed video, keeps the good ones and quarantines the others.

    <out>.csv                  the manifest: path, source, start, end, label_<task>, probed columns
    <out>.quarantine.csv       path, reason: videos that are not in the manifest
    <out>.duplicates.csv       path, same_as: files with the same content as an earlier one
    <out>.classes.json         class ids by name, if the list has class names
    <out>.probes.jsonl         probe results per file, for resuming a run

All files except the last are written atomically at the end.
"""

import collections
import contextlib
import csv
import dataclasses
import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from invnext_jax import atomic_file
from invnext_jax.dataset_prep import lists, probe_cache, probing
from invnext_jax.dataset_prep.lists import VideoEntry
from invnext_jax.dataset_prep.probing import ProbeFailure, VideoProbe
from invnext_jax.errors import UserError
from invnext_jax.monitoring.progress_meter import ProgressMeter

# A file is considered trimmed if it is at most this much longer than its window.
TRIM_TOLERANCE_SECONDS = 1.0
PROBE_COLUMNS = ("duration", "frames", "width", "height", "fps", "codec", "rotation")


@dataclasses.dataclass(frozen=True)
class IndexOptions:
    """Options for probing files.

    Attributes:
        workers: Number of processes.
        timeout: Time limit per file in seconds.
        overwrite: Whether a manifest with different content may be replaced.
        progress: Whether to show progress: a bar on a terminal, plain lines otherwise.
    """

    workers: int = 1
    timeout: float = 60.0
    overwrite: bool = False
    progress: bool = True


@dataclasses.dataclass(frozen=True)
class IndexSummary:
    """Numbers of videos in the list; `listed` is the sum of `clean` and `quarantined`."""

    manifest: Path
    listed: int
    clean: int
    quarantined: int
    duplicates: int
    reused: int

    def __str__(self) -> str:
        reused = f" ({self.reused} files known from an earlier run)" if self.reused else ""
        lines = [
            f"{self.listed} listed = {self.clean} clean + {self.quarantined} quarantined{reused}",
            f"manifest: {self.manifest}",
            f"quarantine, with reasons: {sidecar_path(self.manifest, 'quarantine')}",
        ]
        if self.duplicates:
            path = sidecar_path(self.manifest, "duplicates")
            lines.append(f"{self.duplicates} clean files are copies of others: {path}")
        return "\n".join(lines)


def build_manifest(
    list_path: str | os.PathLike,
    out: str | os.PathLike,
    list_options: lists.ListOptions | None = None,
    options: IndexOptions | None = None,
    probe=probing.probe_video,
) -> IndexSummary:
    """Probes all videos of a folder or list and writes their manifest.

    An interrupted call resumes when it is repeated.

    Args:
        list_path: Folder or list; see `lists`.
        out: The CSV file to write.
        list_options: Options for reading the list.
        options: Options for probing the files.
        probe: Function that probes one file; runs in worker processes.

    Raises:
        UserError: The list cannot be read, no video is good, another run is writing the same
            manifest, or a manifest with different content exists.
    """
    list_options, options = list_options or lists.ListOptions(), options or IndexOptions()
    out = Path(out)
    check_options(options, out)
    if out.exists() and Path(list_path).exists() and out.samefile(list_path):
        raise UserError(f"--out={out} is the list itself: name another file")
    videos = lists.read_list(list_path, list_options)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the folder of --out={out} cannot be created: {error}") from error
    with probe_cache.ProbeCache(sidecar_path(out, "probes", "jsonl")) as cache:
        files = dict.fromkeys(entry.path for entry in videos.entries if not entry.problem)
        results = {path: cache.get(path, options.timeout) for path in files}
        pending = [path for path, result in results.items() if result is None]
        reused = len(files) - len(pending)
        known_bad = sum(isinstance(result, ProbeFailure) for result in results.values())
        for path, result in _probe_with_progress(pending, reused, known_bad, options, probe):
            cache.put(path, result)
            results[path] = result
    return _write_outputs(videos, results, out, options.overwrite, reused)


def check_options(options: IndexOptions, out: Path) -> None:
    """Checks the options and that the output is a CSV file; raises `UserError` otherwise."""
    if options.workers < 1 or options.timeout <= 0:
        raise UserError(
            f"--workers={options.workers} and --seconds={options.timeout} must be above 0"
        )
    if out.suffix != ".csv" or out.is_dir():
        raise UserError(f"--out={out} must name a .csv file")


def sidecar_path(manifest: Path, name: str, suffix: str = "csv") -> Path:
    """Returns the path of another output file of the manifest."""
    return manifest.with_name(f"{manifest.stem}.{name}.{suffix}")


def _probe_with_progress(
    pending: Sequence[str], reused: int, bad: int, options: IndexOptions, probe
) -> Iterator[tuple[str, VideoProbe | ProbeFailure]]:
    results = probing.probe_all(
        pending, workers=options.workers, timeout=options.timeout, probe=probe
    )
    total = reused + len(pending)
    with (
        contextlib.closing(results),
        ProgressMeter(total, "video", initial=reused, quiet=not options.progress) as meter,
    ):
        for done, (path, result) in enumerate(results, start=reused + 1):
            bad += isinstance(result, ProbeFailure)
            meter.update(done, f"{bad} bad files")
            yield path, result


def _write_outputs(
    videos: lists.VideoList,
    results: dict[str, VideoProbe | ProbeFailure],
    out: Path,
    overwrite: bool,
    reused: int,
) -> IndexSummary:
    clean, quarantine = _split_entries(videos.entries, results)
    quarantine_path = sidecar_path(out, "quarantine")
    quarantine_text = format_csv([("path", "reason"), *quarantine])
    if not clean:
        atomic_file.write_text(quarantine_path, quarantine_text)
        raise UserError(
            f"none of {len(quarantine)} videos can be read: see the reasons in {quarantine_path}"
        )
    duplicates = _find_duplicates(clean)
    texts = {
        out: _format_manifest(clean, out),
        quarantine_path: quarantine_text,
        sidecar_path(out, "duplicates"): format_csv([("path", "same_as"), *duplicates]),
    }
    if videos.classes is not None:
        text = json.dumps(videos.classes, indent=0, ensure_ascii=False) + "\n"
        texts[sidecar_path(out, "classes", "json")] = text
    check_overwrite(out, texts[out], overwrite)
    for path, text in reversed(
        texts.items()
    ):  # the manifest is written last, because it marks a complete run
        atomic_file.write_text(path, text)
    return IndexSummary(
        out, len(videos.entries), len(clean), len(quarantine), len(duplicates), reused
    )


def check_overwrite(manifest: Path, text: str, overwrite: bool) -> None:
    """Raises `UserError` if a manifest with different content exists and `overwrite` is false."""
    if not overwrite and manifest.exists() and manifest.read_text(encoding="utf-8") != text:
        raise UserError(
            f"{manifest} exists and has other content: give --overwrite to replace it, or another "
            "--out"
        )


def _split_entries(
    entries: Sequence[VideoEntry], results: dict[str, VideoProbe | ProbeFailure]
) -> tuple[list[tuple[VideoEntry, VideoProbe]], list[tuple[str, str]]]:
    """Returns good entries with their probes, and bad paths with reasons."""
    clean, quarantine, labels = [], [], {}
    for entry in entries:
        result = results.get(entry.path)
        if entry.problem or isinstance(result, ProbeFailure):
            quarantine.append((entry.path, entry.problem or result.reason))
            continue
        entry = _resolve_window(entry, result)
        key = entry.path, entry.start, entry.end
        problem = _check_name(entry.path) or _check_window(entry, result)
        if not problem and key in labels:
            suffix = " with other labels" if labels[key] != entry.labels else ""
            problem = f"listed before{suffix}"
        if problem:
            quarantine.append((entry.path, problem))
        else:
            labels[key] = entry.labels
            clean.append((entry, result))
    return clean, quarantine


def _resolve_window(entry: VideoEntry, probe: VideoProbe) -> VideoEntry:
    """Removes `start` and `end` if the file is already trimmed to this range."""
    if entry.may_be_trimmed and probe.duration <= entry.end - entry.start + TRIM_TOLERANCE_SECONDS:
        return dataclasses.replace(entry, start=None, end=None)
    return entry


def _check_name(path: str) -> str:
    try:
        path.encode()
    except UnicodeEncodeError:
        return "the name of the file is not UTF-8: rename it"
    return ""


def _check_window(entry: VideoEntry, probe: VideoProbe) -> str:
    start = entry.start or 0.0
    if start >= probe.duration or (entry.end is not None and entry.end <= start):
        return f"no frame between {start:g} and {entry.end} seconds of {probe.duration:g}"
    return ""


def _find_duplicates(clean: Sequence[tuple[VideoEntry, VideoProbe]]) -> list[tuple[str, str]]:
    """Returns (path, path of the first file with the same digest) for each duplicate file."""
    first, duplicates = {}, {}
    for entry, probe in clean:
        original = first.setdefault(probe.digest, entry.path)
        if original != entry.path:
            duplicates[entry.path] = original
    return list(duplicates.items())


def _format_manifest(clean: Sequence[tuple[VideoEntry, VideoProbe]], out: Path) -> str:
    tasks = list(collections.ChainMap({}, *(entry.labels for entry, _ in clean)))
    folder = os.path.abspath(out.parent)
    rows: list[Sequence[Any]] = [("path", "source", "start", "end", *tasks, *PROBE_COLUMNS)]
    for entry, probe in clean:
        path = _relative_path(entry.path, folder)
        labels = (entry.labels.get(task, lists.NO_LABEL) for task in tasks)
        values = (getattr(probe, name) for name in PROBE_COLUMNS)
        rows.append((path, entry.source, entry.start, entry.end, *labels, *values))
    return format_csv(rows)


def _relative_path(path: str, folder: str) -> str:
    """Makes paths inside `folder` relative, so that manifest and videos can be moved together."""
    path = os.path.normpath(path)
    inside = os.path.commonpath((path, folder)) == folder
    return os.path.relpath(path, folder) if inside else path


def format_csv(rows: Iterable[Sequence[Any]]) -> str:
    """Formats rows as the text of a CSV file."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
