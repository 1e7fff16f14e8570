"""Evaluation of a tiny untrained encoder on a tiny world, with the real config."""

import dataclasses
import functools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from configs import stage1
from configs.eval.tasks import linear_probe as probe_config
from invnext_jax.checkpointing import run_metadata
from invnext_jax.errors import UserError
from invnext_jax.evaluation import (
    evaluate,
    nearest_neighbors,
    pretrained,
    results_file,
    split_checks,
    tables,
    video_scores,
)
from invnext_jax.evaluation.clips_in_memory import LabeledVideos
from invnext_jax.evaluation.evaluators import (
    box_baselines,
    classification,
    linear_probe,
    registry,
    supervised,
)
from invnext_jax.evaluation.feature_store import extraction
from invnext_jax.models import encoder as encoder_model
from invnext_jax.synthetic_world.files import write_world
from invnext_jax.synthetic_world.scene import WorldSpec
from invnext_jax.weights import export


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("probe")
    for split, videos in (("train", 48), ("val", 24)):
        spec = WorldSpec(size=16, frames=4, split=split)
        write_world(spec, folder / "world", videos, progress=False)
    config = stage1.get_config("tiny")
    config.encoder.update(width=16, depth=1, heads=2, mlp_width=32, size=16, frames=4)
    params = pretrained.init_encoder(config, seed=3)
    about = {"config": run_metadata.config_to_json(config)}
    export.write_export(folder / "encoder.safetensors", {"encoder": params}, about)
    return folder


def get_config(folder, **changes):
    config = probe_config.get_config("tiny")
    config.update(
        checkpoint=str(folder / "encoder.safetensors"),
        train_manifest=str(folder / "world" / "train.csv"),
        val_manifest=str(folder / "world" / "val.csv"),
        batch_size=16,
        inverse_penalties=(1e-3, 1e-1),
        trees=10,
    )
    config.supervised.update(steps=3, batch_size=8)
    config.data.workers = 0  # processes would have to start for each pass
    config.update(changes)
    return config


@pytest.fixture(scope="module")
def results(folder):
    return evaluate.evaluate_checkpoint(get_config(folder), folder / "p")


def test_every_input_has_a_row_for_each_task(results):
    inputs = {(row["name"], row["input"]) for row in results["rows"]}
    assert inputs == {
        *((name, pooling) for name in ("encoder", "random") for pooling in ("mean", "frames")),
        *(
            (name, what)
            for name in ("first_frame", "bag_of_frames")
            for what in ("pixels", "boxes")
        ),
        ("ordered_track", "boxes"),
        ("supervised", "end to end"),
    }
    assert len(results["rows"]) == 3 * len(inputs)
    assert all(row["videos"] == 24 for row in results["rows"])
    assert set(results["tokens"]) == {"encoder", "random"}


def test_rows_name_their_evaluator_and_metric(results):
    for row in results["rows"]:
        assert row["evaluator"] in registry.EVALUATORS
        assert (row["metric"], row["n"], row["value"]) == ("top1", row["videos"], row["top1"])


def test_results_file_holds_rows_versions_and_config(folder, results):
    found = json.loads((folder / "p" / "results.json").read_text())
    assert found["rows"] == results["rows"]
    assert {"jax", "python"} <= set(found["run"]["versions"])
    assert found["run"]["config"]["data"]["size"] == 16


def test_repeated_command_measures_nothing(folder, results, monkeypatch):
    monkeypatch.setattr(extraction, "run_extractor", None)
    assert evaluate.evaluate_checkpoint(get_config(folder), folder / "p")["key"] == results["key"]


def test_controls_survive_a_change_of_checkpoint(folder, results, tmp_path, monkeypatch, capsys):
    shutil.copytree(folder / "p", tmp_path / "p")
    config = get_config(folder, checkpoint=str(tmp_path / "other.safetensors"))
    loaded = pretrained.load_encoder(folder / "encoder.safetensors")
    about = {"config": run_metadata.config_to_json(loaded.config)}
    params = pretrained.init_encoder(loaded.config, seed=4)
    export.write_export(tmp_path / "other.safetensors", {"encoder": params}, about)
    monkeypatch.setattr(pretrained, "init_encoder", None)
    monkeypatch.setattr(supervised, "train_supervised", None)
    monkeypatch.setattr(box_baselines, "fit_forest", None)
    capsys.readouterr()
    again = evaluate.evaluate_checkpoint(config, tmp_path / "p")
    note = f"has results of {folder}/encoder.safetensors, which will be replaced. To keep them, use"
    assert note in capsys.readouterr().out
    controls = [
        [row for row in found["rows"] if row["name"] != "encoder"] for found in (again, results)
    ]
    assert controls[0] == controls[1]
    assert again["tokens"]["random"] == results["tokens"]["random"]
    assert again["tokens"]["encoder"] != results["tokens"]["encoder"]


