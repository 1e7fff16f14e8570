"""Checks of the run or export from which a run starts."""

import ml_collections
import numpy as np
import pytest

from configs import stage1
from invnext_jax import init_source
from invnext_jax.errors import UserError
from invnext_jax.weights import export


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


@pytest.mark.parametrize("read", [init_source.read_source, lambda c: init_source.copy_sizes(c, ())])
def test_a_source_without_parameters_is_described(config, tmp_path, read):
    config.init_sizes = True
    (tmp_path / "empty").mkdir()
    for name, reason in (("empty", "has no checkpoint"), ("nowhere", "does not exist")):
        config.init_from = str(tmp_path / name)
        sentence = rf"{name} {reason}: .*an export \(a .safetensors file\), or the folder of a pub"
        with pytest.raises(UserError, match=sentence):
            read(config)
