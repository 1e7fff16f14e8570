"""Encodes all videos of a manifest anew, into a data set of ArrayRecord shards, by Apache Beam.

    <out>/settings.json                            how the videos are encoded; others are refused
    <out>/videos-<split>.array_record-00000-of-N   the shards
    <out>/reports/                                 what became of the rows, shard by shard
    <out>/dataset_info.json, features.json         what TFDS reads
    <out>/<split>.quarantine.csv                   path, reason: what is not in it
    <out>/<split>.csv                              the manifest; appears when all else is there

A shard is the element that Beam hands out. Killed, the same command goes on: whole shards stay.
"""

import contextlib
import dataclasses
import functools
import json
import logging
import os
import re
import shutil
import threading
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

from etils import epath

from invnext_jax import file_lock
from invnext_jax.data import manifest as manifest_lib
from invnext_jax.data import video_io
from invnext_jax.dataset_prep import shard_metadata
from invnext_jax.dataset_prep.reencode import Encoding
from invnext_jax.dataset_prep.shard_metadata import ShardSummary
from invnext_jax.dataset_prep.shard_writer import (
    PARTS,
    REPORTS,
    ROWS,
    ShardPlan,
    read_report,
    write_shard,
    write_text,
)
from invnext_jax.errors import UserError
from invnext_jax.monitoring.progress_meter import ProgressMeter
from invnext_jax.synthetic_world import urls

FORMAT = 1  # raised when the same settings come to mean other shards
SHARD_ROWS, LEAST_SHARDS = 256, 16
BEGUN = ".begun.json"  # ends the file that tells what a split is made of
LOOK_EVERY_SECONDS = 1.0
# By its own name: "DirectRunner" may fetch another engine from the network.
LOCAL_RUNNER = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"


@dataclasses.dataclass(frozen=True)
class ShardingOptions:
    """How the work is done.

    Attributes:
        workers: Shards at a time on this machine, each with a process that encodes.
        seconds: Limit for a video.
        shards: How many; 0: one for 256 rows, and 16 at least.
        retry: Whether shards with quarantined rows are written again.
        beam: Beam's own flags; with a runner among them, `workers` is up to that.
        progress: Whether to show a bar on a terminal, plain lines elsewhere.
    """

    workers: int = 1
    seconds: float = 600.0
    shards: int = 0
    retry: bool = False
    beam: Sequence[str] = ()
    progress: bool = True


def prepare_shards(
    manifest: str,
    out: str,
    split: str = "train",
    encoding: Encoding | None = None,
    options: ShardingOptions | None = None,
) -> ShardSummary:
    """Writes the shards of a split, and then what stands beside them; killed, it goes on.

    Args:
        manifest: CSV of videos, as `config.data.manifest`.
        out: Folder of the data set; its splits share it.
        split: Name of the split.
        encoding: How videos are encoded.
        options: How the work is done.

    Raises:
        UserError: Beam is not installed, the manifest cannot be read, `out` holds something else,
            another run writes to it, or not one video can be encoded.
    """
    encoding, options = encoding or Encoding(), options or ShardingOptions()
    _check(encoding, options, split)
    if not manifest:
        raise UserError("no manifest named: set --manifest to a CSV file of videos")
    files = tuple(video_io.absolute(name) for name in manifest_lib.list_manifests(manifest))
    drawn = [name for name in files if urls.is_world(name)]
    if drawn:
        raise UserError(f"{drawn[0]} is drawn, there is nothing to decode: leave it out")
    out = video_io.absolute(out)
    rows = manifest_lib.read_manifest(files)
    if os.path.join(out, f"{split}.csv") in files:
        raise UserError(f"--out={out} is the folder of the manifest itself: name another one")
    plan = ShardPlan(
        *(files, video_io.hash_files(files), out, split, len(rows), options.shards),
        *(tuple(sorted(rows.labels)), encoding, options.seconds),
    )
    plan = _fit(plan)
    with _claim(plan):
        found = [read_report(plan, number) for number in range(plan.count)]
        if options.retry:
            found = [None if report and report.quarantined else report for report in found]
        todo = [number for number, report in enumerate(found) if report is None]
        if todo:
            shard_metadata.remove_tables(plan)  # they tell that all is there
            for number in todo:
                plan.report(number).unlink(missing_ok=True)
            with _show(plan, todo, options.progress):
                _run(plan, todo, options)
        reports = [read_report(plan, number) for number in range(plan.count)]
        if None in reports:
            shard = plan.shard(reports.index(None))
            raise UserError(f"{shard} is missing or damaged: give the same command again")
        return shard_metadata.write_tables(plan, rows, reports, plan.count - len(todo))


