"""Loss and gradients do not depend on the mesh; devices send only the expected collectives.

Shape key: b clips of a device, n tokens, d width, h heads, e head width.
"""

import functools
import itertools
import math

import jax
import numpy as np
import pytest

from configs import stage1 as stage1_config
from configs import stage2 as stage2_config
from invnext_jax.planning import collectives, program
from invnext_jax.stages.registry import STAGES
from invnext_jax.training import mesh as mesh_lib

stage1, stage2 = STAGES["stage1"], STAGES["stage2"]

STAGES = {"stage1": (stage1, stage1_config), "stage2": (stage2, stage2_config)}
MESHES = [(8, 1, 1, 1), (2, 4, 1, 1), (2, 2, 2, 1), (2, 1, 2, 2)]
FAST = {"stage1": (MESHES[0], MESHES[2]), "stage2": (MESHES[0], MESHES[2], MESHES[3])}
CASES = [
    pytest.param(name, sizes, marks=() if sizes in FAST[name] else pytest.mark.slow)
    for name in STAGES
    for sizes in MESHES
]
BATCH = 8


def small_config(stage_name, heads=2):
    config = STAGES[stage_name][1].get_config("tiny")
    config.encoder.update(depth=2, width=32, heads=heads, mlp_width=64)
    config.predictor.update(depth=1, width=32, heads=heads, mlp_width=32)
    config.data.frames = config.encoder.frames = 2
    if stage_name == "stage1":
        config.teacher.update(depth=2, width=32, heads=2, mlp_width=32, taps=1)
        config.decoder.update(depth=1, width=32)
    return config


def random_like(abstract, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: (0.1 * rng.standard_normal(leaf.shape)).astype(leaf.dtype),
        mesh_lib.unbox(abstract),
    )


@functools.cache
def evaluate(stage_name, sizes, heads=2, sequence_attention="gather"):
    """Returns the loss and gradients of a stage on a mesh, and the collectives of its program."""
    stage, config = STAGES[stage_name][0], small_config(stage_name, heads)
    config.mesh.update(dict(zip(mesh_lib.AXES, sizes, strict=True)))
    mesh = mesh_lib.make_mesh(config.mesh, jax.devices()[: np.prod(sizes)])
    model = stage.make_model(config)
    trees = (
        jax.eval_shape(functools.partial(stage.init_params, config, model), jax.random.key(0)),
        stage.abstract_frozen(config),
    )
    params, frozen = (
        mesh_lib.shard_tree(random_like(tree, seed), mesh_lib.abstract_arrays(tree, mesh))
        for seed, tree in enumerate(trees)
    )
    rng = np.random.default_rng(2)
    video_bthwc = rng.integers(0, 256, (BATCH, config.data.frames, 32, 32, 3), dtype=np.uint8)
    batch = mesh_lib.shard_batch({"video": video_bthwc}, mesh)
    key = jax.device_put(jax.random.key(3), mesh_lib.replicated(mesh))

    def loss_fn(params, frozen, batch, key):
        return stage.loss_fn(config, model, params, frozen, batch, key)[0]

    out = (mesh_lib.replicated(mesh), jax.tree.map(lambda leaf: leaf.sharding, params))
    with mesh_lib.mesh_rules(mesh, sequence_attention):
        jitted = jax.jit(jax.value_and_grad(loss_fn), out_shardings=out)
        compiled = jitted.lower(params, frozen, batch, key).compile()
    found = collectives.read_collectives(program.read_program(compiled.as_text()), mesh.size)
    loss, grads = jax.device_get(compiled(params, frozen, batch, key))
    return loss, grads, found


@pytest.mark.parametrize(("stage_name", "sizes"), CASES)
def test_loss_and_gradients_on_eight_devices_are_those_on_one(stage_name, sizes):
    check_equal(evaluate(stage_name, (1, 1, 1, 1)), evaluate(stage_name, sizes))


def check_equal(one, eight):
    """Compares two results of `evaluate`."""
    (loss, grads, _), (loss_8, grads_8, _) = one, eight
    np.testing.assert_allclose(loss_8, loss, rtol=1e-5)
    flat, flat_8 = (
        np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)])
        for tree in (grads, grads_8)
    )
    assert np.linalg.norm(flat_8 - flat) <= 1e-5 * np.linalg.norm(flat)
    assert np.linalg.norm(flat) > 1e-3


