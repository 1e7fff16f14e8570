"""Token statistics equal closed forms, pooling equals NumPy means, and encoders are loaded."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from configs.eval.tasks import linear_probe as probe_config
from invnext_jax.errors import UserError
from invnext_jax.evaluation import features, pretrained
from invnext_jax.models import encoder as encoder_model
from invnext_jax.models.patches import normalize
from invnext_jax.objectives import losses
from invnext_jax.weights import export

TINY = {
    **{"width": 16, "depth": 2, "heads": 2, "mlp_width": 32, "patch": 8, "size": 16},
    **{"frames": 3, "class_tokens": 4, "layer_scale": 1.0, "drop_path": 0.0},
}


@pytest.fixture(scope="module")
def config():
    return ml_collections.ConfigDict(
        {"encoder": TINY, "dtype": "float32", "remat": "none", "init_gain": 1.0}
    )


@pytest.fixture(scope="module")
def params(config):
    return pretrained.init_encoder(config, seed=0)


def statistics_of(tokens_bnd):
    tokens_bnd = np.asarray(tokens_bnd, np.float64)
    second = np.einsum("bnd,bne->de", tokens_bnd, tokens_bnd)
    return features.token_statistics(tokens_bnd.sum(axis=0), second, len(tokens_bnd))


def test_effective_rank_of_the_identity_is_its_width():
    assert features.effective_rank(np.eye(12)) == pytest.approx(12)


def test_effective_rank_of_rank_one_is_one():
    x = np.arange(1.0, 6.0)
    assert features.effective_rank(np.outer(x, x)) == pytest.approx(1, abs=1e-6)


def test_effective_rank_of_nothing_is_zero():
    assert features.effective_rank(np.zeros((3, 3))) == 0


def test_tokens_that_depend_on_position_alone_have_share_one():
    table = np.random.default_rng(0).normal(size=(1, 6, 8))
    found = statistics_of(np.repeat(table, 10, axis=0))
    assert found.position_share == pytest.approx(1)


def test_tokens_that_ignore_position_have_share_zero():
    clips = np.random.default_rng(0).normal(size=(10, 1, 8))
    assert statistics_of(np.repeat(clips, 6, axis=1)).position_share == pytest.approx(0, abs=1e-12)


def test_position_and_content_of_equal_variance_share_by_half():
    x = np.zeros((2, 2, 1))
    x[0, :, 0], x[1, :, 0] = (0, 1), (1, 2)  # position adds 0 or 1, the clip adds 0 or 1
    assert statistics_of(x).position_share == pytest.approx(0.5)


def test_statistics_agree_with_those_logged_in_training():
    x_bnd = np.random.default_rng(0).normal(size=(20, 6, 8)) * np.arange(1, 9) + 3
    found, x = statistics_of(x_bnd), jnp.asarray(x_bnd, jnp.float32)
    np.testing.assert_allclose(found.position_share, losses.position_share(x), rtol=1e-4)
    np.testing.assert_allclose(found.effective_rank, losses.effective_rank(x), rtol=1e-4)
    np.testing.assert_allclose(found.feature_std, losses.feature_std(x), rtol=1e-4)


def run(encoder, params, video):
    apply = jax.jit(lambda params, x: encoder.apply({"params": params}, x).tokens_bnd)
    return np.asarray(apply(params, video))


@pytest.fixture(scope="module")
def clips():
    return np.random.default_rng(0).integers(0, 256, size=(5, 3, 16, 16, 3), dtype=np.uint8)


def test_export_loads_without_the_run(tmp_path, config, params, clips):
    path = tmp_path / "encoder.safetensors"
    export.write_export(path, {"encoder": params}, {"config": config.to_dict()})
    encoder, loaded, found, *_ = pretrained.load_encoder(path)
    clip = normalize(clips[:2])
    expected = run(encoder_model.from_config(config), params, clip)
    np.testing.assert_array_equal(run(encoder, loaded, clip), expected)
    assert found.encoder.width == 16


def test_paths_without_an_encoder_are_refused(tmp_path, config, params):
    with pytest.raises(UserError, match="config.checkpoint is empty"):
        pretrained.load_params("")
    with pytest.raises(UserError, match="has no checkpoint"):
        pretrained.load_params(tmp_path)
    export.write_export(tmp_path / "a.safetensors", {"pool": params}, {"config": config.to_dict()})
    with pytest.raises(UserError, match="has no encoder"):
        pretrained.load_params(tmp_path / "a.safetensors")


def test_missing_and_untrained_poolings_are_noted(tmp_path, config, params):
    path = tmp_path / "a.safetensors"
    export.write_export(path, {"encoder": params}, {"config": config.to_dict()})
    encoder = pretrained.load_frozen(path)
    (note,) = features.describe_poolings(encoder, ("mean", "pool", "class"))
    assert note == "The encoder has no features 'pool' of config.poolings."
    assert not features.describe_poolings(encoder, ("mean", "frames"))


def test_unknown_options_of_features_are_refused():
    config = probe_config.get_config("tiny")
    features.check_config(config)
    config.features.dtype = "bfloat16"
    with pytest.raises(UserError, match="config.features.dtype='bfloat16' must be one of"):
        features.check_config(config)
    config.features.update(dtype="float16", max_gb=0.0)
    with pytest.raises(UserError, match=r"config.features.max_gb=0.0 must be positive"):
        features.check_config(config)
    config.features.update(max_gb=1.0, views=2)
    with pytest.raises(UserError, match=r"config.features.views=2 must be 1 or 3"):
        features.check_config(config)
