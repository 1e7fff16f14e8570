"""Writes the results of `make demo` with several seeds into docs/demo.md.

    python docs/scripts/generate_demo.py runs/demo0 runs/demo1 runs/demo2

Each folder is the OUT of `make demo` with another SEED. The page has the mean and the standard
deviation over the seeds. Text between the marks of a section in docs/demo.md is replaced.
"""

import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from invnext_jax.evaluation import results_file, tables
from invnext_jax.evaluation.metrics import formats
from invnext_jax.monitoring import metrics_file

ROOT = pathlib.Path(__file__).parents[2]
PAGE = ROOT / "docs/demo.md"
SKIPPED = ", best on val"  # rows that are biased upward
FORMATS = {form.title: form for form in formats.METRICS.values()}
Values = dict[str, dict[str, dict[str, list[float]]]]  # title of the table, row, task -> values


def collect_values(folders: Sequence[pathlib.Path]) -> Values:
    """Returns the values of all seeds."""
    values: Values = {}
    for folder in folders:
        results = [results_file.read_results(folder / name) for name in ("e1", "e2")]
        for table in tables.join_results(results)["tables"]:
            rows = values.setdefault(table["title"], {})
            for row in table["rows"]:
                label = ", ".join(filter(None, (row["name"], row["input"])))
                for task, cell in row["cells"].items():
                    if not label.endswith(SKIPPED):
                        found = rows.setdefault(label, {}).setdefault(task, [])
                        found.append(cell["value"])
    return values


def format_values(title: str, values: Sequence[float] | None) -> str:
    """Returns the mean and the standard deviation of a cell; "" without values."""
    if not values:
        return ""
    form = FORMATS.get(title, formats.MetricFormat(title))
    if len(values) == 1 or np.ptp(values) == 0:
        return form.write(float(np.mean(values)))
    return f"{form.write(float(np.mean(values)))} ± {form.write(float(np.std(values, ddof=1)))}"


def make_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n".replace("| --- ", "|---") for line in lines)


def make_results(values: Values) -> str:
    """Returns a table for each metric."""
    parts = []
    for title, rows in values.items():
        tasks = list(dict.fromkeys(task for cells in rows.values() for task in cells))
        cells = [
            [label, *(format_values(title, found.get(task)) for task in tasks)]
            for label, found in rows.items()
        ]
        parts.append(make_table([f"**{title}**", *tasks], cells))
    return "\n".join(parts)


def make_gaps(folders: Sequence[pathlib.Path]) -> str:
    """Returns the conditioning gap of Stage 1 about every 100 steps, for each seed."""
    rows = []
    for number, folder in enumerate(folders):
        found = {r["step"]: r.get("conditioning_gap") for r in _read_metrics(folder / "s1")}
        steps = [step for step in found if step == 1 or step % 100 == 0]
        rows.append([f"seed {number}", *(f"{found[step]:.4f}" for step in steps)])
    return make_table(["step", *map(str, steps)], rows)


def make_stage2(folders: Sequence[pathlib.Path]) -> str:
    """Returns the losses and the ranks of Stage 2 for each seed."""
    rows = []
    for number, folder in enumerate(folders):
        records = _read_metrics(folder / "s2")
        last = records[-1]
        chosen = [records[1], records[len(records) // 2], last]
        names = ("target_position_share", "target_rank", "prediction_rank", "position_loss")
        texts = [f"{last[name]:.3g}" for name in names]
        rows.append([str(number), *(f"{record['loss']:.3f}" for record in chosen), *texts])
    steps = [str(record["step"]) for record in chosen]
    head = ["seed", f"loss at step {steps[0]}", *steps[1:]]
    head += ["target: variance explained by position", "target: effective rank"]
    head += ["prediction: effective rank", "loss of a prediction from position alone (one mask)"]
    return make_table(head, rows)


def replace_section(page: str, name: str, text: str) -> str:
    """Replaces the text between the marks of a section."""
    marks = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
    before, rest = page.split(marks[0])
    return before + marks[0] + text + marks[1] + rest.split(marks[1])[1]


def _read_metrics(folder: pathlib.Path) -> list[dict[str, Any]]:
    return [record for record in metrics_file.read_metrics(folder) if "loss" in record]


def main(folders: Sequence[str]) -> None:
    """Rewrites the page."""
    paths = [pathlib.Path(folder) for folder in folders]
    sections = {
        "results": make_results(collect_values(paths)),
        "gaps": make_gaps(paths),
        "stage2": make_stage2(paths),
    }
    page = PAGE.read_text()
    for name, text in sections.items():
        page = replace_section(page, name, text)
    PAGE.write_text(page)
    print(f"Wrote {PAGE}")


if __name__ == "__main__":
    main(sys.argv[1:])
