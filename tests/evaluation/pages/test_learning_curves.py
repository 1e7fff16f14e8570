"""Learning curves: one line for each run with several evaluated checkpoints."""

import numpy as np
import pytest
from fake_evaluations import write_evaluation

from invnext_jax.evaluation.pages import comparison, learning_curves
from invnext_jax.evaluation.pages.paired_differences import Protocol

PROTOCOL = Protocol("top1", "linear_probe", "mean")


@pytest.fixture
def manifest(tmp_path):
    (tmp_path / "val.csv").write_text("path,source,label_shape\na.mp4,x,0\nb.mp4,x,1\n")
    return str(tmp_path / "val.csv")


def write_steps(folder, manifest, right_of_step, checkpoint):
    for step, right in right_of_step.items():
        scores = np.arange(4) < right
        changes = {"step": step, "checkpoint": checkpoint}
        write_evaluation(folder / "steps" / str(step), manifest, scores, **changes)
    return write_evaluation(folder, manifest, scores, steps=list(right_of_step), **changes)


def find_runs(*folders):
    return learning_curves.find_runs(comparison.read_evaluations(folders))


def test_all_steps_of_each_run_are_in_one_chart(tmp_path, manifest):
    first = write_steps(tmp_path / "a", manifest, {10: 1, 20: 3}, "runs/s1")
    other = write_steps(tmp_path / "b", manifest, {5: 0, 10: 2, 15: 4}, "runs/s2")
    runs = find_runs(first, other)
    steps = {name: [part.results["step"] for part in parts] for name, parts in runs.items()}
    assert steps == {"s1": [10, 20], "s2": [5, 10, 15]}
    (chart,) = learning_curves.make_curves(runs, PROTOCOL)
    assert chart["title"] == "shape"
    assert [(name, last) for name, _, last in chart["legend"]] == [("s1", "75"), ("s2", "100")]
    assert chart["svg"].count("<svg") == 1
    assert learning_curves.make_curves(runs, PROTOCOL._replace(input="frames")) == []


def test_evaluations_of_single_checkpoints_of_one_run_are_joined(tmp_path, manifest):
    folders = [
        write_evaluation(tmp_path / str(step), manifest, [1, 0], step=step)
        for step in (2000, 1000, 3000)
    ]
    (parts,) = find_runs(*folders).values()
    assert [part.results["step"] for part in parts] == [1000, 2000, 3000]


def test_runs_with_one_checkpoint_have_no_curve(tmp_path, manifest):
    folders = [
        write_evaluation(tmp_path / name, manifest, [1, 0], checkpoint=name, step=10)
        for name in ("a", "b")
    ]
    assert find_runs(*folders) == {}


def test_runs_of_the_same_name_have_their_paths_as_names(tmp_path, manifest):
    folders = [
        write_steps(tmp_path / name, manifest, {1: 1, 2: 1}, f"{name}/s1") for name in ("x", "y")
    ]
    assert list(find_runs(*folders)) == ["x/s1", "y/s1"]


def test_one_evaluation_of_several_steps_makes_a_page(tmp_path, manifest):
    folder = write_steps(tmp_path / "a", manifest, {10: 1, 20: 3}, "runs/s1")
    page = comparison.write_comparison([folder], tmp_path / "page.html").read_text()
    assert "Learning curves" in page and page.count("<svg") == 2  # in the overview and below
