"""Learning curves: one line for each run with several evaluated checkpoints."""

import json

import numpy as np
import pytest
from fake_evaluations import write_evaluation

from invnext_jax.errors import UserError
from invnext_jax.evaluation import results_file
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


def test_a_step_is_read_once(tmp_path, manifest):
    folder = write_steps(tmp_path / "a", manifest, {10: 1, 20: 3}, "runs/s1")
    path = folder / results_file.RESULTS
    path.write_text(json.dumps(json.loads(path.read_text()) | {"steps": [10, 20] * 1000}))
    (parts,) = find_runs(folder).values()
    assert [part.results["step"] for part in parts] == [10, 20]


def test_too_many_results_of_steps_are_one_sentence(tmp_path, manifest, monkeypatch):
    folder = write_steps(tmp_path / "a", manifest, {10: 1, 20: 3}, "runs/s1")
    evaluations = comparison.read_evaluations([folder])
    (parts,) = learning_curves.find_runs(evaluations).values()
    compared = 2 * sum(len(part.results["rows"]) for part in parts)
    for name, module, value in (
        ("MAX_COMPARED", learning_curves, compared - 1),
        ("MAX_BYTES", results_file, 2 * (folder / "steps/10/results.json").stat().st_size - 100),
    ):
        with monkeypatch.context() as patch, pytest.raises(UserError, match="has too many results"):
            patch.setattr(module, name, value)
            learning_curves.find_runs(evaluations)


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


def write_points(tmp_path, manifest, changes):
    """Writes evaluations of one run; the values are 0, 0.25, ... at steps 10, 20, ..."""
    folders = []
    for number, change in enumerate(changes):
        name, scores = f"e{number}", np.arange(4) < number
        change = {"step": 10 * (number + 1), "checkpoint": "runs/s1", **change}
        folders.append(write_evaluation(tmp_path / name, manifest, scores, **change))
    return folders


def make_config(manifest, **options):
    return {"run": {"config": {"val_manifest": manifest, **options}}}


CLIPS = {"frames": 8, "size": 64, "short_side": 64, "sampling": "dense", "stride": 2}


@pytest.mark.parametrize(
    "kind", ["clips", "options", "moving average", "videos", "probe videos", "run"]
)
def test_incomparable_points_are_left_out_and_named(tmp_path, manifest, kind):
    normal = {"clips": CLIPS, **make_config(manifest, inverse_penalties=[1.0], ema=False)}
    normal |= {"videos": {"train": "t", "val": "v"}, "run_sha256": "a"}
    other = {
        "clips": {"clips": {**CLIPS, "frames": 4}},
        "options": make_config(manifest, inverse_penalties=[2.0], ema=False),
        "moving average": make_config(manifest, inverse_penalties=[1.0], ema=True),
        "videos": {"videos": {"train": "t", "val": "w"}},
        "probe videos": {"videos": {"train": "u", "val": "v"}},
        "run": {"run_sha256": "b"},
    }[kind]
    folders = write_points(tmp_path, manifest, [normal, normal, {**normal, **other}, normal])
    runs = find_runs(*folders)
    (chart,) = learning_curves.make_curves(runs, PROTOCOL)
    ((_, _, last),) = chart["legend"]
    assert last == "75"  # of e3
    sentence = (
        "The learning curves of s1 do not contain step 30 of e2, because its run, videos, clips "
        "or options differ from those of the other steps (linear probe)."
    )
    assert learning_curves.find_left_out(runs, [PROTOCOL]) == [sentence]
    page = comparison.write_comparison(folders, tmp_path / "page.html").read_text()
    assert sentence in page


def test_options_of_other_evaluators_leave_the_curve_whole(tmp_path, manifest):
    changes = [make_config(manifest, knn={"temperature": t}, batch_size=t) for t in (0.1, 0.2)]
    runs = find_runs(*write_points(tmp_path, manifest, changes))
    assert len(learning_curves.make_curves(runs, PROTOCOL)) == 1
    assert learning_curves.find_left_out(runs, [PROTOCOL]) == []


def test_steps_of_an_interrupted_command_with_other_options_are_not_joined(tmp_path, manifest):
    """Of steps 10 to 40, the command with new options has only evaluated step 10."""
    folder = write_steps(tmp_path / "a", manifest, {10: 1, 20: 2, 30: 3, 40: 4}, "runs/s1")
    for name, seed in (("", 0), ("steps/10", 1), *((f"steps/{n}", 0) for n in (20, 30, 40))):
        path = folder / name / results_file.RESULTS
        results = json.loads(path.read_text())
        results["run"]["config"]["seed"] = seed
        path.write_text(json.dumps(results))
    runs = find_runs(folder)
    (parts,) = (learning_curves._group_points(part, PROTOCOL)["shape"] for part in runs.values())
    assert [e.results["step"] for e, _ in parts[0]] == [20, 30, 40]
    assert [e.results["step"] for e, _ in parts[1]] == [10]
    assert "step 10 of a" in learning_curves.find_left_out(runs, [PROTOCOL])[0]
