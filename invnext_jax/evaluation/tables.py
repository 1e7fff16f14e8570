"""Tables of evaluation results for the terminal and for reports.

Tables are made from rows (see `evaluators.evaluator.Row`), so they support any evaluator. Each
metric has its own table with one column for each task.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from invnext_jax.evaluation import clip_settings, results_file
from invnext_jax.evaluation.metrics.formats import MetricFormat, find_format
from invnext_jax.stages import registry

NAMES = {
    "random": "random initialization",
    "encoder": "this encoder",
    "knn": "nearest neighbors",
}
INPUTS = {
    "boxes": "true boxes",
    "frames": "frame means",
}
NOTES = {
    "chance": "1 / number of classes",
    "random_scores": "random scores",
    "first_frame": "a single frame, without motion",
    "bag_of_frames": "all frames, without their order",
    "static": "the first frame, without motion",
    "constant": "the mean depth of the training clips, for all pixels",
    "pixel_mean": "the mean depth of each pixel",
    "random": "the same encoder before training; {evaluator}",
    "encoder": "frozen encoder; {evaluator}",
    "supervised": "the same encoder trained with labels for {steps} steps; not an upper bound",
    "ordered_track": "the output of a perfect tracker",
    "token_truth": "the ground truth at the resolution of the tokens",
}
# Order of rows from top to bottom: lower baselines, encoders, upper baselines. Rows with other
# names are placed next to the encoders.
ORDER = (
    "chance",
    "first_frame",
    "bag_of_frames",
    "static",
    "constant",
    "pixel_mean",
    "random",
    "encoder",
    "supervised",
    "ordered_track",
    "token_truth",
)


def format_table(results: Mapping[str, Any]) -> str:
    """Formats results as plain text: values with standard errors, in one column per task."""
    lines = _format_lines(_make_tables([results], [NAMES["encoder"]]))
    if "clips" in results:  # absent in files of older versions
        lines.append(f"Input: {clip_settings.describe_clips(results['clips'])}.")
    for name, t in results["tokens"].items():
        lines.append(
            f"Tokens of {in_words(name)}: position alone explains "
            f"{100 * t['position_share']:.0f} % of their variance; "
            f"effective rank {t['effective_rank']:.1f} of {t['width']}."
        )
    lines += [f"Note: {note}" for note in results.get("notes", ())]
    return "\n".join(lines)


def format_joined(results: Sequence[Mapping[str, Any]]) -> str:
    """Formats the tables of several evaluations as plain text; see `join_results`."""
    joined = join_results(results)
    return "\n".join(_format_lines(joined["tables"])) if joined else ""


def _format_lines(tables: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = []
    for table in tables:
        rows = [(", ".join(filter(None, (r["name"], r["input"]))), r) for r in table["rows"]]
        width = max(38, *(len(label) + 1 for label, _ in rows))
        heads = "".join(f"{task:>16}" for task in table["tasks"])
        lines.append(f"{table['title']:{width}}{heads}")
        for label, row in rows:
            cells = "".join(_format_cell(row["cells"].get(task)) for task in table["tasks"])
            lines.append(f"{label:{width}}{cells}".rstrip())
    return lines


def _format_cell(cell: Mapping[str, Any] | None) -> str:
    if cell is None:
        return " " * 16
    return f"{cell['text']:>9}" + (f" ± {cell['error_text']:3} " if cell["error_text"] else " " * 7)


def join_results(results: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Combines the results of evaluations; uses the first measurement of each baseline.

    Returns:
      `tables` (see `_make_tables`), with rows in the order of `ORDER`; `tokens`, the statistics of
      the grid tokens of each encoder; `clips`, a description of the clips of each encoder; and
      `notes`. None if there are no results.
    """
    if not results:
        return None
    titles, tokens, clips = _make_titles(results), {}, {}
    for title, result in zip(titles, results, strict=True):
        if "clips" in result:  # absent in files of older versions
            clips[title] = clip_settings.describe_clips(result["clips"])
        for name, statistics in result["tokens"].items():
            label = title if name == "encoder" else in_words(name)
            tokens.setdefault(label, {"name": label, **statistics})
    tables = _make_tables(results, titles)
    for table in tables:
        table["rows"].sort(key=lambda row: _position(row["kind"]))
    return {
        "tables": tables,
        "clips": clips,
        "tokens": sorted(tokens.values(), key=lambda t: t["name"] != NAMES["random"]),
        "notes": [
            *dict.fromkeys(n for result in results for n in result.get("notes", ())),
            *_compare_videos(results, titles),
        ],
    }


