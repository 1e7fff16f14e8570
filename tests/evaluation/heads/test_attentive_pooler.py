import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from head_formulas import attention, gelu, layer_norm, linear, random_params
from parity import numpy_of
from reference_models import draw, draw_weights, filled, module_shapes, unfold_names

from invnext_jax.evaluation.heads import attentive_pooler as ap


def tokens(b=2, n=12, d=32):
    return 2 * draw((b, n, d), 1)


def mean_query_pool(x, p, heads):
    """Computes the formula of appendix A.2 in float64."""
    query = x.astype(np.float64).mean(1, keepdims=True)
    q, k, v = (
        linear(layer_norm(y, p[f"norm_{name}"], 1e-5), p[name])
        for name, y in (("q", query), ("k", x), ("v", x))
    )
    return linear(attention(q, k, v, heads)[:, 0], p["proj"])


@pytest.mark.parametrize("mlp", [False, True])
def test_mean_query_pooler_equals_the_formula(mlp):
    module, x = ap.MeanQueryPooler(width=24, heads=4, mlp=mlp), tokens()
    params = random_params(module, x)
    expected = mean_query_pool(x, params["attention"], heads=4)
    if mlp:
        h = gelu(linear(expected, params["mlp"]["fc1"]))
        expected = expected + linear(h, params["mlp"]["fc2"])
    got = module.apply({"params": params}, x)
    assert got.shape == (2, 1, 24)
    np.testing.assert_allclose(got[:, 0], expected, rtol=1e-4, atol=1e-5)


def vjepa2_params(weights):
    """The weights of transformers' pooler in the layout of `LearnedQueryPooler`."""

    def dense(name):
        return {"kernel": weights[f"{name}.weight"].T, "bias": weights[f"{name}.bias"]}

    def norm(name):
        return {"scale": weights[f"{name}.weight"], "bias": weights[f"{name}.bias"]}

    def block(layer, attn, has_out):
        return {
            **{name: dense(f"{layer}.{attn}.{name}_proj") for name in "qkv"},
            **({"out": dense(f"{layer}.{attn}.out_proj")} if has_out else {}),
            "mlp": {name: dense(f"{layer}.mlp.{name}") for name in ("fc1", "fc2")},
            **{f"norm{i}": norm(f"{layer}.layer_norm{i}") for i in (1, 2)},
        }

    return {
        "query": weights["query_tokens"][0],
        "cross_block": block("cross_attention_layer", "cross_attn", has_out=False),
        **{
            f"block{i}": block(f"self_attention_layers.{i}", "self_attn", has_out=True)
            for i in range(2)
        },
    }


def make_vjepa2_pooler(hf):
    from transformers.models.vjepa2.modeling_vjepa2 import VJEPA2AttentivePooler

    config = hf.models.VJEPA2Config(
        hidden_size=32,
        num_attention_heads=4,
        num_pooler_layers=2,
        mlp_ratio=2,  # the pooler ignores it
        attn_implementation="eager",
    )
    return VJEPA2AttentivePooler(config)


def test_learned_query_pooler_equals_transformers(reference):
    shapes = reference(lambda hf: module_shapes(make_vjepa2_pooler(hf)), "shapes")
    weights, x = draw_weights(unfold_names(shapes)), tokens()

    def compute(hf):
        model = filled(hf, make_vjepa2_pooler(hf), weights)
        return numpy_of(model(hf.torch.from_numpy(x)))

    module, params = ap.LearnedQueryPooler(blocks=2, heads=4), vjepa2_params(weights)
    shapes = nn.meta.unbox(jax.eval_shape(module.init, jax.random.key(0), x))["params"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    got = module.apply({"params": params}, x)[:, 0]
    np.testing.assert_allclose(got, reference(compute), rtol=1e-4, atol=1e-5)


def test_each_query_is_pooled_as_if_it_were_alone():
    x = tokens()
    module = ap.LearnedQueryPooler(queries=3, blocks=1, heads=4)
    params = random_params(module, x)
    alone = ap.LearnedQueryPooler(queries=1, blocks=1, heads=4)
    together = module.apply({"params": params}, x)
    assert together.shape == (2, 3, 32)
    for i in range(3):
        one = {**params, "query": params["query"][i : i + 1]}
        got = alone.apply({"params": one}, x)[:, 0]
        np.testing.assert_allclose(got, together[:, i], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "pooler", [ap.MeanQueryPooler(24, 4), ap.LearnedQueryPooler(blocks=1, heads=4)]
)
def test_order_of_the_tokens_does_not_matter(pooler):
    x = tokens()
    params = random_params(pooler, x)
    order = np.random.default_rng(2).permutation(x.shape[1])
    got = [pooler.apply({"params": params}, y) for y in (x, x[:, order])]
    np.testing.assert_allclose(*got, rtol=1e-4, atol=1e-5)


def test_classifiers_read_their_own_query():
    x = tokens()
    module = ap.AttentiveClassifier(ap.LearnedQueryPooler(3, 0, 4), (5, 7, 2), norm=False)
    params = random_params(module, x)
    logits = module.apply({"params": params}, x)
    assert [y.shape for y in logits] == [(2, 5), (2, 7), (2, 2)]
    z = ap.LearnedQueryPooler(3, 0, 4).apply({"params": params["pooler"]}, x)
    for i, y in enumerate(logits):
        expected = linear(np.asarray(z[:, i]), params[f"classifier{i}"])
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


def test_number_of_queries_must_fit_the_tasks():
    module = ap.AttentiveClassifier(ap.LearnedQueryPooler(2, 0, 4), (5, 7, 2))
    with pytest.raises(ValueError, match="the pooler has 2 queries, but must have 1 or 3"):
        module.init(jax.random.key(0), tokens())
