import ml_collections
import pytest

from configs import stage1, stage2
from invnext_jax import config_checks
from invnext_jax.errors import UserError


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
        ("checkpoint__every_steps", 0),
        ("checkpoint__keep_last", 0),
        ("log__every_steps", 0),
    ],
)
def test_durations_and_counts_have_a_least_value(config, field, value):
    assert f"config.{field.replace('__', '.')}={value} must be" in breach(config, **{field: value})


def test_a_missing_manifest_is_named(config):
    assert "config.data.manifest is empty" in breach(config, data__manifest="")


def test_parameters_of_other_heads_are_refused_though_their_shapes_fit(config):
    source = config.copy_and_resolve_references()
    config_checks.check_source(config, source, config.total_steps)
    source.encoder.heads = 2 * config.encoder.heads
    with pytest.raises(UserError, match="config.encoder.heads: "):
        config_checks.check_source(config, source, config.total_steps)


def test_an_unfinished_run_is_no_start_unless_told(config):
    source = config.copy_and_resolve_references()
    source.total_steps = 10
    with pytest.raises(UserError, match="has done 9 of 10 steps: finish it"):
        config_checks.check_source(config, source, 9)
    config.init_from_unfinished = True
    config_checks.check_source(config, source, 9)


def test_only_what_the_source_has_is_compared(config):
    source = ml_collections.ConfigDict({"encoder": {"heads": config.encoder.heads}})
    config_checks.check_source(config, source, None)  # an export: no predictor, no steps
    source.encoder.heads = 2 * config.encoder.heads
    with pytest.raises(UserError, match="config.encoder.heads: "):
        config_checks.check_source(config, source, None)


def test_parts_that_are_not_taken_may_differ(config):
    source = config.copy_and_resolve_references()
    source.predictor.kind = "vit"
    with pytest.raises(UserError, match="leave the part out of config.init_parts"):
        config_checks.check_source(config, source, config.total_steps)
    config.init_parts = ("encoder", "pool")
    config_checks.check_source(config, source, config.total_steps)


def test_some_loss_must_be_on(config):
    config.loss.update(align_tokens=0.0, align_pooled=0.0)
    config_checks.check_config(config)
    assert "no loss is on: set one of config.loss.align_pooled, " in breach(
        config, loss__pixels=0.0
    )
    assert "config.loss.pixels=-1.0 must not be negative" in breach(config, loss__pixels=-1.0)
