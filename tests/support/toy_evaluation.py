"""A toy checkpoint, a toy data set and configs for evaluations, and a check of their errors."""

import re

import jax
import pytest

from configs import stage1, stage2
from configs.eval import world
from configs.eval.tasks import (
    anticipation,
    depth,
    linear_probe,
    temporal_context,
    tracking,
    zero_shot,
)
from invnext_jax import errors
from invnext_jax.checkpointing import run_metadata
from invnext_jax.evaluation import evaluate, pretrained
from invnext_jax.evaluation.evaluators import registry as evaluators
from invnext_jax.stages import registry as stages
from invnext_jax.synthetic_world.files import write_world
from invnext_jax.synthetic_world.scene import WorldSpec
from invnext_jax.training import mesh as mesh_lib
from invnext_jax.weights import export

SIZE, FRAMES = 16, 2
# Evaluators that can read clips in each training step.
IN_STEP = ("attentive_probe", "depth", "anticipation", "text_alignment", "tracking")


def write_checkpoint(path, parts=("encoder",)):
    """Writes an encoder of one layer with random parameters."""
    config = stage1.get_config("tiny")
    config.encoder.update(width=16, depth=1, heads=2, mlp_width=16, size=SIZE, frames=FRAMES)
    config.data.update(size=SIZE, frames=FRAMES)
    params = pretrained.init_encoder(config, seed=0)
    about = {"config": run_metadata.config_to_json(config)}
    export.write_export(path, {part: params for part in parts}, about)
    return path


def write_stage2(path):
    """Writes an encoder and a predictor of one layer with random parameters."""
    config = stage2.get_config("tiny")
    sizes = {"width": 16, "depth": 1, "heads": 2, "mlp_width": 16}
    config.encoder.update(**sizes, size=SIZE, frames=FRAMES)
    config.predictor.update(sizes)
    config.data.update(size=SIZE, frames=FRAMES)
    stage = stages.find_stage(config)
    init = jax.jit(lambda key: stage.init_params(config, stage.make_model(config), key))
    about = {"config": run_metadata.config_to_json(config)}
    export.write_export(path, mesh_lib.unbox(init(jax.random.key(0))), about)
    return path


def write_data(folder, train, val):
    """Writes train.csv and val.csv with this number of clips."""
    for split, videos in (("train", train), ("val", val)):
        spec = WorldSpec(size=SIZE, frames=FRAMES, split=split)
        write_world(spec, folder, videos, progress=False)
    return folder


def shrink(config, checkpoint, root):
    """Sets the manifests of a config, and reduces the sizes of heads and the number of steps."""
    config.update(
        controls=False,
        checkpoint=str(checkpoint),
        train_manifest="train.csv",
        val_manifest="val.csv",
        batch_size=16,
        inverse_penalties=(1e-1,),
        poolings=("mean",),
    )
    config.data.update(root=str(root), workers=0)
    config.attentive_probe.update(heads=2, width=8, batch_size=8, epochs=6.0, weight_decays=(0.0,))
    return config


def make_configs(folder, names, in_step=False):
    """Makes configs that run all these evaluators: one without and one with baselines.

    Args:
      folder: has "encoder.safetensors" and the folder "data".
      names: names of the evaluators.
      in_step: whether heads read clips in each step instead of cached features.
    """
    config = world.get_config()
    sections = {"anticipation": anticipation, "depth": depth, "tracking": tracking}
    others = {"text": zero_shot, "temporal_context": temporal_context}
    for name, module in (sections | others).items():
        config[name] = module.get_config("tiny")[name]
    shrink(config, folder / "encoder.safetensors", folder / "data")
    config.update(tasks=("shape", "motion"), batch_size=8, trees=5)
    config.supervised.update(steps=3, batch_size=8)
    # The exact solver is used for the pooling "mean", and the streaming solver for "frames".
    config.poolings = ("mean", "frames")
    config.streaming.update(above_gb=2e-6, epochs=2, warmup_epochs=1, batch_size=8)
    config.attentive_probe.update(epochs=1.0, warmup_epochs=0.5)
    for name in (*sections, *others):
        config[name].update(batch_size=8, epochs=1.0, warmup_epochs=0.5)
    for name in sections:
        config[name].update(heads=2, learning_rates=(1e-3, 1e-2), weight_decays=(0.0,))
    config.anticipation.update(context_frames=1, blocks=0, recall_at=(1,))
    config.tracking.targets = ("boxes",)
    config.depth.width = config.tracking.query_width = 8
    config.tracking.width = 16  # the smallest width of appended positions
    if in_step:
        config.attentive_probe.update(augment=True, repeats=2, crops=3)
        config.anticipation.augment = True
        config.text.update(augment=True, pooling="attention", pool_width=8, pool_heads=2)
        config.depth.memory_gb = config.tracking.memory_gb = 0.0
    for is_baseline in (False, True):
        part = config.copy_and_resolve_references()
        part.controls = is_baseline
        part.evaluators = tuple(
            name for name in names if evaluators.EVALUATORS[name].is_baseline == is_baseline
        )
        if part.evaluators:
            yield part


def get_config(folder, **changes):
    """Makes a config of linear probes and baselines for the encoder and the world in `folder`."""
    config = linear_probe.get_config("tiny")
    config.update(
        checkpoint=str(folder / "encoder.safetensors"),
        train_manifest=str(folder / "world" / "train.csv"),
        val_manifest=str(folder / "world" / "val.csv"),
        batch_size=16,
        inverse_penalties=(1e-3, 1e-1),
        trees=10,
    )
    config.supervised.update(steps=3, batch_size=8)
    config.data.workers = 0  # processes would have to start for each pass
    config.update(changes)
    return config


def use_devices(monkeypatch, count):
    """Restricts evaluations to a number of devices, because programs for one compile faster."""
    devices = jax.devices()[:count]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)


def check_error(folder, config, sentence, capsys):
    """Checks the error of an evaluation, which is one line; a table of reasons may follow."""
    with pytest.raises(SystemExit) as ended, errors.exit_on_user_error():
        evaluate.evaluate_checkpoint(config, folder / "results")
    assert ended.value.code == 2
    _, _, message = capsys.readouterr().err.partition("error: ")
    first, *reasons = message.rstrip("\n").split("\n")
    assert re.search(sentence, first)
    first = first.replace(str(folder), "")
    assert len(first) < 400 and all(reason.startswith("  ") for reason in reasons)


def set_options(config, options, folder):
    """Sets options by their full names; "{folder}" in a text is replaced."""
    for option, value in options.items():
        value = value.format(folder=folder) if isinstance(value, str) else value
        config.update_from_flattened_dict({option: value})
