"""Conversion between PyTorch and JAX parameters: both directions, bit for bit."""

import einops
import flax
import numpy as np
import pytest
from golden_cases import DEFAULT, read_cases

from invnext_jax.weights.layout import (
    CONV2D,
    CONV3D,
    FUSED2,
    FUSED3,
    IDENTITY,
    LINEAR,
    SQUEEZE,
    VECTOR,
    Rule,
    pytorch_names,
    to_tree,
)
from invnext_jax.weights.reference import PRETRAINING, PUBLISHED


@pytest.mark.parametrize(
    ("layout", "shape", "pattern", "sizes"),
    [
        (IDENTITY, (5,), "a -> a", {}),
        (LINEAR, (4, 6), "o k -> k o", {}),
        (FUSED3, (12, 5), "(p o) k -> k p o", {"p": 3}),
        (FUSED2, (12, 5), "(p o) k -> k p o", {"p": 2}),
        (CONV2D, (6, 3, 4, 4), "o c r q -> (r q c) o", {}),
        (CONV3D, (6, 3, 1, 4, 4), "o c 1 r q -> (r q c) o", {}),
        (SQUEEZE, (1, 3, 4), "1 a b -> a b", {}),
        (VECTOR, (1, 1, 4), "1 1 a -> a", {}),
    ],
)
def test_layout_equals_its_einops_pattern_and_is_invertible(layout, shape, pattern, sizes):
    tensor = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    converted = layout.to_jax(tensor)
    np.testing.assert_array_equal(converted, einops.rearrange(tensor, pattern, **sizes))
    np.testing.assert_array_equal(layout.to_pytorch(converted), tensor)


def to_pytorch(tree, rules):
    flat = flax.traverse_util.flatten_dict(tree, sep="/")
    sources = pytorch_names({path: leaf.shape for path, leaf in flat.items()}, rules)
    return {name: source.to_pytorch(flat[source.path]) for name, source in sources}


@pytest.mark.parametrize("name", ["encoder_B", "predictor_B", "diffusion_B", "stage1_B"])
def test_reference_parameters_survive_a_round_trip_bit_for_bit(name):
    state = read_cases(DEFAULT)[name].under("param.")
    back = to_pytorch(to_tree(state, PRETRAINING), PRETRAINING)
    # A decoder on its own is converted back to the names that it has in a full model.
    state = {f"diffloss.{k}" if k.startswith("net.") else k: v for k, v in state.items()}
    assert back.keys() == state.keys()
    for key, value in state.items():
        assert back[key].shape == value.shape and back[key].tobytes() == value.tobytes()


def test_published_names_equal_those_of_the_released_encoders():
    state = read_cases(DEFAULT)["encoder_B"].under("param.")
    names = to_pytorch(to_tree(state, PRETRAINING), PUBLISHED).keys()
    assert {"model.blocks.1.ls2.lr_scale", "model.pos_embed", "model.cls_token"} <= names
    assert all(name.startswith("model.") and "gamma" not in name for name in names)


def test_missing_layer_of_a_stack_is_an_error():
    rules = [Rule("blocks.{i}.w", "blocks/w")]
    with pytest.raises(KeyError, match=r"blocks/w has layers \[0, 2\]"):
        to_tree({"blocks.0.w": np.zeros(1), "blocks.2.w": np.zeros(1)}, rules)
    with pytest.raises(KeyError, match="no rule for the parameter other"):
        to_tree({"other": np.zeros(1)}, rules)
