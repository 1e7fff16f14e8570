"""A repeated evaluation measures only what has changed."""

import dataclasses
import json
import shutil

import jax
import ml_collections
import numpy as np
import pytest
import toy_evaluation
from toy_evaluation import get_config

from invnext_jax.checkpointing import run_metadata
from invnext_jax.errors import UserError
from invnext_jax.evaluation import evaluate, pretrained
from invnext_jax.evaluation.dense import truth_source
from invnext_jax.evaluation.evaluators import baselines, registry, supervised
from invnext_jax.evaluation.evaluators.evaluator import Evaluator, Row
from invnext_jax.evaluation.feature_store import extraction
from invnext_jax.weights import export


def test_repeated_command_measures_nothing(folder, results, monkeypatch):
    monkeypatch.setattr(extraction, "run_extractor", None)
    assert evaluate.evaluate_checkpoint(get_config(folder), folder / "p")["key"] == results["key"]


def test_results_of_older_versions_get_the_hash_of_their_videos(folder, results, tmp_path):
    shutil.copytree(folder / "p", tmp_path / "p")
    path = tmp_path / "p" / "results.json"
    older = {name: value for name, value in results.items() if name != "videos"}
    path.write_text(json.dumps(older))
    again = evaluate.evaluate_checkpoint(get_config(folder), tmp_path / "p")
    assert again == json.loads(path.read_text()) == json.loads(json.dumps(results))


def test_the_same_weights_under_another_name_are_named_and_described(folder, tmp_path, monkeypatch):
    params, about = export.open_export(folder / "encoder.safetensors")
    about["config"]["data"]["frames"] = 8
    changes = {"evaluators": ("knn",), "tasks": ("shape",), "controls": False}
    export.write_export(tmp_path / "b.safetensors", params, about)
    configs = [
        get_config(folder, checkpoint=str(path), **changes)
        for path in (folder / "encoder.safetensors", tmp_path / "b.safetensors")
    ]
    first = evaluate.evaluate_checkpoint(configs[0], tmp_path / "p")
    monkeypatch.setattr(extraction, "run_extractor", None)
    other = evaluate.evaluate_checkpoint(configs[1], tmp_path / "p")
    assert other == json.loads((tmp_path / "p" / "results.json").read_text())
    assert other["checkpoint"] == other["run"]["config"]["checkpoint"] == configs[1].checkpoint
    assert [note for note in other["notes"] if note not in first["notes"]] == [
        "The encoder was trained on clips of 8 frames of 16 x 16 pixels, sparse sampling, but "
        "config.data.frames=4. The results depend on these options."
    ]
    for name in ("key", "rows", "seconds"):
        assert other[name] == first[name]
    again = evaluate.evaluate_checkpoint(configs[0], tmp_path / "p")
    assert again == json.loads(json.dumps(first))


def test_controls_survive_a_change_of_checkpoint(folder, results, tmp_path, monkeypatch, capsys):
    shutil.copytree(folder / "p", tmp_path / "p")
    config = get_config(folder, checkpoint=str(tmp_path / "other.safetensors"))
    loaded = pretrained.load_encoder(folder / "encoder.safetensors")
    about = {"config": run_metadata.config_to_json(loaded.config)}
    params = pretrained.init_encoder(loaded.config, seed=4)
    export.write_export(tmp_path / "other.safetensors", {"encoder": params}, about)
    monkeypatch.setattr(pretrained, "init_encoder", None)
    monkeypatch.setattr(supervised, "train_supervised", None)
    monkeypatch.setattr(baselines, "fit_forest", None)
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


@pytest.mark.parametrize("damage", ["deleted", "truncated"])
@pytest.mark.parametrize("file", ["knn-encoder.npz", "neighbors-encoder.npz"])
def test_rows_whose_scores_are_lost_are_measured_again(folder, tmp_path, capsys, file, damage):
    config = get_config(folder, evaluators=("knn",), controls=False, tasks=("shape",))
    first = evaluate.evaluate_checkpoint(config, tmp_path / "p")
    path = tmp_path / "p" / "rows" / file
    content = path.read_bytes()
    if damage == "deleted":
        path.unlink()
    else:
        path.write_bytes(content[:100])
    capsys.readouterr()
    again = evaluate.evaluate_checkpoint(config, tmp_path / "p")
    out = capsys.readouterr().out
    assert f"note: {path} is missing or damaged, so its rows are measured again." in out
    assert "will be replaced" not in out
    assert path.read_bytes() == content
    values = [[row["value"] for row in found["rows"]] for found in (first, again)]
    assert values[0] == values[1]


def test_replaced_ground_truth_is_evaluated_again(folder, tmp_path):
    shutil.copytree(folder / "world", tmp_path / "world")
    changes = {"evaluators": ("box_baselines",), "tasks": ("motion",)}
    checkpoint = str(folder / "encoder.safetensors")
    config = get_config(tmp_path, checkpoint=checkpoint, **changes)
    first, again = (evaluate.evaluate_checkpoint(config, tmp_path / "p") for _ in range(2))
    assert again == first
    files = sorted((tmp_path / "world" / "gt" / "train").glob("*.npz"))
    for path in files[1:]:
        path.write_bytes(files[0].read_bytes())
    changed = evaluate.evaluate_checkpoint(config, tmp_path / "p")
    assert changed["key"] != first["key"]
    # All training videos have the same boxes, so that nothing can be learned.
    (order, no_order) = (
        next(row["value"] for row in found["rows"] if row["name"] == "ordered_track")
        for found in (first, changed)
    )
    assert order != no_order


