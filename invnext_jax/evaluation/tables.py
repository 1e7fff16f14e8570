"""Tables of evaluation results for the terminal and for reports.

Tables are made from rows (see `evaluators.evaluator.Row`), so they support any evaluator. Each
metric has its own table with one column for each task.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from invnext_jax import sanitize
from invnext_jax.evaluation import clip_settings, results_file
from invnext_jax.evaluation.pages import row_names, row_options, table_rows
from invnext_jax.stages import registry

MAX_WIDTH = 200  # of the first column of a plain table; longer labels are not aligned


def format_table(results: Mapping[str, Any]) -> str:
    """Formats results as plain text: values with standard errors, in one column per task."""
    lines = _format_lines(table_rows.make_tables([results], [row_names.NAMES["encoder"]])[0])
    if "clips" in results:  # absent in files of older versions
        lines.append(f"Input: {clip_settings.describe_clips(results['clips'])}.")
    for name, t in results["tokens"].items():
        lines.append(
            f"Tokens of {row_names.in_words(name)}: position alone explains "
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
        width = min(MAX_WIDTH, max(38, *(len(label) + 1 for label, _ in rows)))
        heads = "".join(f"{task:>16}" for task in table["tasks"])
        lines.append(f"{table['title']:{width}}{heads}")
        for label, row in rows:
            cells = "".join(_format_cell(row["cells"].get(task)) for task in table["tasks"])
            lines.append(f"{label:{width}}{cells}".rstrip())
    return lines


def _format_cell(cell: Mapping[str, Any] | None) -> str:
    if cell is None:
        return " " * 16
    error = f" ± {cell['error_text']}" if cell["error_text"] else ""
    return f"{cell['text']:>9}{error}".ljust(16)


def join_results(results: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Combines the results of evaluations.

    Of baselines that were measured several times under the same conditions, the first value is
    used.

    Returns:
      `tables` (see `table_rows.make_tables`), with rows in the order of `row_names.ORDER`;
      `tokens`, the statistics of the grid tokens of each encoder; `clips`, a description of the
      clips of each encoder; and `notes`. None if there are no results.
    """
    if not results:
        return None
    titles, tokens, clips = _make_titles(results), {}, {}
    for title, result in zip(titles, results, strict=True):
        if "clips" in result:  # absent in files of older versions
            clips[title] = clip_settings.describe_clips(result["clips"])
        for name, statistics in result["tokens"].items():
            label = title if name == "encoder" else row_names.in_words(name)
            tokens.setdefault(label, {"name": label, **statistics})
    tables, found_notes = table_rows.make_tables(results, titles)
    for table in tables:
        table["rows"].sort(key=lambda row: table_rows.find_position(row["kind"]))
    return {
        "tables": tables,
        "clips": clips,
        "tokens": sorted(tokens.values(), key=lambda t: t["name"] != row_names.NAMES["random"]),
        "notes": [
            *dict.fromkeys(n for result in results for n in result.get("notes", ())),
            *_compare_videos(results, titles),
            *_compare_options(results, titles),
            *found_notes,
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


def _compare_options(results: Sequence[Mapping[str, Any]], titles: Sequence[str]) -> list[str]:
    """Returns sentences about options of evaluators that differ from those of the first result."""
    return [
        f"{text} ({', '.join(evaluators)}), so each has its own baselines."
        for title, result in zip(titles[1:], results[1:], strict=True)
        for text, evaluators in row_options.describe_changes(
            [results[0], result], [titles[0], title]
        ).items()
    ]


def _make_titles(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the stage or name of each evaluated encoder.

    If several have the same, the workdir of the evaluation is added, or the checkpoint and its
    step, or a number: the first of them that distinguishes all of these encoders.
    """
    names = []
    for result in results:
        stage = registry.STAGES.get(result["stage"])
        names.append(stage.title if stage else result.get("title", row_names.NAMES["encoder"]))
    titles = list(names)
    for name in (name for name in dict.fromkeys(names) if names.count(name) > 1):
        places = [place for place, other in enumerate(names) if other == name]
        for place, text in zip(places, _distinguish([results[p] for p in places]), strict=True):
            titles[place] = sanitize.escape_lines(f"{name} ({text})")
    return titles


def _distinguish(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns a different text for each of several evaluations."""
    workdirs = [str(result.get("workdir", "")) for result in results]
    checkpoints = [str(result.get("checkpoint", "")) for result in results]
    steps = [result.get("step") for result in results]
    for texts in (
        [Path(workdir).name for workdir in workdirs],
        workdirs,
        [
            Path(checkpoint).name + ("" if step is None else f", step {step:,}")
            for checkpoint, step in zip(checkpoints, steps, strict=True)
        ],
    ):
        if all(texts) and len(set(texts)) == len(texts):
            return texts
    return [str(number) for number in range(1, len(results) + 1)]
