"""Pages and tables replace only earlier pages and tables, not the files that they describe."""

import os

import ml_collections
import pytest

from invnext_jax.errors import UserError
from invnext_jax.evaluation.pages import comparison, data_page, replaced_file, report
from invnext_jax.sweeps.report import sweep_page
from invnext_jax.sweeps.sweep_folder import SweepFolder

WRITERS = {
    "comparison": lambda folder, out: comparison.write_comparison([folder, "other"], out),
    "report": lambda folder, out: report.write_report([folder], out),
    "report of a sweep": lambda folder, out: sweep_page.write_pages([SweepFolder(folder)], out),
    "table": lambda folder, out: sweep_page.write_tables(SweepFolder(folder), out),
    "clips": lambda _, out: data_page.write_page(ml_collections.ConfigDict(), out),
}
OTHERS = {
    "results.json": '{"format": 1}\n',
    "metrics.jsonl": '{"step": 1}\n',
    "config.json": "{}",
    "list.csv": "path,source\na.mp4,a\n",
    "README.md": "# Notes\n\n| arm",
    "fake.html": "not <!doctype html>",
}


CASES = [  # a table of a sweep must have one of three endings
    (writer, name)
    for writer in WRITERS
    for name in OTHERS
    if writer != "table" or name.endswith((".csv", ".md", ".html"))
]


@pytest.mark.parametrize(("writer", "name"), CASES)
def test_other_files_are_not_replaced(tmp_path, writer, name):
    path = tmp_path / name
    path.write_text(OTHERS[name])
    with pytest.raises(UserError, match=rf"{name} exists and is not a page .* choose another file"):
        WRITERS[writer](tmp_path, path)
    assert [p.name for p in tmp_path.iterdir()] == [name] and path.read_text() == OTHERS[name]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("new.html", None),
        ("empty.html", ""),
        ("page.html", "\n\n<!doctype html>\n<html>"),
        ("page", "<!doctype html>\n<html>"),
        ("table.md", "## Title\n\nValues: %\n\n| arm    | shape |\n"),
        ("table.csv", "table,arm,column,unit\n"),
    ],
)
def test_pages_and_tables_may_be_replaced(tmp_path, name, content):
    if content is not None:
        (tmp_path / name).write_text(content)
    replaced_file.check_replaceable(tmp_path / name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root can read all files")
def test_a_file_that_cannot_be_read_is_not_replaced(tmp_path):
    path = tmp_path / "page.html"
    path.touch(mode=0)
    with pytest.raises(UserError, match=r"exists and cannot be read \(Permission denied\)"):
        replaced_file.check_replaceable(path)
