"""Captions for clips of the synthetic world, and labels for pairs of clips and captions.

Image-level captions never mention the motion. Most captions omit some attributes, so that a caption
can match many clips. `label_matrix` therefore returns labels with several positives for a sigmoid
loss.

Shape key: b clips, j captions.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np

from invnext_jax.errors import UserError
from invnext_jax.synthetic_world.spec import WorldSpec

# Sentence templates of each level. Names in braces are tasks and are replaced by class names.
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
    "anticipation": ("{a_noun}", "a photo of {a_noun}", "{a_noun} on a dark background"),
}
VIDEO_TEMPLATES = {
    "simple": "{a_color} {shape} {motion}",
    "full": "{a_color} {shape} {motion} on {a_background} background",
    "anticipation": "{a_noun} that finally {verb}",
}


@dataclasses.dataclass(frozen=True)
class Caption:
    """A sentence, and a dict from task to class id of the attributes that it mentions."""

    text: str
    attributes: Mapping[str, int]


def image_captions(level: str, labels: Mapping[str, int]) -> tuple[Caption, ...]:
    """Returns the image-level captions of a clip, one per template."""
    return tuple(_fill(template, level, labels) for template in IMAGE_TEMPLATES[level])


def video_caption(level: str, labels: Mapping[str, int]) -> Caption:
    """Returns the caption that mentions every attribute, including the motion."""
    return _fill(VIDEO_TEMPLATES[level], level, labels)


def all_image_captions(level: str) -> tuple[Caption, ...]:
    """Returns all distinct image-level captions of a level, in a fixed order."""
    return _all_captions(level, IMAGE_TEMPLATES[level])


def all_video_captions(level: str) -> tuple[Caption, ...]:
    """Returns all distinct video-level captions of a level, in a fixed order."""
    return _all_captions(level, (VIDEO_TEMPLATES[level],))


def _all_captions(level: str, templates: Sequence[str]) -> tuple[Caption, ...]:
    classes = WorldSpec(level=level).classes
    captions = {}
    for template in templates:
        tasks = _tasks(template, classes)
        for values in itertools.product(*(range(len(classes[task])) for task in tasks)):
            caption = _fill(template, level, dict(zip(tasks, values, strict=True)))
            captions[caption.text] = caption
    return tuple(captions.values())


def label_matrix(labels: Mapping[str, np.ndarray], captions: Sequence[Caption]) -> np.ndarray:
    """Returns which captions match which clips.

    Args:
      labels: Class ids [b] for each task that a caption mentions.
      captions: The captions to match.

    Returns:
      bool [b j], true where clip b has every attribute that caption j mentions.
    """
    batch = len(next(iter(labels.values())))
    matches_bj = np.ones((batch, len(captions)), bool)
    for j, caption in enumerate(captions):
        for task, value in caption.attributes.items():
            matches_bj[:, j] &= np.asarray(labels[task]) == value
    return matches_bj


def _tasks(template: str, classes: Mapping[str, tuple[str, ...]]) -> list[str]:
    return [task for task in classes if f"{{{task}}}" in template or f"{{a_{task}}}" in template]


def _fill(template: str, level: str, labels: Mapping[str, int]) -> Caption:
    classes = WorldSpec(level=level).classes
    if missing := [task for task in _tasks(template, classes) if task not in labels]:
        raise UserError(
            f"there is no label of the {missing[0]}, which captions of the level {level!r} of the "
            f"world mention: add the column label_{missing[0]} to the manifest"
        )
    attributes = {task: int(labels[task]) for task in _tasks(template, classes)}
    words = {}
    for task, value in attributes.items():
        if not 0 <= value < len(classes[task]):
            raise UserError(
                f"the {task} {value} is not a class of the level {level!r} of the world, which has "
                f"{len(classes[task])}: correct the labels of the manifest"
            )
        name = classes[task][value]
        words[task] = _verb(name) if task in ("motion", "verb") else name
        words[f"a_{task}"] = f"{'an' if name[0] in 'aeio' or name == 'hourglass' else 'a'} {name}"
    return Caption(template.format(**words), attributes)


def _verb(motion: str) -> str:
    special = {"closer": "comes closer", "away": "goes away"}
    return special.get(motion, f"moves {motion.replace('-', ' and ')}")
