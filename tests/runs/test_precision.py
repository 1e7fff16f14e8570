"""Float32 products have the highest precision, and bfloat16 agrees with float32."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.extend import core
from jax.flatten_util import ravel_pytree

from invnext_jax.models.encoder import Encoder
from invnext_jax.models.patches import normalize
from invnext_jax.stages import image_teacher
from invnext_jax.stages.masked_modeling import LossInputs
from invnext_jax.stages.registry import STAGES

HIGHEST = (jax.lax.Precision.HIGHEST,) * 2


def products(jaxpr):
    """Returns all matrix products in a jaxpr."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                if isinstance(inner, core.ClosedJaxpr):
                    inner = inner.jaxpr
                if isinstance(inner, core.Jaxpr):
                    yield from products(inner)


def traced(case, batch, **changes):
    """Returns the matrix products of a stage's loss, gradients and diagnostics."""
    config, model, params, frozen = case
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    stage = STAGES[config.stage]
    model = stage.make_model(config)

    def run(params, frozen, batch, key):
        loss = jax.value_and_grad(lambda p: stage.loss_fn(config, model, p, frozen, batch, key)[0])
        return loss(params), stage.diagnostics(config, model, params, frozen, batch, key)

    return list(products(jax.make_jaxpr(run)(params, frozen, batch, jax.random.key(0)).jaxpr))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", ["first", "second"])
def test_every_float32_product_has_the_highest_precision(case, dtype, batch, request):
    changes = {"dtype": dtype}
    if case == "first":  # the teacher's images and features are resized
        changes |= {"teacher__size": 48, "teacher__resample": True}
    found = traced(request.getfixturevalue(case), batch, **changes)
    wide, narrow = [], []
    for product in found:
        in_float32 = all(operand.aval.dtype == jnp.float32 for operand in product.invars)
        (wide if in_float32 else narrow).append(product)
    assert len(wide) > 3
    assert all(e.params["precision"] == HIGHEST for e in wide)
    assert bool(narrow) == (dtype == "bfloat16")
    # In the backward pass of attention, one operand is a float32 gradient.
    assert all(any(x.aval.dtype == jnp.bfloat16 for x in e.invars) for e in narrow)


def evaluate(case, batch, dtype):
    """Returns features, loss terms and gradients of a stage in a dtype.

    The teacher and the masks do not depend on the dtype, because rounding of the attention would
    change semantic masks.
    """
    config, _, params, frozen = case
    stage, video_bthwc = STAGES[config.stage], normalize(batch["video"])
    teach = jax.jit(functools.partial(stage.apply_teacher, config))
    output, samples = teach(frozen, video_bthwc, jax.random.key(3))
    config = config.copy_and_resolve_references()
    config.dtype = config.decoder.dtype = dtype
    model = stage.make_model(config)

    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(params):
        seen, terms = {}, {}
        target = stage.compute_target(config, model, frozen, output, video_bthwc)
        for i, sample in enumerate(samples):
            features, state = model.apply(
                {"params": params},
                *(video_bthwc, sample.keep_bk, sample.masked_bm),
                method="features",
                capture_intermediates=lambda module, _: isinstance(module, Encoder),
            )
            (encoded,) = state["intermediates"]["encoder"]["__call__"]
            named = {"tokens_bnd": encoded.tokens_bnd, **features._asdict()}
            seen |= {f"{k}_{i}": x for k, x in named.items() if x is not None}
            inputs = LossInputs(model, params, features, target, video_bthwc, sample)
            for name in stage.active_losses(config):
                value = stage.losses[name].function(inputs)
                value = value if isinstance(value, dict) else {name: value}
                terms |= {stage.term_name(key, i): x for key, x in value.items()}
        return stage.weigh(config, terms), (seen, terms)

    (total, (seen, terms)), grads = jax.jit(loss)(params)
    grads = {name: ravel_pytree(tree)[0] for name, tree in grads.items()}
    return seen, {**terms, "total": total}, grads


@pytest.mark.parametrize("case", ["first", "second"])
def test_bfloat16_agrees_with_float32(case, batch, request):
    case = request.getfixturevalue(case)
    wide, narrow = (evaluate(case, batch, dtype) for dtype in ("float32", "bfloat16"))
    # About three times the largest errors: 5.1e-3 of features, 3.5e-4 of loss terms, 1.0e-2 of
    # the gradients of a group of parameters.
    for kind, tolerance in enumerate((1.5e-2, 1e-3, 3e-2)):
        assert wide[kind].keys() == narrow[kind].keys()
        for name, expected in wide[kind].items():
            error = jnp.linalg.norm(narrow[kind][name] - expected)
            assert error <= tolerance * jnp.linalg.norm(expected), name
            if kind == 0:  # so large an error shows that bfloat16 was used
                assert error > 1e-3 * jnp.linalg.norm(expected), name


def test_image_teacher_in_bfloat16_agrees_with_float32(first, batch):
    config, _, _, frozen = first
    # With the initial values, the attention is uniform.
    keys = iter(jax.random.split(jax.random.key(4), len(jax.tree.leaves(frozen))))
    params = jax.tree.map(lambda x: x + 0.2 * jax.random.normal(next(keys), x.shape), frozen)
    outputs = []
    for dtype in ("float32", "bfloat16"):
        config = config.copy_and_resolve_references()
        config.dtype = dtype
        run = jax.jit(functools.partial(image_teacher.apply_to_frames, config))
        outputs.append(run(params["teacher"], normalize(batch["video"])))
    names = jax.tree_util.tree_leaves_with_path(outputs[0])
    for (name, expected), found in zip(names, jax.tree.leaves(outputs[1]), strict=True):
        error = jnp.linalg.norm(found - expected) / jnp.linalg.norm(expected)
        assert 5e-4 < error < 1.5e-2, name
