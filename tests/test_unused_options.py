"""Options without effect: a table with every option, and checks that training does not use them."""

import functools
import re

import jax
import jax.numpy as jnp
import ml_collections
import pytest
from config_cases import field_names, value

from configs import stage1, stage2
from invnext_jax import config_checks
from invnext_jax.data import sources
from invnext_jax.data.manifest import Manifest
from invnext_jax.errors import UserError
from invnext_jax.monitoring import profiling
from invnext_jax.planning import plan, shapes
from invnext_jax.stages import initialization, registry

CONFIGS = {"stage1": stage1, "stage2": stage2}
NO_PREDICTOR = {"loss.pixels": 0.0}  # Stage 1
NO_TEACHER = {"loss.align_tokens": 0.0, "loss.align_pooled": 0.0, "mask.kind": "random"}
PIXELS_ONLY = {"loss.predict": 0.0, "loss.pixels": 1.0}  # Stage 2
LINEAR = {"decoder.kind": "linear"}

# Every option that can be without effect: (stage, options under which it has none, part of the
# reason). The options of the tiny variant apply, and all videos are of the source "world".
UNUSED = {
    "epochs": ("stage1", {}, "config.total_steps=800 is set: add --config.total_steps=-1"),
    "init_parts": ("stage1", {}, "config.init_from is not set"),
    "init_from_unfinished": ("stage2", {"init_from": "a.safetensors"}, "counts as finished"),
    "profile_steps": ("stage1", {"profile_steps": (800, 802)}, "the run has 800 steps"),
    "quantize_frozen": ("stage1", NO_TEACHER, "the run has no frozen network"),
    "data.short_side": ("stage1", {}, "rendered at their final size"),
    "data.stride": ("stage1", {}, "config.data.sampling is not 'dense'"),
    "data.crop_scales": ("stage1", {"data.crop": "random_resized"}, "is not 'multi_scale'"),
    "data.crop_area": ("stage1", {}, "config.data.crop is not 'random_resized'"),
    "data.crop_aspect": ("stage1", {}, "config.data.crop is not 'random_resized'"),
    "data.flip": ("stage1", {}, "set config.data.by_source.world.flip"),
    "data.sampling": ("stage1", {"data.by_source.world.sampling": "dense"}, "world.sampling"),
    "data.crop": ("stage1", {"data.by_source.world.crop": "random_resized"}, "world.crop"),
    "data.jitter": ("stage1", {"data.by_source.world.jitter": (0.1,) * 4}, "world.jitter"),
    "data.by_source": ("stage1", {}, "the manifest has only the source 'world'"),
    "data.max_bad_share": ("stage1", {"data.on_bad": "fail"}, "config.data.on_bad is 'fail'"),
    **{
        f"predictor.{name}": ("stage1", NO_PREDICTOR, "set config.loss.pixels above 0")
        for name in ("kind", "weights", "width", "depth", "heads", "mlp_width")
    },
    "predictor.window": ("stage2", {"predictor.kind": "vit"}, "set the kind to 'modernbert'"),
    "predictor.last_layer": ("stage2", {"predictor.kind": "vjepa"}, "predictor.kind='vjepa'"),
    **{
        f"decoder.{name}": ("stage2", {}, "set config.loss.pixels above 0")
        for name in ("kind", "chunks", "dtype")
    },
    "decoder.depth": ("stage1", LINEAR, "config.decoder.kind='linear' does not read it"),
    "decoder.width": ("stage1", LINEAR, "config.decoder.kind='linear' does not read it"),
    "decoder.noise_draws": ("stage1", {"decoder.kind": "mlp"}, "set the kind to 'diffusion'"),
    "teacher.taps": ("stage1", {"loss.align_tokens": 0.0}, "set config.loss.align_tokens above 0"),
    "teacher.tap_interval": ("stage2", {"target.kind": "image"}, "intermediate layers"),
    **{
        f"teacher.{name}": ("stage2", {}, "or config.target.kind to 'image'")
        for name in ("weights", "resample", "kind", "width", "depth", "heads", "mlp_width")
    },
    **{
        f"teacher.{name}": ("stage1", NO_TEACHER, "or config.mask.kind to 'semantic'")
        for name in ("activation", "registers", "gated", "patch", "size", "train_size")
        + ("frames_share", "cache")
    },
    "mask.ratio": ("stage2", {}, "config.mask.kind='multi_block' does not read it"),
    **{
        f"mask.{name}": ("stage1", NO_PREDICTOR, "no active loss predicts patches")
        for name in ("predicted", "context_frames")
    },
    **{
        f"mask.{name}": ("stage1", {}, "set config.mask.kind to 'multi_block'")
        for name in ("blocks", "visible", "aspect", "fit", "max_temporal_keep")
    },
    "optimizer.base_learning_rate": ("stage1", {}, "add --config.optimizer.learning_rate=-1"),
    "optimizer.base_min_learning_rate": ("stage2", {}, "--config.optimizer.min_learning_rate=-1"),
    "optimizer.warmup_epochs": ("stage1", {}, "add --config.optimizer.warmup_steps=-1"),
    **{
        f"eval.{name}": ("stage1", {}, "config.eval.every_steps is 0")
        for name in ("manifest", "videos", "neighbors")
    },
    "sequence_attention": ("stage1", {}, "config.mesh.sequence is 1: set it to the number"),
    "checkpoint.best_metric": ("stage1", {}, "config.checkpoint.keep_best is 0"),
    "checkpoint.best_mode": ("stage1", {}, "config.checkpoint.keep_best is 0"),
    "target.momentum": ("stage2", {}, "config.target.kind is 'frozen': set it to 'momentum'"),
    "target.drop_path": ("stage2", {}, "config.encoder.drop_path is 0"),
}
# Options that affect every run.
ALWAYS_USED = {
    *("seed", "total_steps", "batch_size", "init_from", "accumulate", "dtype", "attention"),
    *("init_gain", "remat", "scan_unroll", "ema.decay", "data.manifest", "data.weights"),
    *(
        "data.repeats",
        "data.augment",
        "data.frames",
        "data.size",
        "data.workers",
        "data.prefetch",
        "data.on_bad",
    ),
    *("data.clip_seconds", "data.held_out", "data.shuffle_block_size", "eval.every_steps"),
    "init_sizes",
    *(f"encoder.{n}" for n in ("width", "depth", "heads", "mlp_width", "drop_path", "patch")),
    *(f"encoder.{n}" for n in ("size", "frames", "class_tokens", "layer_scale")),
    *("encoder.pool_heads", "encoder.pool_width"),  # the pool is a part of each model
    *("mask.kind", "target.kind"),
    *(f"optimizer.{n}" for n in ("learning_rate", "min_learning_rate", "warmup_steps", "betas")),
    *(f"optimizer.{n}" for n in ("eps", "weight_decay", "clip_norm", "frozen")),
    *(f"mesh.{n}" for n in ("data", "fsdp", "tensor", "sequence")),
    *(f"checkpoint.{n}" for n in ("every_steps", "every_minutes", "keep_last")),
    *("checkpoint.keep_every_steps", "checkpoint.keep_best"),
    *(f"log.{n}" for n in ("every_steps", "diagnostics_every_steps", "max_nonfinite_steps")),
    *("log.watchdog_minutes", "log.collapse_ratio", "log.strips", "log.tracker"),
    *(f"loss.{n}" for n in ("align_tokens", "align_pooled", "pixels", "predict", "align_visible")),
}
# Permissions, which affect only what they permit, and a measurement that TPUs do not need.
PERMISSIONS = {"data.protocols", "data.other_hosts", "log.measure_ceiling"}
# They record which config file was chosen, so `errors.parse_flags` rejects them.
LABELS = {"stage", "variant"}


