"""Attention kernels compared with a float64 softmax, their cost, and their sharding over a mesh."""

import functools
import logging
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import check, draw, reference

from configs import common
from invnext_jax.models import attention, blockwise_attention, fused_attention, sharding
from invnext_jax.training import mesh as mesh_lib

RUNS = {
    "full": blockwise_attention.full_attention,
    "blockwise": lambda q, k, v, _: blockwise_attention.blockwise_attention(q, k, v),
    "sliding_window": blockwise_attention.sliding_window_attention,
}


@pytest.mark.parametrize(
    ("name", "n", "window"),
    [
        ("full", 37, None),
        ("full", 37, 5),
        ("blockwise", 37, None),
        ("blockwise", 130, None),
        ("sliding_window", 37, 5),  # not a multiple of the block
        ("sliding_window", 16, 3),
        ("sliding_window", 101, 16),
        ("sliding_window", 5, 9),  # the window reaches beyond both ends
        ("sliding_window", 20, 0),  # each token attends only to itself
    ],
)
def test_xla_kernels_and_gradients_equal_float64_softmax(name, n, window, monkeypatch):
    monkeypatch.setattr(blockwise_attention, "MAX_LOGITS", 37 * 20)
    check(RUNS[name], n, window)


@pytest.mark.parametrize("chosen", attention.KERNELS)
@pytest.mark.parametrize(("n", "window"), [(40, None), (140, 8), (1, None)])
def test_all_kernels_give_the_same_result(chosen, n, window):
    if chosen == "splash" and n > 1:
        pytest.skip("tested below in interpret mode, with fewer cases")
    with attention.kernel(chosen):
        check(attention.attend, n, window)


@pytest.mark.parametrize(("n", "window"), [(128, None), (150, None), (300, 20)])
def test_splash_attention_in_interpret_mode(n, window):
    with attention.kernel("splash"):
        check(attention.attend, n, window, 2e-5, batch=1)


@pytest.mark.parametrize(("n", "keys"), [(128, 256), (30, 300), (200, 150), (20, 128)])
def test_splash_attention_with_other_numbers_of_keys(n, keys):
    with attention.kernel("splash"):
        check(attention.attend, n, None, 2e-5, batch=1, keys=keys)


def test_single_query_attends_to_all_keys():
    q, k, v, _ = draw(50)
    for chosen in attention.KERNELS:
        with attention.kernel(chosen):
            y = attention.attend(q[:, :1], k, v)
        expected = reference(q[:, :1], k, v, q[:, :1], None)[0]
        np.testing.assert_allclose(y, expected, atol=1e-5)


@pytest.mark.parametrize(("n", "window"), [(40, None), (140, 8)])
def test_bfloat16_error_is_within_its_precision(n, window):
    *qkv, out = (jnp.asarray(x, jnp.bfloat16) for x in draw(n))
    wide = [np.asarray(x, np.float32) for x in (*qkv, out)]
    expected = reference(*wide, window)[0]
    for chosen in ("naive", "blockwise"):
        with attention.kernel(chosen):
            y = jax.jit(functools.partial(attention.attend, window=window))(*qkv)
        assert y.dtype == jnp.bfloat16
        np.testing.assert_allclose(y.astype(np.float32), expected, atol=2e-2)


def lower(chosen, n, window, platforms=None, dtype=jnp.float32, heads=2, width=64, keys=None):
    queries, shape = (
        jax.ShapeDtypeStruct((1, size, heads, width), dtype) for size in (n, keys or n)
    )

    def product(q, k, v):
        return jnp.sum(attention.attend(q, k, v, window).astype(jnp.float32))

    with attention.kernel(chosen):
        traced = jax.jit(jax.grad(product, (0, 1, 2))).trace(queries, shape, shape)
        return traced.lower(lowering_platforms=platforms) if platforms else traced.lower()