def parameter_shapes(stage_name, sizes):
    """Returns the sorted shapes of parameters and their shards, without the layer axis."""
    _, grads, _ = evaluate(stage_name, (1, 1, 1, 1))
    parts = {1, *sizes, sizes[1] * sizes[2]}
    shapes = set()
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        shape = leaf.shape[1:] if "blocks" in str(path) or "heads" in str(path) else leaf.shape
        for cut in itertools.product(parts, repeat=len(shape)):
            shapes.add(
                tuple(sorted(-(-size // part) for size, part in zip(shape, cut, strict=True)))
            )
    return shapes


def of_parameters(found, shapes):
    """Returns whether a collective moves parameters, gradients or a few scalars."""
    squeezed = (tuple(sorted(n for n in shape if n > 1)) for _, shape in found.shapes)
    return all(
        shape in {tuple(n for n in s if n > 1) for s in shapes} or math.prod(shape) <= BATCH
        for shape in squeezed
    )


def sent(stage_name, sizes):
    """Returns the collectives that move parameters or gradients on a mesh, and all others."""
    _, _, found = evaluate(stage_name, sizes)
    shapes = parameter_shapes(stage_name, sizes)
    return [c for c in found if of_parameters(c, shapes)], [
        c for c in found if not of_parameters(c, shapes)
    ]


def total_bytes(found, *kinds):
    return sum(c.times * c.result_bytes for c in found if not kinds or c.kind in kinds)


def size_of(tree):
    return sum(4 * leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("stage_name", STAGES)
def test_data_parallel_devices_send_nothing_but_gradients(stage_name):
    _, grads, _ = evaluate(stage_name, (1, 1, 1, 1))
    gradients, others = sent(stage_name, (8, 1, 1, 1))
    assert not others
    assert {c.kind for c in gradients} == {"all-reduce"}
    # Parameters that Stage 2 uses for both masks have two gradients.
    most = size_of(grads) * (2 if stage_name == "stage2" else 1)
    unused = size_of(grads["pool"]) if stage_name == "stage2" else 0
    assert 0.99 * (size_of(grads) - unused) <= total_bytes(gradients) <= most + 256


@pytest.mark.slow
@pytest.mark.parametrize("stage_name", STAGES)
def test_fsdp_gathers_parameters_and_no_activations(stage_name):
    _, grads, _ = evaluate(stage_name, (1, 1, 1, 1))
    parameters, others = sent(stage_name, (2, 4, 1, 1))
    assert {c.kind for c in parameters} <= {"all-gather", "all-reduce", "reduce-scatter"}
    # The pooled head is larger than its input, one token per clip, so the input is sent instead.
    assert all(c.kind == "all-reduce" and "align_pooled" in c.source for c in others), others
    # The forward and the backward pass gather once per mask. Frozen parameters are gathered once.
    passes = 4 if stage_name == "stage2" else 2
    frozen = size_of(
        mesh_lib.unbox(STAGES[stage_name][0].abstract_frozen(small_config(stage_name)))
    )
    assert 0 < total_bytes(parameters, "all-gather") <= passes * size_of(grads) + frozen


def test_tensor_parallel_layers_reduce_twice_forward_and_twice_backward():
    parameters, others = sent("stage2", (2, 2, 2, 1))
    assert {c.kind for c in others} == {"all-reduce"}
    layers, b, d = 2, BATCH // 4, 32
    tokens = {"target": 36, "first student": 16, "second student": 10}
    streams = {(b, n, d) for n in tokens.values()}
    in_layers = [
        c
        for c in parameters + others
        if "blocks" in c.source and any(shape in streams for _, shape in c.shapes)
    ]
    forward, backward = 2 * layers, 2 * layers
    assert sum(c.times for c in in_layers) == 3 * forward + 2 * backward


def test_sequence_parallel_layers_gather_only_keys_and_values():
    _, others = sent("stage2", (2, 1, 2, 2))
    layers, b, d, tensor = 2, BATCH // 2, 32, 2
    encoded, predicted, headed = (36, 16, 10), (36, 36), (26, 20)
    gathered = [c for c in others if c.kind == "all-gather"]
    in_layers = [c for c in gathered if "blocks/attn" in c.source]
    assert sum(c.times for c in in_layers) == 2 * layers * len(encoded)
    keys_and_values = 2 * layers * 4 * b * sum(encoded) * d // tensor
    assert total_bytes(in_layers) == keys_and_values
    # A stream is gathered at its end, at the end of its gradient, and once to join tokens. The
    # masked tokens of the last layer's queries and stream are gathered, too.
    streams = 4 * b * d * sum(encoded + predicted + headed)
    rest = [c for c in gathered if c not in in_layers]
    assert total_bytes(rest) <= 3 * streams + 2 * 4 * b * d * sum(predicted)
    moved = total_bytes(others, "all-to-all", "collective-permute")
    assert moved <= streams / 2 + 4 * b * d * sum(predicted)


@pytest.mark.parametrize("stage_name", STAGES)
def test_exchanged_heads_give_the_loss_and_gradients_of_one_device(stage_name):
    one = evaluate(stage_name, (1, 1, 1, 1), heads=4)
    check_equal(one, evaluate(stage_name, (2, 1, 2, 2), 4, "all_to_all"))


@pytest.mark.parametrize("stage_name", STAGES)
def test_layers_exchange_queries_keys_values_and_outputs(stage_name):
    *_, found = evaluate(stage_name, (2, 1, 2, 2), 4, "all_to_all")
    in_attention = [c for c in found if "shard_map/all_to_all" in c.source]
    assert {(c.kind, c.devices) for c in in_attention} == {("all-to-all", 2)}
    layers, masks = 2, 2 if stage_name == "stage2" else 1
    target = layers if stage_name == "stage2" else 0  # it has no gradient
    predictor = 1
    trained = masks * (layers + predictor)
    assert sum(c.times for c in in_attention) == 4 * (2 * trained + target)
    gathered = [c for c in found if c.kind == "all-gather" and "attn" in c.source]
    assert not [c for c in gathered if any(32 in shape for _, shape in c.shapes)], gathered