def make_config(stage, changes):
    config = CONFIGS[stage].get_config("tiny")
    if stage == "stage2":
        config.init_from = "runs/s1"
    config = config.unlock()
    for name, new in changes.items():
        *parents, field = name.split(".")
        section = config
        for parent in parents:
            section = section[parent]
        section[field] = new
    return config


def find_unused(config):
    world = Manifest("m.csv", ["world:simple/train/0"] * 2, ["world"] * 2, (), (), {}, (), (), ())
    unused = config_checks.unused_options(config, registry.find_stage(config))
    return unused | sources.unused_options(config.data, world) | profiling.unused_options(config)


def test_every_option_is_in_the_table():
    names = {n for s in CONFIGS.values() for n in field_names(s.get_config("tiny").to_dict())}
    assert names == {*UNUSED, *ALWAYS_USED, *PERMISSIONS, *LABELS}
    assert not set(UNUSED) & (ALWAYS_USED | PERMISSIONS)


@pytest.mark.parametrize("name", UNUSED)
def test_option_without_effect_is_refused_with_the_reason(name):
    stage, changes, reason = UNUSED[name]
    config = make_config(stage, changes)
    unused = find_unused(config)
    option = "data.by_source.ssv2.flip" if name == "data.by_source" else name
    assert reason in unused[option]
    with pytest.raises(UserError) as caught:
        config_checks.check_overrides(config, ["seed", option], unused)
    assert str(caught.value).startswith(f"config.{option}=")
    assert str(caught.value).endswith(f" is not used, because {unused[option]}")
    assert "\n" not in str(caught.value)
    config_checks.check_overrides(config, ["seed"], unused)


