"""Files of results: older formats, damage, and paths relative to another folder."""

import json
from pathlib import Path

import pytest

from invnext_jax.errors import UserError
from invnext_jax.evaluation import results_file


def test_results_of_format_1_are_read_and_others_are_refused(tmp_path):
    rows = [
        {"name": "encoder", "input": "mean", "task": "shape", "top1": 0.5, "videos": 8},
        {"name": "first_frame", "input": "boxes", "task": "shape", "top1": 0.25, "videos": 8},
    ]
    (tmp_path / "results.json").write_text(json.dumps({"format": 1, "rows": rows}))
    found = results_file.read_results(tmp_path)["rows"]
    assert [(row["evaluator"], row["metric"], row["value"], row["n"]) for row in found] == [
        ("linear_probe", "top1", 0.5, 8),
        ("box_baselines", "top1", 0.25, 8),
    ]
    for text, sentence in (
        ('{"format": 3}', "has format 3, but this version reads 1 and 2"),
        ("{", "is damaged"),
        ("[]", "JSON object"),
        ("[" * 10**5, "nested too deeply"),
        ('{"format": 2}', "has damaged rows"),
        ('{"format": 2, "rows": "x"}', "has damaged rows"),
        ('{"format": 1, "rows": [{}]}', "has damaged rows"),
    ):
        (tmp_path / "results.json").write_text(text)
        with pytest.raises(UserError, match=sentence):
            results_file.read_results(tmp_path)


def test_paths_are_relative_to_the_new_folder():
    rows = [{"scores": {"file": "rows/a.npz", "row": 3}}, {"value": 1}]
    step = results_file.step_folder("e", 100)
    found = results_file.move_files({"rows": rows, "step": 100}, step, Path("e"))
    scores = {"file": "steps/100/rows/a.npz", "row": 3}
    assert found == {"rows": [{"scores": scores}, {"value": 1}], "step": 100}
    back = results_file.move_files(found, Path("e"), step)
    assert back["rows"] == rows
    outside = results_file.move_files({"rows": rows}, Path("e"), step)
    assert outside["rows"][0]["scores"]["file"] == "../../rows/a.npz"


def test_files_must_be_inside_the_workdir(tmp_path):
    step = tmp_path / "e" / "steps" / "100"
    step.mkdir(parents=True)
    (tmp_path / "e" / "link").symlink_to(tmp_path)
    (tmp_path / "e" / "loop").symlink_to(tmp_path / "e" / "loop")
    find = results_file.find_file
    assert find(tmp_path / "e", "rows/a.npz") == tmp_path.resolve() / "e" / "rows" / "a.npz"
    assert find(step, "../../rows/a.npz") == tmp_path.resolve() / "e" / "rows" / "a.npz"
    for name in ("../a.npz", "link/a.npz", str(tmp_path / "e" / "a.npz"), "a\0b", "loop/../../a"):
        assert find(tmp_path / "e", name) is None
    assert find(step, "../../../a.npz") is None


@pytest.mark.parametrize(
    ("checkpoint", "what"),
    [("runs/a", "of runs/a"), ("runs/b", "with other options, weights or videos")],
)
def test_a_note_says_that_results_will_be_replaced(checkpoint, what, tmp_path, capsys):
    path = tmp_path / "results.json"
    results_file.warn_if_replaced(path, "runs/b")
    assert not capsys.readouterr().out
    path.write_text(json.dumps({"checkpoint": checkpoint}))
    results_file.warn_if_replaced(path, "runs/b")
    assert f"has results {what}, which will be replaced" in capsys.readouterr().out
