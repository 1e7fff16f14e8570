"""The probe of a tiny untrained encoder on a tiny world, from the real config."""

import functools
import json

import jax
import numpy as np
import pytest
from scipy import special

from configs import probe, stage1
from invnext_jax.checkpointing import run_metadata
from invnext_jax.errors import UserError
from invnext_jax.evaluation import evaluate, features, tables
from invnext_jax.evaluation.evaluators import linear_probe, supervised
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
    params = features.init_encoder(config, seed=3)
    about = {"config": run_metadata.config_to_json(config)}
    export.write_export(folder / "encoder.safetensors", {"encoder": params}, about)
    return folder


def get_config(folder, **changes):
    config = probe.get_config("tiny")
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
    return evaluate.run_probe(get_config(folder), folder / "p")


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


def test_results_are_on_disk_with_what_made_them(folder, results):
    found = json.loads((folder / "p" / "results.json").read_text())
    assert found["rows"] == results["rows"]
    assert {"jax", "python"} <= set(found["run"]["versions"])
    assert found["run"]["config"]["data"]["size"] == 16


def test_a_repeated_command_measures_nothing(folder, results, monkeypatch):
    monkeypatch.setattr(features, "extract", None)
    assert evaluate.run_probe(get_config(folder), folder / "p")["key"] == results["key"]


def test_controls_survive_a_change_of_checkpoint(folder, results, monkeypatch):
    monkeypatch.setattr(evaluate, "_run_controls", None)
    (folder / "p" / "results.json").unlink()
    again = evaluate.run_probe(get_config(folder), folder / "p")
    shares = [[row["top1"] for row in found["rows"]] for found in (again, results)]
    assert shares[0] == shares[1]


def test_table_has_a_line_for_each_input(results):
    lines = tables.format_table(results).splitlines()
    assert [line.split("  ")[0] for line in lines[:3]] == [
        "top-1, %",
        "chance",
        "this encoder, mean",
    ]
    assert len(lines) == 2 + len({(r["name"], r["input"]) for r in results["rows"]}) + 2


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"val_manifest": ""}, "set config.train_manifest and config.val_manifest"),
        ({"val_manifest": "nowhere.csv"}, "nowhere.csv does not exist"),
        ({"tasks": ("size",)}, "no column label_size"),
        ({"poolings": ("max",)}, r"unknown poolings \['max'\]"),
        ({"checkpoint": ""}, "config.checkpoint is empty"),
        ({"checkpoint": "nowhere"}, "nowhere holds no checkpoint"),
    ],
)
def test_mistakes_are_told_in_one_sentence(folder, changes, match):
    with pytest.raises(UserError, match=match):
        evaluate.run_probe(get_config(folder, **changes), folder / "other")


def test_videos_without_a_label_neither_train_nor_count():
    rng = np.random.default_rng(0)
    data = [rng.normal(size=(b, 6)) for b in (40, 30)]
    labels = [{"shape": rng.integers(3, size=len(x)).astype(np.int32)} for x in data]
    more = [np.concatenate([x, 9 * rng.normal(size=(25, 6))]) for x in data]
    none = np.full(25, -1, np.int32)
    joined = [{"shape": np.concatenate([y["shape"], none])} for y in labels]
    linear = evaluate._linear(probe.get_config("tiny"))
    for fit in (linear, functools.partial(linear_probe.fit_forest, trees=5)):
        plain, found = (
            evaluate._rows("encoder", "mean", ["shape"], x, y, fit)[0]
            for x, y in ((data, labels), (more, joined))
        )
        assert plain.pop("seconds") and found.pop("seconds")
        assert found == plain
        assert (found["videos"], found["classes"]) == (30, 3)


def test_supervised_training_passes_over_videos_without_a_label():
    logits = np.random.default_rng(1).normal(size=(6, 4)).astype(np.float32)
    labels = np.array([-1, 3, 0, -1, 2, -1])
    some = labels >= 0
    expected = -special.log_softmax(logits, axis=1)[some, labels[some]].mean()
    loss, grad = jax.value_and_grad(supervised._mean_entropy)(logits, labels)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert not grad[~some].any() and np.abs(grad[some]).min() > 0
    assert supervised._mean_entropy(logits, np.full(6, -1)) == 0


def test_supervised_training_counts_videos_with_a_label(folder):
    config = stage1.get_config("tiny")
    config.encoder.update(width=16, depth=1, heads=2, mlp_width=32, size=16, frames=2)
    rng = np.random.default_rng(2)
    video = rng.integers(256, size=(8, 2, 16, 16, 3), dtype=np.uint8)
    labels = np.array([0, 1, -1, 1, -1, 0, -1, 1], np.int32)
    settings = probe.get_config("tiny").supervised
    settings.update(steps=1, batch_size=8)
    results, _ = supervised.train_supervised(
        encoder_model.from_config(config),
        (video, {"shape": labels, "color": np.arange(8) % 3}),
        (video[:6], {"shape": labels[:6], "color": np.arange(6) % 3}),
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
    assert "shape" in evaluate.choose_tasks(config)
    config.update(val_manifest=f"{tmp_path}/none.csv", train_manifest=f"{tmp_path}/none.csv")
    with pytest.raises(UserError, match="label_size has no labelled video in the training"):
        evaluate.choose_tasks(config)
