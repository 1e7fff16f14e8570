"""Reads and writes results.json of evaluations, of one checkpoint or of several of a run.

An evaluation of several checkpoints has one folder for each of them:

    <workdir>/steps/<step>/results.json
    <workdir>/results.json                   the results of the last step, and the list of steps
"""

import contextlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

from invnext_jax import atomic_file
from invnext_jax.errors import UserError
from invnext_jax.json_file import read_object
from invnext_jax.multihost import consensus

FORMAT = 2  # version of results.json; in version 1, rows have no evaluator, metric, value or n
RESULTS = "results.json"
MAX_BYTES = 2**28  # maximum size of a file of results or rows
_ADVICE = "run launch/evaluate.py again"


def step_folder(workdir: str | Path, step: int) -> Path:
    """Returns the folder of the results of one of several checkpoints."""
    return Path(workdir) / "steps" / str(step)


def read_results(workdir: str | Path) -> dict[str, Any]:
    """Reads the results.json of an evaluation, and converts results of format 1 to format 2.

    Raises:
      UserError: the file is not JSON, or its format is unknown.
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
    for row in rows if results["format"] == 1 else ():
        evaluator = _EVALUATORS_OF_FORMAT_1.get(row["input"], "linear_probe")
        row |= {"evaluator": evaluator, "metric": "top1", "value": row["top1"], "n": row["videos"]}
    return results


_FIELDS_OF_ROWS = {
    False: {"input", "evaluator", "metric", "value", "n"},
    True: {"input", "top1", "videos"},
}
_EVALUATORS_OF_FORMAT_1 = {
    "pixels": "pixel_baselines",
    "boxes": "box_baselines",
    "end to end": "supervised",
}


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
        folder = folder.resolve()
        root = folder.parents[1] if folder.parent.name == "steps" else folder
        path = (folder / name).resolve()
    except (OSError, ValueError, RuntimeError):  # a NUL character, or links that form a loop
        return None
    return path if not Path(name).is_absolute() and path.is_relative_to(root) else None


def read_cache(path: Path, key: str) -> dict[str, Any] | None:
    """Reads a cache file on process 0 and broadcasts it, so that all processes do the same work.

    Returns None if the file is missing or damaged, or has a different key.
    """
    with consensus.all_hosts_agree(f"reading {path.name}") as shared:
        if jax.process_index() == 0:
            shared.value = _read(path, key)
    return shared.value


def _read(path: Path, key: str) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        found = read_object(path, max_bytes=MAX_BYTES)
    except UserError:
        return None
    return found if found.get("key") == key else None


def warn_if_replaced(path: Path, checkpoint: str) -> None:
    """Prints a note if the file exists. It has results of another checkpoint or other options."""
    if jax.process_index() > 0 or not path.is_file():
        return
    with contextlib.suppress(UserError):  # a damaged file is replaced as well
        found = read_object(path, max_bytes=MAX_BYTES).get("checkpoint")
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