def test_killed_command_continues_without_extracting_again(folder, results, tmp_path, monkeypatch):
    shutil.copytree(folder / "p", tmp_path / "p")
    (tmp_path / "p" / "results.json").unlink()
    (tmp_path / "p" / "rows" / "linear_probe-encoder.json").unlink()
    monkeypatch.setattr(extraction, "run_extractor", None)
    again = evaluate.evaluate_checkpoint(get_config(folder), tmp_path / "p")
    shares = [[row["top1"] for row in found["rows"]] for found in (again, results)]
    assert shares[0] == shares[1]
    assert again["tokens"] == results["tokens"]


@pytest.fixture
def fake_run(folder, monkeypatch):
    """A run with checkpoints of three steps. Returns the steps that were loaded."""
    loaded, load = [], pretrained.load_frozen

    def load_step(path, *, ema=False, step=None):
        loaded.append(step)
        return load(folder / "encoder.safetensors").with_random_params(step)

    monkeypatch.setattr(pretrained, "load_frozen", load_step)
    monkeypatch.setattr(pretrained, "list_steps", lambda _: [2, 4, 10])
    return loaded


def test_checkpoints_of_several_steps_have_separate_results(folder, tmp_path, fake_run):
    changes = {"evaluators": ("linear_probe", "box_baselines"), "steps": "all"}
    config = get_config(folder, tasks=("shape",), poolings=("mean",), **changes)
    results = evaluate.evaluate_checkpoint(config, tmp_path)
    assert fake_run == results["steps"] == [2, 4, 10]
    parts = [results_file.read_results(tmp_path / "steps" / str(step)) for step in fake_run]
    assert [part["step"] for part in parts] == fake_run
    places = [tmp_path, *(results_file.step_folder(tmp_path, step) for step in fake_run)]
    for found, place in zip([results, *parts], places, strict=True):
        nearest = nearest_neighbors.read_nearest_videos(place / found["neighbors"])
        assert nearest.neighbor_bk.shape == (24, nearest_neighbors.NEIGHBORS)
        for row in found["rows"]:
            scores = video_scores.read(place / row["scores"]["file"], row["scores"]["row"])
            np.testing.assert_allclose(scores.score_b.mean(), row["value"])
            assert len(scores.predicted_b) == 24
    assert parts[2]["key"] == results["key"] != parts[0]["key"]
    # Baselines and random initialization are measured once.
    assert {path.name for path in (tmp_path / "rows").glob("*.json")} == {
        *("linear_probe-random.json", "box_baselines-random.json")
    }
    alone = get_config(folder, tasks=("shape",), poolings=("mean",), **{**changes, "steps": "4"})
    again = evaluate.evaluate_checkpoint(alone, tmp_path / "alone")
    assert again["rows"][0]["value"] == parts[1]["rows"][0]["value"]
    assert again["tokens"]["encoder"] == parts[1]["tokens"]["encoder"]


def test_interrupted_evaluation_of_steps_continues(folder, tmp_path, fake_run, monkeypatch):
    changes = {"evaluators": ("linear_probe",), "controls": False, "tasks": ("shape",)}
    config = get_config(folder, poolings=("mean",), steps="2,4", **changes)
    evaluate.evaluate_checkpoint(config, tmp_path)
    config.steps = "all"
    extracted, run = [], extraction.run_extractor

    def count(*arguments, **options):
        extracted.append(arguments)
        return run(*arguments, **options)

    monkeypatch.setattr(extraction, "run_extractor", count)
    assert evaluate.evaluate_checkpoint(config, tmp_path)["step"] == 10
    assert len(extracted) == 2  # both splits, only for the last step


