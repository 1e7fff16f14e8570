"""Continued pretraining on own videos: sizes of the source, held-out videos, before and after."""

import csv
import json

import jax
import pytest

from configs import adapt
from invnext_jax import init_source, online_evaluation, train
from invnext_jax.data import manifest as manifest_lib
from invnext_jax.errors import UserError
from invnext_jax.evaluation import exporter
from invnext_jax.monitoring import metrics_file
from invnext_jax.training import mesh as mesh_lib


@pytest.fixture
def videos(world, tmp_path):
    """A manifest of the world's videos without labels."""
    with world.open() as file:
        paths = [world.parent / row["path"] for row in csv.DictReader(file)]
    path = tmp_path / "mine.csv"
    path.write_text("path,source\n" + "".join(f"{video},mine\n" for video in paths))
    return path


def small(source, manifest):
    """The config for three steps, and the names of the options that differ from the file."""
    config = adapt.get_config()
    changes = {
        **{"init_from": str(source), "init_from_unfinished": True, "data.manifest": str(manifest)},
        **{"data.workers": 0, "data.held_out": 4, "data.frames": 4, "mesh.data": 1},
        **{"batch_size": 4, "accumulate": 1, "total_steps": 3, "log.every_steps": 1},
        **{"log.measure_ceiling": False, "log.diagnostics_every_steps": 0},
        **{"optimizer.learning_rate": 0.01, "optimizer.warmup_steps": 1},
    }
    config.update_from_flattened_dict(changes)
    return config, tuple(changes)


def test_training_starts_from_the_source_and_ends_with_numbers_before_and_after(
    stage1_run, videos, tmp_path, capsys
):
    config, overrides = small(stage1_run, videos)
    train.train(config, tmp_path / "adapted", overrides)
    *lines, retrieval, rank = capsys.readouterr().out.splitlines()
    assert any(f"{stage1_run} trained on 4 of 4 evaluated videos" in line for line in lines)
    records = metrics_file.read_metrics(tmp_path / "adapted")
    first, last = (record["eval/retrieval"] for record in (records[0], records[-1]))
    assert retrieval == (f"eval/retrieval: {first:.4g} before step 1, {last:.4g} after step 3")
    assert rank.startswith("eval/feature_rank: ")
    assert records[0]["eval/feature_rank"] != pytest.approx(records[-1]["eval/feature_rank"])

    config = init_source.copy_sizes(config, overrides)
    assert (config.encoder.frames, config.data.frames) == (2, 4)  # positions are interpolated
    params = init_source.read_source(config).params
    mesh = mesh_lib.make_mesh(config.mesh, jax.devices()[:1])
    encoder = mesh_lib.replicate(params["encoder"], mesh)
    training = manifest_lib.read_manifest(config.data.manifest)
    evaluation = online_evaluation.OnlineEvaluation(config, mesh, encoder, training, None)
    found = {name: float(value) for name, value in evaluation.evaluate(encoder).items()}
    assert found == {name: pytest.approx(records[0][name]) for name in found}
    assert found.keys() == {"eval/retrieval", "eval/feature_rank"}


@pytest.mark.parametrize("layout", ["run", "ours", "internvideo_next", "released"])
def test_sizes_are_those_of_the_source(layout, stage1_run, videos, tmp_path):
    source = {"run": stage1_run, "ours": tmp_path / "e.safetensors"}.get(
        layout, tmp_path / "folder"
    )
    if layout != "run":
        layout_name = "internvideo_next" if layout == "released" else layout
        exporter.export_run(stage1_run, source, export_format=exporter.ExportFormat(layout_name))
    if layout == "released":  # by the authors, with the sizes of the encoder only
        content = json.loads((source / "config.json").read_text())
        del content["invnext_jax"]
        (source / "config.json").write_text(json.dumps(content))
    config, overrides = small(source, videos)
    copied = init_source.copy_sizes(config, overrides)
    assert (copied.encoder.width, copied.encoder.depth, copied.encoder.frames) == (64, 2, 2)
    assert copied.data.frames == 4  # set on the command line
    if layout == "released":
        assert copied.predictor == config.predictor and copied.data.size == 224
    else:
        assert copied.predictor.width == 64 and copied.variant == "tiny"
        assert copied.teacher.width == 96 and copied.teacher.weights == ""  # for Stage 1
        assert copied.dtype == "float32" and copied.data.size == 32
    params = init_source.read_source(copied).params
    assert params["encoder"]["position"]["table"].shape == (4 + 2 * 16, 64)
    assert config.encoder.width == 768  # the config is not modified


def test_sources_without_sizes_are_refused(tmp_path):
    config = adapt.get_config("stage1")
    with pytest.raises(UserError, match="config.init_from is not set, but config.init_sizes"):
        init_source.copy_sizes(config, ())
    config.init_from = str(tmp_path)
    with pytest.raises(UserError, match="has no checkpoint"):
        init_source.copy_sizes(config, ())
    with pytest.raises(ValueError, match="unknown stage 'base': choose one of stage1, stage2"):
        adapt.get_config("base")
