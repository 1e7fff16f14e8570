"""Collects the values of the arms of a sweep: one value for each arm, column and seed."""

import dataclasses
import functools
import itertools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from invnext_jax.errors import UserError
from invnext_jax.evaluation import results_file
from invnext_jax.evaluation.metrics.formats import MetricFormat, find_format
from invnext_jax.evaluation.pages.paired_differences import Evaluation
from invnext_jax.sweeps import outcome, status_table
from invnext_jax.sweeps.arms import Column
from invnext_jax.sweeps.expansion import MAX_SHOWN_ARMS, ExpandedSweep, PlannedJob, join_names
from invnext_jax.sweeps.step_config import Kind
from invnext_jax.sweeps.sweep_folder import JobState, Status

LEAST_EQUAL = 4  # values of an arm, over columns and seeds
MAX_CELLS = 2**16  # arms times columns; a study has a few thousand
_FIELDS = ("metric", "task", "evaluator", "input")  # of rows; a column selects by them


@dataclasses.dataclass(frozen=True)
class Value:
    """The value of an arm and a column for one seed.

    Attributes:
      value: the value in the unit of the results, such as a fraction; None if there is none.
      missing: why there is no value: the state of the job, "non-finite" or "missing". It is "" if
        there is a value.
      row: row of results.json, and the evaluation; None for a metric of a training.
    """

    value: float | None = None
    missing: str = ""
    row: tuple[Evaluation, Mapping[str, Any]] | None = None


@dataclasses.dataclass(frozen=True)
class Results:
    """The values of a sweep.

    Attributes:
      sweep: the arms and jobs.
      columns: columns of the table by title.
      formats: how to write the values of each column.
      values: values by group and name of the arm, title of the column, and seed.
      notes: sentences about columns and published values that are probably misspelled and about
        arms with equal values, and the notes of the evaluations.
      states: the states of the jobs by name.
    """

    sweep: ExpandedSweep
    columns: Mapping[str, Column]
    formats: Mapping[str, MetricFormat]
    values: Mapping[tuple[str, str, str], Mapping[int | None, Value]]
    notes: tuple[str, ...] = ()
    states: Mapping[str, JobState] = dataclasses.field(default_factory=dict)


def collect_results(sweep: ExpandedSweep, states: Mapping[str, JobState]) -> Results:
    """Reads the values of all arms.

    Args:
      sweep: the arms and jobs.
      states: output of `status_table.read_current_states`.

    Raises:
      UserError: a column selects several rows of an evaluation, the table is too large, or two
        jobs have the same files.
    """
    outcome.check_distinct(sweep.jobs.values())
    shown = _find_shown_trainings(sweep)
    rows = {
        name: _read_rows(planned, states[name], is_shown=name in shown)
        for name, planned in sweep.jobs.items()
    }
    columns = dict(sweep.columns) or _find_columns(sweep, rows)
    if len(sweep.arms) * len(columns) > MAX_CELLS:
        raise UserError(
            f"the sweep has {len(sweep.arms)} arms and {len(columns)} columns, more than "
            f"{MAX_CELLS} values: set COLUMNS in the sweep file, or divide the sweep"
        )
    missing = _describe_missing(sweep, states)
    find = _index_rows(columns, rows)
    # Arms may share their jobs.
    select = functools.cache(
        lambda t, name: _select(t, columns[t], sweep.jobs[name], rows[name], find)
    )
    values: dict[tuple[str, str, str], dict[int | None, Value]] = {}
    metrics: dict[str, str] = {}
    for arm in sweep.arms:
        for title, column in columns.items():
            if column.step not in arm.jobs:
                continue
            name = arm.jobs[column.step]
            value = select(title, name)
            if value is None:
                value = Value(missing=missing[name])
            elif value.row is not None:
                metrics[title] = value.row[1]["metric"]
            values.setdefault((arm.group, arm.name, title), {})[arm.seed] = value
    formats = {t: find_format(metrics.get(t, c.metric)) for t, c in columns.items()}
    notes = _find_notes(sweep, columns, rows, find) + _find_equal_arms(sweep, values)
    notes += _collect_notes(sweep, rows)
    return Results(sweep, columns, formats, values, tuple(notes), states)