def test_steps_without_a_checkpoint_are_refused(folder, tmp_path, fake_run, monkeypatch):
    config = get_config(folder, steps="2,3")
    with pytest.raises(UserError, match="no checkpoint '3'; use 'all', or numbers from 2, 4, 10"):
        evaluate.evaluate_checkpoint(config, tmp_path)
    config.steps = "first"
    with pytest.raises(UserError, match="no checkpoint 'first'"):
        evaluate.evaluate_checkpoint(config, tmp_path)
    monkeypatch.setattr(pretrained, "list_steps", lambda _: [])
    with pytest.raises(UserError, match="steps='first' needs the workdir of a run"):
        evaluate.evaluate_checkpoint(config, tmp_path)
    assert fake_run == []


def test_relative_manifests_start_at_the_root_of_the_data(folder):
    encoder = pretrained.load_frozen(folder / "encoder.safetensors")
    config = get_config(folder, train_manifest="train.csv", val_manifest="/val.csv,world://a")
    config.data.root = str(folder / "world")
    found = evaluate.resolve(config, encoder)
    assert found.train_manifest == str(folder / "world" / "train.csv")
    assert found.val_manifest == "/val.csv,world://a"


def load_example():
    """Runs the example of docs/evaluation/evaluation.md, which registers an evaluator."""
    page = (Path(__file__).parents[2] / "docs/evaluation/evaluation.md").read_text()
    namespace = {}
    exec(page.split("```python\n")[1].split("```")[0], namespace)
    return namespace


def test_registered_evaluator_has_rows_and_a_table(folder, results, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "EVALUATORS", dict(registry.EVALUATORS))
    example = load_example()["get_config"]()
    shutil.copytree(folder / "p", tmp_path / "p")
    config = get_config(folder, evaluators=example.evaluators)
    config.feature_norm = example.feature_norm
    again = evaluate.evaluate_checkpoint(config, tmp_path / "p")
    rows = [row for row in again["rows"] if row["evaluator"] == "feature_norm"]
    assert [row["name"] for row in rows] == ["encoder", "random"]
    joined = tables.join_results([results_file.read_results(tmp_path / "p")])
    assert [table["title"] for table in joined["tables"]] == ["top-1, %", "norm"]
    table = joined["tables"][1]
    assert table["tasks"] == ["all videos"] and table["n"] == "24"
    shown = [(row["name"], row["input"], row["note"]) for row in table["rows"]]
    assert shown[1] == ("Stage 1", "mean", "frozen encoder; feature norm")
    assert table["rows"][1]["cells"]["all videos"]["text"] == f"{rows[0]['value']:.3g}"
    lines = tables.format_table(again).splitlines()
    assert any(line.split() == ["norm", "all", "videos"] for line in lines)
    config.feature_norm.order = 3
    with pytest.raises(UserError, match="config.feature_norm.order=3 must be 1 or 2"):
        evaluate.evaluate_checkpoint(config, tmp_path / "p")


def test_two_evaluators_of_one_name_are_refused(monkeypatch):
    monkeypatch.setattr(registry, "EVALUATORS", dict(registry.EVALUATORS))
    with pytest.raises(ValueError, match="an evaluator 'linear_probe' is already registered"):
        registry.register(linear_probe.LinearProbe())
    evaluator = linear_probe.LinearProbe()
    evaluator.name = "../x"
    with pytest.raises(ValueError, match="must be an identifier"):
        registry.register(evaluator)


def test_table_has_a_line_for_each_input(results):
    lines = tables.format_table(results).splitlines()
    assert [line.split("  ")[0] for line in lines[:3]] == [
        "top-1, %",
        "chance",
        "this encoder, mean",
    ]
    assert len(lines) == 2 + len({(r["name"], r["input"]) for r in results["rows"]}) + 3


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"val_manifest": ""}, "set config.train_manifest and config.val_manifest"),
        ({"val_manifest": "nowhere.csv"}, "nowhere.csv does not exist"),
        ({"tasks": ("size",)}, "no column label_size"),
        ({"poolings": ("max",)}, r"unknown poolings \['max'\]"),
        ({"evaluators": ()}, "config.evaluators is empty"),
        (
            {"evaluators": ("nearest",)},
            "config.evaluators has 'nearest', which is not one of linear_probe",
        ),
        ({"inverse_penalties": ()}, "config.inverse_penalties=.* must be positive"),
        ({"trees": 0}, "config.trees=0 must be at least 1"),
        ({"checkpoint": ""}, "config.checkpoint is empty"),
        ({"checkpoint": "nowhere"}, "nowhere has no checkpoint"),
    ],
)
def test_invalid_configs_are_one_sentence_errors(folder, changes, match):
    with pytest.raises(UserError, match=match):
        evaluate.evaluate_checkpoint(get_config(folder, **changes), folder / "other")


