import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from invnext_jax.evaluation.augmentation import image_operations as ops

H, W = 20, 26


@pytest.fixture(scope="module")
def video():
    """Two frames: a gradient of few values with noise, and a dark frame with one gray channel."""
    rng = np.random.default_rng(0)
    slope = np.linspace(20, 200, H * W).reshape(H, W, 1)
    first = slope * [1.0, 0.7, 0.4] + rng.integers(0, 30, (H, W, 3))
    second = rng.integers(0, 90, (H, W, 3))
    second[..., 2] = 77
    return np.stack([first, second]).clip(0, 255).astype(np.uint8)


def with_pillow(video, operation):
    return np.stack([np.asarray(operation(Image.fromarray(frame))) for frame in video])


CASES = {
    "invert": (ops.invert, (), ImageOps.invert),
    "auto_contrast": (ops.auto_contrast, (), ImageOps.autocontrast),
    "equalize": (ops.equalize, (), ImageOps.equalize),
    "posterize": (ops.posterize, (3,), lambda x: ImageOps.posterize(x, 3)),
    "solarize": (ops.solarize, (100,), lambda x: ImageOps.solarize(x, 100)),
}
ENHANCERS = {
    ops.adjust_color: ImageEnhance.Color,
    ops.adjust_contrast: ImageEnhance.Contrast,
    ops.adjust_brightness: ImageEnhance.Brightness,
    ops.adjust_sharpness: ImageEnhance.Sharpness,
}


@pytest.mark.parametrize("name", CASES)
def test_operation_equals_pillow(video, name):
    operation, arguments, pillow = CASES[name]
    got = jax.jit(operation)(video, *map(jnp.asarray, arguments))
    assert got.dtype == np.uint8
    difference = np.asarray(got, int) - with_pillow(video, pillow)
    # Auto contrast: the float64 values of Pillow may be just below an integer.
    assert np.abs(difference).max() <= (name == "auto_contrast")
    assert np.mean(difference != 0) < 0.05


@pytest.mark.parametrize("enhancer", ENHANCERS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("factor", [0.1, 0.73, 1.0, 1.81])
def test_enhancement_equals_pillow(video, enhancer, factor):
    got = jax.jit(enhancer)(video, jnp.float32(factor))
    expected = with_pillow(video, lambda x: ENHANCERS[enhancer](x).enhance(factor))
    difference = np.asarray(got, int) - expected
    assert np.abs(difference).max() <= 1
    assert np.mean(difference != 0) < 0.01


def test_solarize_add(video):
    got = ops.solarize_add(video, 100)
    expected = np.where(video < 128, np.minimum(video.astype(int) + 100, 255), video)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    "matrix",
    [(1, 0, 0, 0, 1, 0), (1, 0.27, 0, 0, 1, 0), (1, 0, -7.4, 0, 1, 3), (0.8, 0.1, 2, -0.2, 1.1, 1)],
)
def test_affine_map_equals_pillow(video, matrix):
    got = jax.jit(ops.transform)(video, jnp.float32(matrix).reshape(2, 3))
    expected = with_pillow(
        video,
        lambda x: x.transform(
            x.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=ops.FILL
        ),
    )
    difference = np.asarray(got, int) - expected
    assert np.mean(np.abs(difference) > 1) < 0.005  # pixels on the edge of the input
    assert np.mean(difference != 0) < 0.05  # integers up to rounding errors


@pytest.mark.parametrize("degrees", [-30, 12.5, 90])
def test_rotation_equals_pillow(video, degrees):
    got = jax.jit(ops.transform)(video, ops.rotation(jnp.float32(degrees), H, W))
    expected = with_pillow(
        video, lambda x: x.rotate(degrees, Image.Resampling.BILINEAR, fillcolor=ops.FILL)
    )
    difference = np.asarray(got, int) - expected
    assert np.mean(np.abs(difference) > 1) < 0.005
    assert np.mean(difference != 0) < 0.05  # integers up to rounding errors
