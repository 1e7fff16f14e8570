"""A toy stage, data set and config, for tests of the training loop without the models."""

import shutil

import flax.linen as nn
import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import stage1
from invnext_jax import train
from invnext_jax.checkpointing import reader
from invnext_jax.data import manifest as manifest_lib
from invnext_jax.models.sharding import with_logical_axes
from invnext_jax.monitoring import metrics_file
from invnext_jax.stages import registry
from invnext_jax.training import mesh as mesh_lib
from invnext_jax.training.step import NO_EMA_TARGETS

# Metrics that differ between equal runs.
TIMED = {"clips_per_second", "data_wait", "step_seconds"}
FEATURES = 12  # number of values of a toy video
MANIFEST = "path,source\na.mp4,toy\n"


class ToyModel(nn.Module):
    """Two linear layers. The output width of the second is not divisible by any mesh axis."""

    @nn.compact
    def __call__(self, x_bd):
        init = nn.initializers.lecun_normal()
        x_bd = nn.Dense(8, kernel_init=with_logical_axes(init, ("embed", "mlp")), name="encoder")(
            x_bd
        )
        x_bd = nn.with_logical_constraint(nn.tanh(x_bd), ("batch", None))
        return nn.Dense(3, kernel_init=with_logical_axes(init, ("mlp", None)), name="head")(x_bd)


def toy_loss(config, model, params, frozen, batch, key):
    """Returns the squared distance from a linear map of noisy inputs; infinite for index -1."""
    x_bd = batch["video"].reshape(batch["video"].shape[0], -1).astype(jnp.float32) / 255
    x_bd = x_bd + 0.1 * jax.random.normal(key, x_bd.shape)
    error_b = jnp.mean((model.apply({"params": params}, x_bd) - x_bd @ frozen["map"]) ** 2, axis=1)
    error_b = jnp.where(batch["index"] < 0, jnp.inf, error_b)
    loss = jnp.mean(error_b)
    return loss, {"loss/distance": loss}


def toy_diagnostics(config, model, params, frozen, batch, key):
    return {"encoder_norm": jnp.sqrt(jnp.sum(params["encoder"]["kernel"] ** 2))}


class ToyStage:
    """Implements `stage.Stage` for a small network that learns a linear map."""

    title = "Toy"
    loss_fn = staticmethod(toy_loss)
    diagnostics = staticmethod(toy_diagnostics)

    def check_config(self, config):
        pass

    def unused_options(self, config):
        return {}

    def make_model(self, config):
        return ToyModel()

    def init_params(self, config, model, key):
        return model.init(key, jnp.zeros((1, FEATURES)))["params"]

    def warm_start(self, config, restored):
        return {"encoder": restored["encoder"]} if restored else {}

    def frozen_groups(self, config):
        return ()

    def ema_targets(self, config):
        return NO_EMA_TARGETS

    def needs_teacher(self, config):
        return False

    def abstract_frozen(self, config):
        return {"map": jax.ShapeDtypeStruct((FEATURES, 3), jnp.float32)}

    def init_frozen(self, config, restored):
        weights = np.linspace(-1, 1, FEATURES * 3, dtype=np.float32)
        return {"map": weights.reshape(FEATURES, 3)}

    def count_flops(self, config, *, dense_windows=False):
        return {}

    def sample_visible(self, config, frozen, video_bthwc, key):
        return []

    def visualize(self, config, params, video_bthwc, seed=0):
        return []


def make_toy_stage():
    return ToyStage()


class ToyData:
    """Replaces `pipeline.make_train_dataset`; `before_batch[n]` is called before batch n."""

    def __init__(self):
        self.bad_batches = ()  # numbers, from 1, of batches whose loss is not finite
        self.before_batch = {}

    def __call__(self, data_config, *, seed, positions, **_):
        del data_config

        def make(index, rng):
            video = rng.integers(0, 256, (1, 2, 2, 3), dtype=np.uint8)
            return {"video": video, "index": np.int32(index), "label_shape": np.int32(index % 8)}

        dataset = grain.MapDataset.range(20).seed(seed).shuffle().repeat().random_map(make)
        dataset = dataset.to_iter_dataset().batch(len(positions))
        return _Hooked(dataset, self)


