"""Analytic FLOPs compared with the products of the traced step and with XLA's cost analysis."""

import functools
import math

import jax
import jax.numpy as jnp
import ml_collections
import pytest
from jax.extend import core

from configs import stage1 as stage1_config
from configs import stage2 as stage2_config
from invnext_jax.models import heads, layers, predictor, vit
from invnext_jax.planning import flops
from invnext_jax.stages.registry import STAGES
from invnext_jax.training import mesh as mesh_lib

CONFIGS = {"stage1": stage1_config, "stage2": stage2_config}
BATCH = 2


def recomputed_flops(config):
    counts = STAGES[config.stage].count_flops(config)
    return flops.sum_recomputed_flops(counts, config.batch_size, config.remat)


def loss_and_arguments(config):
    stage = STAGES[config.stage]
    model = stage.make_model(config)
    init = functools.partial(stage.init_params, config, model)
    params = mesh_lib.unbox(jax.eval_shape(init, jax.random.key(0)))
    frozen = mesh_lib.unbox(stage.abstract_frozen(config))
    if config.stage == "stage2" and config.target.kind == "momentum":
        frozen["target"] = params["encoder"]
    shape = (BATCH, config.data.frames, config.data.size, config.data.size, 3)
    batch = {"video": jax.ShapeDtypeStruct(shape, jnp.uint8)}
    key = jax.eval_shape(lambda: jax.random.key(0))

    def loss_fn(params, frozen, batch, key):
        return stage.loss_fn(config, model, params, frozen, batch, key)[0]

    return jax.value_and_grad(loss_fn), (params, frozen, batch, key)


@pytest.fixture(autouse=True)
def plain_attention(monkeypatch):
    """Uses the plain kernel, whose products appear in the jaxpr."""

    def attend(q_bnhe, k_bmhe, v_bmhe, *_, **__):
        return jax.nn.dot_product_attention(q_bnhe, k_bmhe, v_bmhe)

    for module in (heads, layers, predictor, vit):
        monkeypatch.setattr(module, "attend", attend)


def product_flops(jaxpr, times=1, dtypes=(jnp.float32, jnp.bfloat16)):
    """Returns the FLOPs of matrix products with operands of these dtypes, including loops."""
    total = 0.0
    for equation in jaxpr.eqns:
        operands = {operand.aval.dtype for operand in equation.invars}
        if equation.primitive.name == "dot_general" and operands <= set(map(jnp.dtype, dtypes)):
            (contracted, _), _ = equation.params["dimension_numbers"]
            sizes = equation.invars[0].aval.shape
            inner = math.prod(sizes[axis] for axis in contracted)
            total += 2 * times * inner * math.prod(equation.outvars[0].aval.shape)
        rounds = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                if isinstance(inner, core.ClosedJaxpr):
                    inner = inner.jaxpr
                if isinstance(inner, core.Jaxpr):
                    total += product_flops(inner, times * rounds, dtypes)
    return total


def analytic(config):
    counts = STAGES[config.stage].count_flops(config, dense_windows=True).values()
    return sum(count.forward + count.backward for count in counts)


VARIANTS = [
    ("stage1", {}),
    ("stage1", {"loss.align_tokens": 0.0, "decoder.kind": "mlp", "decoder.depth": 3}),
    ("stage1", {"loss.align_pooled": 0.0, "predictor.kind": "vit", "decoder.noise_draws": 2}),
    ("stage2", {}),
    ("stage2", {"predictor.kind": "vjepa", "loss.align_visible": 1.0}),
    ("stage2", {"loss.pixels": 1.0, "target.kind": "momentum", "mask.kind": "tube"}),
    ("stage2", {"target.kind": "image", "mask.kind": "semantic"}),
    ("stage1", {"mask.predicted": 0.3}),
    ("stage1", {"teacher.frames_share": 0.5, "teacher.size": 64, "teacher.resample": True}),
    ("stage2", {"mask.predicted": 0.5, "loss.pixels": 1.0, "predictor.kind": "vit"}),
]


