"""Re-encodes all videos of a manifest into a data set of ArrayRecord shards.

    <out>/settings.json                            options of the encoder, which must not change
    <out>/videos-<split>.array_record-00000-of-N   the shards
    <out>/reports/                                 outcome of each row, with one file per shard
    <out>/dataset_info.json, features.json         metadata for TFDS
    <out>/<split>.quarantine.csv                   path, reason: videos that are not in the split
    <out>/<split>.csv                              the manifest, written last

Shards are written in parallel, on this machine or by Apache Beam on a cluster. Repeating an
interrupted command resumes it and keeps complete shards.
"""

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath

from invnext_jax import atomic_file, file_lock
from invnext_jax.data import manifest as manifest_lib
from invnext_jax.data import video_io
from invnext_jax.data.access_rules import AccessRules
from invnext_jax.dataset_prep import shard_metadata, shard_runner, source_digests
from invnext_jax.dataset_prep.reencode import Encoding
from invnext_jax.dataset_prep.shard_files import open_counter, read_json, write_text
from invnext_jax.dataset_prep.shard_metadata import ShardSummary
from invnext_jax.dataset_prep.shard_writer import (
    PARTS,
    REPORTS,
    ShardPlan,
    ShardReport,
    read_report,
)
from invnext_jax.errors import UserError
from invnext_jax.field_checks import COUNT, TEXT, check_fields, integer, list_of

FORMAT = 1  # increase it when the same settings produce different shards
ROWS_PER_SHARD, MIN_SHARDS = 256, 16  # defaults
SETTINGS = "settings.json"


@dataclasses.dataclass(frozen=True)
class ShardingOptions:
    """Options for running the re-encoding.

    Attributes:
      workers: Number of shards written in parallel on this machine, with one encoder process
          each.
      timeout: Time limit per video in seconds.
      shards: Number of shards. 0 selects one per 256 rows, but at least 16.
      retry: Whether to rewrite shards with quarantined rows.
      beam: Flags for Beam, including `--runner`. The runner determines the number of workers. If
          empty, the shards are written on this machine without Beam.
      progress: Whether to show progress: a bar on a terminal, plain lines otherwise.
      access: Rules for which files the manifest may refer to.
    """

    workers: int = 1
    timeout: float = 600.0
    shards: int = 0
    retry: bool = False
    beam: Sequence[str] = ()
    progress: bool = True
    access: AccessRules = AccessRules()


def prepare_shards(
    manifest: str,
    out: str,
    split: str = "train",
    encoding: Encoding | None = None,
    options: ShardingOptions | None = None,
) -> ShardSummary:
    """Writes the shards of a split, then its metadata.

    Repeating an interrupted call resumes it.

    Args:
      manifest: CSV file of videos, as in `config.data.manifest`.
      out: Folder of the data set, shared by its splits.
      split: Name of the split.
      encoding: Options of the encoder.
      options: Options for running the re-encoding.

    Raises:
      UserError: The manifest cannot be read, `out` contains other data, another run is writing
          to it, an encoded video was replaced, no video can be encoded, or Beam is requested but
          not installed.
    """
    encoding, options = encoding or Encoding(), options or ShardingOptions()
    _check_options(encoding, options, split)
    plan, rows = _make_plan(manifest, out, split, encoding, options)
    plan = _match_existing(plan)
    with _lock_folder(plan):
        _check_sources(plan, rows, options.progress)
        reports = _read_reports(plan)
        if options.retry:
            reports = [None if report and report.quarantined else report for report in reports]
        pending = [index for index, report in enumerate(reports) if report is None]
        if pending:
            shard_metadata.mark_incomplete(plan)
            for index in pending:
                plan.report_path(index).unlink(missing_ok=True)
            with shard_runner.show_progress(plan, pending, options.progress):
                _write_pending(plan, pending, options)
        reports = _read_reports(plan)
        if None in reports:
            shard = plan.shard_path(reports.index(None))
            raise UserError(f"{shard} is missing or damaged: repeat the command")
        return shard_metadata.write_metadata(plan, rows, reports, plan.count - len(pending))


def _read_reports(plan: ShardPlan) -> list[ShardReport | None]:
    with open_counter() as count_records:
        return [read_report(plan, index, count_records) for index in range(plan.count)]


def _check_options(encoding: Encoding, options: ShardingOptions, split: str) -> None:
    encoding.validate()
    if options.workers < 1 or options.timeout <= 0 or options.shards < 0:
        raise UserError(
            f"--workers={options.workers} and --seconds={options.timeout} must be above 0, "
            f"--shards={options.shards} at least 0"
        )
    if not shard_metadata.is_split(split):
        raise UserError(f"--split={split!r} must consist of lower-case letters, digits and _")
    if options.beam:
        shard_runner.check_beam(options.beam)


def _make_plan(
    manifest: str, out: str, split: str, encoding: Encoding, options: ShardingOptions
) -> tuple[ShardPlan, manifest_lib.Manifest]:
    if not manifest:
        raise UserError("no manifest: set --manifest to a CSV file of videos")
    files = tuple(video_io.absolute(name) for name in manifest_lib.list_manifests(manifest))
    rendered = [name for name in files if video_io.is_world(name)]
    if rendered:
        raise UserError(f"{rendered[0]} is rendered, so it has no files to encode: remove it")
    out = video_io.absolute(out)
    rows = manifest_lib.read_manifest(files, options.access)
    if os.path.join(out, f"{split}.csv") in files:
        raise UserError(f"--out={out} is the folder of the manifest: set it to a different folder")
    plan = ShardPlan(
        manifests=files,
        sha256=video_io.hash_files(files),
        out=out,
        split=split,
        rows=len(rows),
        count=options.shards,
        labels=tuple(sorted(rows.labels)),
        encoding=encoding,
        timeout=options.timeout,
        access=options.access,
    )
    return plan, rows