class _Hooked(grain.IterDataset):
    videos = 20

    def __init__(self, parent, data):
        super().__init__(parent)
        self.manifest = manifest_lib.read_manifest("world:simple/train?videos=20&size=16")
        self._data = data

    def describe(self, steps):
        return f"toy data for {steps} steps"

    def unused_options(self):
        return {}

    def __iter__(self):
        return _HookedIterator(iter(self._parent), self._data)


class _HookedIterator(grain.DatasetIterator):
    decoded = (0, 0.0)

    def __init__(self, parent, data):
        super().__init__(parent)
        self._data, self._number = data, 0

    def __next__(self):
        self._number += 1
        self._data.before_batch.get(self._number, lambda: None)()
        batch = dict(next(self._parent))
        if self._number in self._data.bad_batches:
            batch["index"] = np.full_like(batch["index"], -1)
        return batch

    def summary(self):
        return ""

    def describe_wait(self):
        return ""

    def describe_workers(self):
        return ""

    def counts(self):
        return {"dropped_videos": 0, "short_clips": 0, "failed_reads": 0}

    def get_state(self):
        return {"parent": self._parent.get_state(), "number": self._number}

    def set_state(self, state):
        self._parent.set_state(state["parent"])
        self._number = state["number"]


@pytest.fixture(scope="module")
def whole_run_files(first_device_only, tmp_path_factory):
    """The folder of an uninterrupted run of six steps on one device."""
    folder = tmp_path_factory.mktemp("toy")
    (folder / "manifest.csv").write_text(MANIFEST)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.STAGES, "toy", make_toy_stage())
        patch.setattr(train.pipeline, "make_train_dataset", ToyData())
        train.train(make_toy_config(str(folder / "manifest.csv")), folder / "whole")
    return folder / "whole"


@pytest.fixture
def whole_run(whole_run_files, tmp_path):
    """A copy of an uninterrupted run of six steps on one device."""
    shutil.copytree(whole_run_files, tmp_path / "whole")
    return tmp_path / "whole"


@pytest.fixture
def toy_stage(monkeypatch):
    """The registered stage "toy", whose methods a test may replace."""
    stage = make_toy_stage()
    monkeypatch.setitem(registry.STAGES, "toy", stage)
    return stage


@pytest.fixture
def toy_data(monkeypatch):
    """The data set of the toy runs."""
    data = ToyData()
    monkeypatch.setattr(train.pipeline, "make_train_dataset", data)
    return data


@pytest.fixture
def toy_config(toy_stage, toy_data, tmp_path):
    """Config of six steps on one device, with a checkpoint every three steps and logs of all."""
    manifest = tmp_path / "manifest.csv"
    manifest.write_text(MANIFEST)
    return make_toy_config(str(manifest))


def make_toy_config(manifest):
    config = stage1.get_config("tiny")
    config.stage = "toy"
    config.total_steps = 6
    config.batch_size = 8
    config.data.manifest = manifest
    config.mesh.update(data=1)
    config.optimizer.update(learning_rate=0.1, warmup_steps=2)
    config.checkpoint.every_steps = 3
    config.log.update(every_steps=1, diagnostics_every_steps=2, max_nonfinite_steps=2)
    return config


@pytest.fixture(scope="module")
def first_device_only():
    """Restricts the mesh to one device; returns all eight devices."""
    devices = jax.devices()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.mesh_lib.jax, "devices", lambda: devices[:1])
        yield devices


@pytest.fixture
def toy_mesh(toy_config):
    """A mesh (2, 2, 2, 1) of all eight devices."""
    toy_config.mesh.update(data=2, fsdp=2, tensor=2, sequence=1)
    return mesh_lib.make_mesh(toy_config.mesh)


class KilledError(Exception):
    """Simulates the end of the process."""


def kill():
    raise KilledError


def untimed(workdir):
    records = metrics_file.read_metrics(workdir)
    return [{k: v for k, v in record.items() if k not in TIMED} for record in records]


def final_params(workdir):
    return reader.restore_params(workdir)[0]


def assert_equal_runs(one, other):
    jax.tree.map(np.testing.assert_array_equal, final_params(one), final_params(other))
    assert untimed(one) == untimed(other)