@pytest.mark.parametrize(("stage", "changes"), VARIANTS)
def test_analytic_flops_equal_the_traced_products(stage, changes):
    config = CONFIGS[stage].get_config("tiny")
    config.data.frames = 2
    config.encoder.update(depth=3)
    config.update_from_flattened_dict(changes)
    traced, arguments = loss_and_arguments(ml_collections.FrozenConfigDict(config))
    traced_flops = product_flops(jax.make_jaxpr(traced)(*arguments).jaxpr) / BATCH
    # The products that resize a position table, and their gradients, are not counted.
    assert traced_flops == pytest.approx(analytic(config), rel=0.01)


@pytest.mark.parametrize("stage", STAGES)
def test_analytic_float32_flops_equal_the_traced_float32_products(stage):
    config = CONFIGS[stage].get_config("tiny")
    config.dtype, config.data.frames, config.encoder.frames = "bfloat16", 2, 2
    config.update_from_flattened_dict({"loss.pixels": 1.0, "teacher.size": 64})
    config.teacher.resample = True
    counts = STAGES[stage].count_flops(ml_collections.FrozenConfigDict(config))
    assert counts["decoder"].float32 == counts["decoder"].forward + counts["decoder"].backward
    assert counts["encoder"].float32 == counts["predictor"].float32 == 0
    traced, arguments = loss_and_arguments(ml_collections.FrozenConfigDict(config))
    jaxpr = jax.make_jaxpr(traced)(*arguments).jaxpr
    traced_flops = product_flops(jaxpr, dtypes=(jnp.float32,))
    # The products that resize position tables and sum over clips are not counted.
    assert traced_flops == pytest.approx(flops.split_flops(counts, BATCH)["float32"], rel=0.01)
    config.decoder.dtype = "bfloat16"
    counts = STAGES[stage].count_flops(ml_collections.FrozenConfigDict(config))
    assert counts["decoder"].float32 == 0


def xla_flops(config, monkeypatch):
    """Returns XLA's FLOPs of the unoptimized step, unrolled because XLA counts a loop only once."""
    scan = layers.nn.scan
    monkeypatch.setattr(layers.nn, "scan", lambda *a, **k: scan(*a, **{**k, "unroll": True}))
    traced, arguments = loss_and_arguments(ml_collections.FrozenConfigDict(config))
    return jax.jit(traced).lower(*arguments).cost_analysis()["flops"] / BATCH


@pytest.mark.parametrize("stage", STAGES)
def test_analytic_flops_are_within_3_percent_of_xla(stage, monkeypatch):
    config = CONFIGS[stage].get_config("base")
    config.data.frames = 4
    for part in (config.encoder, config.teacher, config.predictor, config.decoder):
        part.depth = 2
    config.teacher.taps = 1
    config.remat = "none"  # recomputation is not counted in model FLOPs
    assert xla_flops(config, monkeypatch) == pytest.approx(analytic(config), rel=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["base", "large", "1b"])
@pytest.mark.parametrize("stage", STAGES)
def test_analytic_flops_of_full_models_are_within_3_percent_of_xla(stage, variant, monkeypatch):
    config = CONFIGS[stage].get_config(variant)
    config.remat = "none"
    assert xla_flops(config, monkeypatch) == pytest.approx(analytic(config), rel=0.03)


def test_window_counts_the_pairs_inside_it():
    config = stage2_config.get_config("base")
    whole = STAGES[config.stage].count_flops(config, dense_windows=True)["predictor"]
    seen = STAGES[config.stage].count_flops(config)["predictor"]
    n, reach, masks, local_layers = 4 + 32 * 256, 64, 2, 3
    pairs = sum(min(i, reach) + 1 + min(n - 1 - i, reach) for i in range(n))
    missing = masks * local_layers * 4 * (n * n - pairs) * 1024
    assert whole.forward - seen.forward == pytest.approx(missing, rel=1e-9)
    assert whole.backward - seen.backward == pytest.approx(2 * missing, rel=1e-9)


def test_recomputed_flops_depend_on_the_remat_policy():
    config = stage2_config.get_config("tiny")
    config.remat = "none"
    assert recomputed_flops(config) == 0
    config.remat = "full"
    full = recomputed_flops(config)
    config.remat = "dots"
    assert 0 < recomputed_flops(config) < full
    # The target is frozen; patch embeddings, projections and heads are not rematerialized.
    counts = STAGES[config.stage].count_flops(config)
    most = config.batch_size * (counts["encoder"].forward + counts["predictor"].forward)
    assert full < most
