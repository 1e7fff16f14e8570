"""Contrastive losses between videos or images and captions.

In a jitted step whose batch is sharded over devices, the pairs of the whole batch are compared: the
partitioner gathers the features.

Shape key: b pairs or images, j captions, d width.
"""

import jax
import jax.numpy as jnp


def info_nce(
    video_bd: jax.Array,
    text_bd: jax.Array,
    scale: jax.Array,
    video_id_b: jax.Array,
    text_id_b: jax.Array,
) -> jax.Array:
    """Computes the symmetric InfoNCE loss with soft targets for repeated videos and texts.

    If a video or a text occurs in several pairs of the batch, the target of a row is spread evenly
    over all of these pairs. Otherwise, equal captions would be negatives of each other.

    Args:
      video_bd: unit vectors of the videos, float32.
      text_bd: unit vectors of the captions, float32; caption i describes video i.
      scale: inverse temperature, a float32 scalar.
      video_id_b: int, equal for equal videos.
      text_id_b: int, equal for equal texts.

    Returns:
      The mean cross-entropy of both directions, a float32 scalar.
    """
    logits_bb = scale * jnp.matmul(video_bd, text_bd.T, precision=jax.lax.Precision.HIGHEST)
    same_bb = match_pairs(video_id_b, text_id_b).astype(jnp.float32)
    target_bb = same_bb / jnp.sum(same_bb, axis=1, keepdims=True)
    losses = [
        -jnp.mean(jnp.sum(target_bb * jax.nn.log_softmax(x_bb, axis=1), axis=1))
        for x_bb in (logits_bb, logits_bb.T)
    ]
    return (losses[0] + losses[1]) / 2


def sigmoid_loss(logits_bj: jax.Array, labels_bj: jax.Array) -> jax.Array:
    """Computes the negative log likelihood of all pairs: sum over captions, mean over images.

    Args:
      logits_bj: logit of each (image, caption) pair, float32.
      labels_bj: bool, whether the caption matches the image. A row may have several matches.

    Returns:
      A float32 scalar.
    """
    signed_bj = jnp.where(labels_bj, logits_bj, -logits_bj)
    return -jnp.mean(jnp.sum(jax.nn.log_sigmoid(signed_bj), axis=1))


def match_pairs(video_id_b: jax.Array, text_id_b: jax.Array) -> jax.Array:
    """Returns whether pairs i and j have the same video or the same text, bool [b b].

    Args:
      video_id_b: int, equal for equal videos.
      text_id_b: int, equal for equal texts.
    """
    same_video_bb = video_id_b[:, None] == video_id_b[None]
    return same_video_bb | (text_id_b[:, None] == text_id_b[None])
