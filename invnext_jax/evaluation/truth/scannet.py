"""Depth of ScanNet.

    <root>/scans/<scene>/color/<number>.jpg
    <root>/scans/<scene>/depth/<number>.png            uint16 in millimeters, 0 is unknown
    <root>/scans/<scene>/pose/<number>.txt             not read
    <root>/scans/<scene>/intrinsic/*.txt               not read
    <root>/<split>.txt                                 one scene per line

Shape key: t frames, h w pixels.
"""

import os
from pathlib import Path

import numpy as np

from invnext_jax.errors import UserError
from invnext_jax.evaluation.truth import images
from invnext_jax.evaluation.truth.images import FrameWindow

UNITS_PER_METER = 1000.0


class ScanNet:
    """Windows of consecutive frames with depth; see `truth.Truth`.

    Attributes:
        name: "ScanNet".
        scenes: Names of the scenes.
        videos: Index of the scene of each row, int32.
    """

    name = "ScanNet"

    def __init__(
        self,
        root: str | os.PathLike,
        split: str = "val",
        *,
        size: int = 224,
        frames: int = 16,
        stride: int = 5,
    ):
        """Lists the frames of all scenes.

        Args:
            root: Folder with `scans` and the split lists.
            split: Name of the list, without ".txt".
            size: Side of the clips in pixels.
            frames: Number of frames of a window.
            stride: Distance between the starts of consecutive windows in frames.

        Raises:
            UserError: The layout is wrong, or no scene has enough frames.
        """
        scans = Path(root) / "scans"
        self.scenes = images.read_list(Path(root) / f"{split}.txt")
        self._folders = [scans / scene for scene in self.scenes]
        self._size, self._windows, self._colors, self._depths = size, [], [], []
        for number, folder in enumerate(self._folders):
            if not (folder / "depth").is_dir():
                raise UserError(
                    f"{folder / 'depth'} does not exist: extract the scene {folder.name} of "
                    f"{split}.txt to scans/{folder.name}/color and depth"
                )
            self._colors.append(images.list_frames(folder / "color"))
            self._depths.append(images.list_frames(folder / "depth"))
            numbers = list(self._colors[-1])
            self._windows += images.make_windows(number, numbers, frames, stride)
        images.check_windows(self._windows, f"{split}.txt", frames)
        self.videos = np.array([window.sequence for window in self._windows], np.int32)

    def __len__(self) -> int:
        """Returns the number of windows."""
        return len(self._windows)

    def window(self, row: int) -> FrameWindow:
        """Returns the index of the scene and the frames of a row."""
        return self._windows[row]

    def load(self, row: int) -> dict[str, np.ndarray]:
        """Reads `video` and `depth` of a window; see `truth.Truth.load`."""
        window = self._windows[row]
        folder = self._folders[window.sequence]
        colors, depths = self._colors[window.sequence], self._depths[window.sequence]
        images.check_spacing(window, str(folder / "color"))
        video_thwc, geometry = images.read_clip([colors[n] for n in window.frames], self._size)
        paths = [depths.get(n, folder / "depth" / f"{n}.png") for n in window.frames]
        depth_thw = images.read_depth_clip(paths, UNITS_PER_METER, geometry)
        return {"video": video_thwc, "depth": depth_thw}
