"""The results of probes as tables."""

from collections.abc import Mapping
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


def format_table(results: Mapping[str, Any]) -> str:
    """The results as a plain table: top-1 in percent with its standard error, by task."""
    tasks = results["tasks"]
    cells = {(r["name"], r["input"], r["task"]): r for r in results["rows"]}
    lines = [f"{'top-1, %':38}" + "".join(f"{task:>16}" for task in tasks)]
    by_task = {task: next(r for r in results["rows"] if r["task"] == task) for task in tasks}
    chance = "".join(f"{100 / by_task[task]['classes']:>9.1f}       " for task in tasks)
    lines.append(f"{'chance':38}" + chance.rstrip())
    for name, what in dict.fromkeys((r["name"], r["input"]) for r in results["rows"]):
        row = [cells[name, what, task] for task in tasks]
        figures = "".join(
            f"{100 * r['top1']:>9.1f} ± {100 * r['standard_error']:3.1f} " for r in row
        )
        lines.append(f"{NAMES[name] + ', ' + what:38}" + figures.rstrip())
    for name, t in results["tokens"].items():
        lines.append(
            f"Tokens, {NAMES[name]}: {100 * t['position_share']:.0f} % of their variance is "
            f"position alone; effective rank {t['effective_rank']:.1f} of {t['width']}."
        )
    return "\n".join(lines)
