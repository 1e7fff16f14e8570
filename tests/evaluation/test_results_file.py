"""Files of results: older formats, damage, and paths relative to another folder."""

import contextlib
import json
import math
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


CLIPS = {"frames": 8, "size": 64, "short_side": 64, "sampling": "dense", "stride": 2}
ROW = {
    **{"name": "encoder", "input": "mean", "task": "shape", "evaluator": "knn", "metric": "top1"},
    **{"value": 0.5, "standard_error": 0.1, "n": 20, "scores": {"file": "rows/a.npz", "row": 0}},
}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        *(({name: 3}, name) for name in ("stage", "title", "checkpoint", "tasks", "notes")),
        *(({name: "x"}, name) for name in ("manifests", "videos", "run", "clips", "step", "steps")),
        *(({name: "a\nb"}, name) for name in ("stage", "title", "checkpoint")),
        *(({name: "x" * 501}, name) for name in ("stage", "title")),
        *(({"steps": [value]}, "steps") for value in ("../x", True, -1, 2**70, None)),
        *(({"neighbors": 3}, "neighbors"), ({"run": {"config": 3}}, "run.config")),
        *(({"manifests": {"val": 3}}, "manifests"), ({"notes": [3]}, "notes")),
        *(({"tokens": value}, "tokens") for value in (3, {"a": 3}, {"a": {"width": "x"}})),
        ({"clips": {}}, "clips.frames"),
        ({"clips": {**CLIPS, "size": "x"}}, "clips.size"),
        ({"clips": {**CLIPS, "by_source": {"a": 3}}}, "clips.by_source"),
        ({"clips": {**CLIPS, "by_source": {"a": {"sampling": "x"}}}}, "clips.by_source.stride"),
        *(({"run": {"config": {"data": value}}}, "run.config.data") for value in (3, None, [])),
        *(
            ({"run": {"config": {"data": {name: value}}}}, f"run.config.data.{name}")
            for name in ("frames", "size", "short_side")
            for value in (4097, 10**12, -1, 1.5, "x", True, None)
        ),
        ({"run": {"config": {"n" * 2**19: {"a": 1, "b": 2}}}}, "run.config has too many"),
        (
            {"run": {"config": {"data": {"frames": 4096, "size": 257}}}},
            "clips of run.config.data have too many pixels",
        ),
    ],
)
def test_fields_of_unexpected_types_are_one_sentence_errors(tmp_path, change, field):
    content = {"format": 2, "rows": [ROW], "clips": CLIPS}
    (tmp_path / "results.json").write_text(json.dumps(content))
    results_file.read_results(tmp_path)
    (tmp_path / "results.json").write_text(json.dumps({**content, **change}))
    with pytest.raises(UserError, match=f"{tmp_path}/results.json: {field}"):
        results_file.read_results(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, 3) for name in ("name", "input", "task", "evaluator", "metric", "videos_key")),
        *(("value", v) for v in ("x", True, float("inf"), 10**200, [])),
        *(("standard_error", "x"), ("n", 1.5), ("n", -1), ("chance", "x"), ("classes", "x")),
        *(("scores", "x"), ("scores", {"file": 3, "row": 0}), ("scores", {"file": "x"})),
    ],
)
def test_rows_of_unexpected_types_are_one_sentence_errors(tmp_path, name, value):
    text = json.dumps({"format": 2, "rows": [ROW, {**ROW, name: value}]})
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(UserError, match=rf"{tmp_path}/results.json: rows\[1\].{name}"):
        results_file.read_results(tmp_path)


def test_missing_fields_and_values_have_defaults(tmp_path):
    row = {**ROW, "value": None}
    del row["standard_error"]
    content = {"format": 2, "rows": [row], "tokens": {"encoder": {"width": 4, "name": 3}}}
    (tmp_path / "results.json").write_text(json.dumps(content))
    found = results_file.read_results(tmp_path)
    assert found["rows"][0]["standard_error"] is None and math.isnan(found["rows"][0]["value"])
    assert (found["stage"], found["step"], found["run"]) == ("", None, {"config": {}})
    statistics = found["tokens"]["encoder"]
    assert statistics["width"] == 4 and math.isnan(statistics["effective_rank"])
    assert "name" not in statistics


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
    results_file.warn_if_replaced(path, "runs/b", "key")
    assert not capsys.readouterr().out
    path.write_text(json.dumps({"checkpoint": checkpoint}))
    results_file.warn_if_replaced(path, "runs/b", "key")
    assert f"has results {what}, which will be replaced" in capsys.readouterr().out


def test_reused_results_name_the_commit_that_measured_them(tmp_path, monkeypatch):
    monkeypatch.setattr(results_file, "read_git_hash", lambda: "b" * 40)
    for commit, is_noted in (("a" * 40, True), ("b" * 40, False), ("", False)):
        text = results_file.describe_reuse(tmp_path, {"run": {"git": commit}})
        assert text.startswith(f"{tmp_path} is up to date.")
        assert ("measured by commit aaaaaaaaaaaa, and this is bbbbbbbbbbbb" in text) == is_noted


@pytest.mark.parametrize("name", ["name", "task", "metric", "evaluator"])
@pytest.mark.parametrize("value", ["", "x" * 501])
def test_names_are_neither_empty_nor_long(tmp_path, name, value):
    content = {"format": 2, "rows": [{**ROW, name: value}]}
    (tmp_path / "results.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"rows\[0\].{name}='.* is not a line of 1 to 500"):
        results_file.read_results(tmp_path)


def test_the_number_of_rows_is_limited(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"format": 2, "rows": [ROW] * 2000}))
    assert len(results_file.read_results(tmp_path)["rows"]) == 2000
    path.write_text(json.dumps({"format": 2, "rows": [ROW] * 2001}))
    with pytest.raises(UserError, match="has 2,001 rows, but pages have at most 2,000"):
        results_file.read_results(tmp_path)


def test_deeply_nested_configs_are_refused(tmp_path):
    text = json.dumps({"format": 2, "rows": [ROW], "run": {"config": "nested"}})
    for levels, is_refused in ((40, False), (970, True)):
        nested = '{"a":' * levels + "{}" + "}" * levels
        (tmp_path / "results.json").write_text(text.replace('"nested"', nested))
        refusal = pytest.raises(UserError, match=r"results\.json is nested too deeply")
        with refusal if is_refused else contextlib.nullcontext():
            results_file.read_results(tmp_path)
