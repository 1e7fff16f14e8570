"""Reads folders of numbered images, 16-bit depth images, and sliding windows of frames.

Shape key: t frames, h w pixels, c channels.
"""

import contextlib
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from invnext_jax import regular_file
from invnext_jax.errors import UserError
from invnext_jax.evaluation.truth.geometry import ClipGeometry
from invnext_jax.evaluation.truth.truth import BadTruth
from invnext_jax.video import frame_converter, jpeg

EXTENSIONS = (".jpg", ".jpeg", ".png")
FORMATS = ("PNG", "JPEG")  # the decoders of other formats start programs or are rarely tested
DEPTH_MODES = ("I", "I;16", "I;16B", "I;16L")
MAX_PIXELS = 2**26
MAX_CLIP_PIXELS = 2**28  # of all frames of a clip that is not resized; 0.75 GiB
MAX_READ_PIXELS = 2**32  # of all images of a clip; decoding them takes about 40 s
MAX_BYTES = 2**28  # maximum size of an image file
MAX_LIST_BYTES = 2**24
MAX_NAME, MAX_PATH = 255, 1024  # bytes of a name in a list and of a path below the data set


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
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{folder} cannot be listed ({reason}): check the layout of the data set"
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
      UserError: The file is missing, empty or not text, or a line does not name a folder, or names
          one that was listed before.
    """
    names = [line.split()[0] for line in read_lines(path) if line.strip()]
    if not names:
        raise UserError(f"the list {path} is empty: write one name on each line")
    for name in names:
        if not is_folder_name(name):
            raise UserError(
                f"the list {path} has the line {name[:MAX_NAME]!r}: write the name of a folder of "
                "the data set on each line"
            )
    check_unique(names, path)
    return names


def check_unique(names: Sequence[str], path: str | os.PathLike) -> None:
    """Raises `UserError` if a name is listed twice. The frames of each one are listed in memory."""
    found: set[Path] = set()
    for name in names:
        if Path(name) in found:
            raise UserError(f"the list {path} has {name[:MAX_NAME]!r} twice: remove the repetition")
        found.add(Path(name))


def read_lines(path: str | os.PathLike) -> list[str]:
    """Returns the lines of a text file.

    Raises:
      UserError: The file is missing, too large or not text.
    """
    try:
        text = regular_file.read_bytes(path, MAX_LIST_BYTES).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise UserError(
            f"the list {path} cannot be read ({reason}): check that the option root is the folder "
            "of the data set"
        ) from error
    return text.splitlines()


def is_folder_name(name: str) -> bool:
    """Returns whether a name is a relative path of printable characters without ".."."""
    path = Path(name)
    if path.is_absolute() or not path.parts or ".." in path.parts or not name.isprintable():
        return False
    is_short = all(len(os.fsencode(part)) <= MAX_NAME for part in path.parts)
    return is_short and len(os.fsencode(name)) <= MAX_PATH


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
        raise UserError(
            f"{what} has no sequence of at least {frames} frames: lower config.data.frames"
        )


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
    frames, shape = [], None
    for path in paths:
        image_hwc = read_image(path, lambda image: np.asarray(image.convert("RGB")))
        shape = shape or image_hwc.shape[:2]
        limit = MAX_CLIP_PIXELS if size is None else MAX_READ_PIXELS
        if len(paths) * math.prod(shape) > limit:
            raise BadTruth(
                f"{path.parent} has {len(paths)} images of {shape[1]} x {shape[0]} pixels, more "
                f"than {limit} pixels in total",
                "wrong format",
            )
        if image_hwc.shape[:2] != shape:
            raise BadTruth(
                f"{path} differs in size from the first frame of its clip", "wrong format"
            )
        if size is not None:
            window = frame_converter.square_crop(*shape)
            image_hwc = frame_converter.resize(image_hwc[None], window, size)[0]
        frames.append(image_hwc)
    return np.stack(frames), ClipGeometry.center(shape, size)


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
    """Opens a PNG or JPEG image. Errors in the `with` block are also raised as `BadTruth`.

    Raises:
      BadTruth: The image is missing, damaged, too large or has another format.
    """
    try:
        with regular_file.open_binary(path, MAX_BYTES) as file:
            jpeg.check_scans(file.read())
            file.seek(0)
            with Image.open(file, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise BadTruth(
                        f"{path} has {image.width} x {image.height} pixels, more than {MAX_PIXELS}",
                        "wrong format",
                    )
                yield image
    except BadTruth:
        raise
    except FileNotFoundError as error:
        raise BadTruth(f"{path} is missing", "missing") from error
    except UnidentifiedImageError as error:
        reason = f"it is not a {' or '.join(FORMATS)} image"
        raise BadTruth(f"{path} cannot be decoded ({reason})", "truncated") from error
    except Exception as error:  # Pillow's decoders raise errors of many types on damaged files
        raise BadTruth(f"{path} cannot be decoded ({error})", "truncated") from error
