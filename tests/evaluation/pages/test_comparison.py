"""The comparison page: best encoders, paired differences, classes, curves, and refused folders."""

import html.parser
import json
import os

import numpy as np
import pytest
from fake_evaluations import ROW, write_evaluation

from invnext_jax import sanitize
from invnext_jax.errors import UserError
from invnext_jax.evaluation.metrics import formats
from invnext_jax.evaluation.metrics.intervals import paired_difference
from invnext_jax.evaluation.pages import comparison
from invnext_jax.evaluation.pages.paired_differences import Protocol

VIDEOS = 60
PROTOCOL = Protocol("top1", "linear_probe", "mean")


@pytest.fixture
def manifest(tmp_path):
    """A manifest whose first half has class 0, called cats; the rest has class 1."""
    labels = [
        "path,source,label_shape",
        *(f"{i}.mp4,x,{int(i >= VIDEOS // 2)}" for i in range(VIDEOS)),
    ]
    (tmp_path / "val.csv").write_text("\n".join(labels) + "\n")
    (tmp_path / "val.classes.json").write_text(json.dumps({"cats": 0, "dogs": 1}))
    return str(tmp_path / "val.csv")


def make_scores(right, seed=0):
    """Returns scores of 0 and 1, with `right` correct videos at random positions."""
    return np.random.default_rng(seed).permutation(np.arange(VIDEOS) < right).astype(float)


def compare(*folders, protocol=PROTOCOL):
    return comparison.make_table(comparison.read_evaluations(folders), protocol)


def marks(table):
    return [row["cells"]["shape"]["mark"] for row in table["rows"] if row["is_encoder"]]


def test_best_encoder_and_those_like_it_are_marked(tmp_path, manifest):
    folders = [
        write_evaluation(tmp_path / name, manifest, make_scores(right))
        for name, right in (("a", 20), ("b", 57), ("c", 58))
    ]
    table = compare(*folders)
    assert marks(table) == ["", "tied", "best"]
    verdicts = [difference["verdict"] for difference in table["differences"]]
    assert verdicts == ["better", "better"]
    titles = [row["title"] for row in table["rows"]]
    # The three random encoders have the same value.
    assert titles == ["random initialization (a)", "a", "b", "c"]