def test_scores_of_the_videos_are_stored_and_add_up_to_the_rows(folder, results):
    for row in results["rows"]:
        found = video_scores.read(folder / "p" / row["scores"]["file"], row["scores"]["row"])
        assert found.score_b.mean() == pytest.approx(row["value"])
        assert found.index_b.tolist() == list(range(row["n"]))


def test_videos_without_a_label_neither_train_nor_count():
    rng = np.random.default_rng(0)
    data = [rng.normal(size=(b, 6)) for b in (40, 30)]
    labels = [{"shape": rng.integers(3, size=len(x)).astype(np.int32)} for x in data]
    more = [np.concatenate([x, 9 * rng.normal(size=(25, 6))]) for x in data]
    none = np.full(25, -1, np.int32)
    joined = [{"shape": np.concatenate([y["shape"], none])} for y in labels]
    penalties = probe_config.get_config("tiny").inverse_penalties
    for fit in (
        functools.partial(linear_probe.fit_linear, inverse_penalties=penalties),
        functools.partial(box_baselines.fit_forest, trees=5),
    ):
        plain, found = (
            dataclasses.asdict(classification.fit_tasks(x, y, ["shape"], fit)["shape"])
            for x, y in ((data, labels), (more, joined))
        )
        assert plain.pop("seconds") and found.pop("seconds")
        for name in ("correct_b", "predicted_b", "position_b"):
            np.testing.assert_array_equal(found.pop(name), plain.pop(name))
        assert found == plain
        assert (found["videos"], found["classes"]) == (30, 3)


def test_supervised_training_counts_videos_with_a_label(folder):
    config = stage1.get_config("tiny")
    config.encoder.update(width=16, depth=1, heads=2, mlp_width=32, size=16, frames=2)
    rng = np.random.default_rng(2)
    video = rng.integers(256, size=(8, 2, 16, 16, 3), dtype=np.uint8)
    labels = np.array([0, 1, -1, 1, -1, 0, -1, 1], np.int32)
    settings = probe_config.get_config("tiny").supervised
    settings.update(steps=1, batch_size=8)
    results, _ = supervised.train_supervised(
        encoder_model.from_config(config),
        LabeledVideos(video, {"shape": labels, "color": np.arange(8) % 3}, np.arange(8)),
        LabeledVideos(video[:6], {"shape": labels[:6], "color": np.arange(6) % 3}, np.arange(6)),
        **{"tasks": ["shape", "color"], "config": settings, "seed": 0},
    )
    assert [results[task].videos for task in ("shape", "color")] == [4, 6]
    assert [results[task].classes for task in ("shape", "color")] == [2, 3]


def test_a_joined_manifest_may_lack_labels_but_not_all(folder, tmp_path):
    lines = (folder / "world" / "train.csv").read_text().splitlines()
    for name, label in (("plain", ""), ("none", "-1")):
        rows = ["path,source" + (",label_size" if label else "")]
        rows += [
            f"{line.split(',')[0]},world" + label.rjust(3, ",") * bool(label) for line in lines[1:]
        ]
        (tmp_path / f"{name}.csv").write_text("\n".join(rows) + "\n")
    joined = f"{folder}/world/train.csv,{tmp_path}/plain.csv"
    config = get_config(folder, train_manifest=joined, val_manifest=joined)
    assert "shape" in split_checks.choose_tasks(config)
    config.update(val_manifest=f"{tmp_path}/none.csv", train_manifest=f"{tmp_path}/none.csv")
    with pytest.raises(UserError, match="label_size has no labeled video in the training"):
        split_checks.choose_tasks(config)


