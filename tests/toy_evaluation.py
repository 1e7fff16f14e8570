"""A toy checkpoint and a toy data set for evaluations."""

import jax

from configs import stage1
from invnext_jax.checkpointing import run_metadata
from invnext_jax.evaluation import pretrained
from invnext_jax.synthetic_world.files import write_world
from invnext_jax.synthetic_world.scene import WorldSpec
from invnext_jax.weights import export

SIZE, FRAMES = 16, 2


def write_checkpoint(path, parts=("encoder",)):
    """Writes an encoder of one layer with random parameters."""
    config = stage1.get_config("tiny")
    config.encoder.update(width=16, depth=1, heads=2, mlp_width=16, size=SIZE, frames=FRAMES)
    params = pretrained.init_encoder(config, seed=0)
    about = {"config": run_metadata.config_to_json(config)}
    export.write_export(path, {part: params for part in parts}, about)
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


def use_devices(monkeypatch, count):
    """Restricts evaluations to a number of devices, because programs for one compile faster."""
    devices = jax.devices()[:count]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