def _describe_missing(sweep: ExpandedSweep, states: Mapping[str, JobState]) -> dict[str, str]:
    """Returns why each job has no value, if it has none."""
    blocked = status_table.find_blocked(sweep.jobs, states)
    return {
        name: "missing"
        if states[name].status is Status.FINISHED
        else status_table.describe_state(planned, states[name], is_blocked=name in blocked)
        for name, planned in sweep.jobs.items()
    }


def _find_shown_trainings(sweep: ExpandedSweep) -> set[str]:
    """Returns the trainings whose metrics may be values of a column."""
    if not sweep.columns and all(p.kind is Kind.TRAIN for p in sweep.jobs.values()):
        return set(sweep.jobs)  # the columns are the losses, see `_find_columns`
    steps = {column.step for column in sweep.columns.values()}
    return {name for arm in sweep.arms for step, name in arm.jobs.items() if step in steps}


Rows = Evaluation | Mapping[str, float | None] | None
FindRows = Callable[[Column, Evaluation], Sequence[Mapping[str, Any]]]


def _index_rows(columns: Mapping[str, Column], rows: Mapping[str, Rows]) -> FindRows:
    """Returns a function that finds the rows of an evaluation that one of the columns selects.

    Each evaluation is indexed once, because comparing all rows with all columns takes minutes for
    large tables.
    """
    fields = operator.attrgetter(*_FIELDS)
    used = {tuple(map(bool, fields(column))) for column in columns.values()}

    def index(evaluation: Evaluation) -> dict[tuple[str, ...], list[Mapping[str, Any]]]:
        found: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
        for row in filter(_is_encoder, evaluation.results["rows"]):
            values = operator.itemgetter(*_FIELDS)(row)
            for key in {tuple(map(operator.mul, values, part)) for part in used}:
                found.setdefault(key, []).append(row)
        return found

    indexes = {e.title: index(e) for e in rows.values() if isinstance(e, Evaluation)}
    return lambda column, evaluation: indexes[evaluation.title].get(fields(column), ())


def _find_notes(
    sweep: ExpandedSweep, columns: Mapping[str, Column], rows: Mapping[str, Rows], find: FindRows
) -> list[str]:
    """Returns sentences about columns without any value and published values without a column."""
    notes = []
    for title, column in columns.items():
        names = {arm.jobs[column.step] for arm in sweep.arms if column.step in arm.jobs}
        found = [(name, rows[name]) for name in names if rows[name] is not None]
        if found and not any(_has_column(column, sweep.jobs[name], r, find) for name, r in found):
            fields = ", ".join(f"{f}={value!r}" for f in _FIELDS if (value := getattr(column, f)))
            notes.append(
                f"No finished job of the step {column.step!r} has a value for the column {title!r} "
                f"({fields}): correct the column in the sweep file, then repeat the command that "
                "started the sweep, with --config; finished jobs do not run again."
            )
    # With COLUMNS, published values were checked when the sweep file was loaded.
    if not sweep.columns and all(found is not None for found in rows.values()):
        references = {title for arm in sweep.arms for title in arm.reference}
        notes += [
            f"The table has no column {title!r}, for which arms have a published value: correct "
            "`reference` in the sweep file."
            for title in sorted(references - columns.keys())
        ]
    return notes


def _find_equal_arms(
    sweep: ExpandedSweep, values: Mapping[tuple[str, str, str], Mapping[int | None, Value]]
) -> list[str]:
    """Returns sentences about arms of a group that differ in their jobs, but not in any value."""
    numbers: dict[tuple[str, str], dict[tuple[str, int | None], float | None]] = {}
    for (group, name, title), by_seed in values.items():
        found = numbers.setdefault((group, name), {})
        found |= {(title, seed): value.value for seed, value in by_seed.items()}
    jobs: dict[tuple[str, str], set[str]] = {}
    for arm in sweep.arms:
        jobs.setdefault((arm.group, arm.name), set()).update(arm.jobs.values())
    # Each arm is compared with the first one that has its values.
    first: dict[Any, tuple[str, str]] = {}
    notes = []
    for (group, name), found in numbers.items():
        # Fewer values can be equal by chance.
        if len(found) < LEAST_EQUAL or None in found.values():
            continue
        other = first.setdefault((group, frozenset(found.items())), (group, name))
        if jobs[other] != jobs[group, name]:
            notes.append(
                f"{other[1]!r} and {name!r} have the same values in all columns. Perhaps the "
                "options in which they differ have the same effect; for example, fractions are "
                "rounded to whole patches."
            )
    return notes


