"""8-bit products compared with NumPy, and products of flattened tokens."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from invnext_jax.models import dot_general, layers
from invnext_jax.training import mesh as mesh_lib


@pytest.fixture
def setting():
    rng = np.random.default_rng(0)
    x_bnd = rng.standard_normal((2, 5, 64)).astype(np.float32)
    x_bnd[0, 1] *= 100  # each token has its own scale
    x_bnd[1, 2] = 0
    kernel = rng.standard_normal((64, 3, 32)).astype(np.float32)
    kernel[:, 0, 4] *= 1e-3  # each channel has its own scale
    kernel[:, 2, 5] = 0
    return x_bnd, {"kernel": kernel, "bias": rng.standard_normal((3, 32)).astype(np.float32)}


def run(format_name, x_bnd, params, dtype="float32"):
    layer = layers.dense((3, 32), ("embed", None, "heads"), name="qkv", dtype=dtype)
    with dot_general.quantization(format_name):
        return jax.jit(layer.apply)({"params": params}, x_bnd)


def in_numpy(x_bnd, params):
    """Computes the 8-bit product in NumPy, with integers in int64 and scales in float64."""
    kernel = params["kernel"].astype(np.float64)
    x_scale = np.abs(x_bnd.astype(np.float64)).max(axis=-1, keepdims=True) / 127
    kernel_scale = np.abs(kernel).max(axis=0) / 127
    x_int = np.rint(x_bnd / np.where(x_scale > 0, x_scale, 1)).astype(np.int64)
    kernel_int = np.rint(kernel / np.where(kernel_scale > 0, kernel_scale, 1)).astype(np.int64)
    assert np.abs(x_int).max() == np.abs(kernel_int).max() == 127
    sums = np.einsum("bnd,dif->bnif", x_int, kernel_int)
    return sums * x_scale[..., None] * kernel_scale + params["bias"]


def test_int8_equals_integer_product_in_numpy(setting):
    found = run("int8", *setting)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, in_numpy(*setting), rtol=1e-5, atol=1e-4)
    exact = run("", *setting)
    assert np.abs(found - exact).max() > 1e-3
    np.testing.assert_array_equal(found[1, 2], setting[1]["bias"])  # a token of zeros


@pytest.mark.parametrize(("format_name", "error"), [("int8", 0.02), ("float8", 0.05)])
def test_error_is_small_and_dtype_is_that_of_the_inputs(format_name, error, setting):
    x_bnd, params = setting
    exact = np.einsum("bnd,dif->bnif", x_bnd, params["kernel"])
    for dtype in ("float32", "bfloat16"):
        found = run(format_name, *setting, dtype)
        assert found.dtype == dtype
        error_bnif = np.asarray(found, np.float32) - params["bias"] - exact
        assert np.linalg.norm(error_bnif[0, 0]) < error * np.linalg.norm(exact[0, 0])


def test_compiled_product_has_8_bit_operands(setting):
    x_bnd, params = setting
    layer = layers.dense((3, 32), ("embed", None, "heads"), name="qkv", dtype="bfloat16")
    for format_name, (dtype, _, sum_dtype) in dot_general.QUANTIZED_FORMATS.items():
        with dot_general.quantization(format_name):
            jaxpr = jax.make_jaxpr(layer.apply)({"params": params}, x_bnd)
        (product,) = (e for e in jaxpr.eqns if e.primitive.name == "dot_general")
        assert {v.aval.dtype for v in product.invars} == {jnp.dtype(dtype)}
        # A bfloat16 output needs half of the memory traffic of a float32 output.
        assert product.outvars[0].aval.dtype == (sum_dtype or jnp.bfloat16)


@pytest.mark.parametrize(
    ("platform", "kind", "capability", "name"),
    [
        ("cpu", "cpu", None, ""),
        ("gpu", "NVIDIA A100-SXM4-80GB", "8.0", ""),
        ("gpu", "NVIDIA L40S", "8.9", "float8"),
        ("gpu", "NVIDIA H100 PCIe", "9.0", "float8"),
        ("gpu", "NVIDIA B200", "10.0", "float8"),
        ("gpu", "AMD Instinct MI300X", "gfx942", ""),
        ("tpu", "TPU v4", None, ""),
        ("tpu", "TPU v5 lite", None, "int8"),
        ("tpu", "TPU v5p", None, "int8"),
        ("tpu", "TPU v6 lite", None, "int8"),
        ("gpu", "NVIDIA H200", None, "float8"),  # described, as in planning/targets.py
    ],
)
def test_auto_selects_the_format_of_the_device(platform, kind, capability, name, setting):
    device = types.SimpleNamespace(platform=platform, device_kind=kind)
    if capability:
        device.compute_capability = capability
    assert dot_general.select_format(device) == name


def test_auto_does_not_quantize_on_a_cpu(setting):
    np.testing.assert_array_equal(run("auto", *setting), run("", *setting))


def test_flattened_product_on_one_cpu_gives_the_same_result(setting):
    x_bnd, params = setting
    layer = layers.dense((3, 32), ("embed", None, "heads"), name="qkv", dtype="float32")
    weights = np.random.default_rng(1).standard_normal((2, 5, 3, 32)).astype(np.float32)

    def loss(params, x_bnd):
        return jnp.sum(layer.apply({"params": params}, x_bnd) * weights)

    def gradients():  # a new function each time, because tracing depends on the mesh
        both = jax.value_and_grad(lambda *arguments: loss(*arguments), (0, 1))
        ranks = {
            v.aval.ndim
            for e in jax.make_jaxpr(both)(params, x_bnd).eqns
            if e.primitive.name == "dot_general"
            for v in e.invars
        }
        return ranks, jax.jit(both)(params, x_bnd)

    ranks, expected = gradients()
    assert 3 in ranks
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1, 1), mesh_lib.AXES)
    with jax.set_mesh(mesh):
        ranks, found = gradients()
    assert ranks == {2}
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4), found, expected
    )


def test_separate_products_equal_one_product():
    rng = np.random.default_rng(5)
    x_bnd = rng.standard_normal((2, 5, 6), np.float32)
    kernel = rng.standard_normal((6, 3, 4), np.float32)
    dimensions = (((2,), (0,)), ((), ()))
    y = dot_general.separate_dot_general(x_bnd, kernel, dimensions)
    np.testing.assert_allclose(y, np.einsum("bnd,dif->bnif", x_bnd, kernel), atol=1e-5)
    y = dot_general.separate_dot_general(x_bnd, kernel[:, 1], dimensions)
    np.testing.assert_allclose(y, x_bnd @ kernel[:, 1], atol=1e-5)
