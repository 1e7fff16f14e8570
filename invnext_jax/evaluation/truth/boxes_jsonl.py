"""Reads boxes of tracked objects from a JSON lines file, with one line for each video.

    {"video": "clips/a.mp4", "fps": 10, "width": 1920, "height": 1280,
     "tracks": {"car 7": {"frames": [0, 1, 2], "boxes": [[x0, y0, x1, y1], ...]}, ...}}

`video` is a video file or a folder of numbered images, relative to the file of boxes. `frames`
counts from 0. Boxes are in pixels of an image of `width` x `height`.

Shape key: n boxes, t frames, k objects, 4 = (x0, y0, x1, y1).
"""

import dataclasses
import errno
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from invnext_jax import regular_file
from invnext_jax.errors import UserError
from invnext_jax.evaluation.truth.truth import SkippedEntries

# Upper bounds that valid files never reach. A line with larger values is skipped as damaged.
MAX_FRAMES = 10**6
MAX_TRACKS = 2**16
MAX_RANGE = 2**16  # maximum frame rate, height and width
BOX_RANGE = 1e9  # maximum absolute value of a coordinate in pixels
MAX_LINE_BYTES = 2**24  # a segment of Waymo Open has about 250 kB
MAX_BYTES = 2**30
MAX_BOXES = 2**24  # of a file; each needs 32 bytes of memory. Waymo Open has 10 million
MAX_VIDEOS = 2**20  # of a file; each needs 800 bytes of memory, even without boxes
MAX_PATH, MAX_NAME = 4096, 255  # file systems do not have longer paths and names