def test_the_hash_of_ground_truth_depends_on_its_files_only(folder, tmp_path):
    shutil.copytree(folder / "world", tmp_path / "world")
    config = get_config(tmp_path)
    hashes = [truth_source.hash_world(config)]
    assert hashes[0] == truth_source.hash_world(get_config(folder)) != ""
    path = next((tmp_path / "world" / "gt" / "val").glob("*.npz"))
    path.touch()
    assert truth_source.hash_world(config) == hashes[0]
    path.write_bytes(path.read_bytes() + b"x")
    hashes.append(truth_source.hash_world(config))
    path.unlink()
    hashes.append(truth_source.hash_world(config))
    assert len(set(hashes)) == 3
    config.update(train_manifest="world:simple/train?videos=4", val_manifest="none.csv")
    assert truth_source.hash_world(config) == ""
    settings = ml_collections.ConfigDict({"data": "boxes", "root": str(tmp_path)})
    assert truth_source.hash_files(settings, config) == ""
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "tracks.jsonl").write_text("{}")
    assert truth_source.hash_files(settings, config) != ""


class PredictorSize(Evaluator):
    """Its value is the sum of the parameters of the predictor and of the head."""

    name, is_baseline, options, needs_labels = "predictor_size", False, (), False
    uses_predictor = True

    def check_config(self, config):
        pass

    def evaluate(self, inputs, config):
        found = inputs.encoder.loaded.predictor
        leaves = jax.tree.leaves(found and found.params)
        value = float(sum(np.sum(x, dtype=np.float64) for x in leaves))
        return [Row(self.name, inputs.name, "x", "all", "sum", value, None, 1)]


def test_rows_of_predictors_are_measured_again_for_another_predictor(folder, tmp_path, monkeypatch):
    """The encoder is exported without a predictor, with one, and with other values of its head."""
    whole = toy_evaluation.write_stage2(tmp_path / "whole.safetensors")
    params, about = export.open_export(whole)
    params = jax.tree.map(np.asarray, params)
    parts = [{k: v for k, v in params.items() if k not in ("predictor", "head")}, params]
    parts.append({**params, "head": jax.tree.map(lambda x: x + 1, params["head"])})
    monkeypatch.setitem(registry.EVALUATORS, "predictor_size", PredictorSize())
    changes = {"evaluators": ("predictor_size", "knn"), "controls": False, "tasks": ("shape",)}
    found, times = [], []
    for part in parts:
        export.write_export(tmp_path / "e.safetensors", part, about)
        config = get_config(folder, checkpoint=str(tmp_path / "e.safetensors"), **changes)
        results = evaluate.evaluate_checkpoint(config, tmp_path / "p")
        found.append(results["rows"][0]["value"])
        times.append((tmp_path / "p" / "rows" / "knn-encoder.json").stat().st_mtime_ns)
        (tmp_path / "e.safetensors").unlink()
    count = sum(x.size for x in jax.tree.leaves(params["head"]))
    assert found[0] == 0 != found[1]
    assert found[2] - found[1] == pytest.approx(count, rel=1e-4)
    assert len(set(times)) == 1  # rows that use the encoder only are not measured again


def test_evaluators_that_read_the_predictor_say_so():
    names = {name for name, e in registry.EVALUATORS.items() if registry.uses_predictor(e)}
    assert names == {"anticipation", "temporal_context"}


def test_the_key_of_a_predictor_depends_on_its_config(folder):
    encoder = pretrained.load_frozen(folder / "encoder.safetensors")
    config = encoder.loaded.config.copy_and_resolve_references()
    config.predictor.depth += 1
    other = dataclasses.replace(encoder, loaded=encoder.loaded._replace(config=config))
    assert other.key == encoder.key and other.predictor_key != encoder.predictor_key
    assert dataclasses.replace(encoder, loaded=None).predictor_key == ""


def test_class_names_that_changed_since_are_compared_again(folder, tmp_path, monkeypatch):
    for split in ("train", "val"):
        lines = (folder / "world" / f"{split}.csv").read_text().replace("label_shape", "label_kind")
        rows = lines.replace(f"{split}/", f"{folder}/world/{split}/")
        (tmp_path / f"{split}.csv").write_text(rows)
    manifests = {f"{split}_manifest": str(tmp_path / f"{split}.csv") for split in ("train", "val")}
    config = get_config(folder, controls=False, evaluators=("knn",), tasks=("kind",), **manifests)
    first = evaluate.evaluate_checkpoint(config, tmp_path / "p")
    monkeypatch.setattr(extraction, "run_extractor", None)
    names = [f"class {number}" for number in range(8)]
    write_names(tmp_path / "train", names)
    noted = evaluate.evaluate_checkpoint(config, tmp_path / "p")
    assert first["notes"] == [] and noted["rows"] == first["rows"]
    assert "val.csv has no class names" in noted["notes"][0]
    write_names(tmp_path / "val", names)
    assert evaluate.evaluate_checkpoint(config, tmp_path / "p")["notes"] == []
    write_names(tmp_path / "val", names[::-1])
    with pytest.raises(UserError, match="number the classes of kind differently"):
        evaluate.evaluate_checkpoint(config, tmp_path / "p")


def write_names(path, names):
    ids = {"label_kind": {name: number for number, name in enumerate(names)}}
    path.with_suffix(".classes.json").write_text(json.dumps(ids))
