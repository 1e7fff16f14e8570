"""What is said of a clip of the embedded world, and which clips a sentence is true of.

An image-level caption never mentions the motion. Captions leave attributes out, so a caption is
true of many clips; `label_matrix` gives the multi-positive labels that a sigmoid loss needs.

Shape key: b clips, j captions.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from invnext_jax.synthetic_world import scene

# Sentences and the tasks they speak of, for each level; {names} are filled from the labels.
IMAGE_TEMPLATES = {
    "simple": (
        "{a_shape}",
        "{a_color} {shape}",
        "something {color}",
        "a photo of {a_color} {shape}",
        "{a_shape} on a dark background",
    ),
    "full": (
        "the digit {shape}",
        "{a_color} {shape}",
        "{a_background} background",
        "a photo of {a_color} digit on {a_background} background",
        "{a_color} {shape} on {a_background} background",
    ),
}
VIDEO_TEMPLATES = {
    "simple": "{a_color} {shape} {motion}",
    "full": "{a_color} {shape} {motion} on {a_background} background",
}


@dataclasses.dataclass(frozen=True)
class Caption:
    """A sentence and the attributes it mentions: task -> class number."""

    text: str
    attributes: Mapping[str, int]


def image_captions(level: str, labels: Mapping[str, int]) -> tuple[Caption, ...]:
    """The image-level captions that are true of a clip, always in the same order of templates."""
    return tuple(_fill(template, level, labels) for template in IMAGE_TEMPLATES[level])


def video_caption(level: str, labels: Mapping[str, int]) -> Caption:
    """The caption that mentions every attribute, the motion too."""
    return _fill(VIDEO_TEMPLATES[level], level, labels)


def all_image_captions(level: str) -> tuple[Caption, ...]:
    """Every distinct image-level caption of a level, in a fixed order."""
    classes = scene.WorldSpec(level=level).classes
    captions = {}
    for template in IMAGE_TEMPLATES[level]:
        tasks = _tasks(template, classes)
        for values in itertools.product(*(range(len(classes[task])) for task in tasks)):
            caption = _fill(template, level, dict(zip(tasks, values, strict=True)))
            captions[caption.text] = caption
    return tuple(captions.values())


def label_matrix(labels: Mapping[str, np.ndarray], captions: Sequence[Caption]) -> np.ndarray:
    """Tells which captions are true of which clips.

    Args:
        labels: Class numbers [b] for each task that a caption mentions.
        captions: Any captions.

    Returns:
        bool [b j]: clip b has every attribute that caption j mentions.
    """
    batch = len(next(iter(labels.values())))
    true_bj = np.ones((batch, len(captions)), bool)
    for j, caption in enumerate(captions):
        for task, value in caption.attributes.items():
            true_bj[:, j] &= np.asarray(labels[task]) == value
    return true_bj


def _tasks(template: str, classes: Mapping[str, tuple[str, ...]]) -> list[str]:
    return [task for task in classes if f"{{{task}}}" in template or f"{{a_{task}}}" in template]


def _fill(template: str, level: str, labels: Mapping[str, int]) -> Caption:
    classes = scene.WorldSpec(level=level).classes
    attributes = {task: int(labels[task]) for task in _tasks(template, classes)}
    words = {}
    for task, value in attributes.items():
        name = classes[task][value]
        words[task] = _verb(name) if task == "motion" else name
        words[f"a_{task}"] = f"{'an' if name[0] in 'aeio' or name == 'hourglass' else 'a'} {name}"
    return Caption(template.format(**words), attributes)


def _verb(motion: str) -> str:
    special = {"closer": "comes closer", "away": "goes away"}
    return special.get(motion, f"moves {motion.replace('-', ' and ')}")
