"""Statistics over seeds, and paired differences from the baseline of each table."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import special

from invnext_jax.errors import UserError
from invnext_jax.evaluation.metrics.intervals import LEVEL, mean_standard_error
from invnext_jax.evaluation.pages import paired_differences
from invnext_jax.sweeps.expansion import PlannedArm
from invnext_jax.sweeps.report.results import Results, Value


@dataclasses.dataclass(frozen=True)
class Difference:
    """The mean difference from the baseline.

    Attributes:
      value: mean over the seeds of both arms, in the unit of the results.
      low: lower end of the 95 % interval; NaN if it is unknown.
      high: upper end of the interval.
      n: number of pairs; 0 if the arms have no seed in common.
      over: "seeds" (Student's t interval of the paired differences) or "videos" (bootstrap of the
        evaluated videos, for a single seed).
    """

    value: float
    low: float
    high: float
    n: int
    over: str


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell of the table.

    Attributes:
      values: value of each seed that has one.
      missing: states of the other seeds, without duplicates.
      expected: number of seeds.
      mean: mean over the seeds; NaN if there is no value.
      standard_error: of the mean, from the spread of the seeds; NaN for fewer than two.
      reference: published value in the unit of the column; None if there is none.
      difference: difference from the baseline; None for the baseline and without values.
    """

    values: Mapping[int | None, float]
    missing: tuple[str, ...]
    expected: int
    mean: float
    standard_error: float
    reference: float | None = None
    difference: Difference | None = None

    @property
    def n(self) -> int:
        """Number of seeds with a value."""
        return len(self.values)


@dataclasses.dataclass(frozen=True)
class ArmRow:
    """A row of a table: the cells of an arm by title of the column."""

    name: str
    is_baseline: bool
    cells: Mapping[str, Cell]


@dataclasses.dataclass(frozen=True)
class SweepTable:
    """The rows of a group of arms. `columns` are the titles of the columns that it has."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[ArmRow, ...]


def make_tables(results: Results, baseline: str = "") -> list[SweepTable]:
    """Makes a table for each group of arms.

    Args:
      results: the values of the sweep.
      baseline: name of the arm to compare with, in all groups that have it; "" for the arm that
        the sweep file marks. Without a mark, there are no differences.

    Raises:
      UserError: no group has an arm of that name.
    """
    if baseline and baseline not in {arm.name for arm in results.sweep.arms}:
        names = ", ".join(dict.fromkeys(arm.name for arm in results.sweep.arms))
        raise UserError(f"--baseline={baseline} is not an arm of the sweep: choose one of {names}")
    groups = results.sweep.groups.items()
    return [_make_table(results, title, arms, baseline) for title, arms in groups]


def _make_table(
    results: Results, group: str, arms: Sequence[PlannedArm], baseline: str
) -> SweepTable:
    # Arms with the same name differ only in their seed; keep the first one.
    arms = list({arm.name: arm for arm in reversed(arms)}.values())[::-1]
    named = [arm.name for arm in arms if arm.name == baseline]
    marked = named or [arm.name for arm in arms if arm.is_baseline]
    base = marked[0] if marked else None
    columns = [
        title
        for title in results.columns
        if any((group, arm.name, title) in results.values for arm in arms)
    ]
    rows = []
    for arm in arms:
        cells = {}
        for title in columns:
            values = results.values.get((group, arm.name, title))
            if values is None:
                continue
            others = results.values.get((group, base, title)) if base else None
            pair = (others, values) if others and base != arm.name else None
            reference = arm.reference.get(title)
            cells[title] = make_cell(values, reference, pair)
        rows.append(ArmRow(arm.name, arm.name == base, cells))
    return SweepTable(group, tuple(columns), tuple(rows))


Seeds = Mapping[int | None, Value]


def make_cell(
    values: Seeds,
    reference: float | None = None,
    pair: tuple[Seeds, Seeds] | None = None,
) -> Cell:
    """Returns the statistics of the values of an arm.

    Args:
      values: the value of each seed.
      reference: published value.
      pair: values of the baseline and of the arm; None if they are not compared.
    """
    found = {seed: value.value for seed, value in values.items() if value.value is not None}
    numbers = np.array(list(found.values()))
    return Cell(
        values=found,
        missing=tuple(dict.fromkeys(v.missing for v in values.values() if v.missing)),
        expected=len(values),
        mean=float(numbers.mean()) if len(numbers) else math.nan,
        standard_error=mean_standard_error(numbers),
        reference=reference,
        difference=compare(*pair) if pair else None,
    )


def compare(base: Seeds, other: Seeds) -> Difference | None:
    """Returns the paired difference other - base; None if one of them has no value.

    If both have values but no seed in common, the difference is NaN.

    With two or more seeds, the interval is that of a paired t-test. With one, it is the bootstrap
    interval over the evaluated videos, if both evaluations stored the scores of the same videos.
    An interval of no width is left out.
    """
    seeds = [s for s in other if s in base and None not in (base[s].value, other[s].value)]
    if not seeds:
        has_values = [any(v.value is not None for v in arm.values()) for arm in (base, other)]
        return Difference(math.nan, math.nan, math.nan, 0, "seeds") if all(has_values) else None
    differences = np.array([other[seed].value - base[seed].value for seed in seeds])
    if len(seeds) > 1:
        mean, error = float(differences.mean()), mean_standard_error(differences)
        if np.allclose(differences, mean, rtol=1e-9, atol=1e-12):  # an interval of no width
            return Difference(mean, math.nan, math.nan, len(seeds), "seeds")
        reach = float(special.stdtrit(len(seeds) - 1, (1 + LEVEL) / 2)) * error
        return Difference(mean, mean - reach, mean + reach, len(seeds), "seeds")
    rows = base[seeds[0]].row, other[seeds[0]].row
    if None not in rows:
        interval = paired_differences.find_interval(paired_differences.read_pair(*rows))
        if interval is not None:
            value, low, high = interval.value, interval.low, interval.high
            if math.isclose(low, high, rel_tol=1e-9, abs_tol=1e-12):  # as if it were certain
                low = high = math.nan
            return Difference(value, low, high, interval.n, "videos")
    return Difference(float(differences[0]), math.nan, math.nan, 1, "seeds")
