"""Image teachers: sizes, dtypes, and independence of the taps."""

import math
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import stage1 as stage1_config
from invnext_jax.errors import UserError
from invnext_jax.models import scan, teachers
from invnext_jax.models.positions import resize_matrix

KINDS = {
    "siglip2": {},
    "clip": {"activation": "quick_gelu"},
    "dinov2": {"registers": 4, "gated": True},
}


def config_of(kind, taps=2, dtype="float32"):
    sizes = {"width": 32, "depth": 3, "heads": 4, "mlp_width": 48, "patch": 4, "train_size": 16}
    t = SimpleNamespace(kind=kind, taps=taps, tap_interval=1.0, **sizes, **KINDS[kind])
    return SimpleNamespace(teacher=t, dtype=dtype)


@pytest.mark.parametrize(
    ("depth", "count", "interval"), [(4, 2, 0.3), (4, 2, 4.0), (4, 5, 1.0), (4, 2, -1.0)]
)
def test_tap_layers_that_repeat_or_do_not_exist_are_refused(depth, count, interval):
    with pytest.raises(UserError, match=r"teacher\.tap"):
        scan.select_tap_layers(depth, count, interval)
    assert scan.select_tap_layers(40, 6, 3.33) == (23, 26, 30, 33, 36, 39)
    assert scan.select_tap_layers(4, 1, 9.0) == (3,)


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def images():
    return jax.random.normal(jax.random.key(0), (2, 16, 16, 3))


def init(kind, images):
    params = nn.unbox(teachers.from_config(config_of(kind)).init(jax.random.key(1), images))
    return jax.tree.map(lambda x: x + 0.1 * jax.random.normal(jax.random.key(2), x.shape), params)


def apply(kind, params, images, **options):
    return jax.jit(teachers.from_config(config_of(kind, **options)).apply)(params, images)


def test_taps_do_not_change_other_outputs(kind, images):
    params = init(kind, images)
    few, all_ = (apply(kind, params, images, taps=taps) for taps in (1, 3))
    np.testing.assert_array_equal(few.taps_lbnd, all_.taps_lbnd[2:])
    np.testing.assert_array_equal(few.pooled_bd, all_.pooled_bd)
    np.testing.assert_array_equal(few.attention_bn, all_.attention_bn)
    none = apply(kind, params, images, taps=0)
    assert none.taps_lbnd.shape == (0, 2, 16, 32)
    np.testing.assert_allclose(none.attention_bn, few.attention_bn, rtol=1e-5)


def test_bfloat16_teacher_returns_float32_close_to_float32_teacher(kind, images):
    params = init(kind, images)
    exact, rough = (apply(kind, params, images, dtype=d) for d in ("float32", "bfloat16"))
    for actual, expected in zip(*map(jax.tree.leaves, (rough, exact)), strict=True):
        assert actual.dtype == jnp.float32 and actual.shape == expected.shape
        assert np.linalg.norm(actual - expected) < 2e-2 * np.linalg.norm(expected)
    np.testing.assert_allclose(jnp.sum(rough.attention_bn, axis=1), 1.0, rtol=1e-5)


def test_parameter_count_of_the_published_clip_large():
    model = teachers.ClassTokenTeacher("clip", 1024, 24, 16, 4096, patch=14, size=224)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(shapes)) == 303_179_776


def test_run_config_builds_every_kind(kind):
    config = stage1_config.get_config("tiny")
    config.teacher.update(kind=kind, **KINDS[kind])
    model, t = teachers.from_config(config), config.teacher
    video_bthwc = jnp.zeros((1, 2, 56, 56, 3))
    images_bhwc = teachers.preprocess(video_bthwc, t.size, kind)
    features, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), images_bhwc)
    patches = (t.size // t.patch) ** 2
    assert features.taps_lbnd.shape == (t.taps, 2, patches, t.width)
    assert features.attention_bn.shape == (2, patches)


def test_unknown_kind_is_an_error():
    config = config_of("clip")
    config.teacher.kind = "vit"
    with pytest.raises(ValueError, match="teacher.kind='vit' must be one of"):
        teachers.from_config(config)


@pytest.mark.parametrize(("old", "new"), [(16, 7), (7, 16), (37, 16), (5, 6)])
def test_cubic_weights_are_those_of_the_kernel(old, new):
    def kernel(distance, a):  # Keys, "Cubic convolution interpolation", 1981
        near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
        far = a * (((distance - 5) * distance + 8) * distance - 4)
        return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))

    center = (np.arange(new)[:, None] + 0.5) * old / new - 0.5
    padded = np.arange(-2, old + 2)  # PyTorch repeats the values at the borders
    weights = kernel(np.abs(padded - center), -0.75)
    expected = weights[:, 2:-2].copy()
    expected[:, 0] += weights[:, :2].sum(1)
    expected[:, -1] += weights[:, -2:].sum(1)
    np.testing.assert_allclose(resize_matrix(old, new, "cubic-pytorch"), expected, atol=5e-6)
    weights = kernel(np.abs(np.arange(old) - center) / max(old / new, 1), -0.5)
    weights /= weights.sum(axis=1, keepdims=True)
    antialiased = resize_matrix(old, new, "cubic-pytorch", antialias=True)
    np.testing.assert_allclose(antialiased, weights, atol=5e-6)


def test_resampling_interpolates_between_patch_centres():
    rng = np.random.default_rng(0)
    x = rng.uniform(1, 2, 4)  # one value per column
    taps_lbnd = np.stack([np.ones(16), np.tile(x, 4)], axis=-1)[None, None].astype(np.float32)
    attention_bn = np.tile(x, 4)[None].astype(np.float32)
    features = teachers.TeacherOutput(taps_lbnd, np.ones((1, 2), np.float32), attention_bn)
    resized = teachers.resample_features(features, 4, 6)
    expected = np.interp((np.arange(6) + 0.5) / 6, (np.arange(4) + 0.5) / 4, x)
    ratio_yx = (resized.taps_lbnd[0, 0, :, 1] / resized.taps_lbnd[0, 0, :, 0]).reshape(6, 6)
    np.testing.assert_allclose(ratio_yx, np.tile(expected, (6, 1)), rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(resized.taps_lbnd, axis=-1), 1, rtol=1e-6)
    share_yx = resized.attention_bn.reshape(6, 6)
    np.testing.assert_allclose(share_yx, np.tile(expected / expected.sum() / 6, (6, 1)), rtol=1e-5)
