"""Each row of the paper's Tables 1 to 4 is a config that builds and trains for a step."""

import functools

import flax.linen as nn
import jax
import ml_collections
import numpy as np
import pytest

from configs import ablations
from invnext_jax.models.predictor import ModernBertLayer
from invnext_jax.stages import image_teacher
from invnext_jax.stages.registry import STAGES
from invnext_jax.training import optimizer
from invnext_jax.training import state as state_lib
from invnext_jax.training import step as step_lib
from invnext_jax.weights import export

stage1, stage2 = STAGES["stage1"], STAGES["stage2"]

STAGES = {"stage1": stage1, "stage2": stage2}


def random_like(abstract, seed):
    rng = np.random.default_rng(seed)
    draw = lambda leaf: (0.1 * rng.standard_normal(leaf.shape)).astype(leaf.dtype)  # noqa: E731
    return jax.tree.map(draw, nn.unbox(abstract))


def abstract_params(config):
    stage = STAGES[config.stage]
    init = functools.partial(stage.init_params, config, stage.make_model(config))
    return nn.unbox(jax.eval_shape(init, jax.random.key(0)))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Returns a function that writes the files of a row: a text model and an image teacher."""
    folder = tmp_path_factory.mktemp("weights")

    def write(config):
        p, t = config.predictor, config.teacher
        if p.weights:
            p.weights = str(folder / "text.safetensors")
            layer = ModernBertLayer(p.heads, p.mlp_width, None, "float32")
            x_bnd = np.zeros((1, 1, p.width), np.float32)
            tree = jax.eval_shape(layer.init, jax.random.key(0), x_bnd)["params"]
            layers = {f"layer{i}": random_like(tree, i) for i in range(20, 28)}
            about = {"kind": "modernbert", "width": p.width, "heads": p.heads}
            export.write_export(p.weights, {"text": layers}, {"config": {"text": about}})
        if t.kind != "siglip2":
            t.weights = str(folder / f"{t.kind}.safetensors")
            tree = random_like(image_teacher.abstract_teacher(config), 0)
            export.write_export(t.weights, {"teacher": tree}, {})

    return write


def tiny(row):
    """Returns the tiny variant of a row, made smaller to reduce the compile time."""
    config = ablations.get_config(f"{row},tiny")
    config.encoder.update(depth=2, width=32, heads=2, mlp_width=32, pool_width=32)
    config.predictor.update(depth=min(config.predictor.depth, 2), width=32, mlp_width=32)
    config.decoder.update(depth=min(config.decoder.depth, 2), width=32)
    config.mask.update(blocks=((2, 0.7),), visible=(0.38,))  # one mask kind halves the compile time
    config.optimizer.warmup_steps = 0
    config.init_from = "runs/stage1" if config.stage == "stage2" else ""
    return config


@functools.cache
def stage1_params():
    return random_like(abstract_params(tiny("1a_both")), 0)


def make_state(config, tx):
    """Makes the initial state: random values, and the parameters from which the row starts."""
    stage, abstract = STAGES[config.stage], abstract_params(config)
    params = random_like(abstract, 1)
    restored = stage1_params() if config.stage == "stage2" else None
    start = stage.warm_start(config, restored)
    for path, tree in start.items():
        shapes = state_lib.flat_shapes(state_lib.get_subtree(abstract, path))
        assert not state_lib.compare_shapes(state_lib.flat_shapes(tree), shapes), path
        params = state_lib.replace_subtree(params, path, tree)
    params = jax.tree.map(jax.numpy.asarray, params)
    zero = np.int32(0)
    state = state_lib.TrainState(zero, params, tx.init(params), zero, zero)
    return state_lib.init_ema(state, stage.ema_targets(config)[0]), stage.init_frozen(
        config, restored
    )


_FIRST_ROW = {}  # config -> its first row: rows with equal configs are run once


@pytest.mark.parametrize("row", ablations.ROWS)
def test_row_builds_and_steps(row, files):
    config = tiny(row)
    files(config)
    first_row = _FIRST_ROW.setdefault(config.to_json(), row)
    if first_row != row:
        pytest.skip(f"same config as {first_row}")
    stage = STAGES[config.stage]
    config = ml_collections.FrozenConfigDict(config)
    stage.check_config(config)
    schedule = optimizer.make_schedule(config.optimizer, config.total_steps)
    untrained = stage.frozen_groups(config)
    tx = optimizer.make_optimizer(config.optimizer, untrained)
    state, frozen = make_state(config, tx)
    loss_fn = functools.partial(stage.loss_fn, config, stage.make_model(config))
    step = step_lib.make_train_step(loss_fn, tx, stage.ema_targets(config))
    side, frames = config.data.size, config.data.frames
    shape = (2, frames, side, side, 3)
    video = np.random.default_rng(2).integers(0, 256, shape, dtype=np.uint8)
    next_state, metrics = jax.jit(step)(
        state, frozen, {"video": video}, jax.random.key(0), schedule
    )

    assert np.isfinite(metrics["loss"]) and metrics["nonfinite"] == 0
    active = {name for name, weight in config.loss.items() if weight}
    assert all(any(m.startswith(f"loss/{name}") for m in metrics) for name in active)
    for group, tree in state.params.items():
        changed = jax.tree.map(lambda a, b: bool(np.any(a != b)), tree, next_state.params[group])
        frozen_group = group in (*config.optimizer.frozen, *untrained)
        assert any(jax.tree.leaves(changed)) != frozen_group, group
    assert set(next_state.follow) == set(stage.ema_targets(config)[0])


@pytest.mark.parametrize("row", ablations.ROWS)
def test_full_size_row_passes_the_checks_of_its_stage(row):
    config = ablations.get_config(row)
    config.init_from = "runs/stage1"
    STAGES[config.stage].check_config(config)


def test_only_known_rows_share_a_config():
    """Rows have equal configs only where the paper has one model in several rows or tables."""
    names = {}
    for row in ablations.ROWS:
        names.setdefault(ablations.get_config(row).to_json(), []).append(row)
    assert sorted(rows for rows in names.values() if len(rows) > 1) == [
        ["1a_align_only", "2_siglip_align_only"],
        [
            *("1a_both", "1b_modernbert5", "1c_diffusion_6x1536", "2_siglip"),
            *("4_stage1_semantic", "4_stage1_8f"),
        ],
        ["1a_diffusion", "1b_modernbert5_no_init"],
        ["1a_text_init", "1c_linear"],
        ["3_stage2", "4_stage2_multi_block", "4_stage2_8f"],
    ]


def test_unknown_row_raises():
    for argument in ("", "5_nothing", "1a_both,huge"):
        with pytest.raises(ValueError, match="unknown ablation"):
            ablations.get_config(argument)
