"""Builds a manifest: probes all videos of a list, keeps the good ones, quarantines the others.

    <out>.csv                  the manifest: path, source, start, end, label_<task>, probed columns
    <out>.quarantine.csv       path, reason: videos that are not in the manifest
    <out>.duplicates.csv       path, same_as: files with the same content as an earlier file
    <out>.similar.csv          path, similar_to, bits: with `perceptual`, similar videos
    <out>.frames.jsonl         frame indexes of files that are slow to scan, see `index_files`
    <out>.classes.json         class ids by name, if the list has class names
    <out>.probes.jsonl         probe results per file, for resuming a run

All files except the last are written atomically at the end.
"""

import collections
import contextlib
import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from invnext_jax.csv_text import format_csv
from invnext_jax.data import class_names, index_files, manifest
from invnext_jax.dataset_prep import duplicates, probe_cache, probing, video_flags
from invnext_jax.dataset_prep.csv_files import (
    check_class_names,
    check_overwrite,
    relative_path,
    write_csv,
)
from invnext_jax.dataset_prep.probing import ProbeFailure, VideoProbe
from invnext_jax.errors import UserError
from invnext_jax.monitoring.progress import ProgressMeter
from invnext_jax.video_lists import class_ids, lists
from invnext_jax.video_lists.lists import VideoEntry

# A file is considered trimmed if it exceeds its time range by at most this much.
TRIM_TOLERANCE_SECONDS = 1.0
PROBE_COLUMNS = (
    *("duration", "frames", "width", "height", "fps", "codec"),
    *("rotation", "mirrored", "sar", "transfer", "flags"),
)


@dataclasses.dataclass(frozen=True)
class IndexOptions:
    """Options for probing files.

    Attributes:
      workers: Number of processes.
      timeout: Time limit per file in seconds.
      overwrite: Whether a manifest with different content may be replaced.
      progress: Whether to show progress: a bar on a terminal, plain lines otherwise.
      exclude: Lists of videos that must not be in the manifest, such as evaluation videos.
      remove_duplicates: Whether to leave out copies of earlier videos.
      perceptual: Whether to also compare frames; see `frame_hashes`.
    """

    workers: int = 1
    timeout: float = 60.0
    overwrite: bool = False
    progress: bool = True
    exclude: tuple[str, ...] = ()
    remove_duplicates: bool = False
    perceptual: bool = False


@dataclasses.dataclass(frozen=True)
class IndexSummary:
    """Counts of the videos in a list; `listed` is the sum of `clean` and `quarantined`.

    `removed` counts the quarantined videos that are copies, and `similar` the clean videos that
    look like others. `notes` are sentences about the list.
    """

    manifest: Path
    listed: int
    clean: int
    quarantined: int
    duplicates: int
    reused: int
    notes: tuple[str, ...] = ()
    removed: int = 0
    similar: int = 0

    def __str__(self) -> str:
        reused = f" ({self.reused} files probed in an earlier run)" if self.reused else ""
        lines = [
            f"{self.listed} listed = {self.clean} clean + {self.quarantined} quarantined{reused}",
            f"manifest: {self.manifest}",
            f"quarantine, with reasons: {sidecar_path(self.manifest, 'quarantine')}",
        ]
        if self.duplicates:
            path = sidecar_path(self.manifest, "duplicates")
            lines.append(f"{self.duplicates} clean files are copies of others: {path}")
        if self.removed:
            lines.append(f"{self.removed} of the quarantined videos are copies that were left out")
        if self.similar:
            path = sidecar_path(self.manifest, "similar")
            lines.append(f"{self.similar} clean videos look like earlier ones: {path}")
        return "\n".join([*lines, *self.notes])


def build_manifest(
    list_path: str | os.PathLike,
    out: str | os.PathLike,
    list_options: lists.ListOptions | None = None,
    options: IndexOptions | None = None,
    probe=probing.probe_video,
) -> IndexSummary:
    """Probes all videos of a folder or list and writes their manifest.

    Repeating an interrupted call resumes it.

    Args:
      list_path: One or more folders or lists, separated by commas; see `lists`.
      out: The CSV file to write.
      list_options: Options for reading the list.
      options: Options for probing the files.
      probe: Function that probes one file. It runs in worker processes.

    Raises:
      UserError: The list cannot be read, no video is good, another run is writing the same
          manifest, or a manifest with different content exists.
    """
    list_options, options = list_options or lists.ListOptions(), options or IndexOptions()
    out = Path(out)
    check_options(options, out)
    parts = manifest.split_names(os.fspath(list_path))
    if any(os.path.exists(out) and os.path.exists(part) and out.samefile(part) for part in parts):
        raise UserError(f"--out={out} is the list itself: set it to a different file")
    videos = lists.read_lists(list_path, list_options)
    excluded = duplicates.read_excluded(options.exclude)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the folder of --out={out} cannot be created: {error}") from error
    videos = class_ids.match_neighbors(videos, list_options, out)
    with probe_cache.ProbeCache(sidecar_path(out, "probes", "jsonl")) as cache:
        files = dict.fromkeys(entry.path for entry in videos.entries if not entry.problem)
        for part in filter(os.path.isfile, parts):  # manifests of earlier runs
            cache.add_results_of(sidecar_path(Path(part), "probes", "jsonl"), files)
        results = {path: cache.get(path, options.timeout) for path in files}
        pending = [path for path, result in results.items() if result is None]
        reused = len(files) - len(pending)
        known_bad = sum(isinstance(result, ProbeFailure) for result in results.values())
        for path, result in _probe_with_progress(pending, reused, known_bad, options, probe):
            cache.put(path, result)
            results[path] = result
    clean, quarantine = _split_entries(videos.entries, results)
    copies = duplicates.find_copies(
        clean,
        excluded,
        remove=options.remove_duplicates,
        hashes=sidecar_path(out, "hashes", "jsonl") if options.perceptual else None,
        workers=options.workers,
        timeout=options.timeout,
    )
    quarantine += copies.removed
    _write_outputs(videos, copies, quarantine, out, options.overwrite, list_options.task)
    flags = {entry.path: probe.flags for entry, probe in copies.clean}
    return IndexSummary(
        manifest=out,
        listed=len(videos.entries),
        clean=len(copies.clean),
        quarantined=len(quarantine),
        duplicates=len(copies.duplicates),
        reused=reused,
        notes=(
            *videos.notes,
            *class_ids.describe_similar_names(videos.classes or ()),
            *copies.notes,
            *video_flags.describe_flags(flags),
            *video_flags.describe_clips(copies.clean),
        ),
        removed=len(copies.removed),
        similar=len(copies.similar or ()),
    )


