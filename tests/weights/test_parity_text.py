"""ModernBERT layers that are read from files of transformers equal the original layers."""

import dataclasses
import functools
import json

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden_cases import assert_near
from parity import numpy_of
from reference_models import Model

from invnext_jax.models.predictor import ModernBertLayer, Predictor
from invnext_jax.weights import text_models
from invnext_jax.weights.files import LazyArrays, open_checkpoint
from invnext_jax.weights.layout import pytorch_names, to_tree
from invnext_jax.weights.match import match_tree

LENGTH = 21
SIZES = {
    "vocab_size": 20,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 14,
    "num_attention_heads": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "cls_token_id": 1,
    "sep_token_id": 2,
}


class Layers(Predictor):
    """Only the ModernBERT layers of the predictor."""

    @nn.compact
    def __call__(self, x_bnd):
        return self._apply_modernbert(x_bnd)


def modernbert(name="ModernBertModel", **options):
    return Model(name, {**SIZES, **options})


def read(folder, last_layers):
    """Returns the sizes in config.json and the tree of the last layers."""
    checkpoint = open_checkpoint(folder)
    sizes = text_models.sizes(checkpoint.config)
    tensors = text_models.adapt(checkpoint.tensors, last_layers)
    tree = to_tree(LazyArrays(tensors), text_models.RULES)
    layer = ModernBertLayer(sizes["heads"], sizes["mlp_width"], None, jnp.float32)
    x_bnd = jnp.zeros((1, 1, sizes["width"]))
    shapes = nn.unbox(jax.eval_shape(layer.init, jax.random.key(0), x_bnd)["params"])
    numbers = range(sizes["last_layer"] - last_layers + 1, sizes["last_layer"] + 1)
    expected = {"text": {f"layer{n}": shapes for n in numbers}}
    tree = match_tree(tree, expected, str(folder))
    flat = flax.traverse_util.flatten_dict(tree, sep="/")
    names = dict(pytorch_names({path: x.shape for path, x in flat.items()}, text_models.RULES))
    assert names.keys() == tensors.keys()
    return sizes, tree["text"]


def torch_states(hf, model, count):
    """Returns the last `count` of the inputs of the layers and the output of the last one.

    The output is the one before the final norm.
    """
    streams = []
    words = np.random.RandomState(0).randint(3, 20, (1, LENGTH))
    model.layers[0].register_forward_pre_hook(lambda _, x: streams.append(x[0]))
    for layer in model.layers:
        layer.register_forward_hook(lambda *x: streams.append(x[2]))
    model(hf.torch.from_numpy(words))
    assert len(streams) == 1 + len(model.layers)
    return np.stack([numpy_of(stream) for stream in streams[-count:]])


def assert_layers(get, model, folder, last_layers, tower=None, attention="eager"):
    def compute(hf):
        loaded = model.load(hf, folder, attention)
        return torch_states(hf, getattr(loaded, tower) if tower else loaded, last_layers + 1)

    states_lbnd = get(compute)
    sizes, tree = read(folder, last_layers)
    assert sizes["depth"] == model.options["num_hidden_layers"]
    first = sizes["last_layer"] - last_layers + 1
    layers = Layers(
        kind="modernbert",
        encoder_width=1,
        table_grid=(1, 1, 1),
        class_tokens=0,
        width=sizes["width"],
        heads=sizes["heads"],
        mlp_width=sizes["mlp_width"],
        window=sizes["window"],
        depth=last_layers,
        last_layer=sizes["last_layer"],
    )
    params = {f"layer{i}": tree[f"layer{first + i}"] for i in range(last_layers)}
    run = jax.jit(lambda x: layers.apply({"params": params}, x, mutable="intermediates"))
    last_bnd, sown = run(states_lbnd[0])
    for i in range(last_layers):
        assert_near(sown["intermediates"][f"after{i}"][0], states_lbnd[i + 1])
    assert_near(last_bnd, states_lbnd[-1])


@pytest.mark.parametrize("window", [8, 16, 128])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_last_layers_with_windows_below_and_above_the_length(
    references, window, attention, tmp_path
):
    model = modernbert(local_attention=window)
    get = functools.partial(references.get, f"test_parity_text/window {window}")  # of both
    assert_layers(get, model, references.save(model, tmp_path), 8, attention=attention)


@pytest.mark.parametrize("depth", [12, 13])
def test_all_layers_except_the_first_for_any_position_of_global_layers(
    reference, references, depth, tmp_path
):
    model = modernbert(num_hidden_layers=depth, local_attention=8)
    assert_layers(reference, model, references.save(model, tmp_path), depth - 1)


def test_small_activations_expose_the_epsilon_of_every_norm(reference, references, tmp_path):
    small = ("Wo.weight", "embeddings.norm")
    model = dataclasses.replace(modernbert(local_attention=8), small=small, factor=1e-2)
    assert_layers(reference, model, references.save(model, tmp_path), 5)


def test_language_model_with_a_head_and_old_keys_in_config_json(reference, references, tmp_path):
    model = modernbert("ModernBertForMaskedLM", local_attention=8)
    folder = references.save(model, tmp_path)
    expected = read(folder, 5)[0]
    path = folder / "config.json"
    config = json.loads(path.read_text())
    layer_types = config["layer_types"]
    for name in ("layer_types", "rope_parameters"):
        del config[name]
    config.update(
        global_attn_every_n_layers=3, global_rope_theta=160000.0, local_rope_theta=10000.0
    )
    path.write_text(json.dumps(config))
    found = reference(lambda hf: hf.models.AutoConfig.from_pretrained(folder).layer_types, "types")
    assert found == layer_types
    assert read(folder, 5)[0] == expected
    assert_layers(reference, model, folder, 5, tower="model")


def test_float16_and_shards_read_as_the_same_values(references, tmp_path):
    def read_as(name, *dtypes, **options):
        return read(references.save(modernbert(), tmp_path / name, dtypes, **options), 8)[1]

    full = read_as("full", "float16", "float32")
    for other in (read_as("half", "float16"), read_as("shards", "float16", shard_bytes=50_000)):
        jax.tree.map(np.testing.assert_array_equal, other, full)
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 2


def test_missing_sizes_get_the_defaults_of_transformers(reference):
    config = reference(lambda hf: hf.models.ModernBertConfig().to_dict())
    assert text_models.sizes({"model_type": "modernbert"}) == text_models.sizes(config)