@dataclasses.dataclass(frozen=True)
class VideoTracks:
    """The boxes of a video, in ascending order of their frames.

    Attributes:
      path: Video file or folder of images.
      fps: Frames per second.
      height: Height of the images in pixels.
      width: Width of the images in pixels.
      names: Name of each object.
      frame_n: Frame of each box, int64.
      object_n: Index of the object of each box, int64.
      box_n4: Boxes as fractions of the image's width and height, float32.
    """

    path: Path
    fps: float
    height: int
    width: int
    names: tuple[str, ...]
    frame_n: np.ndarray
    object_n: np.ndarray
    box_n4: np.ndarray

    @property
    def frame_count(self) -> int:
        """Number of frames up to the last one with a box."""
        return int(self.frame_n[-1]) + 1 if len(self.frame_n) else 0

    def of_frames(self, frames: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Returns the boxes in the given frames.

        Returns:
          The boxes, float32 [t k 4], zeros where absent; and whether each object has a box, bool
          [t k].
        """
        boxes_tk4 = np.zeros((len(frames), len(self.names), 4), np.float32)
        present_tk = np.zeros((len(frames), len(self.names)), bool)
        for t, frame in enumerate(frames):
            rows = slice(*np.searchsorted(self.frame_n, [frame, frame + 1]))
            boxes_tk4[t, self.object_n[rows]] = self.box_n4[rows]
            present_tk[t, self.object_n[rows]] = True
        return boxes_tk4, present_tk


def parse_line(line: str, folder: Path) -> VideoTracks:
    """Parses one line of a box file.

    Args:
      line: The JSON text.
      folder: Folder that contains the file.

    Raises:
      ValueError: The line does not have the format.
    """
    fields = json.loads(line)
    if not isinstance(fields, dict) or not isinstance(fields.get("tracks"), dict):
        raise ValueError(
            'the line must be an object with "video", "fps", "width", "height" and "tracks"'
        )
    try:
        fps, height, width = (float(fields[name]) for name in ("fps", "height", "width"))
        video = fields["video"]
    except (KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"a field is missing or not a number: {error}") from error
    if not (0 < fps < MAX_RANGE and 1 <= height < MAX_RANGE and 1 <= width < MAX_RANGE):
        raise ValueError(f"fps={fps}, width={width}, height={height}: a value is out of range")
    _check_video(video)
    if len(fields["tracks"]) > MAX_TRACKS:
        raise ValueError(f"{len(fields['tracks'])} tracks are more than {MAX_TRACKS}")
    tracks = {str(name): _parse_track(track) for name, track in fields["tracks"].items()}
    frame_n = np.concatenate([np.zeros(0, np.int64), *(frames for frames, _ in tracks.values())])
    box_n4 = np.concatenate([np.zeros((0, 4)), *(boxes for _, boxes in tracks.values())])
    object_n = np.repeat(np.arange(len(tracks)), [len(frames) for frames, _ in tracks.values()])
    order_n = np.argsort(frame_n, kind="stable")
    box_n4 = (box_n4[order_n] / (width, height, width, height)).astype(np.float32)
    return VideoTracks(
        *(folder / video, fps, int(height), int(width), tuple(tracks)),
        *(frame_n[order_n], object_n[order_n], box_n4),
    )


def _check_video(video: Any) -> None:
    """Raises `ValueError` if a value is not the path of a file."""
    if not isinstance(video, str) or not video or "\0" in video:
        raise ValueError(f"video={str(video)[:80]!r} is not a path")
    parts = os.fsencode(video).split(b"/")
    if len(video) > MAX_PATH or max(map(len, parts)) > MAX_NAME:
        raise ValueError(f"the path of the video is too long: {video[:80]!r}")


def _parse_track(track: Any) -> tuple[np.ndarray, np.ndarray]:
    try:
        frame_n = np.asarray(track["frames"], np.float64).reshape(-1)
        box_n4 = np.asarray(track["boxes"], np.float64).reshape(-1, 4)
    except (KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"a track has no frames or boxes: {error}") from error
    if len(frame_n) != len(box_n4) or not np.isfinite(box_n4).all():
        raise ValueError("frames and boxes of a track differ in number, or are not finite")
    if not ((frame_n >= 0) & (frame_n < MAX_FRAMES) & (frame_n % 1 == 0)).all():
        raise ValueError("frames must be integers from 0")
    if (box_n4[:, :2] > box_n4[:, 2:]).any():
        raise ValueError("the corners of a box are in the wrong order: use x0, y0, x1, y1")
    if (np.abs(box_n4) > BOX_RANGE).any():
        raise ValueError(f"a coordinate of a box exceeds {BOX_RANGE} pixels")
    return frame_n.astype(np.int64), box_n4


def read_tracks(path: str | os.PathLike) -> list[VideoTracks]:
    """Reads all videos of a file. Damaged lines are logged and skipped.

    Raises:
      UserError: The file cannot be read or has too many videos or boxes, or no line has the
        format.
    """
    found, boxes, skipped = [], 0, SkippedEntries(path)
    for number, line in _lines(path):
        try:
            # The folder is absolute, because a relative path could be taken for a `world:` URL.
            found.append(parse_line(line, Path(path).absolute().parent))
            boxes += len(found[-1].frame_n)
        except (ValueError, RecursionError) as error:
            skipped.add(f"line {number}", error)
        for count, limit, what in ((len(found), MAX_VIDEOS, "videos"), (boxes, MAX_BOXES, "boxes")):
            if count > limit:
                raise UserError(f"{path} has more than {limit} {what}: divide the file")
    if not found:
        raise UserError(
            f"{path} has no tracks ({skipped.reason}): write one JSON object for each video"
        )
    return found


def _lines(path: str | os.PathLike) -> Iterator[tuple[int, str]]:
    try:
        with regular_file.open_binary(path, MAX_BYTES) as file:
            for number in itertools.count(1):
                line = file.readline(MAX_LINE_BYTES + 1)
                if len(line) > MAX_LINE_BYTES:
                    raise UserError(
                        f"line {number} of {path} has more than {MAX_LINE_BYTES} bytes: use fewer "
                        "boxes for each video"
                    )
                if not line:
                    return
                if line.strip():
                    yield number, line.decode()
    except (OSError, UnicodeDecodeError) as error:
        if getattr(error, "errno", None) == errno.EFBIG:
            raise UserError(f"{path} has more than {MAX_BYTES} bytes: use fewer videos") from error
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UserError(
            f"{path} cannot be read ({reason}): check that the option root is the folder of the "
            "boxes"
        ) from error