def _compare_videos(results: Sequence[Mapping[str, Any]], titles: Sequence[str]) -> list[str]:
    """Returns sentences about evaluations whose videos differ from those of the first one."""
    sentences = {
        "val": "{} and {} are evaluated on different held-out videos.",
        "train": "The probes of {} and {} were trained on different videos.",
    }
    return [
        sentence.format(title, titles[0])
        for split, sentence in sentences.items()
        for title, result in zip(titles[1:], results[1:], strict=True)
        if not results_file.same_videos(results[0], result, split)
    ]


def in_words(name: str) -> str:
    """Replaces underscores with spaces: "bag_of_frames" becomes "bag of frames"."""
    return NAMES.get(name, name.replace("_", " "))


def _make_titles(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the stage or name of each evaluated encoder, numbered if several have the same."""
    names = []
    for result in results:
        stage = registry.STAGES.get(result["stage"])
        names.append(stage.title if stage else result.get("title", NAMES["encoder"]))
    return [
        f"{name} ({names[: number + 1].count(name)})" if names.count(name) > 1 else name
        for number, name in enumerate(names)
    ]


def _make_tables(
    results: Sequence[Mapping[str, Any]], titles: Sequence[str]
) -> list[dict[str, Any]]:
    """Makes one table for each metric.

    Args:
      results: contents of results.json files.
      titles: name of the encoder of each result.

    Returns:
      A list of dicts with `title`, `is_share`, `tasks`, `n` (text with the number of videos) and
      `rows`. A row has `kind` (its name in results.json), `name`, `input`, `note`, and `cells` by
      task.
    """
    tables, bases = [], _random_titles(results, titles)
    for metric in dict.fromkeys(row["metric"] for result in results for row in result["rows"]):
        form = find_format(metric)
        groups = _group_rows(results, titles, bases, metric)
        _add_gains(groups, bases, form)
        cells = [cell for group in groups.values() for cell in group.values()]
        counts = sorted({cell["n"] for cell in cells})
        # If several evaluators have the same metric, the row must show the evaluator.
        ambiguous = len({key[2] for key in groups if key[0] == "encoder"}) > 1
        trained = [r for r in results if any(x["name"] == "supervised" for x in r["rows"])]
        steps = max((_count_steps(r) for r in trained), default=0)
        tables.append(
            {
                "title": form.title,
                "is_share": form.is_share,
                "tasks": list(dict.fromkeys(cell["task"] for cell in cells)),
                "n": " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1]))),
                "rows": _chance_rows(metric, cells, form)
                + [_make_row(key, group, steps, ambiguous) for key, group in groups.items()],
            }
        )
    return tables


def _count_steps(result: Mapping[str, Any]) -> int:
    """Returns the training steps of the supervised encoder; 0 if they are unknown."""
    section = result["run"].get("config", {}).get("supervised")
    steps = section.get("steps") if isinstance(section, Mapping) else None
    return steps if isinstance(steps, int) else 0


def _group_rows(
    results, titles, bases: Mapping[str, str], metric: str
) -> dict[tuple[str, ...], dict[str, dict[str, Any]]]:
    """Returns a metric's cells by (name, title of the encoder, evaluator, input) and by task.

    Rows of random initialization have the title of the first evaluation of the same model on the
    same data, "" for the first model; `bases` is the result of `_random_titles`.
    """
    form = find_format(metric)
    groups: dict[tuple[str, ...], dict[str, dict[str, Any]]] = {}
    for title, result in zip(titles, results, strict=True):
        title_of = {"encoder": title, "random": bases[title]}
        for row in result["rows"]:
            if row["metric"] == metric:
                key = (row["name"], title_of.get(row["name"], ""), row["evaluator"], row["input"])
                cell = _make_cell(row["value"], row["standard_error"], form)
                groups.setdefault(key, {}).setdefault(row["task"], {**row, **cell})
    return groups


def _random_titles(results, titles: Sequence[str]) -> dict[str, str]:
    """Returns for each title the title of the random initialization that it is compared with."""
    first: dict[str, str] = {}
    found = {}
    for title, result in zip(titles, results, strict=True):
        parts = [result.get(name) for name in ("encoder", "manifests", "videos")]
        found[title] = first.setdefault(json.dumps(parts, sort_keys=True), title if first else "")
    return found


def _make_cell(value: float, standard_error: float | None, form: MetricFormat) -> dict[str, Any]:
    return {
        "value": value,
        "standard_error": standard_error,
        "text": form.write(value),
        "error_text": "" if standard_error is None else form.write(standard_error),
    }


def _chance_rows(
    metric: str, cells: Sequence[Mapping[str, Any]], form: MetricFormat
) -> list[dict[str, Any]]:
    """Returns a row with the chance level of each task; no row if it is unknown for all tasks.

    For top-1, it is computed from the number of classes; for other metrics, it is a field of the
    cells.
    """
    levels = {cell["task"]: cell["chance"] for cell in cells if cell.get("chance")}
    note = NOTES["random_scores"]
    if metric == "top1":
        levels = {cell["task"]: 1 / cell["classes"] for cell in cells if cell.get("classes")}
        note = NOTES["chance"]
    chance = {task: _make_cell(level, None, form) for task, level in levels.items()}
    row = {"kind": "chance", "name": "chance", "input": "", "note": note}
    return [{**row, "cells": chance}] if chance else []


def _make_row(key, cells: Mapping[str, Any], steps: int, ambiguous: bool) -> dict[str, Any]:
    kind, title, evaluator, what = key
    name = f"{in_words(kind)} ({title})" if title and kind == "random" else title or in_words(kind)
    if ambiguous and kind in ("encoder", "random"):
        name = f"{name}, {in_words(evaluator)}"
    note = NOTES.get(kind, "{evaluator}").format(evaluator=in_words(evaluator), steps=steps)
    what = INPUTS.get(what, what)
    return {"kind": kind, "name": name, "input": what, "note": note, "cells": cells}


def _position(kind: str) -> int:
    return ORDER.index(kind if kind in ORDER else "encoder")


def _add_gains(
    groups: Mapping[tuple[str, ...], dict[str, dict]],
    bases: Mapping[str, str],
    form: MetricFormat,
) -> None:
    """Adds the difference from random initialization to each cell of an encoder.

    The random initialization is that of the same model on the same data; see `_random_titles`.
    `gain` is the difference in the unit of the table and in standard errors. The standard error
    assumes that the two values are independent.
    """
    for (name, title, *rest), cells in groups.items():
        base = groups.get(("random", bases[title], *rest)) if name == "encoder" else None
        if base is None:
            continue
        for task in cells.keys() & base.keys():
            cell, other = cells[task], base[task]
            difference = cell["value"] - other["value"]
            text = "+" * (difference >= 0) + form.write(difference)
            gain = {"points": form.scale * difference, "text": text, "errors": None}
            if cell["standard_error"] is not None and other["standard_error"] is not None:
                error = math.hypot(cell["standard_error"], other["standard_error"])
                gain["errors"] = difference / error if error else math.inf
            cell["gain"] = gain
