"""Reads and writes results.json of evaluations, of one checkpoint or of several of a run.

An evaluation of several checkpoints has one folder for each of them:

    <workdir>/steps/<step>/results.json
    <workdir>/results.json                   the results of the last step, and the list of steps
"""

import contextlib
import dataclasses
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

from invnext_jax import atomic_file, field_checks
from invnext_jax.checkpointing.git_hash import read_git_hash
from invnext_jax.errors import UserError
from invnext_jax.evaluation import nearest_neighbors, video_scores
from invnext_jax.evaluation.features import TokenStatistics
from invnext_jax.field_checks import Fields
from invnext_jax.json_file import read_object
from invnext_jax.multihost import consensus

RUN_HASH = "run_sha256"  # field with `run_metadata.hash_run` of the evaluated run
FORMAT = 2  # version of results.json; in version 1, rows have no evaluator, metric, value or n
RESULTS = "results.json"
MAX_BYTES = 2**26  # maximum size of a file of results or rows; nested lists need 2 GB of memory
MAX_ROWS = 2000  # the time to make a page may grow with the square of the number of rows
MAX_SIZE = 4096  # maximum number of frames, and of pixels of a side, of a clip
MAX_PIXELS = 2**28  # of all frames of a clip, which pages may show
MAX_PATH = 4096  # maximum number of characters of a path
MAX_NAMES = 2**20  # characters of the dotted names of all options; a config has about 10,000
MAX_DEPTH = 64  # of nested objects and lists; run.config has fewer than 40
_ADVICE = "run launch/evaluate.py again"


def step_folder(workdir: str | Path, step: int) -> Path:
    """Returns the folder of the results of one of several checkpoints."""
    return Path(workdir) / "steps" / str(step)


def read_results(workdir: str | Path) -> dict[str, Any]:
    """Reads the results.json of an evaluation, and converts results of format 1 to format 2.

    Fields of other formats that are missing get default values, and values of rows that are null
    become NaN. The file may come from an untrusted source, so all fields of pages and tables have
    the expected types. Of `run.config`, only the sizes of clips are checked.

    Raises:
      UserError: the file is not JSON, its format is unknown, or a field has an unexpected type.
    """
    path = Path(workdir) / RESULTS
    results = read_object(path, _ADVICE, MAX_BYTES)
    if results.get("format") not in (1, FORMAT):
        raise UserError(
            f"{path} has format {results.get('format')!r}, but this version reads 1 and {FORMAT}: "
            f"{_ADVICE}"
        )
    rows = results.get("rows")
    needed = _FIELDS_OF_ROWS[results["format"] == 1]
    if not isinstance(rows, list) or not all(
        isinstance(r, dict) and needed <= set(r) for r in rows
    ):
        raise UserError(f"{path} has damaged rows: {_ADVICE}")
    if len(rows) > MAX_ROWS:
        raise UserError(
            f"{path} has {len(rows):,} rows, but pages have at most {MAX_ROWS:,}: evaluate fewer "
            "tasks or inputs in one workdir"
        )
    _check_results(results, path)
    results = {**_DEFAULTS, **results}
    results["tokens"] = {name: _keep_statistics(found) for name, found in results["tokens"].items()}
    for row in rows if results["format"] == 1 else ():
        evaluator = _EVALUATORS_OF_FORMAT_1.get(row["input"], "linear_probe")
        row |= {"evaluator": evaluator, "metric": "top1", "value": row["top1"], "n": row["videos"]}
    for row in rows:
        row["value"] = math.nan if row["value"] is None else row["value"]
        row.setdefault("standard_error", None)
    return results


_FIELDS_OF_ROWS = {
    False: {"name", "input", "task", "evaluator", "metric", "value", "n"},
    True: {"name", "input", "task", "top1", "videos"},
}
_EVALUATORS_OF_FORMAT_1 = {
    "pixels": "pixel_baselines",
    "boxes": "box_baselines",
    "end to end": "supervised",
}
_DEFAULTS = {
    **{"stage": "", "checkpoint": "", "step": None},
    **{"tokens": {}, "manifests": {}, "run": {"config": {}}},
}


def _keep_statistics(found: Mapping[str, float | None]) -> dict[str, float]:
    """Returns the statistics of tokens; NaN for those that are missing."""
    names = [field.name for field in dataclasses.fields(TokenStatistics)]
    return {name: math.nan if found.get(name) is None else found[name] for name in names}