def check_options(options: IndexOptions, out: Path) -> None:
    """Checks the options and that the output is a CSV file; raises `UserError` otherwise."""
    if options.workers < 1 or options.timeout <= 0:
        raise UserError(
            f"--workers={options.workers} and --seconds={options.timeout} must be above 0"
        )
    if out.suffix != ".csv" or os.path.isdir(out):
        raise UserError(f"--out={out} must be a .csv file")


def sidecar_path(manifest: Path, name: str, suffix: str = "csv") -> Path:
    """Returns the path of an output file next to the manifest."""
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
    copies: duplicates.Copies,
    quarantine: Sequence[tuple[str, str]],
    out: Path,
    overwrite: bool,
    task: str,
) -> None:
    quarantine_path = sidecar_path(out, "quarantine")
    quarantine_text = format_csv([("path", "reason"), *quarantine])
    if not copies.clean:
        write_csv(quarantine_path, quarantine_text)
        raise UserError(
            f"none of {len(quarantine)} videos can be read: see the reasons in {quarantine_path}"
        )
    texts = {
        out: _format_manifest(copies.clean, out),
        quarantine_path: quarantine_text,
        sidecar_path(out, "duplicates"): format_csv([("path", "same_as"), *copies.duplicates]),
    }
    if copies.similar is not None:
        rows = [("path", "similar_to", "bits"), *copies.similar]
        texts[sidecar_path(out, "similar")] = format_csv(rows)
    indexes = {entry.path: probe.index for entry, probe in copies.clean if probe.index}
    pairs = ((relative_path(path, out.parent), index) for path, index in indexes.items())
    texts[sidecar_path(out, "frames", "jsonl")] = index_files.format_lines(pairs)
    if videos.classes is not None:
        names = {f"{manifest.LABEL_PREFIX}{task}": videos.classes}
        text = class_names.format_class_names(names, _label_columns(copies.clean))
        texts[Path(class_names.class_names_path(out))] = text
    check_overwrite(out, texts[out], overwrite)
    check_class_names(out, texts)
    for path, text in reversed(texts.items()):  # the manifest marks a complete run
        write_csv(path, text)


def _split_entries(
    entries: Sequence[VideoEntry], results: dict[str, VideoProbe | ProbeFailure]
) -> tuple[list[tuple[VideoEntry, VideoProbe]], list[tuple[str, str]]]:
    """Returns the good entries with their probes, and the paths of bad entries with reasons."""
    clean, quarantine, listed = [], [], {}
    for entry in entries:
        result = results.get(entry.path)
        if entry.problem or isinstance(result, ProbeFailure):
            quarantine.append((entry.path, entry.problem or result.reason))
            continue
        entry = _resolve_window(entry, result)
        key = entry.path, entry.start, entry.end
        problem = video_flags.describe_window(entry, result.duration)
        if not problem and key in listed:
            suffix = " with other labels" if listed[key] != entry.labels else ""
            problem = f"listed before{suffix}"
        if problem:
            quarantine.append((entry.path, problem))
        else:
            listed[key] = entry.labels
            clean.append((entry, result))
    return clean, quarantine


def _resolve_window(entry: VideoEntry, probe: VideoProbe) -> VideoEntry:
    """Removes `start` and `end` if the file is already trimmed to this range."""
    if entry.may_be_trimmed and probe.duration <= entry.end - entry.start + TRIM_TOLERANCE_SECONDS:
        return dataclasses.replace(entry, start=None, end=None)
    return entry


def _label_columns(clean: Sequence[tuple[VideoEntry, VideoProbe]]) -> list[str]:
    return list(collections.ChainMap({}, *(entry.labels for entry, _ in clean)))


def _format_manifest(clean: Sequence[tuple[VideoEntry, VideoProbe]], out: Path) -> str:
    tasks = _label_columns(clean)
    folder = os.path.abspath(out.parent)
    rows: list[Sequence[Any]] = [("path", "source", "start", "end", *tasks, *PROBE_COLUMNS)]
    for entry, probe in clean:
        path = relative_path(entry.path, folder)
        values_of_tasks = (entry.labels.get(task, lists.NO_LABEL) for task in tasks)
        values = (getattr(probe, name) for name in PROBE_COLUMNS)
        rows.append((path, entry.source, entry.start, entry.end, *values_of_tasks, *values))
    return format_csv(rows)