@pytest.mark.parametrize("stage", CONFIGS)
@pytest.mark.parametrize("variant", ["tiny", "base"])
def test_options_that_affect_every_run_are_never_refused(stage, variant):
    config = CONFIGS[stage].get_config(variant)
    for changes in ({}, {"mask.kind": "tube"}, {"loss.pixels": 1.0}, {"accumulate": 2}):
        config.update_from_flattened_dict(changes)
        assert not set(find_unused(config)) & (ALWAYS_USED | PERMISSIONS)


def test_epochs_and_base_rates_are_used_without_numbers():
    config = stage1.get_config("base")
    assert not {"epochs", "optimizer.base_learning_rate"} & set(find_unused(config))


def other(option):
    """Returns a different value of the same type."""
    if isinstance(option, bool):
        return not option
    if isinstance(option, int | float):
        return 2 * option + 1
    return option[::-1] if isinstance(option, tuple) else f"{option}x"


SCENARIOS = {
    "stage1": ("stage1", {}),
    "stage1 without pixels": ("stage1", NO_PREDICTOR),
    "stage1 without teacher": ("stage1", {**NO_TEACHER, **LINEAR}),
    "stage2": ("stage2", {}),
    "stage2 from images": ("stage2", {"target.kind": "image", "predictor.kind": "vit"}),
    "stage2 pixels": ("stage2", {**PIXELS_ONLY, "mask.kind": "tube"}),
}


@pytest.mark.parametrize("name", SCENARIOS)
def test_training_step_does_not_depend_on_unused_options(name, one_device):
    stage, changes = SCENARIOS[name]
    small = {"batch_size": 2, "data.frames": 2, "encoder.frames": 2, "encoder.depth": 2}

    def trace(config):
        config = ml_collections.FrozenConfigDict(config)
        made = shapes.make_shapes(config)
        video = jax.ShapeDtypeStruct((2, 2, 32, 32, 3), jnp.uint8)
        loss = functools.partial(made.training.stage.loss_fn, config, made.training.model)
        arguments = made.state.params, made.frozen, {"video": video}, jax.random.key(0)
        return re.sub("0x[0-9a-f]+", "", str(jax.make_jaxpr(loss)(*arguments)))

    config = make_config(stage, changes | small)
    before = trace(config)
    unused = find_unused(config)
    sections = ("mask.", "predictor.", "decoder.", "teacher.", "target.")
    # These add operations whose results nothing reads.
    dead = {"teacher.taps", "teacher.tap_interval", "target.drop_path", "mask.context_frames"}
    changed = [o for o in unused if o.startswith(sections) and o not in dead]
    assert len(changed) > 3
    config.update_from_flattened_dict({o: other(value(config, o)) for o in changed})
    assert trace(config) == before


def test_text_model_is_unused_if_init_from_has_a_predictor():
    config = make_config("stage2", {})
    unused = initialization.unused_options(config, {"encoder": 0, "predictor": 0})
    assert unused["predictor.weights"].endswith("add --config.init_parts=('encoder',)")
    unused = initialization.unused_options(config, {"encoder": 0, "predictor/layer0": 0})
    assert "predictor.weights" not in unused


def test_initial_values_are_unused_if_init_from_has_the_encoder():
    config = make_config("stage2", {})
    unused = initialization.unused_options(config, {"encoder": 0})
    assert "the encoder is read from config.init_from" in unused["encoder.layer_scale"]
    assert not initialization.unused_options(config, {"predictor/layer0": 0})


def test_plan_refuses_with_the_same_sentence():
    config = make_config("stage1", {})
    with pytest.raises(UserError, match="config.epochs=62.0 is not used, because config.total_"):
        plan.make_plan(config, "h200", overrides=["epochs"])