_COUNT, _NAME, _TEXT = field_checks.COUNT, field_checks.NAME, field_checks.TEXT
_OBJECT, _OPTIONAL_TEXT = field_checks.OBJECT, field_checks.optional(_TEXT)
_OPTIONAL_COUNT = field_checks.optional(_COUNT)
_TEXTS = field_checks.list_of(_TEXT, "a list of strings")
_HASHES = field_checks.object_of(_OPTIONAL_TEXT, "an object with strings")
# NaN is a missing value, which pages show as such.
_NUMBER = (
    lambda value: value is None or value != value or field_checks.is_number(value),
    "a finite number or null",
)
_NUMBERS = field_checks.object_of(_NUMBER, "an object of numbers")
_RESULTS: Fields = {
    **dict.fromkeys(("stage", "title"), field_checks.line(0, field_checks.MAX_NAME)),
    "checkpoint": field_checks.line(0, MAX_PATH),
    **dict.fromkeys(("tasks", "notes"), _TEXTS),
    **dict.fromkeys(("manifests", "videos"), _HASHES),
    **dict.fromkeys(("run", "clips"), _OBJECT),
    **{"step": _OPTIONAL_COUNT, "neighbors": _OPTIONAL_TEXT, RUN_HASH: _OPTIONAL_TEXT},
    "steps": field_checks.list_of(_COUNT, "a list of integers that are at least 0"),
    "tokens": field_checks.object_of(_NUMBERS, "an object with objects of numbers"),
}
_ROW: Fields = {
    **dict.fromkeys(("name", "task", "metric", "evaluator"), _NAME),
    "input": field_checks.line(0, field_checks.MAX_NAME),
    **dict.fromkeys(("value", "top1", "standard_error", "chance"), _NUMBER),
    **dict.fromkeys(("n", "videos"), _COUNT),
    **dict.fromkeys(("videos_key", "videos_digest", "texts_digest"), _OPTIONAL_TEXT),
    **{"classes": _OPTIONAL_COUNT, "scores": field_checks.optional(_OBJECT)},
}
_SCORES: Fields = {"file": _TEXT, "row": _COUNT}
_SIZE = field_checks.integer(0, MAX_SIZE)
_SIZES: Fields = dict.fromkeys(("frames", "size", "short_side"), _SIZE)
_CLIPS: Fields = {
    **_SIZES,
    **{"sampling": _TEXT, "stride": _OPTIONAL_COUNT},
}
_SOURCES = {"by_source": field_checks.object_of(_OBJECT, "an object of objects")}  # optional
_SOURCE: Fields = {name: _CLIPS[name] for name in ("sampling", "stride")}


def _check_results(results: Mapping[str, Any], path: Path) -> None:
    """Checks the types of all fields that pages and tables use.

    Raises:
      UserError: a field has an unexpected type, or a required field of an object is missing.
    """
    field_checks.check_depth(results, MAX_DEPTH, str(path), _ADVICE)
    _check_fields(results, _RESULTS, f"{path}: ")
    for number, row in enumerate(results["rows"]):
        _check_fields(row, _ROW, f"{path}: rows[{number}].")
        if row.get("scores") is not None:
            _check_fields(row["scores"], _SCORES, f"{path}: rows[{number}].scores.", _SCORES)
    if "clips" in results:
        _check_fields(results["clips"], {**_CLIPS, **_SOURCES}, f"{path}: clips.", _CLIPS)
        for source in results["clips"].get("by_source", {}).values():
            _check_fields(source, _SOURCE, f"{path}: clips.by_source.", _SOURCE)
    config = results.get("run", {}).get("config", {})
    _check_fields({"config": config}, {"config": _OBJECT}, f"{path}: run.")
    field_checks.check_names(config, MAX_NAMES, f"{path}: run.config", _ADVICE)
    data = config.get("data", {})
    _check_fields({"data": data}, {"data": _OBJECT}, f"{path}: run.config.")
    _check_fields(data, _SIZES, f"{path}: run.config.data.")
    if data.get("frames", 1) * data.get("size", 1) ** 2 > MAX_PIXELS:
        raise UserError(f"{path}: clips of run.config.data have too many pixels: {_ADVICE}")


def _check_fields(
    found: Mapping[str, Any], fields: Fields, where: str, required: Iterable[str] = ()
) -> None:
    field_checks.check_fields(found, fields, where, _ADVICE, required)


def same_videos(first: Mapping[str, Any], second: Mapping[str, Any], split: str = "val") -> bool:
    """Returns whether two results have the same manifest and the same videos of a split.

    What is unknown is not compared, such as the videos in results of older versions.
    """
    fields = ("manifests", "videos")
    return hashes_agree(*([r.get(name, {}).get(split) for name in fields] for r in (first, second)))


