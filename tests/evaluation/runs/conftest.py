"""A tiny untrained encoder, a tiny world, and the results of all evaluators."""

import pytest
from toy_evaluation import get_config

from configs import stage1
from invnext_jax.checkpointing import run_metadata
from invnext_jax.evaluation import evaluate, pretrained
from invnext_jax.synthetic_world.files import write_world
from invnext_jax.synthetic_world.scene import WorldSpec
from invnext_jax.weights import export


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("probe")
    for split, videos in (("train", 48), ("val", 24)):
        spec = WorldSpec(size=16, frames=4, split=split)
        write_world(spec, folder / "world", videos, progress=False)
    config = stage1.get_config("tiny")
    config.encoder.update(width=16, depth=1, heads=2, mlp_width=32, size=16, frames=4)
    config.data.update(size=16, frames=4)
    params = pretrained.init_encoder(config, seed=3)
    about = {"config": run_metadata.config_to_json(config)}
    export.write_export(folder / "encoder.safetensors", {"encoder": params}, about)
    return folder


@pytest.fixture(scope="session")
def results(folder):
    return evaluate.evaluate_checkpoint(get_config(folder), folder / "p")
