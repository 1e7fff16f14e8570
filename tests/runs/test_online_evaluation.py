"""Evaluation during pretraining is equal on one and eight devices, and is logged."""

import csv
import json

import jax
import numpy as np
import pytest

from configs import stage1
from invnext_jax import online_evaluation, train
from invnext_jax.checkpointing import reader
from invnext_jax.data import manifest as manifest_lib
from invnext_jax.errors import UserError
from invnext_jax.evaluation import pretrained
from invnext_jax.monitoring import metrics_file
from invnext_jax.synthetic_world.files import write_world
from invnext_jax.synthetic_world.spec import WorldSpec
from invnext_jax.training import mesh as mesh_lib

WORLD = "world:simple/val?videos=20&size=16&frames=4"


@pytest.fixture(scope="module")
def config():
    config = stage1.get_config("tiny")
    config.encoder.update(width=16, depth=1, heads=2, mlp_width=32, size=16, frames=4)
    config.data.update(frames=4, size=16, short_side=16, workers=0)
    config.data.manifest = WORLD.replace("val", "train")
    config.eval.update(every_steps=2, manifest=WORLD, neighbors=3)
    return config


def evaluate(config, mesh, step=2):
    host = pretrained.init_encoder(config, seed=0)
    params = mesh_lib.replicate(host, mesh)
    training = manifest_lib.read_manifest(config.data.manifest)
    evaluated = online_evaluation.read_manifest(config)
    evaluation = online_evaluation.OnlineEvaluation(config, mesh, params, training, evaluated)
    found = evaluation.after_step(step, params)
    return {name: float(value) for name, value in found.items()}


def read_labels(config):
    training = manifest_lib.read_manifest(config.data.manifest)
    evaluated = online_evaluation.read_manifest(config)
    _, rows, labels = online_evaluation._open_videos(config, training, evaluated)
    return rows, labels


def test_result_does_not_depend_on_the_number_of_devices(config):
    found = evaluate(config, mesh_lib.make_mesh(config.mesh))
    names = {"eval/knn_shape", "eval/knn_color", "eval/knn_motion", "eval/feature_rank"}
    assert found.keys() == names
    one = mesh_lib.make_mesh(config.mesh, jax.devices()[:1])
    assert evaluate(config, one) == {name: pytest.approx(found[name], rel=1e-4) for name in found}
    assert evaluate(config, one, step=3) == {}


def test_random_part_of_a_large_manifest_is_used(config):
    rows, labels = read_labels(config)
    assert rows.tolist() == list(range(20))
    config = config.copy_and_resolve_references()
    config.eval.videos = 8
    part, part_labels = read_labels(config)
    assert len(part) == 8 == len(set(part.tolist()))
    np.testing.assert_array_equal(part_labels["shape"], labels["shape"][part])


def test_labels_of_a_single_class_are_noted(config, tmp_path, capsys):
    path = tmp_path / "videos.csv"
    path.write_text("path,source,label_a,label_b\nx.mp4,s,0,1\ny.mp4,s,1,1\nz.mp4,s,1,-1\n")
    config = config.copy_and_resolve_references()
    config.eval.manifest = str(path)
    assert read_labels(config)[1].keys() == {"a"}
    assert (
        "note: the evaluated videos have less than two classes: label_b\n"
        in capsys.readouterr().out
    )


def test_a_world_smaller_than_the_clips_is_noted(config, capsys):
    config = config.copy_and_resolve_references()
    read_labels(config)
    assert "enlarged" not in capsys.readouterr().out
    config.eval.manifest = "world:simple/val?videos=20&size=16&frames=2"
    read_labels(config)
    assert "frames=2 has 2 frames of 16 x 16 pixels, which are rep" in capsys.readouterr().out


def test_half_of_an_unlabeled_video_retrieves_the_other_half(config, tmp_path):
    """The color of a clip does not change, so that even random weights find the other half."""
    write_world(WorldSpec(size=16, frames=8, split="val"), tmp_path, 20, progress=False)
    with (tmp_path / "val.csv").open() as file:
        paths = [row["path"] for row in csv.DictReader(file)]
    path = tmp_path / "videos.csv"
    path.write_text("path,source\n" + "".join(f"{name},world\n" for name in paths))
    config = config.copy_and_resolve_references()
    config.eval.manifest = str(path)
    found = evaluate(config, mesh_lib.make_mesh(config.mesh))
    assert found.keys() == {"eval/retrieval", "eval/feature_rank"}
    assert found["eval/retrieval"] > 10 / 39


