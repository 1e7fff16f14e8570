"""A stage, a mask, a loss and an evaluation, each added from outside the package.

Each is one class or function and one registration. `extend` checks that a registration changes one
registry of the package and nothing else; then the extension trains or is evaluated on the embedded
world.
"""

import contextlib
import json
import sys

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from configs.eval.tasks import linear_probe as probe_config
from invnext_jax import train
from invnext_jax.checkpointing import run_record
from invnext_jax.evaluation import evaluate, tables
from invnext_jax.evaluation.evaluators import registry as evaluators
from invnext_jax.evaluation.evaluators.evaluator import Row
from invnext_jax.evaluation.pages import data_page
from invnext_jax.evaluation.pages.reported_run import ReportedRun
from invnext_jax.models.sharding import with_logical_axes
from invnext_jax.monitoring import metrics_file
from invnext_jax.objectives import masks
from invnext_jax.planning import plan
from invnext_jax.planning.flops import FlopCount
from invnext_jax.stages.masked_modeling import Loss
from invnext_jax.stages.registry import STAGES, step_flops
from invnext_jax.training.step import NO_EMA_TARGETS

PACKAGE = "invnext_jax"


def snapshot():
    """Returns the attributes of all modules and classes of the package, and the keys of dicts."""
    found = {}
    modules = {n: m for n, m in sys.modules.items() if n.split(".")[0] == PACKAGE}
    for name, module in modules.items():
        for attribute, value in vars(module).items():
            if isinstance(value, type) and value.__module__ == name:
                for member, inner in vars(value).items():
                    found[f"{name}.{attribute}.{member}"] = inner
            found[f"{name}.{attribute}"] = value
    return {name: (id(value), keys_of(value)) for name, value in found.items()}


def keys_of(value):
    return tuple(value) if type(value) is dict and all(isinstance(k, str) for k in value) else ()


@contextlib.contextmanager
def extend(registry, name):
    """Checks that the block only adds `name` to `registry`, and removes the entry afterwards."""
    before = snapshot()
    yield
    after = snapshot()
    changed = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
    assert name in registry
    assert changed
    for key in changed:
        assert before[key][0] == after[key][0] == id(registry), key
        assert set(after[key][1]) - set(before[key][1]) == {name}, key


@pytest.fixture
def restored():
    """Removes the entries that a test adds to the registries."""
    registries = STAGES, masks.REGISTRY, STAGES["stage1"].losses, evaluators.EVALUATORS
    copies = [dict(registry) for registry in registries]
    yield
    for registry, copy in zip(registries, copies, strict=True):
        registry.clear()
        registry.update(copy)


def two_steps(config):
    config.total_steps, config.checkpoint.every_steps = 2, 2
    config.log.update(every_steps=1, diagnostics_every_steps=1)
    return config


class MeanColor(nn.Module):
    """A linear map from the first frame to the mean color of the clip."""

    @nn.compact
    def __call__(self, x_bd):
        init = with_logical_axes(nn.initializers.lecun_normal(), ("embed", None))
        return nn.Dense(3, kernel_init=init, name="encoder")(x_bd)


