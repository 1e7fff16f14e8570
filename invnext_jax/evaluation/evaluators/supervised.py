"""The upper bracket: the same encoder trained end to end with the labels, for a set budget.

Shape key: b videos, t frames, h w pixels, c channels, n tokens, d width, k classes.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from invnext_jax.evaluation.evaluators.linear_probe import ProbeResult, summarize
from invnext_jax.models.encoder import Encoder
from invnext_jax.models.patches import normalize


class Classifier(nn.Module):
    """Encoder, mean over the grid tokens, LayerNorm, one linear head for each task."""

    encoder: Encoder
    classes: Sequence[int]

    @nn.compact
    def __call__(self, video_bthwc: jax.Array) -> list[jax.Array]:
        """Returns float32 logits [b k] of each task."""
        tokens_bnd = self.encoder(video_bthwc).tokens_bnd[:, self.encoder.class_tokens :]
        x_bd = nn.LayerNorm(name="norm")(jnp.mean(tokens_bnd, axis=1))
        return [nn.Dense(k, name=f"head{i}")(x_bd) for i, k in enumerate(self.classes)]


def train_supervised(  # noqa: PLR0913
    encoder: Encoder,
    train: tuple[np.ndarray, Mapping[str, np.ndarray]],
    val: tuple[np.ndarray, Mapping[str, np.ndarray]],
    *,
    tasks: Sequence[str],
    config: Any,
    seed: int,
) -> tuple[dict[str, ProbeResult], list[dict[str, float]]]:
    """Trains on all tasks at once and measures each.

    Args:
      encoder: module, initialised anew; drop path is off.
      train: uint8 videos [b t h w c], and int labels [b] by task; a negative one stands for none
        and gives no loss.
      val: the same of the held-out videos.
      tasks: names of the tasks.
      config: steps, batch_size, learning_rate, warmup_steps, weight_decay.
      seed: of initialisation and order.

    Returns:
      The result of each task, and the loss every few steps.
    """
    start = time.perf_counter()
    classes = [int(max(train[1][task].max(), val[1][task].max())) + 1 for task in tasks]
    model = Classifier(encoder, classes)
    params = jax.jit(model.init)(jax.random.key(seed), jnp.zeros((1, *train[0].shape[1:])))
    params = nn.meta.unbox(params["params"])
    warmup = min(config.warmup_steps, config.steps // 2)
    schedule = optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, warmup, config.steps)
    tx = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(
            schedule, b2=0.98, weight_decay=config.weight_decay, mask=lambda p: _is_matrix(p)
        ),
    )

    def loss_fn(params, video_bthwc, labels):
        logits = model.apply({"params": params}, normalize(video_bthwc))
        return sum(map(_mean_entropy, logits, labels))

    @jax.jit
    def step(params, opt_state, video_bthwc, labels):
        loss, grads = jax.value_and_grad(loss_fn)(params, video_bthwc, labels)
        updates, opt_state = tx.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    opt_state, curve = tx.init(params), []
    batches = _endless_batches(len(train[0]), config.batch_size, seed)
    for i in range(config.steps):
        rows = next(batches)
        labels = [train[1][task][rows] for task in tasks]
        params, opt_state, loss = step(params, opt_state, train[0][rows], labels)
        if i % 10 == 0 or i == config.steps - 1:
            curve.append({"step": i, "loss": float(loss)})
    guesses = [_predict(model, params, part[0], config.batch_size) for part in (train, val)]
    results = {}
    for i, task in enumerate(tasks):
        labels = train[1][task], val[1][task]
        labeled = [y_b >= 0 for y_b in labels]
        found, right = (
            tuple(part[has_b] for part, has_b in zip(parts, labeled, strict=True))
            for parts in ((guesses[0][i], guesses[1][i]), labels)
        )
        results[task] = summarize(found, right, start=start)
    return results, curve


def _mean_entropy(logits_bk, labels_b):
    """Mean cross-entropy over the videos that have a label; 0 if none has."""
    has_b = labels_b >= 0
    entropy_b = optax.softmax_cross_entropy_with_integer_labels(
        logits_bk, jnp.where(has_b, labels_b, 0)
    )
    return jnp.sum(jnp.where(has_b, entropy_b, 0.0)) / jnp.maximum(jnp.sum(has_b), 1)


def _is_matrix(params):
    return jax.tree.map(lambda x: x.ndim > 1, params)


def _endless_batches(count: int, batch_size: int, seed: int):
    """Row numbers of shuffled batches, epoch after epoch; one size, so one compilation."""
    rng, rows = np.random.default_rng(seed), np.zeros(0, np.int64)
    while True:
        while len(rows) < batch_size:
            rows = np.concatenate([rows, rng.permutation(count)])
        yield rows[:batch_size]
        rows = rows[batch_size:]


def _predict(model, params, video_bthwc, batch_size) -> list[np.ndarray]:
    """The likeliest class of each video, for each task."""
    run = jax.jit(lambda params, x: model.apply({"params": params}, normalize(x)))
    guesses = []
    for first in range(0, len(video_bthwc), batch_size):
        real = video_bthwc[first : first + batch_size]
        padded = np.zeros((batch_size, *video_bthwc.shape[1:]), video_bthwc.dtype)
        padded[: len(real)] = real
        logits = jax.device_get(run(params, padded))
        guesses.append([np.argmax(x_bk[: len(real)], axis=-1) for x_bk in logits])
    return [np.concatenate(parts) for parts in zip(*guesses, strict=True)]