def test_evaluations_of_the_moving_average_are_named(tmp_path, manifest):
    run = {"config": {"val_manifest": manifest, "ema": True}}
    folders = [
        write_evaluation(tmp_path / "a", manifest, make_scores(20)),
        write_evaluation(tmp_path / "b", manifest, make_scores(20), run=run),
    ]
    comparison.write_comparison(folders, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert page.count(">V-JEPA 2<") == 1 and page.count(">V-JEPA 2, moving average<") == 1


def test_control_characters_in_names_of_folders_are_escaped(tmp_path, manifest):
    names = ("\x1b[31mred\x07", os.fsdecode(b"a\xff"))
    folders = [write_evaluation(tmp_path / name, manifest, make_scores(20)) for name in names]
    page = comparison.write_comparison(folders, tmp_path / "page.html").read_text()
    assert "\\x1b[31mred\\x07" in page and "a\\udcff" in page
    assert sanitize.escape_controls(page) == page


def test_intervals_are_those_of_the_stored_scores(tmp_path, manifest):
    scores = make_scores(30), make_scores(44, seed=1)
    folders = [write_evaluation(tmp_path / str(i), manifest, part) for i, part in enumerate(scores)]
    (difference,) = compare(*folders)["differences"]
    expected = paired_difference(scores, (np.arange(VIDEOS),) * 2)
    assert difference["value"] == f"+{100 * 14 / VIDEOS:.1f}"
    assert difference["low"] == f"+{100 * expected.low:.1f}"
    assert difference["n"] == VIDEOS
    low, middle, high = difference["places"]
    assert 50 < low < middle < high == 100


def test_lower_errors_are_better(tmp_path, manifest, monkeypatch):
    error = formats.MetricFormat("error", higher_is_better=False)
    monkeypatch.setitem(formats.METRICS, "error", error)
    folders = [
        write_evaluation(tmp_path / str(i), manifest, make_scores(right), metric="error")
        for i, right in enumerate((50, 10))
    ]
    table = compare(*folders, protocol=PROTOCOL._replace(metric="error"))
    assert marks(table) == ["", "best"]
    assert table["differences"][0]["verdict"] == "better"


def test_classes_are_compared_with_their_names(tmp_path, manifest):
    first = np.ones(VIDEOS)
    second = first.copy()
    second[: VIDEOS // 2 - 3] = 0  # it is wrong on most cats, and correct on all dogs
    folders = [
        write_evaluation(tmp_path / str(i), manifest, scores)
        for i, scores in enumerate((first, second))
    ]
    (part,) = compare(*folders)["classes"]
    (row,) = part["rows"]
    assert (row["name"], row["title"], row["value"], row["verdict"], row["n"]) == (
        *("cats", "1", "-90.0", "worse"),
        VIDEOS // 2,
    )


def test_changed_manifest_gives_no_classes(tmp_path, manifest):
    folders = [
        write_evaluation(tmp_path / str(i), manifest, make_scores(right))
        for i, right in enumerate((50, 10))
    ]
    with open(manifest, "a") as file:
        file.write("new.mp4,x,0\n")
    table = compare(*folders)
    assert table["classes"] == [] and len(table["differences"]) == 1


def test_other_videos_are_not_paired(tmp_path, manifest):
    first = write_evaluation(tmp_path / "a", manifest, make_scores(20))
    other = write_evaluation(tmp_path / "b", manifest, make_scores(60), manifests={"val": "x"})
    table = compare(first, other)
    assert table["differences"] == [] and marks(table) == ["", "apart"]
    for _ in range(2):  # replaces the earlier page
        page = comparison.write_comparison([first, other], tmp_path / "page.html").read_text()
    assert "b and a have different held-out videos, so no differences are shown." in page


def test_rows_of_other_scenes_of_a_data_set_are_not_paired(tmp_path, manifest):
    folders = []
    for name, key in (("a", "x"), ("b", "y"), ("c", "x")):
        row = {**ROW, "metric": "top1", "value": 0.5, "standard_error": 0.1, "n": VIDEOS}
        row |= {"scores": {"file": "rows/x.npz", "row": 0}, "videos_key": key}
        scores = make_scores({"a": 20, "b": 60, "c": 40}[name])
        row["value"] = float(scores.mean())
        folders.append(write_evaluation(tmp_path / name, manifest, scores, rows=[row]))
    table = compare(*folders)
    assert [difference["title"] for difference in table["differences"]] == ["c"]
    assert marks(table) == ["", "apart", "best"]


def test_missing_scores_are_no_error(tmp_path, manifest):
    folders = [write_evaluation(tmp_path / n, manifest, make_scores(20)) for n in ("a", "b")]
    (folders[1] / "rows" / "x.npz").write_bytes(b"damaged")
    table = compare(*folders)
    assert table["differences"] == table["classes"] == []


def test_page_has_tables_and_learning_curves(tmp_path, manifest):
    folders = [
        write_evaluation(tmp_path / f"step{step}", manifest, make_scores(right), step=step)
        for step, right in ((1000, 20), (2000, 50))
    ]
    page = comparison.write_comparison(folders, tmp_path / "page.html").read_text()
    assert "Learning curves" in page and page.count("<svg") == 2
    for text in ("Linear probe, mean", "83.3", "+50.0", "cats", "1,000", "V-JEPA 2"):
        assert text in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_names_of_folders_are_unique_titles(tmp_path, manifest):
    folders = [
        write_evaluation(tmp_path / part / "e", manifest, make_scores(20)) for part in ("a", "b")
    ]
    titles = [evaluation.title for evaluation in comparison.read_evaluations(folders)]
    assert titles == [str(folder) for folder in folders]


def test_wrong_folders_are_one_sentence_errors(tmp_path, manifest):
    folder = write_evaluation(tmp_path / "a", manifest, make_scores(20))
    with pytest.raises(UserError, match="at least two evaluations"):
        comparison.write_comparison([], tmp_path / "page.html")
    with pytest.raises(UserError, match="a is the only evaluation and has one checkpoint"):
        comparison.write_comparison([folder], tmp_path / "page.html")
    with pytest.raises(UserError, match="listed only once"):
        comparison.write_comparison([folder, folder], tmp_path / "page.html")
    with pytest.raises(UserError, match=r"nothing has no results.json: specify"):
        comparison.write_comparison([folder, tmp_path / "nothing"], tmp_path / "page.html")


class CardCells(html.parser.HTMLParser):
    """Collects the titles of the cells of each row, which narrow screens show as lines."""

    def __init__(self):
        super().__init__()
        self.rows, self.open_tables = [], []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == "table":
            self.open_tables.append("cards" in (attrs.get("class") or "").split())
        elif tag == "tr":
            self.rows.append([])
        elif tag == "td":
            assert self.open_tables[-1]
            self.rows[-1].append(attrs.get("data-title"))

    def handle_endtag(self, tag):
        if tag == "table":
            self.open_tables.pop()


def test_cells_have_titles_for_narrow_screens(tmp_path, manifest):
    folders = [
        write_evaluation(tmp_path / name, manifest, make_scores(20 * number))
        for number, name in enumerate("abc", 1)
    ]
    page = comparison.write_comparison(folders, tmp_path / "page.html").read_text()
    parser = CardCells()
    parser.feed(page)
    rows = [row for row in parser.rows if row]
    assert ["a", "b", "c"] in [row[-3:] for row in rows]
    assert [None, "shape"] in rows
    # The bar and the verdict of a difference explain themselves.
    assert [None, "Task", "Difference", "95 % interval", None, None, "Videos"] in rows
    assert all(title is not None for row in rows for title in row[1:4])