def _match_existing(plan: ShardPlan) -> ShardPlan:
    """Returns the plan with the shard count and labels of the folder, if it exists.

    Raises:
      UserError: The folder was written with different settings, or contains other data.
    """
    out = epath.Path(plan.out)
    try:
        others = [p.name for p in out.iterdir() if p.name != REPORTS] if out.exists() else []
        folder, split = map(_read_settings, _settings_paths(plan))
    except OSError as error:
        raise UserError(f"--out={plan.out} cannot be read: {error}") from error
    if others and not folder:
        raise UserError(f"--out={out} contains other data ({others[0]}): specify a new folder")
    if split and split["manifest_sha256"] != plan.sha256:
        raise UserError(
            f"--split={plan.split} of {out} was made from another manifest, with {split['rows']} "
            f"rows instead of {plan.rows}: use that manifest, or a different folder or split"
        )
    count = plan.count or split.get("shards") or max(-(-plan.rows // ROWS_PER_SHARD), MIN_SHARDS)
    if plan.count > plan.rows:
        raise UserError(f"--shards={count} must be at most the {plan.rows} rows of the manifest")
    labels = tuple(folder.get("labels", plan.labels))
    unknown = sorted(set(plan.labels) - set(labels))
    if unknown:
        raise UserError(
            f"--out={out} has splits without the label column {unknown[0]!r}: use another folder"
        )
    plan = dataclasses.replace(plan, count=min(count, plan.rows), labels=labels)
    for existing, settings in zip((folder, split), _make_settings(plan), strict=True):
        if not existing:
            continue
        for name in settings | existing:
            if settings.get(name) != existing.get(name):
                raise UserError(
                    f"--out={out} was made with {name}={existing.get(name)}, not "
                    f"{settings.get(name)}: use the same value, or a different folder"
                )
    return plan


def _settings_paths(plan: ShardPlan) -> tuple[epath.Path, epath.Path]:
    """Returns the paths of the settings files of the folder and of the split."""
    out = epath.Path(plan.out)
    return out / SETTINGS, out / REPORTS / f"{plan.split}.begun.json"


def _make_settings(plan: ShardPlan) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the settings of the folder and of the split."""
    folder = {"format": FORMAT, **dataclasses.asdict(plan.encoding), "labels": list(plan.labels)}
    return folder, {"manifest_sha256": plan.sha256, "rows": plan.rows, "shards": plan.count}


def _read_settings(path: epath.Path) -> dict[str, Any]:
    """Returns the content of a file of settings; {} if it does not exist."""
    if not path.exists():
        return {}
    found, advice = read_json(path), "specify a new folder"
    if not isinstance(found, dict):
        raise UserError(f"{path} does not contain a JSON object: {advice}")
    fields = {"labels": list_of(TEXT, "a list of names"), "shards": integer(1, 2**31)}
    fields |= {"manifest_sha256": TEXT, "rows": COUNT}
    required = ("labels",) if path.name == SETTINGS else ("manifest_sha256", "rows", "shards")
    check_fields(found, fields, f"{path}: ", advice, required)
    return found


@contextlib.contextmanager
def _lock_folder(plan: ShardPlan) -> Iterator[None]:
    """Creates and locks the folder, and writes its settings. Remote folders are not locked."""
    out, local = epath.Path(plan.out), not video_io.is_remote(plan.out)
    with contextlib.ExitStack() as stack:
        try:
            if local and os.path.islink(out / REPORTS):
                raise UserError(f"{out / REPORTS} is a symbolic link: remove it")
            (out / REPORTS).mkdir(parents=True, exist_ok=True)
            if local:
                lock = file_lock.open_file(out / REPORTS / "lock", "w")
                file_lock.acquire(stack.enter_context(lock))
            _match_existing(plan)  # checked again, because another run may have created the folder
            for path, settings in zip(_settings_paths(plan), _make_settings(plan), strict=True):
                if not path.exists():
                    write_text(path, json.dumps(settings) + "\n")
            if local:
                atomic_file.remove_tree(out / PARTS)  # left by an interrupted run
                stack.callback(atomic_file.remove_tree, out / PARTS)
                (out / PARTS).mkdir()
        except file_lock.LockHeldError as error:
            raise UserError(f"another run is writing to {out}: wait until it ends") from error
        except OSError as error:
            raise UserError(f"--out={plan.out} cannot be written: {error}") from error
        yield


def _check_sources(plan: ShardPlan, manifest: manifest_lib.Manifest, progress: bool) -> None:
    """Checks that the source videos of existing shards have not changed."""
    digests: dict[int, str] = {}
    for index in range(plan.count):
        if plan.shard_path(index).exists():  # a missing shard is rebuilt from its rows
            path = plan.digests_path(index)
            digests |= source_digests.read_digests(path, plan.shard_rows(index))
    paths = source_digests.find_changed(manifest, digests, plan.timeout, progress)
    if paths:
        others = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        raise UserError(
            f"the video {ascii(paths[0])}{others} changed after --out={plan.out} was written, and "
            "the records there may be in use: restore the file, or use another --out"
        )


def _write_pending(plan: ShardPlan, pending: Sequence[int], options: ShardingOptions) -> None:
    if options.beam:
        shard_runner.write_shards_with_beam(plan, pending, options.beam)
    else:
        shard_runner.write_shards(plan, pending, options.workers)
