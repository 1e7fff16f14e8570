"""Tables of a sweep as Markdown and CSV."""

import csv
import io
import math

import pytest

from invnext_jax.evaluation.metrics.formats import find_format
from invnext_jax.sweeps.report.comparison import ArmRow, Cell, Difference, SweepTable
from invnext_jax.sweeps.report.table_text import write_csv, write_markdown

FORMATS = {"K400": find_format("top1"), "loss": find_format("loss")}
TABLE = SweepTable(
    "Table 1",
    ("K400", "loss"),
    (
        ArmRow(
            "both",
            True,
            {
                "K400": Cell({0: 0.75, 1: 0.76}, (), 2, 0.755, 0.005, 75.8),
                "loss": Cell({0: 1.25}, ("running, step 3 of 8",), 2, 1.25, math.nan),
            },
        ),
        ArmRow(
            "a|b",
            False,
            {
                "K400": Cell(
                    {0: 0.74, 1: 0.75},
                    (),
                    2,
                    0.745,
                    0.005,
                    69.8,
                    Difference(-0.01, -0.02, 0.0, 2, "seeds"),
                ),
                "loss": Cell({}, ("failed: non-finite",), 2, math.nan, math.nan),
            },
        ),
    ),
)


def test_markdown_shows_values_states_and_differences():
    text = write_markdown([TABLE], FORMATS)
    lines = [line.strip("|").split(" | ") for line in text.splitlines()[2:]]
    rows = [[cell.strip() for cell in line] for line in lines]
    assert text.startswith("## Table 1\n\n")
    assert rows[0] == ["arm", "K400, top-1, %", "published", "difference", "loss"]
    running = "1.25 (n 1) [running, step 3 of 8]"
    assert rows[2] == ["both (baseline)", "75.5 ± 0.5 (n 2)", "75.8", "", running]
    assert rows[3][0] == "a\\|b"
    assert rows[3][3:] == ["-1.0 [-2.0, +0.0] (2 seeds)", "failed: non-finite"]


def test_the_unit_of_all_columns_is_written_once():
    cells = {"shape": TABLE.rows[0].cells["K400"], "color": TABLE.rows[1].cells["K400"]}
    table = SweepTable("", tuple(cells), (ArmRow("a", False, cells),))
    lines = write_markdown([table], dict.fromkeys(cells, find_format("top1"))).splitlines()
    assert lines[0] == "Values: top-1, %" and lines[1] == ""
    assert [head.strip() for head in lines[2].split("|")[1:4]] == ["arm", "shape", "published"]
    assert lines[2].count("top-1") == 0


def test_titles_that_end_in_their_unit_do_not_repeat_it():
    titles = ("probe: shape, top-1, %", "loss")
    cells = dict(zip(titles, TABLE.rows[0].cells.values(), strict=True))
    table = SweepTable("", titles, (ArmRow("a", False, cells),))
    formats = {titles[0]: find_format("top1"), "loss": find_format("loss")}
    assert write_markdown([table], formats).count("top-1, %") == 1


def test_a_table_without_values_says_so():
    text = write_markdown([SweepTable("", (), (ArmRow("a", False, {}),))], {})
    assert text.splitlines()[0] == "| arm |"
    assert text.endswith("No job with values for this table has finished yet.\n")


def test_csv_has_all_numbers():
    rows = list(csv.DictReader(io.StringIO(write_csv([TABLE], FORMATS))))
    assert [(row["arm"], row["column"]) for row in rows] == [
        *(("both", "K400"), ("both", "loss"), ("a|b", "K400"), ("a|b", "loss"))
    ]
    assert rows[0]["mean"] == "75.5" and rows[0]["values"] == "0:75 1:76"
    assert (
        rows[2]["difference"] == "-1" and rows[2]["low"] == "-2" and rows[2]["published"] == "69.8"
    )
    assert rows[3]["mean"] == "" and rows[3]["missing"] == "failed: non-finite"


def test_columns_are_padded_to_a_limited_width():
    rows = [ArmRow(name, False, {}) for name in ("n" * 5000, *map(str, range(100)))]
    assert len(write_markdown([SweepTable("", (), tuple(rows))], {})) < 20_000


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_names_are_no_formulas_in_a_spreadsheet(name):
    cell = Cell({}, (name,), 1, -0.5, math.nan)
    table = SweepTable(name, (name,), (ArmRow(name, False, {name: cell}),))
    (row,) = csv.DictReader(
        io.StringIO(write_csv([table], {name: find_format("loss")}), newline="")
    )
    assert {row[field] for field in ("table", "arm", "column", "missing")} == {f"'{name}"}
    assert row["mean"] == "-0.5"  # a number
