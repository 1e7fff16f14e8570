"""Checks of the run or export from which a run starts."""

import json
import pathlib
import shutil

import ml_collections
import numpy as np
import pytest
from safetensors.numpy import save_file

from configs import adapt, common, stage1, stage2
from invnext_jax import init_source
from invnext_jax.errors import UserError
from invnext_jax.weights import export, published

FIXTURE = pathlib.Path(__file__).parents[1] / "fixtures/checkpoint_v2"


@pytest.fixture
def config():
    return stage1.get_config("tiny")


@pytest.mark.parametrize("name", ["heads", "pool_heads", "depth"])
def test_source_with_other_heads_or_sizes_is_refused(config, name):
    source = config.copy_and_resolve_references()
    init_source.check_source(config, source, config.total_steps)
    source.encoder[name] = 2 * config.encoder[name]
    with pytest.raises(UserError, match=f"config.encoder.{name}: "):
        init_source.check_source(config, source, config.total_steps)


def test_unfinished_source_is_refused_unless_allowed(config):
    source = config.copy_and_resolve_references()
    source.total_steps = 10
    with pytest.raises(UserError, match="has completed 9 of 10 steps: finish it"):
        init_source.check_source(config, source, 9)
    config.init_from_unfinished = True
    init_source.check_source(config, source, 9)


def test_fields_missing_from_the_source_are_not_compared(config):
    source = ml_collections.ConfigDict({"encoder": {"heads": config.encoder.heads}})
    init_source.check_source(config, source, None)  # an export: no predictor, no steps
    source.encoder.heads = 2 * config.encoder.heads
    with pytest.raises(UserError, match="config.encoder.heads: "):
        init_source.check_source(config, source, None)


def test_parts_that_are_not_restored_may_differ(config):
    source = config.copy_and_resolve_references()
    source.predictor.kind = "vit"
    with pytest.raises(UserError, match="leave the part out of config.init_parts"):
        init_source.check_source(config, source, config.total_steps)
    config.init_parts = ("encoder", "pool")
    init_source.check_source(config, source, config.total_steps)


def test_the_heads_of_the_pool_belong_to_the_pool(config):
    """Their number is in no shape."""
    source = config.copy_and_resolve_references()
    source.encoder.pool_heads = 4
    config.init_parts = ("encoder", "align")
    init_source.check_source(config, source, config.total_steps)
    config.init_parts = ("pool",)
    with pytest.raises(UserError, match="config.encoder.pool_heads: 4 in that run, 2 in this"):
        init_source.check_source(config, source, config.total_steps)


@pytest.mark.parametrize(
    "content",
    [
        {"a.b": 1},
        {"variant": 5},
        {"encoder": {"width": 64}, "dtype": ["float32"]},
        {"data": {"no_flip_sources": 5}},
        {"data": {"no_flip_sources": [[1]]}},
    ],
)
def test_sizes_of_forged_descriptions_are_not_copied(content, config, tmp_path):
    path = tmp_path / "a.safetensors"
    export.write_export(path, {"encoder": {"a": np.zeros(2, np.float32)}}, {"config": content})
    config.update(init_from=str(path), init_sizes=True)
    with pytest.raises(UserError, match="the config of .*a.safetensors does not describe a valid"):
        init_source.copy_sizes(config, ())


def write_run(folder, section, name, value):
    """A run whose metadata a stranger has changed."""
    shutil.copytree(FIXTURE, folder)
    file = folder / "checkpoints/2/meta/metadata"
    content = json.loads(file.read_text())
    content["config"].setdefault(section, {})[name] = value
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("section", "name"),
    [
        *(("encoder", name) for name in ("depth", "size", "frames", "class_tokens", "pool_width")),
        *(("predictor", "depth"), ("decoder", "depth"), ("data", "frames"), ("data", "size")),
    ],
)
def test_sizes_above_the_limits_are_not_copied(section, name, config, tmp_path):
    """They would be used before the parameters are compared with them."""
    write_run(tmp_path / "run", section, name, 10**10)
    config.update(init_from=str(tmp_path / "run"), init_sizes=True)
    with pytest.raises(UserError, match=f"run has {name}='10000000000', which is not a whole"):
        init_source.copy_sizes(config, ())


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("encoder", "drop_path", None),
        ("encoder", "drop_path", True),
        ("data", "crop_scales", [[[]]]),
        ("data", "crop_scales", [1.0, None]),
        ("predictor", "kind", None),
    ],
)
def test_options_with_other_types_are_not_copied(section, name, value, config, tmp_path):
    """Options of a config may be set to None, which ends the checks with a TypeError."""
    write_run(tmp_path / "run", section, name, value)
    config.update(init_from=str(tmp_path / "run"), init_sizes=True)
    with pytest.raises(UserError, match=rf"config.{section}.{name}=.* has a wrong type"):
        init_source.copy_sizes(config, ())


