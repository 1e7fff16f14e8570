"""Rules between PyTorch's layout and ours: both directions, bit for bit."""

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
    KEEP,
    LINEAR,
    SQUEEZE,
    VECTOR,
    Rule,
    names_of,
    to_tree,
)
from invnext_jax.weights.reference import PRETRAINING, PUBLISHED


@pytest.mark.parametrize(
    ("layout", "shape", "pattern", "sizes"),
    [
        (KEEP, (5,), "a -> a", {}),
        (LINEAR, (4, 6), "o k -> k o", {}),
        (FUSED3, (12, 5), "(p o) k -> k p o", {"p": 3}),
        (FUSED2, (12, 5), "(p o) k -> k p o", {"p": 2}),
        (CONV2D, (6, 3, 4, 4), "o c r q -> (r q c) o", {}),
        (CONV3D, (6, 3, 1, 4, 4), "o c 1 r q -> (r q c) o", {}),
        (SQUEEZE, (1, 3, 4), "1 a b -> a b", {}),
        (VECTOR, (1, 1, 4), "1 1 a -> a", {}),
    ],
)
def test_layouts_are_the_patterns_and_turn_back(layout, shape, pattern, sizes):
    theirs = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    ours = layout.ours(theirs)
    np.testing.assert_array_equal(ours, einops.rearrange(theirs, pattern, **sizes))
    np.testing.assert_array_equal(layout.theirs(ours), theirs)


def turn_back(tree, rules):
    flat = flax.traverse_util.flatten_dict(tree, sep="/")
    sources = names_of({path: leaf.shape for path, leaf in flat.items()}, rules)
    return {name: source.take(flat[source.path]) for name, source in sources}


@pytest.mark.parametrize("name", ["encoder_B", "predictor_B", "diffusion_B", "stage1_B"])
def test_reference_parameters_turn_back_bit_for_bit(name):
    state = read_cases(DEFAULT)[name].under("param.")
    back = turn_back(to_tree(state, PRETRAINING), PRETRAINING)
    # A decoder alone comes back under the name that it has inside a whole model.
    state = {f"diffloss.{k}" if k.startswith("net.") else k: v for k, v in state.items()}
    assert back.keys() == state.keys()
    for key, value in state.items():
        assert back[key].shape == value.shape and back[key].tobytes() == value.tobytes()


def test_published_names_are_those_of_the_released_encoders():
    state = read_cases(DEFAULT)["encoder_B"].under("param.")
    names = turn_back(to_tree(state, PRETRAINING), PUBLISHED).keys()
    assert {"model.blocks.1.ls2.lr_scale", "model.pos_embed", "model.cls_token"} <= names
    assert all(name.startswith("model.") and "gamma" not in name for name in names)


def test_a_layer_that_is_missing_in_a_stack_is_told():
    rules = [Rule("blocks.{i}.w", "blocks/w")]
    with pytest.raises(KeyError, match=r"blocks/w has layers \[0, 2\]"):
        to_tree({"blocks.0.w": np.zeros(1), "blocks.2.w": np.zeros(1)}, rules)
    with pytest.raises(KeyError, match="no rule for the parameter other"):
        to_tree({"other": np.zeros(1)}, rules)
