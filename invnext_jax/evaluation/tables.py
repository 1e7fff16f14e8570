"""The results of probes as tables, on a terminal and for the report."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

NAMES = {
    "chance": "chance",
    "first_frame": "first frame",
    "bag_of_frames": "bag of frames",
    "ordered_track": "ordered track",
    "random": "random initialisation",
    "encoder": "this encoder",
    "supervised": "supervised",
}
INPUTS = {
    "pixels": "pixels",
    "boxes": "true boxes",
    "mean": "mean",
    "frames": "frame means",
    "end to end": "end to end",
}
STAGES = {"stage1": "Stage 1", "stage2": "Stage 2"}
NOTES = {
    "chance": "one in as many as there are classes",
    "first_frame": "what needs no video at all",
    "bag_of_frames": "all frames, blind to their order",
    "random": "the same encoder before training",
    "encoder": "frozen, linear probe",
    "supervised": "the same encoder trained with the labels, {steps} steps: a budget, not a bound",
    "ordered_track": "what a perfect tracker could tell",
}
# Top to bottom: what knows little, the encoders, what knows more.
ORDER = (
    "chance",
    "first_frame",
    "bag_of_frames",
    "random",
    "encoder",
    "supervised",
    "ordered_track",
)


def format_table(results: Mapping[str, Any]) -> str:
    """The results as a plain table: top-1 in percent with its standard error, by task."""
    tasks = results["tasks"]
    cells = {(r["name"], r["input"], r["task"]): r for r in results["rows"]}
    lines = [f"{'top-1, %':38}" + "".join(f"{task:>16}" for task in tasks)]
    classes = {r["task"]: r["classes"] for r in results["rows"]}
    chance = "".join(f"{100 / classes[task]:>9.1f}       " for task in tasks)
    lines.append(f"{'chance':38}" + chance.rstrip())
    for name, what in dict.fromkeys((r["name"], r["input"]) for r in results["rows"]):
        row = [cells[name, what, task] for task in tasks]
        cell = "{:>9.1f} ± {:3.1f} "
        figures = [cell.format(100 * r["top1"], 100 * r["standard_error"]) for r in row]
        lines.append(f"{NAMES[name] + ', ' + INPUTS[what]:38}" + "".join(figures).rstrip())
    for name, t in results["tokens"].items():
        lines.append(
            f"Tokens of {NAMES[name]}: {100 * t['position_share']:.0f} % of their variance is "
            f"position alone; effective rank {t['effective_rank']:.1f} of {t['width']}."
        )
    return "\n".join(lines)


def join_probes(probes: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """One table of several probes; the controls are those of the first probe that has any.

    Returns:
      `tasks`, `rows` (name, note, input, cells by task), `tokens`, `videos`;
      None if there is no probe.
    """
    if not probes:
        return None
    tasks = list(dict.fromkeys(task for probe in probes for task in probe["tasks"]))
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    tokens, steps = [], 0
    for number, probe in enumerate(probes):
        title = _title(probes, number)
        for row in probe["rows"]:
            key = (row["name"], title if row["name"] == "encoder" else "", row["input"])
            found.setdefault(key, {}).setdefault(row["task"], row)
        for name, statistics in probe["tokens"].items():
            label = title if name == "encoder" else NAMES[name]
            if label not in [t["name"] for t in tokens]:
                tokens.append({"name": label, **statistics})
        steps = steps or (probe["run"]["config"]["supervised"]["steps"])
    _add_gains(found)
    classes = {task: row["classes"] for cells in found.values() for task, row in cells.items()}
    chance = {task: {"top1": 1 / n, "standard_error": None} for task, n in classes.items()}
    rows = [_row("chance", "", "", chance, steps)]
    rows += [_row(*key, cells, steps) for key, cells in found.items()]
    return {
        "tasks": tasks,
        "rows": sorted(rows, key=lambda row: ORDER.index(row["kind"])),
        "tokens": sorted(tokens, key=lambda t: t["name"] != NAMES["random"]),
        "videos": next(iter(next(iter(found.values())).values()))["videos"],
    }


def _title(probes, number: int) -> str:
    """The stage of a probe's encoder, numbered if several probes have it."""
    stage = probes[number]["stage"]
    title = STAGES.get(stage, "this encoder")
    same = [i for i, probe in enumerate(probes) if probe["stage"] == stage]
    return title if len(same) == 1 else f"{title} ({same.index(number) + 1})"


def _row(kind: str, title: str, what: str, cells: Mapping[str, Any], steps: int) -> dict[str, Any]:
    return {
        "kind": kind,
        "name": title or NAMES[kind],
        "input": INPUTS.get(what, ""),
        "note": NOTES[kind].format(steps=steps),
        "cells": cells,
    }


def _add_gains(found) -> None:
    """Gives each encoder's cell its distance to random initialisation, in standard errors."""
    for (kind, _, what), cells in found.items():
        base = found.get(("random", "", what))
        if kind != "encoder" or base is None:
            continue
        for task in cells.keys() & base.keys():
            ours, theirs = cells[task], base[task]
            error = math.hypot(ours["standard_error"], theirs["standard_error"])
            points = ours["top1"] - theirs["top1"]
            gain = {"points": 100 * points, "errors": points / error if error else math.inf}
            cells[task] = {**ours, "gain": gain}