class ColorStage:
    """A stage without a base class, with all methods of `stage.Stage`."""

    title = "Color"

    def check_config(self, config):
        pass

    def unused_options(self, config):
        return {}

    def make_model(self, config):
        return MeanColor()

    def init_params(self, config, model, key):
        return model.init(key, jnp.zeros((1, 3 * config.data.size**2)))["params"]

    def warm_start(self, config, restored):
        return {}

    def frozen_groups(self, config):
        return ()

    def ema_targets(self, config):
        return NO_EMA_TARGETS

    def needs_teacher(self, config):
        return False

    def abstract_frozen(self, config):
        return {}

    def init_frozen(self, config, restored):
        return {}

    def loss_fn(self, config, model, params, frozen, batch, key):
        x_bthwc = batch["video"].astype(jnp.float32) / 255
        predicted_bc = model.apply({"params": params}, x_bthwc[:, 0].reshape(len(x_bthwc), -1))
        loss = jnp.mean((predicted_bc - jnp.mean(x_bthwc, axis=(1, 2, 3))) ** 2)
        return loss, {"loss/color": loss}

    def diagnostics(self, config, model, params, frozen, batch, key):
        return {"bias": jnp.mean(params["encoder"]["bias"])}

    def count_flops(self, config, *, dense_windows=False):
        count = FlopCount()
        count.add_dense(1, 3 * config.data.size**2, 3, input_gradient=False)
        return {"encoder": count}

    def sample_visible(self, config, frozen, video_bthwc, key):
        positions = video_bthwc.shape[1] * (config.data.size // config.encoder.patch) ** 2
        return [jnp.tile(jnp.arange(positions)[None], (len(video_bthwc), 1))]

    def visualize(self, config, params, video_bthwc, seed=0):
        return []


def test_stage_from_outside_trains_and_is_planned_and_shown(
    restored, tiny_config, one_device, tmp_path
):
    with extend(STAGES, "color"):
        STAGES["color"] = ColorStage()
    config = two_steps(tiny_config("stage1"))
    config.stage = "color"
    last = train.train(config, tmp_path / "run")
    assert last["step"] == 2 and last["loss"] == last["loss/color"] and "bias" in last
    assert step_flops(config) == 8 * 2 * 2 * 3 * 32**2 * 3  # forward, and gradients of the weights
    made = plan.make_plan(config, "h100")
    assert made["parameters"] == {"encoder": 3 * 32**2 * 3 + 3}
    assert made["step_flops"] == step_flops(config)
    page = data_page.write_page(config, tmp_path / "data.html", clips=2)
    assert "Color" in page.read_text()
    record = run_record.read_run_record(tmp_path / "run")
    assert ReportedRun(tmp_path / "run", record, []).title == "Color"


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_mask_from_outside_trains_both_stages(
    stage, restored, tiny_config, stage1_run, one_device, tmp_path
):
    with extend(masks.REGISTRY, "first_half"):

        @masks.register_mask("first_half", options=())
        def first_half(key, batch, grid, settings, attention_bts=None):
            index_n = jnp.arange(grid[0] * grid[1] * grid[2])
            index_bn = jnp.tile(index_n[None], (batch, 1))
            half = index_n.size // 2
            return [(index_bn[:, :half], index_bn[:, half:])]

    config = two_steps(tiny_config(stage))
    config.mask.kind = "first_half"
    config.init_from = str(stage1_run) if stage == "stage2" else ""
    last = train.train(config, tmp_path / "run")
    assert last["step"] == 2 and np.isfinite(last["loss"])


def test_loss_from_outside_is_weighted_and_shown(restored, tiny_config, one_device, tmp_path):
    with extend(STAGES["stage1"].losses, "latent_norm"):
        STAGES["stage1"].losses["latent_norm"] = Loss(
            modules=("predictor",),
            function=lambda inputs: jnp.mean(inputs.features.latents_bmd**2),
        )
    config = two_steps(tiny_config("stage1"))
    with config.unlocked():
        config.loss = {"latent_norm": 0.5}
    config.mask.kind = "tube"
    config.teacher.weights = ""  # neither the loss nor the mask needs the teacher
    last = train.train(config, tmp_path / "run")
    assert last["loss"] == pytest.approx(0.5 * last["loss/latent_norm"], rel=1e-6)
    assert last["encoder_grad/latent_norm"] > 0
    assert set(STAGES["stage1"].param_groups(config)) == {"encoder", "pool", "predictor"}
    assert len(metrics_file.read_metrics(tmp_path / "run")) == 2


class FeatureNorm:
    """An evaluation without a head: the mean norm of the held-out features."""

    name = "feature_norm"
    is_baseline = False

    def check_config(self, config):
        pass

    def evaluate(self, inputs, config):
        features_bd = inputs.features("val").pooled("mean")
        norm_b = np.linalg.norm(features_bd, axis=1)
        n = len(norm_b)
        error = float(np.std(norm_b) / n**0.5)
        mean = float(np.mean(norm_b))
        return [Row(self.name, inputs.name, "mean", "all", "norm", mean, error, n)]


def test_evaluation_from_outside_reaches_results_and_tables(restored, world, stage1_run, tmp_path):
    with extend(evaluators.EVALUATORS, "feature_norm"):
        evaluators.register(FeatureNorm())
    config = probe_config.get_config("tiny")
    config.update(
        checkpoint=str(stage1_run),
        train_manifest=str(world),
        val_manifest=str(world),
        same_manifest=True,
        batch_size=8,
        evaluators=("feature_norm",),
        controls=False,
    )
    config.data.workers = 0
    results = evaluate.evaluate_checkpoint(config, tmp_path / "eval")
    (row,) = results["rows"]
    assert (row["metric"], row["n"]) == ("norm", 16) and row["value"] > 0
    assert json.loads((tmp_path / "eval/results.json").read_text())["rows"] == [row]
    table = tables.format_table(results)
    assert "norm" in table and f"{row['value']:.3g}" in table
