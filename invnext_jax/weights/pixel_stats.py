"""Preprocessing of the pixels, as described in the files next to weights in Hugging Face format."""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from invnext_jax import json_file
from invnext_jax.errors import UserError
from invnext_jax.field_checks import is_number

PREPROCESSOR = "preprocessor_config.json"
_VIDEO_PREPROCESSOR, _PROCESSOR = "video_preprocessor_config.json", "processor_config.json"
# Files, and sections of processor_config.json, in the order in which they are searched.
_PLACES = (
    (_VIDEO_PREPROCESSOR, ""),
    (PREPROCESSOR, ""),
    (_PROCESSOR, "video_processor"),
    (_PROCESSOR, "image_processor"),
)
IMAGENET = {"image_mean": (0.485, 0.456, 0.406), "image_std": (0.229, 0.224, 0.225)}


def find_preprocessors(folder: Path) -> dict[str, dict[str, Any]]:
    """Returns the preprocessors of a folder by the file that describes them.

    Raises:
      UserError: a file is invalid, or a preprocessor does not map pixels to [0, 1] and normalize
        them.
    """
    found = {}
    for name, section in _PLACES:
        path = folder / name
        content = json_file.read_object(path) if os.path.isfile(path) else {}
        if section:
            content = content.get(section, {})
        if not isinstance(content, Mapping):
            raise UserError(f"{path} has a section {section} that is not an object: replace it")
        if content:
            _check_steps(path, content)
            found[f"{path}, {section}" if section else str(path)] = dict(content)
    return found


def check_pixel_stats(
    source: Path, model: str, stats: tuple[np.ndarray, np.ndarray] | np.ndarray
) -> None:
    """Checks that the preprocessors next to the weights have the pixel statistics of a model.

    Args:
      source: the file of the weights, or its folder.
      model: name of the model, for the message.
      stats: mean and standard deviation of each channel, float [3], for pixel values from 0 to 1.

    Raises:
      UserError: a file is invalid or has other values.
    """
    folder = source if os.path.isdir(source) else source.parent
    for path, content in find_preprocessors(folder).items():
        for name, expected in zip(IMAGENET, stats, strict=True):
            values = content.get(name, expected.tolist())
            if not _is_close(values, expected):
                raise UserError(
                    f"{path} has {name}={str(values)[:80]}, but the pixels for {model} are "
                    f"normalized with {[round(float(x), 4) for x in expected]}: use a checkpoint "
                    "that was trained with these values"
                )


def read_pixel_stats(folder: str | Path) -> dict[str, list[float]]:
    """Returns the mean and standard deviation of pixels in [0, 1] that a folder's encoder expects.

    They are ImageNet's statistics, unless a preprocessor in the folder has other values.

    Raises:
      UserError: a file has invalid values, or two files have different values.
    """
    found = find_preprocessors(Path(folder))
    stats = {}
    for name, default in IMAGENET.items():
        values = {path: part[name] for path, part in found.items() if name in part}
        for path, value in values.items():
            valid = isinstance(value, list) and len(value) == 3
            if not valid or not all(_is_share(x, zero=name == "image_mean") for x in value):
                raise UserError(
                    f"{path} has {name}={str(value)[:60]}, which is not three numbers between 0 "
                    "and 1: use the file of the checkpoint"
                )
        first = next(iter(values), "")
        for path, value in values.items():
            if not _is_close(value, np.array(values[first])):
                raise UserError(
                    f"{first} and {path} have different values of {name}: keep only the file that "
                    "belongs to the weights"
                )
        stats[name.removeprefix("image_")] = values[first] if values else list(default)
    return stats


def _check_steps(path: Path, content: Mapping[str, Any]) -> None:
    """Checks that pixels are divided by 255 and then normalized."""
    steps = {"do_rescale": True, "do_normalize": True, "offset": False, "do_offset": False}
    for name, value in steps.items():
        if content.get(name, value) != value and content.get(name) is not None:
            raise UserError(
                f"{path} has {name}={str(content[name])[:40]}, but only {value} is supported: use "
                "a different checkpoint"
            )
    factor = content.get("rescale_factor")
    if factor is None:
        return
    if not is_number(factor) or not math.isclose(factor, 1 / 255, rel_tol=1e-3):
        raise UserError(
            f"{path} has rescale_factor={str(factor)[:40]}, but only 1/255 is supported: use a "
            "different checkpoint"
        )


def _is_close(values: Any, expected: np.ndarray) -> bool:
    try:
        return np.allclose(np.asarray(values, np.float64), expected, atol=1e-3)
    except (TypeError, ValueError, OverflowError):
        return False


def _is_share(value: Any, *, zero: bool) -> bool:
    return is_number(value) and (0 <= value <= 1 if zero else 0 < value <= 1)