def sizes_in(hlo):
    return [
        np.prod([int(size) for size in dims.split(",")])
        for dims in re.findall(r"\b(?:f32|bf16|pred|s32)\[([\d,]+)\]", hlo)
    ]


def test_long_sequences_need_no_square_array_and_windows_cost_at_most_an_eighth():
    n, window, heads = 8196, 64, 1
    compiled = {
        "global": lower("auto", n, None, heads=heads).compile(),
        "local": lower("auto", n, window, heads=heads).compile(),
    }
    for program in compiled.values():
        assert max(sizes_in(program.as_text())) < n * n / 8
    # Cost analysis counts the body of a scan once, so the naive form serves as the global cost.
    naive = lower("naive", n, None, heads=heads).cost_analysis()["flops"]
    local = lower("auto", n, window, heads=heads).cost_analysis()["flops"]
    assert local <= naive / 8
    assert max(sizes_in(lower("naive", n, None, heads=heads).compile().as_text())) >= n * n


@pytest.fixture
def with_cudnn(monkeypatch):
    """Lets JAX trace calls of cuDNN on a machine without it."""
    module = "jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version"
    monkeypatch.setattr(module, lambda: 91100)
    monkeypatch.setattr(fused_attention.jax, "default_backend", lambda: "gpu")


@pytest.mark.parametrize("width", [64, 80, 88, 96, 20])
@pytest.mark.parametrize("window", [None, 64])
def test_bfloat16_on_gpu_uses_cudnn_for_every_head_width(with_cudnn, window, width):
    lowered = lower("auto", 1028, window, ("cuda",), jnp.bfloat16, width=width).as_text()
    assert len(re.findall(r"custom_call @__cudnn\$fmhaSoftmax\(", lowered)) == 1
    assert len(re.findall(r"custom_call @__cudnn\$fmhaSoftmaxBackward\(", lowered)) == 1
    length = re.search(r"sliding_window_length\W+22: (\d+)", lowered)
    assert int(length[1]) == (0 if window is None else 2 * window + 1)


def test_cudnn_takes_fewer_queries_than_keys(with_cudnn):
    lowered = lower("auto", 126, None, ("cuda",), jnp.bfloat16, keys=1028).as_text()
    assert len(re.findall(r"custom_call @__cudnn\$fmhaSoftmax\(", lowered)) == 1
    assert len(re.findall(r"custom_call @__cudnn\$fmhaSoftmaxBackward\(", lowered)) == 1


@pytest.mark.parametrize("platform", ["cpu", "gpu", "tpu"])
@pytest.mark.parametrize(
    ("n", "keys", "window", "reason"),
    [
        (300, 300, None, ""),
        (126, 300, None, ""),
        (300, 126, None, ""),
        (300, 300, 64, ""),
        (126, 300, 64, "local attention needs equal numbers of queries and keys"),
        (1, 300, None, "there is only one query"),
    ],
)
def test_kernel_is_chosen_by_shape_and_the_reason_is_recorded(
    monkeypatch, platform, n, keys, window, reason
):
    monkeypatch.setattr(attention, "target_platform", lambda: platform)
    q, k = (jnp.zeros((1, size, 2, 64), jnp.bfloat16) for size in (n, keys))
    fused = {"cpu": "xla", "gpu": "cudnn", "tpu": "splash"}[platform]
    expected = ("xla" if reason else fused, "" if platform == "cpu" else reason)
    assert attention.choose_kernel(q, k, window) == expected
    with attention.kernel("naive"):
        assert attention.choose_kernel(q, k, window) == ("xla", "")
    if expected[0] == "xla":
        with attention.record_choices() as choices:
            jax.eval_shape(functools.partial(attention.attend, window=window), q, k, k)
        sizes = (n, keys, 2, 64, window, "bfloat16")
        assert choices == [attention.Choice(*expected, *sizes)]


