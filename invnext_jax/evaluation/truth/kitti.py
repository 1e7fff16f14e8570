"""Depth of KITTI: images of the raw data and annotated depth.

    <root>/<date>/<drive>/image_02/data/<number>.png
    <root>/<split>/<drive>/proj_depth/groundtruth/image_02/<number>.png     depth
    <root>/<split>.txt                                                      optional list of drives

Depth is uint16 in units of 1/256 m; 0 is unknown.

The depth folders may also be in <root>/<date>/<drive>. The first and last frames of a drive have no
annotated depth and are not used.

Shape key: t frames, h w pixels.
"""

import os
from pathlib import Path

import numpy as np

from invnext_jax.errors import UserError
from invnext_jax.evaluation.truth import images
from invnext_jax.evaluation.truth.images import FrameWindow

UNITS_PER_METER = 256.0
DEPTH = Path("proj_depth") / "groundtruth"


class Kitti:
    """Windows of consecutive frames with sparse depth; see `truth.Truth`.

    Attributes:
        name: "KITTI".
        drives: Names of the drives.
        videos: Index of the drive of each row, int32.
    """

    name = "KITTI"

    def __init__(
        self,
        root: str | os.PathLike,
        split: str = "val",
        *,
        size: int = 224,
        frames: int = 32,
        stride: int = 10,
        camera: str = "image_02",
    ):
        """Lists the frames of all drives.

        Args:
            root: Folder with the raw data and the depth.
            split: Folder of the annotated depth, and name of the optional list of drives.
            size: Side of the clips in pixels.
            frames: Number of frames of a window.
            stride: Distance between the starts of consecutive windows in frames.
            camera: Folder of the camera; `image_02` is the left color camera.

        Raises:
            UserError: The layout is wrong, or no drive has enough frames.
        """
        root = Path(root)
        self.drives = _list_drives(root, split)
        self._size, self._windows, self._pictures, self._depths = size, [], [], []
        for number, drive in enumerate(self.drives):
            raw = root / drive[:10] / drive  # the date is the start of the drive's name
            depths = images.list_frames(_depth_folder(root, split, drive) / camera)
            pictures = images.list_frames(raw / camera / "data")
            self._depths.append(depths)
            self._pictures.append(pictures)
            numbers = [n for n in pictures if min(depths) <= n <= max(depths)]
            self._windows += images.make_windows(number, numbers, frames, stride)
        images.check_windows(self._windows, f"the split {split} of {root}", frames)
        self.videos = np.array([window.sequence for window in self._windows], np.int32)

    def __len__(self) -> int:
        """Returns the number of windows."""
        return len(self._windows)

    def window(self, row: int) -> FrameWindow:
        """Returns the index of the drive and the frames of a row."""
        return self._windows[row]

    def load(self, row: int) -> dict[str, np.ndarray]:
        """Reads `video` and `depth` of a window; see `truth.Truth.load`."""
        window = self._windows[row]
        pictures, depths = self._pictures[window.sequence], self._depths[window.sequence]
        images.check_spacing(window, self.drives[window.sequence])
        folder = next(iter(depths.values())).parent
        video_thwc, geometry = images.read_clip([pictures[n] for n in window.frames], self._size)
        paths = [depths.get(n, folder / f"{n:010d}.png") for n in window.frames]
        depth_thw = images.read_depth_clip(paths, UNITS_PER_METER, geometry)
        return {"video": video_thwc, "depth": depth_thw}


def _list_drives(root: Path, split: str) -> list[str]:
    if (root / f"{split}.txt").is_file():
        return images.read_list(root / f"{split}.txt")
    found = sorted(path.parents[1].name for path in (root / split).glob(f"*/{DEPTH}"))
    if not found:
        raise UserError(
            f"{root / split} has no folder <drive>/{DEPTH}, and {root / f'{split}.txt'} does not "
            "exist: extract the annotated depth there, or write a list of drives"
        )
    return found


def _depth_folder(root: Path, split: str, drive: str) -> Path:
    folder = root / split / drive / DEPTH
    return folder if folder.is_dir() else root / drive[:10] / drive / DEPTH