def _collect_notes(sweep: ExpandedSweep, rows: Mapping[str, Rows]) -> list[str]:
    """Returns the notes of the evaluations, each with the arms that it applies to."""
    jobs: dict[str, list[str]] = {}
    evaluations = [name for name, found in rows.items() if isinstance(found, Evaluation)]
    for name in evaluations:
        for note in rows[name].results.get("notes", ()):
            jobs.setdefault(note, []).append(name)
    notes = []
    for note, names in jobs.items():
        arms = dict.fromkeys(itertools.chain.from_iterable(map(sweep.arm_names, names)))
        who = "all evaluations" if names == evaluations else join_names(list(arms), MAX_SHOWN_ARMS)
        notes.append(f"{who}: {note}")
    return notes


def _has_column(column: Column, planned: PlannedJob, rows: Rows, find: FindRows) -> bool:
    return column.metric in rows if planned.kind is Kind.TRAIN else bool(find(column, rows))


def _read_rows(planned: PlannedJob, state: JobState, *, is_shown: bool) -> Rows:
    """Returns the results of an evaluation or the last values of a run; None if there are none.

    The metrics of a run are read only if `is_shown`, because they may be long.
    """
    if state.status is not Status.FINISHED:
        return None
    if planned.kind is Kind.TRAIN:
        return outcome.read_last_values(planned.job.workdir) if is_shown else {}
    try:
        results = results_file.read_results(planned.job.workdir)
    except UserError:  # it was removed or damaged after the job
        return None
    return Evaluation(planned.job.name, planned.job.workdir, results)


def _select(
    title: str, column: Column, planned: PlannedJob, rows: Rows, find: FindRows
) -> Value | None:
    """Returns the value that a column selects; None if there is none."""
    if rows is None:
        return None
    if planned.kind is Kind.TRAIN:
        if column.metric not in rows:
            return None
        value = rows[column.metric]
        return Value(missing=outcome.NON_FINITE) if value is None else Value(value)
    found = find(column, rows)
    if len(found) > 1:
        names = "; ".join(_describe_row(row) for row in found)
        raise UserError(
            f"the column {title!r} of the sweep selects {len(found)} rows ({names}): set its "
            "metric, task, evaluator and input in the sweep file, and repeat the command that "
            "started the sweep, with --config; finished jobs do not run again"
        )
    if not found or not math.isfinite(found[0]["value"]):
        return None
    return Value(found[0]["value"], row=(rows, found[0]))


def _describe_row(row: Mapping[str, Any]) -> str:
    metric = find_format(row["metric"]).title
    return ", ".join(filter(None, (row["evaluator"], row["input"], row["task"], metric)))


def _find_columns(sweep: ExpandedSweep, rows: Mapping[str, Rows]) -> dict[str, Column]:
    """Returns a column for each value of the evaluations, or for the losses if there are none."""
    columns: dict[str, Column] = {}
    steps = {(step, name) for arm in sweep.arms for step, name in arm.jobs.items()}
    for step, name in sorted(steps):
        evaluation = rows[name]
        if isinstance(evaluation, Evaluation):
            for row in filter(_is_encoder, evaluation.results["rows"]):
                fields = {name: row[name] for name in _FIELDS}
                columns[f"{step}: {_describe_row(row)}"] = Column(step, **fields)
    if columns or any(p.kind is Kind.EVALUATE for p in sweep.jobs.values()):
        return columns
    return {f"{step}: loss": Column(step, "loss") for arm in sweep.arms for step in arm.jobs}


def _is_encoder(row: Mapping[str, Any]) -> bool:
    return row["name"] == "encoder"
