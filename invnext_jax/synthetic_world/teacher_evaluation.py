"""Evaluates the image teacher of the synthetic world: zero-shot accuracy and attention.

Shape key: b images, j captions, n patches, k classes, d width, t frames, h w pixels, c channels.
"""

import collections
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from invnext_jax.models.layers import l2_normalize
from invnext_jax.synthetic_world.captions import Caption


class Frames(NamedTuple):
    """Clips of the world; each frame is an image.

    Attributes:
      video_bthwc: RGB frames, uint8.
      object_bthw: mask of the visible pixels of the object that the labels describe, bool.
      labels: class ids, int [b] for each task of the level.
    """

    video_bthwc: np.ndarray
    object_bthw: np.ndarray
    labels: dict[str, np.ndarray]


def normalize(images_bhwc: jax.Array) -> jax.Array:
    """Converts uint8 images to the input of the vision tower: float32 from -1 to 1."""
    return (images_bhwc.astype(jnp.float32) / 255 - 0.5) / 0.5


def class_embeddings(
    captions: Sequence[Caption], text_jd: np.ndarray, classes: Mapping[str, Sequence[str]]
) -> dict[str, np.ndarray]:
    """Computes class embeddings: the normalized mean over all captions that mention only one class.

    Args:
      captions: all image-level captions.
      text_jd: text embeddings of the captions.
      classes: class names of each task.

    Returns:
      Unit vectors, float32 [k d], for each task for which such captions exist.
    """
    rows = collections.defaultdict(list)
    for caption, text_d in zip(captions, text_jd, strict=True):
        if len(caption.attributes) == 1:
            rows[next(iter(caption.attributes.items()))].append(text_d)
    return {
        task: np.asarray(
            l2_normalize(np.stack([np.mean(rows[task, i], axis=0) for i in range(len(names))]))
        )
        for task, names in classes.items()
        if (task, 0) in rows
    }


def evaluate(
    vision: nn.Module, params: Any, frames: Frames, prompts: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """Measures zero-shot accuracy and the attention of the pooling head to the object.

    Args:
      vision: the vision tower.
      params: parameters of the vision tower.
      frames: held-out clips; each frame is an image.
      prompts: output of `class_embeddings`.

    Returns:
      A dict with three kinds of metrics. "zero_shot/<task>" is the accuracy in percent.
      "attention/object" is the fraction of the attention on patches that overlap the object.
      "attention/object_area" is the fraction of patches that overlap the object.
    """
    apply = jax.jit(lambda images: vision.apply({"params": params}, normalize(images)))
    size, totals = vision.patch, collections.defaultdict(list)
    for clip, video_thwc in enumerate(frames.video_bthwc):
        output = jax.device_get(apply(video_thwc))
        for task, prompts_kd in prompts.items():
            predicted_t = np.argmax(output.pooled_bd @ prompts_kd.T, axis=1)
            totals[f"zero_shot/{task}"].append(100 * (predicted_t == frames.labels[task][clip]))
        t, h, w = frames.object_bthw[clip].shape
        cells = frames.object_bthw[clip].reshape(t, h // size, size, w // size, size)
        overlap_tn = cells.any(axis=(2, 4)).reshape(t, -1)
        totals["attention/object"].append(np.sum(output.attention_bn * overlap_tn, axis=1))
        totals["attention/object_area"].append(np.mean(overlap_tn, axis=1))
    return {name: float(np.mean(values)) for name, values in totals.items()}