@pytest.mark.parametrize("read", [init_source.read_source, lambda c: init_source.copy_sizes(c, ())])
def test_a_source_without_parameters_is_described(config, tmp_path, read):
    config.init_sizes = True
    (tmp_path / "empty").mkdir()
    for name, reason in (("empty", "has no checkpoint"), ("nowhere", "does not exist")):
        config.init_from = str(tmp_path / name)
        sentence = rf"{name} {reason}: .*an export \(a .safetensors file\), or the folder of a pub"
        with pytest.raises(UserError, match=sentence):
            read(config)


def write_published(folder, **changes):
    """The config of a published encoder, with a file of weights that nobody reads."""
    encoder = adapt.get_config().encoder
    encoder.update(changes)
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps({"model_config": published.model_config(encoder)})
    )
    (folder / "model.safetensors").touch()
    return str(folder)


@pytest.mark.parametrize("variant", ["base", "large", "1b"])
def test_published_encoders_have_the_drop_path_of_their_variant(variant, tmp_path, capsys):
    config, sizes = adapt.get_config(), common.ENCODERS[variant]
    config.init_from = write_published(tmp_path / "a", **sizes)
    copied = init_source.copy_sizes(config, ())
    assert copied.variant == variant and not capsys.readouterr().out
    assert {name: copied.encoder[name] for name in sizes} == sizes
    assert init_source.copy_sizes(config, ("encoder.drop_path",)).encoder.drop_path == 0.1


def test_published_encoders_of_other_sizes_have_no_variant(tmp_path, capsys):
    config = adapt.get_config()
    config.init_from = write_published(tmp_path / "a", depth=3)
    assert init_source.copy_sizes(config, ()).variant == "custom"
    printed = capsys.readouterr().out
    assert printed == (
        f"config.encoder.drop_path=0.1 is not from {tmp_path / 'a'}, which does not contain it\n"
    )


@pytest.mark.parametrize("sizes", [True, False])
@pytest.mark.parametrize("model_type", ["videomae", "siglip"])
def test_folders_of_other_models_cannot_initialize_a_run(model_type, sizes, config, tmp_path):
    content = {"model_type": model_type, "hidden_size": 8}
    (tmp_path / "config.json").write_text(json.dumps(content))
    save_file({"a": np.zeros(2, np.float32)}, tmp_path / "model.safetensors")
    half = [0.5, 0.5, 0.5]  # the pixel statistics of SigLIP
    statistics = json.dumps({"image_mean": half, "image_std": half})
    (tmp_path / "preprocessor_config.json").write_text(statistics)
    config.update(init_from=str(tmp_path), init_sizes=sizes)
    with pytest.raises(UserError, match=f"model_type='{model_type}', .* cannot initialize a run"):
        init_source.copy_sizes(config, ()) if sizes else init_source.read_source(config)


def test_sections_that_the_source_did_not_use_are_described():
    """Stage 2 reads no teacher, so its config does not show the one of Stage 1."""

    def describe(source, stage, overrides=()):
        config = adapt.get_config(stage)
        config.init_from = "runs/a"
        init_source.copy_from(source, config, overrides)
        return init_source.describe_sizes(source, config, overrides)

    source = stage2.get_config("tiny").to_dict()
    decoder, teacher = describe(source, "stage1", ("teacher.width",))
    assert decoder.startswith("config.decoder has depth=2, dtype='float32', kind=")
    assert teacher.startswith("config.teacher has activation=") and "tap_interval=1.0" in teacher
    assert "runs/a, which shows no use of the teacher" in teacher and " width=" not in teacher
    assert describe(source, "stage2") == describe(stage1.get_config("tiny").to_dict(), "stage1")
    assert describe(source, "stage2") == []
    del source["mask"], source["init_from"]  # an export
    assert len(describe(source, "stage1")) == 2


def test_options_that_are_not_sizes_are_not_copied():
    source = stage1.get_config("tiny").to_dict()
    source["teacher"].update(cache="/elsewhere", frames_share=0.5, weights="other", taps=3)
    source["decoder"].update(chunks=2, noise_draws=3, width=96)
    source["predictor"].update(weights="other", depth=1)
    config = stage1.get_config("tiny")
    expected = config.to_dict()
    init_source.copy_from(source, config, ())
    expected["teacher"]["taps"] = 3
    expected["decoder"]["width"], expected["predictor"]["depth"] = 96, 1
    assert config.to_dict() == expected
