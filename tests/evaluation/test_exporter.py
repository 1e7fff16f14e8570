"""Exports of real runs are equal bit for bit in both layouts, checked, and never destructive."""

import contextlib
import json
import shutil

import flax
import jax
import ml_collections
import numpy as np
import pytest
from safetensors import safe_open

from invnext_jax import atomic_file, train
from invnext_jax.errors import UserError
from invnext_jax.evaluation import exporter, pretrained
from invnext_jax.models import heads
from invnext_jax.weights import export, files, import_weights

PUBLISHED = exporter.ExportFormat("internvideo_next")


@pytest.fixture
def stage2_run(tiny_config, stage1_run, tmp_path):
    """The workdir of a Stage 2 run that has saved its initial parameters."""
    config = tiny_config("stage2")
    config.init_from = str(stage1_run)
    with contextlib.ExitStack() as stack:
        run = train.prepare(ml_collections.FrozenConfigDict(config), tmp_path / "stage2", stack)
        run.checkpointer.save(0, run.state, run.position)
    return tmp_path / "stage2"


def export_random_values(run, path):
    """Exports all parts of a run with random values, because initial zeros and ones hide errors."""
    params, config = pretrained.load_params(run)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(0, 0.1, x.shape).astype("f4"), params)
    export.write_export(path, params, exporter.describe_export(run, config, params, None))
    return params


