"""Files of the image teacher and of the text model, and initial parameters of a run."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from configs import stage1 as config1
from configs import stage2 as config2
from invnext_jax.errors import UserError
from invnext_jax.models.predictor import ModernBertLayer
from invnext_jax.stages import image_teacher, initialization
from invnext_jax.stages.registry import STAGES
from invnext_jax.weights import export

stage1, stage2 = STAGES["stage1"], STAGES["stage2"]

TEXT = {"kind": "modernbert", "width": 32, "heads": 2, "mlp_width": 48, "window": 32}


def random_like(abstract, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), nn.unbox(abstract)
    )


def text_layer(seed, width=32, mlp_width=48):
    layer = ModernBertLayer(2, mlp_width, None, "float32")
    x_bnd = np.zeros((1, 1, width), np.float32)
    return random_like(jax.eval_shape(layer.init, jax.random.key(0), x_bnd)["params"], seed)


@pytest.fixture
def config(tmp_path):
    """A run whose predictor starts from the layers 25 to 27 of a text model."""
    config = config1.get_config("tiny")
    config.encoder.update(width=32, depth=2, mlp_width=32, pool_width=32)
    config.predictor.update(width=32, depth=3, heads=2, mlp_width=48, window=32)
    config.predictor.weights = str(tmp_path / "text.safetensors")
    write_text(config)
    return config


def write_text(config, numbers=range(20, 28), part="text", **about):
    layers = {f"layer{number}": text_layer(number) for number in numbers}
    about = {"config": {"text": {**TEXT, "last_layer": 27, **about}}}
    export.write_export(config.predictor.weights, {part: layers}, about)


def test_text_layers_start_the_right_layers_of_the_predictor(config):
    found = initialization.text_layers(config)
    assert list(found) == [f"predictor/layer{i}" for i in range(3)]
    for i, number in enumerate((25, 26, 27)):
        jax.tree.map(
            np.testing.assert_array_equal, found[f"predictor/layer{i}"], text_layer(number)
        )


def test_text_layers_have_exactly_the_leaves_of_the_predictor(config):
    model = stage1.make_model(config)
    abstract = nn.unbox(
        jax.eval_shape(lambda key: stage1.init_params(config, model, key), jax.random.key(0))
    )
    for path, tree in initialization.text_layers(config).items():
        wanted = abstract["predictor"][path.partition("/")[2]]
        assert jax.tree.map(np.shape, tree) == jax.tree.map(lambda leaf: leaf.shape, wanted)


def test_text_layers_are_empty_without_a_text_model(config):
    config.predictor.weights = ""
    assert initialization.text_layers(config) == {}


@pytest.mark.parametrize(
    ("about", "numbers", "sentence"),
    [
        (
            {"kind": "bert"},
            range(20, 28),
            "of kind 'bert': set config.predictor.weights to",
        ),
        ({"width": 64, "heads": 4}, range(20, 28), "predictor.width=64, config.predictor.heads=4"),
        ({"window": 128}, range(20, 28), "config.predictor.window=128"),
        ({}, range(26, 28), "the predictor starts from layers 25 to 27: change config.predictor"),
    ],
)
def test_a_text_model_of_other_sizes_is_a_user_error(config, about, numbers, sentence):
    write_text(config, numbers, **about)
    with pytest.raises(UserError, match="safetensors") as caught:
        initialization.text_layers(config)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_without_a_text_model_or_with_other_shapes_is_refused(config):
    write_text(config, part="teacher")
    with pytest.raises(UserError, match="has no text model, only teacher"):
        initialization.text_layers(config)
    write_text(config)
    config.predictor.update(mlp_width=64)
    with pytest.raises(UserError, match="config.predictor.mlp_width=48"):
        initialization.text_layers(config)


@pytest.mark.parametrize("kind", ["vit", "vjepa"])
def test_only_modernbert_starts_from_a_text_model(config, kind):
    config.predictor.kind = kind
    with pytest.raises(UserError, match="set the kind to 'modernbert'"):
        stage1.check_config(config)


def test_a_teacher_that_is_not_the_configured_one_is_refused_with_a_table():
    config = config1.get_config("tiny")
    image_teacher.read_teacher(config)
    config.teacher.update(width=64, depth=6)
    with pytest.raises(UserError) as caught:
        image_teacher.read_teacher(config)
    assert "config.teacher.width=64 must be 96" in str(caught.value)
    assert "config.teacher.depth=6 must be 4" in str(caught.value)


def test_an_unknown_teacher_is_refused():
    config = config1.get_config("tiny")
    config.teacher.kind = "convnet"
    with pytest.raises(UserError, match="teacher.kind='convnet' is unknown: set it to 'siglip2'"):
        stage1.check_config(config)


RESTORED = {name: {"x": 0} for name in ("encoder", "predictor", "pool", "decoder", "align")}


def stage2_config(**fields):
    config = config2.get_config("tiny")
    config.init_from = "runs/stage1"
    config.update_from_flattened_dict(fields)
    return config


def test_stage2_starts_from_the_stage1_groups_that_it_uses():
    start = stage2.warm_start(stage2_config(), RESTORED)
    assert set(start) == {"encoder", "predictor", "pool"}
    start = stage2.warm_start(stage2_config(**{"loss.pixels": 1.0}), RESTORED)
    assert set(start) == {"encoder", "predictor", "pool", "decoder"}


def test_missing_or_excluded_parts_start_from_random_values_and_are_logged():
    config, groups = stage2_config(), ("encoder", "head", "pool", "predictor")
    start = stage2.warm_start(config, {"encoder": {}})
    assert initialization.describe_start(config, start, groups) == [
        "head is initialized randomly: it is not taken from runs/stage1",
        "pool is initialized randomly: it is not taken from runs/stage1",
        "predictor is initialized without a text model (config.predictor.weights is empty)",
    ]
    config.init_parts = ("encoder", "pool")
    assert set(stage2.warm_start(config, RESTORED)) == {"encoder", "pool"}


def test_a_file_without_any_part_of_the_run_is_refused():
    config = config1.get_config("tiny")
    config.init_from = "teacher.safetensors"
    with pytest.raises(UserError, match=r"teacher.safetensors holds image, .* takes .*encoder"):
        stage1.warm_start(config, {"image": {}})
    assert set(stage1.warm_start(config, {"image": {}, "encoder": {}})) == {"encoder"}


def test_the_log_names_the_text_model_and_its_layers(config):
    start = stage1.warm_start(config, None)
    assert initialization.describe_start(config, start, ("encoder", "predictor")) == [
        f"predictor layers: text model {config.predictor.weights}, layers 25 to 27"
    ]


def test_heads_of_a_run_with_another_teacher_are_named():
    config = config1.get_config("tiny")
    config.init_from = "runs/earlier"
    source = config.copy_and_resolve_references()
    groups = ("encoder", "align", "align_pooled")
    assert image_teacher.describe_change(config, source, groups) == ""
    source.teacher.tap_interval = config.teacher.tap_interval + 1
    source.teacher.weights = "other.safetensors"
    assert image_teacher.describe_change(config, source, ("encoder",)) == ""
    text = "\n".join(initialization.describe_start(config, dict.fromkeys(groups, {}), (), source))
    assert "align and align_pooled of runs/earlier were trained for the outputs of a diff" in text
    assert "teacher.tap_interval=2.0 in that run, 1.0 in this run" in text
    assert "teacher.weights='other.safetensors' in that run" in text


def test_teacher_description_names_the_file_and_everything_interpolated():
    config = config1.get_config("tiny")
    config.teacher.weights = "siglip2.safetensors"
    text = "teacher: siglip2 from siglip2.safetensors, images of 32 x 32 pixels"
    targets = "; targets: its tokens after 2, 3 of 4 layers"
    assert image_teacher.describe_teacher(config) == text + targets
    config.loss.align_tokens = 0.0
    assert image_teacher.describe_teacher(config) == text
    config.data.size, config.teacher.size, config.teacher.resample = 64, 48, True
    described = image_teacher.describe_teacher(config)
    assert "images of 48 x 48 pixels; clips of 64 x 64 are resized" in described
    assert "its position table for 32 x 32 is interpolated" in described
    assert "its 6 x 6 patches are resampled to 8 x 8" in described


def test_an_earlier_run_comes_before_the_text_model(config):
    config.init_from = "runs/earlier"
    start = stage1.warm_start(config, RESTORED)
    assert start["predictor"] == RESTORED["predictor"] and "predictor/layer0" not in start


def test_invalid_init_parts_are_refused():
    config = stage2_config(init_parts=("encoder", "align"))
    with pytest.raises(UserError, match="'align', but this run takes encoder, pool, predictor"):
        stage2.warm_start(config, RESTORED)
    config.init_parts = ("encoder", "pool")
    with pytest.raises(UserError, match="'pool', but init_from='runs/stage1' holds encoder"):
        stage2.warm_start(config, {"encoder": {}})
    config.init_parts = ("pool",)
    with pytest.raises(UserError, match="must include 'encoder'"):
        stage2.check_config(config)
    with pytest.raises(UserError, match="has no encoder, only head"):
        stage2.warm_start(stage2_config(), {"head": {}})


@pytest.mark.parametrize(
    ("field", "value", "only"),
    [("activation", "quick_gelu", "'gelu_tanh'"), ("registers", 4, "0"), ("gated", True, "False")],
)
def test_options_that_the_kind_of_teacher_does_not_have_are_refused(field, value, only):
    config = config1.get_config("tiny")
    image_teacher.read_teacher(config)
    config.teacher[field] = value
    with pytest.raises(UserError, match=f"config.teacher.{field}={value!r} must be {only}"):
        image_teacher.read_teacher(config)


@pytest.mark.parametrize("name", ["patch", "heads", "mlp_width", "train_size", "taps"])
def test_sizes_of_the_teacher_below_1_are_refused(name):
    config = config1.get_config("tiny")
    config.teacher[name] = 0
    with pytest.raises(UserError, match=f"config.teacher.{name}=0 must be at least 1"):
        image_teacher.check_teacher(config)