def test_evaluators_without_labels_need_none_in_the_training_manifest(folder, tmp_path):
    lines = (folder / "world" / "train.csv").read_text().splitlines()
    rows = ["path,source", *(f"{line.split(',')[0]},world" for line in lines[1:])]
    (tmp_path / "plain.csv").write_text("\n".join(rows) + "\n")
    plain, labeled = f"{tmp_path}/plain.csv", f"{folder}/world/val.csv"
    config = get_config(folder, train_manifest=plain, val_manifest=labeled)
    with pytest.raises(UserError, match="have no label_<task> column in common"):
        split_checks.choose_tasks(config)
    assert "motion" in split_checks.choose_tasks(config, needs_labels=False)
    config.val_manifest = plain
    assert split_checks.choose_tasks(config, needs_labels=False) == ()


def test_notes_about_the_splits_are_in_the_results_and_the_tables(folder, tmp_path, capsys):
    world = str(folder / "world" / "train.csv")
    changes = {"evaluators": ("linear_probe",), "controls": False, "tasks": ("shape",)}
    config = get_config(folder, val_manifest=world, **changes)
    with pytest.raises(UserError, match="is also in config.train_manifest"):
        evaluate.evaluate_checkpoint(config, tmp_path / "p")
    config.same_manifest = True
    for _ in range(2):  # the second call reads the results
        found = evaluate.evaluate_checkpoint(config, tmp_path / "p")
        assert found["splits"] == {"held_out": 48, "copies": 48, "unseen": {}}
        assert "48 of 48 held-out videos are also training" in tables.format_table(found)
    assert "note: 48 of 48 held-out videos are also training" in capsys.readouterr().out
    assert tables.join_results([found, found])["notes"] == found["notes"]


def test_replaced_videos_are_evaluated_again(folder, tmp_path, monkeypatch):
    shutil.copytree(folder / "world", tmp_path / "world")
    changes = {"evaluators": ("linear_probe",), "tasks": ("shape",), "poolings": ("mean",)}
    config = get_config(tmp_path, checkpoint=str(folder / "encoder.safetensors"), **changes)
    config.controls = False
    first = evaluate.evaluate_checkpoint(config, tmp_path / "p")
    videos = sorted((tmp_path / "world").rglob("*.mp4"))
    videos[0].touch()
    with monkeypatch.context() as patch:
        patch.setattr(extraction, "run_extractor", None)
        assert evaluate.evaluate_checkpoint(config, tmp_path / "p")["key"] == first["key"]
    train = [path for path in videos if "train" in str(path)]
    train[0].write_bytes(train[1].read_bytes())
    keys = [evaluate.evaluate_checkpoint(config, tmp_path / "p")["key"] for _ in range(2)]
    assert keys[0] == keys[1] != first["key"]
    stored = np.load(tmp_path / "p" / "features" / "encoder-train" / "000000-frames.npy")
    np.testing.assert_allclose(*stored[:2], atol=1e-5)  # the new features are stored


def test_frames_and_size_are_printed_and_stored(folder, tmp_path, capsys):
    changes = {"evaluators": ("linear_probe",), "tasks": ("shape",), "poolings": ("mean",)}
    config = get_config(folder, controls=False, **changes)
    found = evaluate.evaluate_checkpoint(config, tmp_path / "own")
    sentence = "clips of 4 frames of 16 x 16 pixels, sparse sampling, short side 16"
    assert f"stage1, 1 blocks of width 16, on {sentence}\n" in capsys.readouterr().out
    assert found["notes"] == []
    config.data.update(frames=2, sampling="dense", stride=(1, 3))
    found = evaluate.evaluate_checkpoint(config, tmp_path / "other")
    printed = capsys.readouterr().out
    sentence = "clips of 2 frames of 16 x 16 pixels, dense sampling with stride 2, short side 16"
    note = "built for clips of 4 frames of 16 x 16 pixels, but config.data.frames=2."
    for text in (printed, tables.format_table(found)):
        assert sentence in text and note in text
    stored = json.loads((tmp_path / "other" / "results.json").read_text())["clips"]
    assert (stored["frames"], stored["encoder_frames"], stored["stride"]) == (2, 4, 2)
    assert tables.join_results([found])["clips"] == {"Stage 1": sentence}
