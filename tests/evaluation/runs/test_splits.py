"""Manifests of the splits: missing labels, copies of training videos, and relative paths."""

import dataclasses
import functools

import numpy as np
import pytest
from toy_evaluation import get_config

from configs import stage1
from configs.eval.tasks import linear_probe as probe_config
from invnext_jax.errors import UserError
from invnext_jax.evaluation import evaluate, evaluation_data, pretrained, split_checks, tables
from invnext_jax.evaluation.evaluators import (
    baselines,
    classification,
    linear_probe,
    supervised,
)
from invnext_jax.evaluation.feature_store import extraction
from invnext_jax.evaluation.feature_store.clips_in_memory import LabeledVideos
from invnext_jax.models import encoder as encoder_model


def test_relative_manifests_start_at_the_root_of_the_data(folder):
    encoder = pretrained.load_frozen(folder / "encoder.safetensors")
    config = get_config(folder, train_manifest="train.csv", val_manifest="/val.csv,world://a")
    config.data.root = str(folder / "world")
    found = evaluation_data.resolve(config, encoder)
    assert found.train_manifest == str(folder / "world" / "train.csv")
    assert found.val_manifest == "/val.csv,world://a"


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
        functools.partial(baselines.fit_forest, trees=5),
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


def test_a_single_class_is_refused_before_features_are_extracted(folder, tmp_path, monkeypatch):
    lines = (folder / "world" / "train.csv").read_text().splitlines()
    rows = ["path,source,label_x", *(f"{line.split(',')[0]},world,3" for line in lines[1:])]
    (tmp_path / "train.csv").write_text("\n".join(rows) + "\n")
    rows[-1] = rows[-1][:-1] + "4"
    (tmp_path / "val.csv").write_text("\n".join(rows) + "\n")
    monkeypatch.setattr(extraction, "run_extractor", None)
    manifests = {f"{split}_manifest": str(tmp_path / f"{split}.csv") for split in ("train", "val")}
    config = get_config(folder, **manifests, evaluators=("knn",), controls=False)
    with pytest.raises(UserError, match="label_x has only one class in the training manifest"):
        evaluate.evaluate_checkpoint(config, tmp_path / "p")
    assert split_checks.choose_tasks(config, needs_labels=False) == ("x",)


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
        counts = {"held_out": 48, "copies": 48, "repeats": 0}
        assert found["splits"] == {**counts, "unseen": {}, "unreadable": {"train": 0, "val": 0}}
        assert "48 of 48 held-out videos are also training" in tables.format_table(found)
    assert "note: 48 of 48 held-out videos are also training" in capsys.readouterr().out
    assert tables.join_results([found, found])["notes"] == found["notes"]
