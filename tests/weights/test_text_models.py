"""Text models: names of tensors, selection of the last layers, and errors."""

import pytest

from invnext_jax.errors import UserError
from invnext_jax.weights import text_models
from invnext_jax.weights.files import LazyTensor

LEAVES = ("attn_norm", "attn.Wqkv", "attn.Wo", "mlp_norm", "mlp.Wi", "mlp.Wo")


def tensors_of(prefix, depth):
    names = [f"{prefix}layers.{i}.{leaf}.weight" for i in range(depth) for leaf in LEAVES]
    names.remove(f"{prefix}layers.0.attn_norm.weight")
    names += [f"{prefix}embeddings.tok_embeddings.weight", f"{prefix}final_norm.weight"]
    names += ["head.dense.weight", "head.norm.weight", "decoder.bias", "decoder.weight"]
    return {name: LazyTensor((1,), None) for name in names}


@pytest.mark.parametrize("prefix", ["", "model.", "bert.", "encoder.model."])
def test_last_layers_keep_their_numbers(prefix):
    found = text_models.adapt(tensors_of(prefix, 12), 3)
    assert found.keys() == {f"layers.{i}.{leaf}.weight" for i in (9, 10, 11) for leaf in LEAVES}


@pytest.mark.parametrize("last_layers", [0, 4, 9])
def test_keeping_the_first_layer_is_an_error(last_layers):
    with pytest.raises(UserError, match=f"last_layers={last_layers} must be between 1 and 3"):
        text_models.adapt(tensors_of("", 4), last_layers)


def test_file_of_another_model_is_an_error():
    with pytest.raises(UserError, match="it is not a ModernBERT"):
        text_models.adapt({"encoder.layers.0.fc1.weight": LazyTensor((1,), None)}, 1)


def test_sizes_are_fields_of_the_predictor_config():
    config = {"model_type": "modernbert", "hidden_size": 1024, "intermediate_size": 2624}
    config |= {"num_hidden_layers": 28, "num_attention_heads": 16}
    assert text_models.sizes(config) == {
        "kind": "modernbert",
        "width": 1024,
        "heads": 16,
        "mlp_width": 2624,
        "window": 128,
        "last_layer": 27,
        "depth": 28,
    }


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "bert"}, "model_type='bert', but --kind=modernbert needs modernbert"),
        ({"hidden_activation": "relu"}, "hidden_activation='relu'"),
        ({"global_attn_every_n_layers": 2}, "global_attn_every_n_layers=2"),
        ({"global_rope_theta": 10000.0}, "global_rope_theta=10000.0"),
        ({"local_rope_theta": 160000.0}, "local_rope_theta=160000.0"),
        ({"norm_eps": 1e-6}, "norm_eps"),
        ({"norm_bias": True}, "norm_bias=True"),
        ({"attention_bias": True}, "attention_bias=True"),
        ({"mlp_bias": True}, "mlp_bias=True"),
        ({"layer_types": ["full_attention"] * 22}, "layer_types"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "rope_theta=10000.0"),
        ({"rope_parameters": {"sliding_attention": {"rope_type": "yarn"}}}, "rope_type='yarn'"),
    ],
)
def test_config_of_another_model_is_refused(values, message):
    with pytest.raises(UserError, match=message) as error:
        text_models.sizes({"model_type": "modernbert", **values})
    assert "\n" not in str(error.value)
