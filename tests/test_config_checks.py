import pytest

from configs import stage1, stage2
from invnext_jax import config_checks
from invnext_jax.errors import UserError

SIZES = [
    *(f"encoder__{n}" for n in ("patch", "size", "frames", "heads", "pool_heads", "pool_width")),
    *(f"{m}__{n}" for m in ("encoder", "predictor") for n in ("width", "depth", "mlp_width")),
    *("predictor__heads", "predictor__window", "decoder__depth", "data__short_side"),
]


@pytest.fixture
def config(tmp_path):
    (tmp_path / "manifest.csv").write_text("path,source\n")
    config = stage1.get_config("tiny")
    config.data.manifest = str(tmp_path / "manifest.csv")
    return config


def breach(config, **fields):
    for name, value in fields.items():
        section, _, field = name.rpartition("__")
        (config[section] if section else config)[field] = value
    with pytest.raises(UserError) as caught:
        config_checks.check_config(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("variant", ["tiny", "base", "large", "1b"])
@pytest.mark.parametrize("stage", [stage1, stage2])
def test_the_shipped_configs_pass(stage, variant, config):
    shipped = stage.get_config(variant)
    shipped.data.manifest = config.data.manifest
    config_checks.check_config(shipped)


def test_the_dtype_is_known(config):
    assert "'float16'" in breach(config, dtype="float16")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("total_steps", 0),
        ("log__every_steps", 0),
        ("encoder__class_tokens", -1),
        ("init_gain", 0.0),
        *((name, value) for name in SIZES for value in (0, -1)),
    ],
)
def test_durations_and_counts_have_a_least_value(config, field, value):
    assert f"config.{field.replace('__', '.')}={value} must be" in breach(config, **{field: value})


def test_a_missing_manifest_is_named(config):
    assert "config.data.manifest is empty" in breach(config, data__manifest="")


def test_a_best_metric_of_an_evaluation_needs_the_evaluation(config):
    message = breach(config, checkpoint__keep_best=1, checkpoint__best_metric="eval/knn_shape")
    assert "is not logged, because config.eval.every_steps is 0: set it" in message


def test_the_worst_checkpoints_of_an_evaluation_are_not_kept_as_the_best(config):
    config.eval.update(every_steps=10, manifest="val.csv")
    config.checkpoint.update(keep_best=1, best_metric="eval/knn_shape")
    assert "the lowest eval/knn_shape, which are the worst" in breach(config)
    config.checkpoint.best_mode = "max"
    config_checks.check_config(config)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("encoder__width", 72, "must be divisible by 16"),
        ("encoder__pool_heads", 3, "must be divisible by encoder.pool_heads=3"),
        ("encoder__layer_scale", -1.0, "must be at least 0"),
        ("encoder__layer_scale", float("nan"), "must be a finite number"),
        ("seed", 2**32, "must be below 4294967296"),
        ("loss__pixels", float("inf"), "must be a finite number"),
        ("mask__aspect", (0.75, float("inf")), "must be a finite number"),
    ],
)
def test_sizes_and_numbers_of_models_are_checked(config, field, value, words):
    assert words in breach(config, **{field: value})
