"""The comparison page: evaluations with different options, and intervals of class means."""

import numpy as np
import pytest
from fake_evaluations import ROW, write_evaluation
from scipy import stats

from invnext_jax.evaluation import video_scores
from invnext_jax.evaluation.pages import comparison, data_notes, row_names
from invnext_jax.evaluation.pages.paired_differences import Protocol

VIDEOS = 60
PROTOCOL = Protocol("top1", "linear_probe", "mean")


@pytest.fixture
def manifest(tmp_path):
    lines = [f"{i}.mp4,x,{int(i >= VIDEOS // 2)}" for i in range(VIDEOS)]
    (tmp_path / "val.csv").write_text("\n".join(["path,source,label_shape", *lines]) + "\n")
    return str(tmp_path / "val.csv")


def make_scores(right):
    """Returns scores of 0 and 1, with `right` correct videos at random positions."""
    return np.random.default_rng(0).permutation(np.arange(VIDEOS) < right).astype(float)


def compare(*folders, protocol=PROTOCOL):
    return comparison.make_table(comparison.read_evaluations(folders), protocol)


def marks(table):
    return [row["cells"]["shape"]["mark"] for row in table["rows"] if row["is_encoder"]]


def with_options(manifest, **options):
    return {"run": {"config": {"val_manifest": manifest, **options}}}


@pytest.mark.parametrize(
    ("options", "others", "changed"),
    [
        ({"seed": 0}, {"seed": 1}, "config.seed is 0 in a and 1 in b"),
        (
            {"streaming": {"epochs": 20}},
            {"streaming": {"epochs": 5}},
            "config.streaming.epochs is 20 in a and 5 in b",
        ),
        (
            {"data": {"interpolation": "bicubic"}},
            {"data": {"interpolation": "area"}},
            "config.data.interpolation is 'bicubic' in a and 'area' in b",
        ),
        ({"poolings": ["mean"]}, {"poolings": ["mean", "frames"]}, ""),
        ({"knn": {"temperature": 0.1}}, {"knn": {"temperature": 0.2}}, ""),
        ({"batch_size": 1, "data": {"workers": 1}}, {"batch_size": 2, "data": {"workers": 2}}, ""),
        ({"data": {"crop": "x"}}, {"data": {"crop": "y"}}, ""),
        ({}, {"new_option": 1}, ""),
    ],
)
def test_rows_with_other_options_are_not_judged(tmp_path, manifest, options, others, changed):
    folders = [
        write_evaluation(
            tmp_path / name, manifest, make_scores(right), **with_options(manifest, **o)
        )
        for name, right, o in (("a", 20, options), ("b", 57, others), ("c", 23, options))
    ]
    table = compare(*folders)
    assert [d["verdict"] for d in table["differences"]] == [
        "other options" if changed else "better",
        "unclear",
    ]
    assert table["differences"][0]["value"] == f"+{100 * 37 / VIDEOS:.1f}"
    assert marks(table)[1:] == (["apart", "best"] if changed else ["best", ""])
    assert all(d["verdict"] != "better" for part in table["classes"] for d in part["rows"]) or (
        not changed
    )
    notes = data_notes.find_notes(comparison.read_evaluations(folders))
    sentence = f"{changed}, so their rows of linear probe are not judged better or worse."
    assert (sentence in notes) == bool(changed)
    assert any("config." in note for note in notes) == bool(changed)
    page = comparison.write_comparison(folders, tmp_path / "page.html").read_text()
    assert ("b and a have different options" in page or "a and c have different" in page) or (
        not changed
    )


def test_baselines_with_different_values_have_separate_rows(tmp_path, manifest):
    folders = []
    for name, value in (("a", 0.3), ("b", 0.3), ("c", 0.4)):
        row = {**ROW, "metric": "top1", "standard_error": 0.1, "n": VIDEOS}
        rows = [{**row, "value": 0.5}, {**row, "name": "first_frame", "value": value}]
        folders.append(write_evaluation(tmp_path / name, manifest, make_scores(30), rows=rows))
    cells = {row["title"]: row["cells"]["shape"]["text"] for row in compare(*folders)["rows"]}
    assert cells["first frame (a)"] == "30.0" and cells["first frame (c)"] == "40.0"
    assert "first frame (b)" not in cells and "first frame" not in cells


def test_differences_of_class_means_use_the_statistic_of_the_rows(tmp_path, manifest):
    """The replicates average over the classes that occur in them, as for the standard errors."""
    rng = np.random.default_rng(3)
    classes = np.repeat([0, 1, 2, 3], [40, 14, 4, 2])
    scores = [(rng.random(VIDEOS) < share).astype(float) for share in (0.4, 0.7)]

    def class_mean(score_b, class_b):
        return np.mean([score_b[class_b == c].mean() for c in np.unique(class_b)])

    metric, folders = "class_mean_recall@3", []
    for number, score_b in enumerate(scores):
        folder = tmp_path / str(number)
        folders.append(write_evaluation(folder, manifest, score_b, metric=metric))
        stored = video_scores.VideoScores(np.arange(VIDEOS), score_b, class_b=classes)
        video_scores.write(folders[-1] / "rows" / "x.npz", [stored])
    (found,) = compare(*folders, protocol=PROTOCOL._replace(metric=metric))["differences"]
    rows = np.random.default_rng(0).integers(VIDEOS, size=(2000, VIDEOS))
    expected = [
        class_mean(scores[1][r], classes[r]) - class_mean(scores[0][r], classes[r]) for r in rows
    ]
    value = class_mean(scores[1], classes) - class_mean(scores[0], classes)
    tail = stats.norm.cdf(stats.t.ppf(0.025, VIDEOS - 1) * (VIDEOS / (VIDEOS - 1)) ** 0.5)
    low, high = np.quantile(expected, [tail, 1 - tail])
    texts = [f"{100 * x:+.1f}" for x in (value, low, high)]
    assert [found["value"], found["low"], found["high"]] == texts


def test_a_single_video_has_no_interval_and_no_verdict(tmp_path):
    (tmp_path / "one.csv").write_text("path,source,label_shape\na.mp4,x,0\n")
    folders = [
        write_evaluation(tmp_path / str(score), str(tmp_path / "one.csv"), [score])
        for score in (0, 1)
    ]
    table = compare(*folders)
    assert table["differences"] == table["classes"] == []


def test_inputs_are_named_in_words_with_their_details():
    words = {
        "frames": "frame means",
        "mean": "mean",
        "frames, best on val": "frame means, best on val",
    }
    words["frames, 20 neighbors"] = "frame means, 20 neighbors"
    assert {name: row_names.describe_input(name) for name in words} == words