def test_run_logs_the_metrics_and_keeps_the_best_checkpoint(tiny_config, one_device, tmp_path):
    config = tiny_config("stage1")
    size, frames = config.data.size, config.data.frames
    config.eval.update(
        every_steps=3, manifest=f"world:simple/val?videos=12&size={size}&frames={frames}"
    )
    config.checkpoint.update(every_steps=3, keep_best=1, best_metric="eval/knn_color")
    config.checkpoint.best_mode = "max"
    train.train(config, tmp_path / "run")
    records = metrics_file.read_metrics(tmp_path / "run")
    logged = {r["step"]: r["eval/knn_color"] for r in records if "eval/knn_color" in r}
    assert list(logged) == [1, 3, 6]
    assert all(0 <= value <= 1 for value in logged.values())
    folder = tmp_path / "run" / "checkpoints"
    steps = reader.finished_steps(folder)
    scores = {step: reader.read_json(folder / str(step), "meta")["score"] for step in steps}
    assert scores == {
        step: {"metric": "eval/knn_color", "value": pytest.approx(logged[step])} for step in (3, 6)
    }


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"manifest": ""}, "config.eval.every_steps=2 needs videos.* or config.data.held_out to"),
        ({"every_steps": -1}, "config.eval.every_steps=-1"),
        ({"neighbors": 0}, "config.eval.neighbors=0"),
        ({"videos": 1}, "config.eval.videos=1"),
    ],
)
def test_invalid_options_are_refused(config, changes, match):
    config = config.copy_and_resolve_references()
    config.eval.update(changes)
    with pytest.raises(UserError, match=match):
        online_evaluation.check_config(config)


def test_training_videos_are_refused_or_counted(config, tmp_path, capsys):
    write_world(WorldSpec(size=16, frames=4, split="val"), tmp_path, 8, progress=False)
    config = config.copy_and_resolve_references()
    config.eval.manifest = config.data.manifest = str(tmp_path / "val.csv")
    with pytest.raises(UserError, match="val.csv is also in config.data.manifest: use a manifest"):
        read_labels(config)
    lines = (tmp_path / "val.csv").read_text().splitlines()
    (tmp_path / "train.csv").write_text("\n".join(lines[:4]) + "\n")
    config.data.manifest = str(tmp_path / "train.csv")
    read_labels(config)
    sentence = "3 of 8 evaluated videos in config.eval.manifest are also training videos"
    assert sentence in capsys.readouterr().out


def test_links_copies_and_overlapping_worlds_count_as_training_videos(config, tmp_path, capsys):
    config = config.copy_and_resolve_references()
    (tmp_path / "copies").mkdir()
    for number in range(4):
        (tmp_path / f"{number}.mp4").write_bytes(bytes([number]) * 99)
    (tmp_path / "link.mp4").symlink_to("1.mp4")
    (tmp_path / "copies/2.mp4").write_bytes((tmp_path / "2.mp4").read_bytes())
    rows = "path,source\n0.mp4,x\n1.mp4,x\n2.mp4,x\n"
    (tmp_path / "train.csv").write_text(rows)
    names = "./0.mp4", "link.mp4", "copies/2.mp4", "3.mp4"
    (tmp_path / "val.csv").write_text("path,source\n" + "".join(f"{n},x\n" for n in names))
    config.data.manifest, config.eval.manifest = f"{tmp_path}/train.csv", f"{tmp_path}/val.csv"
    read_labels(config)
    assert "3 of 4 evaluated videos in config.eval" in capsys.readouterr().out
    config.data.manifest = "world:simple/train?videos=20"
    config.eval.manifest = "world:simple/train?videos=30"
    read_labels(config)
    assert "20 of 30 evaluated videos in config.eval" in capsys.readouterr().out
    config.data.manifest = "world:simple/val?videos=20"
    read_labels(config)
    assert "evaluated videos" not in capsys.readouterr().out


@pytest.mark.parametrize("names", ["eval.manifest", "data.manifest"])
def test_manifests_with_contradicting_class_names_are_refused(config, names, tmp_path):
    config = config.copy_and_resolve_references()
    for name, ids in (("a", {"run": 0, "jump": 1}), ("b", {"jump": 0, "run": 1})):
        rows = "".join(f"{name}{number}.mp4,x,{number % 2}\n" for number in range(4))
        (tmp_path / f"{name}.csv").write_text(f"path,source,label_x\n{rows}")
        (tmp_path / f"{name}.classes.json").write_text(json.dumps(ids))
    config.eval.manifest, config.data.held_out = "", 4
    config.update_from_flattened_dict({names: f"{tmp_path}/a.csv,{tmp_path}/b.csv"})
    with pytest.raises(UserError, match="a.csv and .*b.csv number the classes of x differently"):
        read_labels(config)
    (tmp_path / "b.classes.json").write_text(json.dumps({"run": 0, "jump": 1}))
    assert "x" in read_labels(config)[1]


def test_resumed_run_warns_of_other_videos_and_compares_only_later_scores(
    tiny_config, one_device, tmp_path, capsys, caplog
):
    config = tiny_config("stage1")
    config.optimizer.warmup_steps = 1
    size = f"size={config.data.size}&frames={config.data.frames}"
    config.eval.update(every_steps=1, manifest=f"world:simple/val?videos=8&{size}")
    config.total_steps = 2
    train.train(config, tmp_path / "run")
    assert "eval/knn_shape: " in capsys.readouterr().out
    config.eval.manifest = f"world:simple/val?videos=9&{size}"
    for steps in (4, 5):  # the step of the change is kept
        config.total_steps = steps
        caplog.clear()
        train.train(config, tmp_path / "run")
        warned = "config.eval.manifest: 'world:simple/val?videos=8" in caplog.text
        assert warned == (steps == 4)
        lines = capsys.readouterr().out.splitlines()
        (line,) = [line for line in lines if "eval/knn_shape: " in line]
        assert "after step 3, " in line and line.endswith(f"after step {steps}")
    records = metrics_file.read_metrics(tmp_path / "run")
    assert [r.get("eval/since_step") for r in records] == [None, None, 2, 2, 2]
