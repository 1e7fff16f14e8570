"""Reads folders of numbered images, 16-bit depth images, and sliding windows of frames.

Shape key: t frames, h w pixels, c channels.
"""

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from invnext_jax.data import transforms
from invnext_jax.errors import UserError
from invnext_jax.evaluation.truth.geometry import ClipGeometry
from invnext_jax.evaluation.truth.truth import BadTruth

EXTENSIONS = (".jpg", ".jpeg", ".png")
DEPTH_MODES = ("I", "I;16", "I;16B", "I;16L")


class FrameWindow(NamedTuple):
    """Consecutive frames of a sequence.

    Attributes:
        sequence: Index of the sequence.
        frames: Numbers of the frames, as in the names of the files.
    """

    sequence: int
    frames: tuple[int, ...]


def list_frames(folder: str | os.PathLike) -> dict[int, Path]:
    """Returns the images of a folder by the last number in their name, in ascending order.

    Images without a number in their name are ignored.

    Raises:
        UserError: The folder does not exist or has no numbered images.
    """
    found = {}
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be listed ({error.strerror}): check the layout of the data set"
        ) from error
    for name in names:
        stem, extension = os.path.splitext(name)
        numbers = re.findall(r"\d+", stem)
        if extension.lower() in EXTENSIONS and numbers and not name.startswith("."):
            found[int(numbers[-1])] = Path(folder) / name
    if not found:
        raise UserError(f"{folder} has no numbered images: check the layout of the data set")
    return dict(sorted(found.items()))


def read_list(path: str | os.PathLike) -> list[str]:
    """Reads a split list: the first word of each line that is not empty.

    Raises:
        UserError: The file is missing, empty or not text.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise UserError(f"the list {path} cannot be read: {reason}") from error
    names = [line.split()[0] for line in lines if line.strip()]
    if not names:
        raise UserError(f"the list {path} is empty: write one name on each line")
    return names


def make_windows(
    sequence: int, numbers: Sequence[int], frames: int, stride: int
) -> list[FrameWindow]:
    """Makes windows of `frames` frames whose starts are `stride` frames apart.

    Args:
        sequence: Index of the sequence.
        numbers: Numbers of all its frames in ascending order.
        frames: Number of frames of a window. Shorter sequences have no window.
        stride: Distance between the starts of consecutive windows in frames.
    """
    starts = range(0, len(numbers) - frames + 1, stride)
    return [FrameWindow(sequence, tuple(numbers[s : s + frames])) for s in starts]


def check_windows(windows: Sequence[FrameWindow], what: str, frames: int) -> None:
    """Raises `UserError` if there are no windows; `what` names the data in the message."""
    if not windows:
        raise UserError(f"{what} has no sequence of at least {frames} frames: use fewer frames")


def check_spacing(window: FrameWindow, name: str) -> None:
    """Raises `BadTruth` if the frames of a window are not evenly spaced."""
    steps = np.diff(window.frames)
    if len(steps) and steps.max() != steps.min():
        missing = window.frames[int(steps.argmax())] + int(steps.min())
        raise BadTruth(f"{name}: frame {missing} is missing", "missing")


def read_clip(paths: Sequence[Path], size: int | None) -> tuple[np.ndarray, ClipGeometry]:
    """Reads images and resizes their centered squares bilinearly.

    Args:
        paths: Image files of equal size.
        size: Side of the clip in pixels. None keeps the whole images.

    Returns:
        uint8 [t h w c], RGB, and the geometry of the clip.

    Raises:
        BadTruth: An image is missing or damaged, or the sizes differ.
    """
    frames, picture = [], None
    for path in paths:
        image_hwc = read_image(path, lambda image: np.asarray(image.convert("RGB")))
        picture = picture or image_hwc.shape[:2]
        if image_hwc.shape[:2] != picture:
            raise BadTruth(
                f"{path} has another size than the first frame of its clip", "wrong format"
            )
        if size is not None:
            window = transforms.square_crop(*picture)
            image_hwc = transforms.resize(image_hwc[None], window, size)[0]
        frames.append(image_hwc)
    return np.stack(frames), ClipGeometry.center(picture, size)


def read_depth(path: str | os.PathLike, units_per_meter: float) -> np.ndarray:
    """Reads a 16-bit depth image.

    Args:
        path: Path of the image.
        units_per_meter: Value of the image for a depth of 1 m.

    Returns:
        float32 [h w] in meters, 0 where unknown.

    Raises:
        BadTruth: The image is missing, damaged or not a 16-bit gray image.
    """

    def convert(image: Image.Image) -> np.ndarray:
        if image.mode not in DEPTH_MODES:
            raise BadTruth(
                f"{path} has the mode {image.mode}, not 16-bit gray: export depth as uint16 PNG",
                "wrong format",
            )
        return np.asarray(image).astype(np.float32) / np.float32(units_per_meter)

    return read_image(path, convert)


def read_depth_clip(
    paths: Sequence[Path], units_per_meter: float, geometry: ClipGeometry
) -> np.ndarray:
    """Reads depth images and crops them like the clip: float32 [t h w] in meters.

    Raises:
        BadTruth: As in `read_depth`; or no pixel of the clip has a known depth.
    """
    frames = [geometry.crop_image(read_depth(path, units_per_meter)[None])[0] for path in paths]
    depth_thw = np.stack(frames)
    if not depth_thw.any():
        raise BadTruth(f"{paths[0]} and the next frames have no known depth", "no truth")
    return depth_thw


def read_ids(path: str | os.PathLike) -> np.ndarray:
    """Reads the object ids of an indexed-color or gray annotation image, int32 [h w].

    Raises:
        BadTruth: The image is missing, damaged or has colors instead of ids.
    """

    def convert(image: Image.Image) -> np.ndarray:
        if image.mode not in ("P", "L", "1"):
            raise BadTruth(
                f"{path} has the mode {image.mode}, not a palette with object ids", "wrong format"
            )
        return np.asarray(image).astype(np.int32)

    return read_image(path, convert)


def read_image(path: str | os.PathLike, convert: Callable) -> np.ndarray:
    """Opens an image and converts it.

    Args:
        path: Path of the image.
        convert: Function from a PIL image to an array.

    Raises:
        BadTruth: The image is missing or damaged.
    """
    with open_image(path) as image:
        return convert(image)


@contextlib.contextmanager
def open_image(path: str | os.PathLike) -> Iterator[Image.Image]:
    """Opens an image. Decoding errors in the `with` block are also raised as `BadTruth`.

    Raises:
        BadTruth: The image is missing or damaged.
    """
    try:
        with Image.open(path) as image:
            yield image
    except FileNotFoundError as error:
        raise BadTruth(f"{path} is missing", "missing") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadTruth(f"{path} cannot be decoded ({error})", "truncated") from error