def assert_equal_trees(first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for one, other in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


@pytest.mark.parametrize("stage", ["stage1_run", "stage2_run"])
def test_all_parts_survive_a_round_trip_through_the_published_layout(stage, request, tmp_path):
    source = tmp_path / "all.safetensors"
    params = export_random_values(request.getfixturevalue(stage), source)
    folder, back = tmp_path / "published", tmp_path / "back.safetensors"
    assert "are equal" in exporter.export_run(
        source, folder, parts=("all",), export_format=PUBLISHED
    )
    assert sorted(p.name for p in folder.iterdir()) == [
        *("config.json", "model.safetensors", "preprocessor_config.json")
    ]
    import_weights.import_weights("internvideo_next", folder, back)
    assert_equal_trees(export.open_export(back)[0], params)
    assert back.read_bytes() == source.read_bytes()
    again = tmp_path / "again"
    exporter.export_run(back, again, parts=("all",), export_format=PUBLISHED)
    name = files.SINGLE_FILE
    assert (again / name).read_bytes() == (folder / name).read_bytes()


def test_published_files_have_the_released_names_shapes_and_config(stage1_run, tmp_path):
    folder = tmp_path / "published"
    summary = exporter.export_run(
        stage1_run, folder, export_format=exporter.ExportFormat("internvideo_next", "float16")
    )
    assert "differ by 0.0" in summary
    config = json.loads((folder / "config.json").read_text())
    assert config["model_config"] == {
        "attn_pool_num_heads": 2,
        "clip_embed_dim": 64,
        "depth": 2,
        "embed_dim": 64,
        "img_size": 32,
        "mlp_ratio": 4,
        "num_frames": 2,
        "num_heads": 2,
        "patch_size": 8,
        "tubelet_size": 1,
    }
    assert config["torch_dtype"] == "float16"
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    assert processor["crop_size"] == {"height": 32, "width": 32}
    assert processor["image_mean"] == [0.485, 0.456, 0.406]
    with safe_open(folder / "model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}
        assert file.get_tensor("model.blocks.1.ls2.lr_scale").dtype == np.float16
        assert file.get_slice("model.patch_embed.proj.weight").get_shape() == [64, 3, 1, 8, 8]
    # Released encoders do not have the section of this package.
    del config["invnext_jax"]
    (folder / "config.json").write_text(json.dumps(config))
    loaded = pretrained.load_encoder(folder)
    expected = pretrained.load_params(stage1_run)[0]["encoder"]["class_token"].astype(np.float16)
    np.testing.assert_array_equal(loaded.params["class_token"], expected)


def test_export_writes_its_files_and_nothing_else(stage1_run, tmp_path):
    out = tmp_path / "new" / "encoder.safetensors"
    summary = exporter.export_run(stage1_run, out)
    assert "are equal" in summary
    assert heads.UNTRAINED_POOL in summary  # the run has trained no step
    assert sorted(p.name for p in out.parent.iterdir()) == ["encoder.json", "encoder.safetensors"]
    about = json.loads(out.with_suffix(".json").read_text())
    assert about["parts"] == ["encoder", "pool"]
    assert about["source"]["run"] == "stage1" and about["source"]["step"] == 0
    assert str(tmp_path) not in out.with_suffix(".json").read_text()  # no local path in the export
    params, _ = pretrained.load_params(stage1_run)
    assert export.contains_tensors(out, {part: params[part] for part in ("encoder", "pool")})


def test_a_run_without_a_moving_average_exports_none(stage1_run, tmp_path):
    with pytest.raises(UserError, match="keeps no moving average"):
        exporter.export_run(stage1_run, tmp_path / "a.safetensors", ema=True)


def test_missing_parts_and_unknown_formats_are_refused(stage1_run, tmp_path):
    with pytest.raises(UserError, match="has no head, only align, align_pooled, decoder"):
        exporter.export_run(stage1_run, tmp_path / "a.safetensors", parts=("encoder", "head"))
    for export_format, sentence in (
        (exporter.ExportFormat("onnx"), "--format=onnx is not one of ours, internvideo_next"),
        (exporter.ExportFormat("ours", "int8"), "--dtype=int8 is not one of"),
        (exporter.ExportFormat("ours", "float16"), "always float32"),
    ):
        with pytest.raises(UserError, match=sentence):
            exporter.export_run(stage1_run, tmp_path / "a.safetensors", export_format=export_format)
    with pytest.raises(UserError, match="must be a folder"):
        exporter.export_run(stage1_run, tmp_path / "a.safetensors", export_format=PUBLISHED)


@pytest.mark.parametrize("export_format", [exporter.ExportFormat(), PUBLISHED])
def test_second_export_writes_nothing_and_keeps_other_weights(stage1_run, tmp_path, export_format):
    out = tmp_path / ("out" if export_format is PUBLISHED else "out.safetensors")
    exporter.export_run(stage1_run, out, export_format=export_format)
    weights = exporter.output_paths(out, export_format)[0]
    before = weights.stat().st_mtime_ns
    assert "already" in exporter.export_run(stage1_run, out, export_format=export_format)
    assert weights.stat().st_mtime_ns == before
    old = weights.read_bytes()
    with pytest.raises(UserError, match="--overwrite"):
        exporter.export_run(stage1_run, out, parts=("all",), export_format=export_format)
    assert weights.read_bytes() == old
    exporter.export_run(
        stage1_run, out, parts=("all",), export_format=export_format, overwrite=True
    )
    assert len(weights.read_bytes()) > len(old)


def test_different_features_are_refused_and_old_files_kept(stage1_run, tmp_path, monkeypatch):
    out = tmp_path / "out" / "encoder.safetensors"
    exporter.export_run(stage1_run, out)
    old = out.read_bytes()
    real = pretrained.load_encoder

    def load_damaged(path):
        loaded = real(path)
        params = {**loaded.params, "class_token": loaded.params["class_token"] + 1}
        return loaded._replace(params=params)

    monkeypatch.setattr(pretrained, "load_encoder", load_damaged)
    with pytest.raises(UserError, match="differ from those of the run"):
        exporter.export_run(stage1_run, out, overwrite=True)
    assert out.read_bytes() == old
    assert len(list(out.parent.iterdir())) == 2


def test_modules_that_the_released_code_lacks_are_refused(stage1_run, tmp_path):
    linear = tmp_path / "linear.safetensors"
    params, config = pretrained.load_params(stage1_run)
    config.decoder.kind = "linear"
    shapes = import_weights.part_shapes(config, ["decoder"])
    zeros = {path: np.zeros(shape, np.float32) for path, shape in shapes.items()}
    params |= flax.traverse_util.unflatten_dict(zeros, sep="/")
    export.write_export(linear, params, exporter.describe_export(stage1_run, config, params, None))
    with pytest.raises(UserError, match="no decoder of kind 'linear'"):
        exporter.export_run(linear, tmp_path / "a", parts=("all",), export_format=PUBLISHED)
    exporter.export_run(linear, tmp_path / "a.safetensors", parts=("all",))


def test_the_moving_average_is_exported_and_probed_in_place_of_the_parameters(
    tiny_config, one_device, tmp_path, caplog
):
    config = tiny_config("stage1")
    config.ema.decay = 0.9
    with contextlib.ExitStack() as stack:
        run = train.prepare(ml_collections.FrozenConfigDict(config), tmp_path / "run", stack)
        params = jax.device_get(run.state.params)
        doubled = jax.tree.map(lambda x: 2 * x, run.state.ema)
        run.checkpointer.save(0, run.state.replace(ema=doubled), run.position)
    out = tmp_path / "ema.safetensors"
    exporter.export_run(tmp_path / "run", out, ema=True)
    written, about = export.open_export(out)
    assert about["source"]["ema"] is True
    expected = jax.tree.map(lambda x: 2 * x, params["encoder"])
    assert_equal_trees(written["encoder"], expected)
    assert_equal_trees(pretrained.load_encoder(tmp_path / "run", ema=True).params, expected)
    assert "not their moving average" not in caplog.text
    assert_equal_trees(pretrained.load_encoder(tmp_path / "run").params, params["encoder"])
    assert f"{tmp_path / 'run'} are used, and not their moving average" in caplog.text


def test_nonfinite_weights_and_unwritable_paths_are_refused(stage1_run, tmp_path):
    source = tmp_path / "nan.safetensors"
    params = export_random_values(stage1_run, source)
    params["encoder"]["class_token"][0, 0] = np.nan
    _, config = pretrained.load_params(source)
    export.write_export(source, params, exporter.describe_export(source, config, params, None))
    with pytest.raises(UserError, match="not finite"):
        exporter.export_run(source, tmp_path / "b.safetensors")
    assert not list(tmp_path.glob(".*"))
    (tmp_path / "c.safetensors").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        exporter.export_run(stage1_run, tmp_path / "c.safetensors", overwrite=True)
    with pytest.raises(UserError, match="cannot be written"):
        exporter.export_run(stage1_run, source / "d.safetensors")


def test_files_of_a_killed_export_are_removed(stage1_run, tmp_path):
    out = tmp_path / "encoder.safetensors"
    killed = tmp_path / ".encoder.safetensors.12ab.part"
    killed.mkdir()
    (killed / "lock").touch()
    (killed / "half").write_bytes(b"x")
    with atomic_file.temporary_folder(out) as other:  # folder of a running export
        exporter.export_run(stage1_run, out)
        assert list(tmp_path.glob(".*")) == [other]
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_float16_overflow_and_infinity_in_any_part_are_refused(stage1_run, tmp_path, part):
    source, out = tmp_path / "all.safetensors", tmp_path / "published"
    params = export_random_values(stage1_run, source)
    leaf = jax.tree.leaves(params[part])[0]
    _, config = pretrained.load_params(source)
    half = exporter.ExportFormat("internvideo_next", "float16")
    for value, match in ((1e5, "holds 100000, which float16 cannot"), (np.inf, "not finite in")):
        leaf.flat[0] = value
        export.write_export(source, params, exporter.describe_export(source, config, params, None))
        with pytest.raises(UserError, match=match) as error:
            exporter.export_run(source, out, parts=("encoder", part), export_format=half)
        assert "report this" not in str(error.value) and not out.exists()


@pytest.mark.parametrize("name", ["git", "versions", "step", "data/frames", "init_gain", "teacher"])
def test_forged_metadata_of_a_run_are_one_sentence(stage1_run, tmp_path, name):
    shutil.copytree(stage1_run, tmp_path / "run")
    (checkpoint,) = (tmp_path / "run" / "checkpoints").glob("[0-9]*")
    (checkpoint / "sums.json").unlink()  # a stranger can also write other checksums
    path = checkpoint / "meta" / "metadata"
    record = json.loads(path.read_text())
    del record["sums"]
    *sections, field = name.split("/")
    part = record if name in ("git", "versions", "step") else record["config"]
    for section in sections:
        part = part[section]
    part[field] = [5]
    path.write_text(json.dumps(record))
    with pytest.raises(UserError):
        exporter.export_run(tmp_path / "run", tmp_path / "a.safetensors")
    assert not (tmp_path / "a.safetensors").exists()


@pytest.fixture
def two_steps(tiny_config, one_device, tmp_path):
    """The workdir of a run with the steps 0 and 1, whose class tokens are 0 and 1."""
    config = tiny_config("stage1")
    config.checkpoint.update(keep_last=5, keep_best=5)
    with contextlib.ExitStack() as stack:
        run = train.prepare(ml_collections.FrozenConfigDict(config), tmp_path / "run", stack)
        for step in (0, 1):
            token = run.state.params["encoder"]["class_token"]
            value = jax.tree.map(lambda x, value=step: jax.numpy.full_like(x, value), token)
            run.state.params["encoder"]["class_token"] = value
            state = run.state.replace(step=jax.numpy.full_like(run.state.step, step))
            run.checkpointer.save(step, state, run.position, score=1.0 + step)
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("step", "damaged", "exported"), [(0, False, 0), (None, False, 1), (None, True, 0)]
)
def test_an_export_has_the_parameters_and_the_source_of_its_step(
    step, damaged, exported, two_steps, tmp_path, caplog
):
    if damaged:
        shutil.rmtree(two_steps / "checkpoints/1/state/d")
    exporter.export_run(two_steps, tmp_path / "e.safetensors", step=step)
    params, _ = pretrained.load_params(tmp_path / "e.safetensors")
    assert (params["encoder"]["class_token"] == exported).all()
    assert json.loads((tmp_path / "e.json").read_text())["source"]["step"] == exported
    assert ("that of step 0 has the best loss, 1." in caplog.text) == (exported == 1)
    with pytest.raises(UserError, match="is not a run: remove the option step"):
        exporter.export_run(tmp_path / "e.safetensors", tmp_path / "f.safetensors", step=1)