def test_platform_is_that_of_the_mesh():
    device = jax.sharding.AbstractDevice(device_kind="TPU v5", num_cores=2, platform="tpu")
    mesh = jax.sharding.AbstractMesh((2,), ("data",), abstract_device=device)
    assert sharding.target_platform() == "cpu"
    with jax.sharding.use_abstract_mesh(mesh):
        assert sharding.target_platform() == "tpu"


def test_unsupported_by_cudnn_falls_back_and_is_logged_once(with_cudnn, caplog):
    fused_attention.warn_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        for n in (40, 40, 50):
            assert "cudnn" not in lower("auto", n, None, ("cuda",)).as_text()
        assert "cudnn" not in lower("cudnn", 40, None, ("cuda",), jnp.bfloat16, width=136).as_text()
    messages = [record.getMessage() for record in caplog.records if "cudnn" in record.getMessage()]
    assert len(messages) == 2
    assert "it needs bfloat16, not float32" in messages[0]
    assert "136 is wider than 128" in messages[1]


def test_window_that_covers_the_tokens_falls_back_and_is_logged_once(with_cudnn, caplog):
    fused_attention.warn_once.cache_clear()
    for _ in range(2):
        lowered = lower("auto", 40, 20, ("cuda",), jnp.bfloat16).as_text()
        assert "cudnn" not in lowered
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 1 and "window of 20 tokens on each side" in messages[0]


def test_float32_on_tpus_uses_no_kernel_that_rounds_and_this_is_logged(monkeypatch, caplog):
    fused_attention.warn_once.cache_clear()
    monkeypatch.setattr(fused_attention.jax, "default_backend", lambda: "tpu")
    q, k, v, _ = draw(128, width=64)
    jaxpr = str(jax.make_jaxpr(attention.attend)(q, k, v))
    assert "pallas_call" not in jaxpr and jaxpr.count("HIGHEST") >= 2
    assert "rounds float32 products to bfloat16" in caplog.text
    half = [jnp.asarray(x, jnp.bfloat16) for x in (q, k, v)]
    assert "pallas_call" in str(jax.make_jaxpr(attention.attend)(*half))


def test_two_sided_window_equals_shifted_causal_window(monkeypatch):
    """Runs the arguments passed to cuDNN with the XLA implementation of the same function."""
    xla_attention = jax.nn.dot_product_attention

    def fake_cudnn(*args, implementation, **kwargs):
        assert implementation == "cudnn"
        return xla_attention(*args, **kwargs)

    monkeypatch.setattr(fused_attention.jax.nn, "dot_product_attention", fake_cudnn)
    for n, window in ((60, 7), (60, None), (33, 16)):
        check(fused_attention.cudnn, n, window, width=12)
    check(fused_attention.cudnn, 20, None, width=12, keys=60)


@pytest.mark.parametrize(
    ("sizes", "n"), [((2, 1, 2, 2), 140), ((1, 2, 1, 4), 140), ((8, 1, 1, 1), 140)]
)
@pytest.mark.parametrize(("window", "keys"), [(None, None), (8, None), (None, 260)])
@pytest.mark.parametrize("chosen", ["splash", "blockwise", "auto"])
def test_mesh_does_not_change_the_result(sizes, n, window, keys, chosen):
    config = common.defaults().mesh
    config.update(dict(zip(mesh_lib.AXES, sizes, strict=True)))
    with mesh_lib.mesh_rules(mesh_lib.make_mesh(config)), attention.kernel(chosen):
        check(attention.attend, n, window, 2e-5, batch=4, keys=keys)


def test_sizes_that_no_mesh_axis_divides_give_the_same_result():
    config = common.defaults().mesh
    config.update(data=2, fsdp=1, tensor=2, sequence=2)
    with mesh_lib.mesh_rules(mesh_lib.make_mesh(config)), attention.kernel("blockwise"):
        check(attention.attend, 37, None, 2e-5, batch=3, heads=3)


def test_unknown_kernel_is_an_error():
    with attention.kernel("flash"), pytest.raises(ValueError, match="'flash' must be one of"):
        attention.attend(*draw(4)[:3])