def hashes_agree(first: Iterable[str | None], second: Iterable[str | None]) -> bool:
    """Returns whether those hashes are equal that are known on both sides."""
    return all(None in pair or pair[0] == pair[1] for pair in zip(first, second, strict=True))


def move_files(results: Mapping[str, Any], start: Path, to: Path) -> dict[str, Any]:
    """Returns results whose paths are relative to the folder `to` instead of `start`."""
    rows = []
    for row in results["rows"]:
        if place := row.get("scores"):
            file = os.path.relpath(start / place["file"], to)
            row = {**row, "scores": {**place, "file": file}}
        rows.append(row)
    neighbors = results.get("neighbors")
    moved = {"neighbors": os.path.relpath(start / neighbors, to)} if neighbors else {}
    return {**results, "rows": rows, **moved}


def find_file(folder: Path, name: str) -> Path | None:
    """Returns the path of a file that results name; None if it is outside of their workdir.

    The results of one of several steps may name files of the whole workdir; see `step_folder`.

    Args:
      folder: folder of the results.
      name: path relative to the folder.
    """
    try:
        folder = Path(os.path.realpath(folder))
        root = folder.parents[1] if folder.parent.name == "steps" else folder
        path = Path(os.path.realpath(folder / name))
    except ValueError:  # a NUL character
        return None
    return path if not Path(name).is_absolute() and path.is_relative_to(root) else None


def read_cache(path: Path, key: str, folder: Path) -> dict[str, Any] | None:
    """Reads a cache file on process 0 and broadcasts it, so that all processes do the same work.

    Returns None if the file is missing or damaged, or has a different key, or if a file of scores
    or neighbors that it names is missing or damaged. Its paths are relative to `folder`.
    """
    with consensus.all_hosts_agree(f"reading {path.name}") as shared:
        if jax.process_index() == 0:
            shared.value = _read(path, key, folder)
    return shared.value


def _read(path: Path, key: str, folder: Path) -> dict[str, Any] | None:
    if not os.path.isfile(path):
        return None
    try:
        found = read_object(path, max_bytes=MAX_BYTES)
    except UserError:
        return None
    if found.get("key") != key:
        return None
    if name := _find_damaged(folder, found):
        print(f"note: {folder / name} is missing or damaged, so its rows are measured again.")
        return None
    return found


def _find_damaged(folder: Path, results: Mapping[str, Any]) -> str:
    """Returns the first file of scores or neighbors that cannot be read; "" if there is none."""
    for place in filter(None, (row.get("scores") for row in results["rows"])):
        if video_scores.read(folder / place["file"], place["row"]) is None:
            return place["file"]
    name = results.get("neighbors")
    return name if name and nearest_neighbors.read_nearest_videos(folder / name) is None else ""


def keep_origin(results: Mapping[str, Any], measured: Mapping[str, Any]) -> dict[str, Any]:
    """Returns results with the time, the code and the versions of those whose rows they have."""
    run = {**results["run"], **measured.get("run", {}), "config": results["run"]["config"]}
    return {**results, "run": run, "seconds": measured.get("seconds", results["seconds"])}


def describe_reuse(path: Path, results: Mapping[str, Any]) -> str:
    """Returns a sentence that says that results are up to date, and which code measured them."""
    text = f"{path} is up to date."
    commit, present = results.get("run", {}).get("git"), read_git_hash()
    if not commit or not present or commit == present:
        return text
    return (
        f"{text} Its values were measured by commit {commit[:12]}, and this is {present[:12]}. If "
        "the evaluation has changed since then, use another --workdir."
    )


def warn_if_replaced(path: Path, checkpoint: str, key: str) -> None:
    """Prints a note if the file has results of another checkpoint or other options."""
    if jax.process_index() > 0 or not os.path.isfile(path):
        return
    with contextlib.suppress(UserError):  # a damaged file is replaced as well
        results = read_object(path, max_bytes=MAX_BYTES)
        if results.get("key") == key:  # only its scores are damaged
            return
        found = results.get("checkpoint")
        what = f"of {found}" if found != checkpoint else "with other options, weights or videos"
        print(
            f"note: {path} has results {what}, which will be replaced. To keep them, use another "
            "--workdir.",
            flush=True,
        )


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file on process 0."""
    if jax.process_index() == 0:
        atomic_file.write_text(path, json.dumps(content, indent=1) + "\n")
