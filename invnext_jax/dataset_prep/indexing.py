"""Builds a manifest: every listed video is probed; the good ones are listed, the others set aside.

    <out>.csv                  the manifest: path, source, start, end, label_<task>, what was probed
    <out>.quarantine.csv       path, reason: what is not in it
    <out>.duplicates.csv       path, same_as: files with the content of an earlier one
    <out>.classes.json         numbers of the classes by name, if the list had names
    <out>.probes.jsonl         what was found out, file by file: a repeated run reads it

All but the last appear only when everything is done, each at once.
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
from invnext_jax.dataset_prep.lists import Entry
from invnext_jax.dataset_prep.probing import ProbeFailure, VideoProbe
from invnext_jax.errors import UserError
from invnext_jax.monitoring.progress_meter import ProgressMeter

CUT_SLACK_SECONDS = 1.0  # what a cut file may be longer than it should
PROBED = ("duration", "frames", "width", "height", "fps", "codec", "rotation")


@dataclasses.dataclass(frozen=True)
class IndexOptions:
    """How the files are probed.

    Attributes:
        workers: Processes.
        seconds: Limit for a file.
        overwrite: Whether a manifest with other content may be replaced.
        progress: Whether to show a bar on a terminal, plain lines elsewhere.
    """

    workers: int = 1
    seconds: float = 60.0
    overwrite: bool = False
    progress: bool = True


@dataclasses.dataclass(frozen=True)
class IndexSummary:
    """What became of the rows of the list; `listed` is the sum of `clean` and `quarantined`."""

    manifest: Path
    listed: int
    clean: int
    quarantined: int
    duplicates: int
    reused: int

    def __str__(self) -> str:
        quarantine, copies = (_beside(self.manifest, end) for end in ("quarantine", "duplicates"))
        known = f" ({self.reused} files known from an earlier run)" if self.reused else ""
        lines = [
            f"{self.listed} listed = {self.clean} clean + {self.quarantined} quarantined{known}"
        ]
        lines.append(f"manifest: {self.manifest}")
        lines.append(f"quarantine, with reasons: {quarantine}")
        if self.duplicates:
            lines.append(f"{self.duplicates} clean files are copies of others: {copies}")
        return "\n".join(lines)


def build_manifest(
    given: str | os.PathLike,
    out: str | os.PathLike,
    settings: lists.Settings | None = None,
    options: IndexOptions | None = None,
    probe=probing.probe_video,
) -> IndexSummary:
    """Probes all videos of a folder or list and writes their manifest; killed, it goes on.

    Args:
        given: Folder or list; see `lists`.
        out: The CSV file to write.
        settings: How the list is read.
        options: How the files are probed.
        probe: What is done with a file, in a process of its own.

    Raises:
        UserError: The list cannot be read, no video is good, another run writes the same manifest,
            or there is one of other content.
    """
    settings, options, out = settings or lists.Settings(), options or IndexOptions(), Path(out)
    if options.workers < 1 or options.seconds <= 0:
        raise UserError(f"workers={options.workers}, seconds={options.seconds} must be above 0")
    if out.suffix != ".csv" or out.is_dir():
        raise UserError(f"--out={out} must name a .csv file")
    given_file = Path(given)
    if out.exists() and given_file.exists() and out.samefile(given_file):
        raise UserError(f"--out={out} is the list itself: name another file")
    listing = lists.read_list(given, settings)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the folder of --out={out} cannot be made: {error}") from error
    with probe_cache.ProbeCache(_beside(out, "probes", "jsonl")) as notes:
        files = dict.fromkeys(entry.path for entry in listing.entries if not entry.problem)
        found = {path: notes.recall(path, options.seconds) for path in files}
        todo = [path for path, known in found.items() if known is None]
        reused = len(files) - len(todo)
        for path, result in _show(todo, reused, options, probe):
            notes.note(path, result)
            found[path] = result
    return _write(listing, found, out, options.overwrite, reused)


def _beside(manifest: Path, what: str, suffix: str = "csv") -> Path:
    return manifest.with_name(f"{manifest.stem}.{what}.{suffix}")


def _show(
    todo: Sequence[str], reused: int, options: IndexOptions, probe
) -> Iterator[tuple[str, VideoProbe | ProbeFailure]]:
    """Passes the results on and tells of them."""
    results = probing.probe_all(todo, workers=options.workers, seconds=options.seconds, probe=probe)
    bad = 0
    with (
        contextlib.closing(results),
        ProgressMeter(
            reused + len(todo), "video", initial=reused, quiet=not options.progress
        ) as meter,
    ):
        for done, (path, result) in enumerate(results, start=reused + 1):
            bad += isinstance(result, ProbeFailure)
            meter.update(done, f"{bad} bad")
            yield path, result


def _write(
    listing: lists.Listing,
    found: dict[str, VideoProbe | ProbeFailure],
    out: Path,
    overwrite: bool,
    reused: int,
) -> IndexSummary:
    clean, quarantine = _sort_out(listing.entries, found)
    if not clean:
        path = _beside(out, "quarantine")
        atomic_file.write_text(path, csv_text([("path", "reason"), *quarantine]))
        raise UserError(f"none of {len(quarantine)} videos can be read, {path} tells why")
    copies = _find_copies(clean)
    texts = {
        out: _manifest_text(clean, out),
        _beside(out, "quarantine"): csv_text([("path", "reason"), *quarantine]),
        _beside(out, "duplicates"): csv_text([("path", "same_as"), *copies]),
    }
    if listing.classes is not None:
        text = json.dumps(listing.classes, indent=0, ensure_ascii=False) + "\n"
        texts[_beside(out, "classes", "json")] = text
    if not overwrite and out.exists() and out.read_text(encoding="utf-8") != texts[out]:
        raise UserError(
            f"{out} exists and has other content: give --overwrite to replace it (what was probed "
            "is kept), or another --out"
        )
    for path, text in reversed(texts.items()):  # the manifest last: it stands for all
        atomic_file.write_text(path, text)
    return IndexSummary(out, len(listing.entries), len(clean), len(quarantine), len(copies), reused)


def _sort_out(
    entries: Sequence[Entry], found: dict[str, VideoProbe | ProbeFailure]
) -> tuple[list[tuple[Entry, VideoProbe]], list[tuple[str, str]]]:
    """Good rows with what was probed, and paths with reasons."""
    clean, quarantine, seen = [], [], {}
    for entry in entries:
        result = found.get(entry.path)
        if entry.problem or isinstance(result, ProbeFailure):
            quarantine.append((entry.path, entry.problem or result.reason))
            continue
        entry = _settle_window(entry, result)
        place = entry.path, entry.start, entry.end
        problem = _check_name(entry.path) or _check_window(entry, result)
        if not problem and place in seen:
            other = " with other labels" if seen[place] != entry.labels else ""
            problem = f"listed before{other}"
        if problem:
            quarantine.append((entry.path, problem))
        else:
            seen[place] = entry.labels
            clean.append((entry, result))
    return clean, quarantine


def _settle_window(entry: Entry, probe: VideoProbe) -> Entry:
    """Drops start and end where the file is just what lies between them."""
    if entry.may_be_cut and probe.duration <= entry.end - entry.start + CUT_SLACK_SECONDS:
        return dataclasses.replace(entry, start=None, end=None)
    return entry


def _check_name(path: str) -> str:
    try:
        path.encode()
    except UnicodeEncodeError:
        return "the file's name is not UTF-8: rename it"
    return ""


def _check_window(entry: Entry, probe: VideoProbe) -> str:
    start = entry.start or 0.0
    if start >= probe.duration or (entry.end is not None and entry.end <= start):
        return f"no frame between {start:g} and {entry.end} seconds of {probe.duration:g}"
    return ""


def _find_copies(clean: Sequence[tuple[Entry, VideoProbe]]) -> list[tuple[str, str]]:
    """(path, path of the first one) of different files with equal content, as far as was read."""
    first, copies = {}, {}
    for entry, probe in clean:
        original = first.setdefault(probe.digest, entry.path)
        if original != entry.path:
            copies[entry.path] = original
    return list(copies.items())


def _manifest_text(clean: Sequence[tuple[Entry, VideoProbe]], out: Path) -> str:
    tasks = list(collections.ChainMap({}, *(entry.labels for entry, _ in clean)))
    folder = os.path.abspath(out.parent)
    rows: list[Sequence[Any]] = [("path", "source", "start", "end", *tasks, *PROBED)]
    for entry, probe in clean:
        labels = (entry.labels.get(task, lists.NO_LABEL) for task in tasks)
        facts = (getattr(probe, name) for name in PROBED)
        rows.append(
            (_relative(entry.path, folder), entry.source, entry.start, entry.end, *labels, *facts)
        )
    return csv_text(rows)


def _relative(path: str, folder: str) -> str:
    """Relative if the file lies below the manifest, so that both can be moved together."""
    path = os.path.normpath(path)
    inside = os.path.commonpath((path, folder)) == folder
    return os.path.relpath(path, folder) if inside else path


def csv_text(rows: Iterable[Sequence[Any]]) -> str:
    """The rows as a CSV file holds them."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
