"""Data, loss and predictions of the attentive probe.

Without augmentation, the heads are trained on cached tokens. With augmentation, clips are sampled
and augmented in each epoch, and the encoder runs in the training step.

Shape key: b clips, t frames or time slots, s patches of a slot, n tokens, d width, h w pixels,
c channels, k classes, g heads of a grid, v views.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from einops import rearrange

from invnext_jax.data import pipeline
from invnext_jax.evaluation.augmentation.cutmix import cutmix
from invnext_jax.evaluation.augmentation.rand_augment import RandAugment, rand_augment
from invnext_jax.evaluation.feature_store.extraction import local_mesh, pad_for_devices
from invnext_jax.evaluation.features import VideoFeatures
from invnext_jax.evaluation.frozen_encoder import FrozenEncoder
from invnext_jax.evaluation.heads import class_losses
from invnext_jax.models.layers import scale_kernels
from invnext_jax.training import mesh as mesh_lib

LABEL = "label_"
WIDTH_OF_INIT = 768  # token width for which an initial standard deviation of 0.02 is suitable
Batch = Mapping[str, np.ndarray]


class HeadFunctions(NamedTuple):
    """Functions for `head_training.train_heads`.

    Attributes:
      init_params: function key -> parameters.
      loss_fn: function (parameters, (tokens, targets of each task), key) -> loss.
      prepare: function (parameters of the encoder, batch, key) -> (tokens, targets).
    """

    init_params: Callable[[jax.Array], Any]
    loss_fn: Callable[[Any, Any, jax.Array], jax.Array]
    prepare: Callable[[Any, Any, jax.Array], Any]


def make_functions(
    module: nn.Module,
    encoder: FrozenEncoder,
    classes: Mapping[str, int],
    settings: Any,
    token_shape: tuple[int, int],
    loss: Callable[[Any, Any], jax.Array] = lambda logits, targets: sum(
        map(class_losses.soft_cross_entropy, logits, targets)
    ),
) -> HeadFunctions:
    """Returns the functions that train a head on all tasks.

    Args:
      module: maps tokens [b n d] to a list of logits [b k], one for each task.
      encoder: applied to batches that have clips instead of tokens.
      classes: number of classes of each task.
      settings: `config.attentive_probe`.
      token_shape: number and width of the tokens of a clip.
      loss: function (logits, targets) -> loss, of the outputs of `module` and the float32 targets
        [b k] of each task; rows of zeros have no label. By default, cross-entropy.
    """

    def prepare(frozen, batch, key):
        targets = [
            class_losses.soft_targets(batch[LABEL + task], count, settings.label_smoothing)
            for task, count in classes.items()
        ]
        if "tokens" in batch:
            return batch["tokens"], targets
        augment_key, mix_key = jax.random.split(key)
        options = RandAugment(**settings.rand_augment)
        video_bthwc = rand_augment(augment_key, batch["video"], options)
        video_bthwc, targets = cutmix(mix_key, video_bthwc, targets, settings.cutmix)
        return encode(encoder, frozen, video_bthwc), targets

    def loss_fn(params, inputs, key):
        del key
        tokens_bnd, targets = inputs
        logits = module.apply({"params": params}, tokens_bnd.astype(jnp.float32))
        return loss(logits, targets)

    def init_params(key):
        params = mesh_lib.unbox(module.init(key, jnp.zeros((1, *token_shape)))["params"])
        return scale_kernels(params, max(1.0, WIDTH_OF_INIT / token_shape[1]) ** 0.5, without=())

    return HeadFunctions(init_params, loss_fn, prepare)


def encode(encoder: FrozenEncoder, params: Any, video_bthwc: jax.Array) -> jax.Array:
    """Returns the tokens [b n d] of uint8 clips."""
    return rearrange(encoder.apply(params, video_bthwc).tokens_btnd, "b t n d -> b (t n) d")


def make_token_batches(
    features: VideoFeatures, rows_b: np.ndarray, batch_size: int, seed: int
) -> Callable[[int], Batch]:
    """Returns a function step -> batch of cached tokens. Each epoch has a different order.

    Args:
      features: dense features of the training videos.
      rows_b: rows of the features that are used for training.
      batch_size: clips of a batch.
      seed: seed of the order.
    """

    @functools.lru_cache(maxsize=2)
    def order(epoch):
        return np.random.default_rng((seed, epoch)).permutation(rows_b)

    def read(step):
        places = range(step * batch_size, (step + 1) * batch_size)
        chosen = [order(place // len(rows_b))[place % len(rows_b)] for place in places]
        return read_tokens(features, np.array(chosen), view=features.views // 2)

    return read


def read_tokens(
    features: VideoFeatures, rows_b: np.ndarray, view: int | None = None
) -> dict[str, np.ndarray]:
    """Reads a batch of cached tokens.

    Args:
      features: dense features.
      rows_b: rows of the features.
      view: index of the view to read; None reads all views, and those of a video are consecutive.

    Returns:
      A dict with "tokens" [(b v) n d], "index" [(b v)] and labels.
    """
    tokens = features.arrays["tokens"].take(rows_b)
    views = 1 if view is not None else tokens.shape[1]
    tokens = tokens[:, view : view + 1] if view is not None else tokens
    labels = {LABEL + task: label_b[rows_b] for task, label_b in features.labels.items()}
    columns = {**labels, "index": features.index_b[rows_b]}
    return {
        "tokens": rearrange(tokens, "b v t s d -> (b v) (t s) d"),
        **{name: np.repeat(column, views) for name, column in columns.items()},
    }


class ClipBatches:
    """Batches of randomly sampled clips, as a function of the step. Close it after use.

    Args:
      data: `config.data`, whose manifest is that of the training videos.
      rows: rows of the manifest that are trained on, in ascending order.
      batch_size: videos of a batch.
      repeats: clips of each video in a batch.
      seed: seed of the order and of the augmentation.
    """

    def __init__(self, data: Any, rows: Sequence[int], batch_size: int, repeats: int, seed: int):
        self._clips = batch_size * repeats
        data = ml_collections.ConfigDict(data.to_dict())
        data.repeats, data.augment = repeats, True
        data.shuffle_block_size = 0  # files of labeled videos are often sorted by class
        self._batches = iter(
            pipeline.make_train_dataset(data, seed=seed, batch_size=self._clips, rows=rows)
        )
        self._next_step = 0

    def __call__(self, step: int) -> Batch:
        """Returns the batch of a step. Reading is fastest for consecutive steps."""
        if step != self._next_step:
            self._batches.set_state({"clips": step * self._clips})
        self._next_step = step + 1
        return next(self._batches)

    def close(self) -> None:
        """Stops the workers."""
        self._batches.close()


def predict(
    module: nn.Module,
    encoder: FrozenEncoder,
    params_g: Any,
    batches: Iterator[Batch],
    tasks: Sequence[str],
) -> tuple[list[np.ndarray], dict[str, np.ndarray], np.ndarray]:
    """Applies all heads of a grid to batches of tokens or clips.

    Args:
      module: see `make_functions`.
      encoder: applied to batches that have clips instead of tokens.
      params_g: parameters of all heads, with a leading axis g.
      batches: batches with "tokens" or "video", "index" and labels.
      tasks: names of the tasks.

    Returns:
      Class probabilities [g v k] of each task, labels [v] by task, and rows of the manifest [v],
      negative for padding.
    """
    mesh = local_mesh()

    @functools.partial(jax.jit, out_shardings=mesh_lib.replicated(mesh))
    def run(params_g, frozen, batch):
        cached = "tokens" in batch
        tokens_bnd = batch["tokens"] if cached else encode(encoder, frozen, batch["video"])
        tokens_bnd = tokens_bnd.astype(jnp.float32)

        def probabilities(params):
            return list(map(jax.nn.softmax, module.apply({"params": params}, tokens_bnd)))

        return jax.lax.map(probabilities, params_g)

    found, labels, index = [], {task: [] for task in tasks}, []
    with mesh_lib.mesh_rules(mesh):
        params_g = mesh_lib.replicate(params_g, mesh)
        frozen = None
        for batch in batches:
            name = "tokens" if "tokens" in batch else "video"
            if name == "video" and frozen is None:
                frozen = mesh_lib.replicate(encoder.params, mesh)
            real, x = len(batch["index"]), pad_for_devices(batch[name], mesh)
            inputs = jax.device_put({name: x}, mesh_lib.batch_sharding(mesh))
            result = jax.device_get(run(params_g, frozen, inputs))
            found.append([np.asarray(prob_gvk)[:, :real] for prob_gvk in result])
            index.append(np.asarray(batch["index"]))
            for task in tasks:
                labels[task].append(np.asarray(batch[LABEL + task]))
    probs = [np.concatenate(parts, axis=1) for parts in zip(*found, strict=True)]
    return probs, {k: np.concatenate(v) for k, v in labels.items()}, np.concatenate(index)