def _fit(plan: ShardPlan) -> ShardPlan:
    """The plan with the shards and labels that the folder was begun with; looks, makes nothing.

    Raises:
        UserError: The folder was made, or begun, in another way, or holds something else.
    """
    out = epath.Path(plan.out)
    try:
        others = [p.name for p in out.iterdir() if p.name != REPORTS] if out.exists() else []
        settings, begun = (_read_begun(path) for path in _begun_files(plan))
    except OSError as error:
        raise UserError(f"--out={plan.out} cannot be read: {error}") from error
    if others and not settings:
        raise UserError(f"--out={out} holds something else ({others[0]}): name a new folder")
    if begun and begun["manifest_sha256"] != plan.sha256:
        raise UserError(
            f"--split={plan.split} of {out} was begun with another manifest, of {begun['rows']} "
            f"rows, not {plan.rows}: give that one, or name another folder or split"
        )
    count = plan.count or begun.get("shards") or max(-(-plan.rows // SHARD_ROWS), LEAST_SHARDS)
    if plan.count > plan.rows:
        raise UserError(f"--shards={count} is more than the {plan.rows} rows of the manifest")
    labels = tuple(settings.get("labels", plan.labels))
    unknown = sorted(set(plan.labels) - set(labels))
    if unknown:
        raise UserError(
            f"--out={out} has splits without the label column {unknown[0]!r}: name another folder"
        )
    plan = dataclasses.replace(plan, count=min(count, plan.rows), labels=labels)
    for theirs, ours in zip((settings, begun), _begun_texts(plan), strict=True):
        differ = [n for n in ours | theirs if theirs and ours.get(n) != theirs.get(n)]
        if differ:
            name = differ[0]
            raise UserError(
                f"--out={out} was begun with {name}={theirs.get(name)}, not {ours.get(name)}: "
                "give it so, or name another folder"
            )
    return plan


def _begun_files(plan: ShardPlan) -> tuple[epath.Path, epath.Path]:
    out = epath.Path(plan.out)
    return out / "settings.json", out / REPORTS / f"{plan.split}{BEGUN}"


def _begun_texts(plan: ShardPlan) -> tuple[dict[str, Any], dict[str, Any]]:
    """What stands in the two files: how the folder is made, and what the split is made of."""
    settings = {"format": FORMAT, **dataclasses.asdict(plan.encoding), "labels": list(plan.labels)}
    return settings, {"manifest_sha256": plan.sha256, "rows": plan.rows, "shards": plan.count}


def _read_begun(path: epath.Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def _check(encoding: Encoding, options: ShardingOptions, split: str) -> None:
    encoding.check()
    if options.workers < 1 or options.seconds <= 0 or options.shards < 0:
        raise UserError("--workers and --seconds must be above 0, --shards not below")
    if not re.fullmatch("[a-z][a-z0-9_]*", split):
        raise UserError(f"--split={split!r} must be small letters, digits and _")
    logging.disable(logging.WARNING)  # Beam tells that there are no Google packages
    try:
        import apache_beam  # noqa: F401
    except ImportError as error:
        raise UserError("this needs Apache Beam: pip install 'invnext-jax[prepare]'") from error
    finally:
        logging.disable(logging.NOTSET)


@contextlib.contextmanager
def _claim(plan: ShardPlan) -> Iterator[None]:
    """Makes the folder ours; on this machine, no other run may write to it."""
    out = epath.Path(plan.out)
    with contextlib.ExitStack() as stack:
        try:
            (out / REPORTS).mkdir(parents=True, exist_ok=True)
            if not video_io.is_remote(plan.out):
                _lock(stack.enter_context(open(out / REPORTS / "lock", "w")), out)
            _fit(plan)  # another run may have begun it meanwhile
            for path, ours in zip(_begun_files(plan), _begun_texts(plan), strict=True):
                if not path.exists():
                    write_text(path, json.dumps(ours) + "\n")
            if not video_io.is_remote(plan.out):
                shutil.rmtree(out / PARTS, ignore_errors=True)  # of a run that was killed
                stack.callback(shutil.rmtree, out / PARTS, ignore_errors=True)
                (out / PARTS).mkdir()
        except OSError as error:
            raise UserError(f"--out={plan.out} cannot be written: {error}") from error
        yield


def _lock(file: TextIO, out: epath.Path) -> None:
    try:
        file_lock.acquire(file)
    except file_lock.LockHeldError as error:
        raise UserError(f"another run is writing to {out}: wait for its end") from error


def _run(plan: ShardPlan, todo: Sequence[int], options: ShardingOptions) -> None:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions

    given = list(options.beam)
    if not any(flag.startswith("--runner") for flag in given):
        given += [f"--runner={LOCAL_RUNNER}", "--direct_running_mode=multi_threading"]
        given += [f"--direct_num_workers={min(options.workers, len(todo))}"]
    with beam.Pipeline(options=PipelineOptions(given)) as pipeline:
        numbers = pipeline | beam.Create(list(todo)) | beam.Reshuffle()
        numbers | beam.Map(functools.partial(write_shard, plan))


@contextlib.contextmanager
def _show(plan: ShardPlan, todo: Sequence[int], progress: bool) -> Iterator[None]:
    """Tells how many rows are done meanwhile, with a bar or in lines."""
    stop = threading.Event()
    thread = threading.Thread(target=_watch, args=(plan, todo, progress, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _watch(plan: ShardPlan, todo: Sequence[int], progress: bool, stop: threading.Event) -> None:
    total, over = sum(len(plan.span(number)) for number in todo), False
    with ProgressMeter(total, "video", quiet=not progress) as meter:
        while not over:
            over = stop.wait(LOOK_EVERY_SECONDS)
            meter.update(_count_rows(plan, todo))


def _count_rows(plan: ShardPlan, todo: Sequence[int]) -> int:
    """Rows of shards that are reported, and on this machine of those under way."""
    names = {path.name for path in (epath.Path(plan.out) / REPORTS).iterdir()}
    done = sum(len(plan.span(n)) for n in todo if plan.report(n).name in names)
    if not video_io.is_remote(plan.out):
        for path in (epath.Path(plan.out) / PARTS).glob(f"*{ROWS}"):
            with contextlib.suppress(OSError, ValueError):  # just being written or done
                done += int(path.read_text())
    return done
