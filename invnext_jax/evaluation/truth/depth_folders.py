"""Reads depth of ScanNet and KITTI from folders of images and uint16 depth images (0 if unknown).

ScanNet, with depth in millimeters:

    <root>/scans/<scene>/color/<number>.jpg
    <root>/scans/<scene>/depth/<number>.png
    <root>/scans/<scene>/pose/<number>.txt             not read
    <root>/scans/<scene>/intrinsic/*.txt               not read
    <root>/<split>.txt                                 one scene per line

KITTI, with images of the raw data and annotated depth in units of 1/256 m:

    <root>/<date>/<drive>/image_02/data/<number>.png
    <root>/<split>/<drive>/proj_depth/groundtruth/image_02/<number>.png     depth
    <root>/<split>.txt                                                      optional list of drives

The depth folders may also be in <root>/<date>/<drive>. The first and last frames of a drive have no
annotated depth and are not used.

Shape key: t frames, h w pixels.
"""

import glob
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from invnext_jax.errors import UserError
from invnext_jax.evaluation.truth import images
from invnext_jax.evaluation.truth.images import FrameWindow

DEPTH = Path("proj_depth") / "groundtruth"  # in the folder of a drive


class _FrameFiles(NamedTuple):
    """The files of a scene or drive.

    Attributes:
      video: Name of the scene or drive.
      name: Name that is used in messages.
      image_paths: Paths of the images by their frame number, in ascending order.
      depths: Depth images by their number; not empty.
    """

    video: str
    name: str
    image_paths: dict[int, Path]
    depths: dict[int, Path]


class DepthFolders:
    """Windows of consecutive frames with depth; see `truth.Truth`.

    Attributes:
      name: Name of the data set.
      videos: Index of the scene or drive of each row, int32.
      video_names: Names of the scenes or drives.
    """

    name: str
    _units_per_meter: float
    _depth_name: str  # format of the names of depth images

    def __init__(
        self, files: Sequence[_FrameFiles], what: str, *, size: int, frames: int, stride: int
    ):
        """Makes the windows.

        Args:
          files: The files of each scene or drive.
          what: Name of the data for messages.
          size: Side of the clips in pixels.
          frames: Number of frames of a window.
          stride: Distance between the starts of consecutive windows in frames.

        Raises:
          UserError: No scene or drive has enough frames.
        """
        self._files, self._size = files, size
        self.video_names = [part.video for part in files]
        self._windows = [
            window
            for sequence, part in enumerate(files)
            for window in images.make_windows(sequence, list(part.image_paths), frames, stride)
        ]
        images.check_windows(self._windows, what, frames)
        self.videos = np.array([window.sequence for window in self._windows], np.int32)

    def __len__(self) -> int:
        """Returns the number of windows."""
        return len(self._windows)

    def window(self, row: int) -> FrameWindow:
        """Returns the index of the scene or drive, and the frames of a row."""
        return self._windows[row]

    def load(self, row: int) -> dict[str, np.ndarray]:
        """Reads `video` and `depth` of a window; see `truth.Truth.load`."""
        window = self._windows[row]
        _, name, image_paths, depths = self._files[window.sequence]
        images.check_spacing(window, name)
        video_thwc, geometry = images.read_clip([image_paths[n] for n in window.frames], self._size)
        folder = next(iter(depths.values())).parent
        paths = [depths.get(n, folder / self._depth_name.format(n)) for n in window.frames]
        depth_thw = images.read_depth_clip(paths, self._units_per_meter, geometry)
        return {"video": video_thwc, "depth": depth_thw}


class ScanNet(DepthFolders):
    """Windows of the scenes of ScanNet."""

    name = "ScanNet"
    _units_per_meter = 1000.0
    _depth_name = "{}.png"

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
          size: See `DepthFolders`.
          frames: See `DepthFolders`.
          stride: See `DepthFolders`.

        Raises:
          UserError: The layout is wrong, or no scene has enough frames.
        """
        files = []
        for scene in images.read_list(Path(root) / f"{split}.txt"):
            folder = Path(root) / "scans" / scene
            if not os.path.isdir(folder / "depth"):
                raise UserError(
                    f"{folder / 'depth'} does not exist: extract the scene {folder.name} of "
                    f"{split}.txt to scans/{folder.name}/color and depth"
                )
            image_paths = images.list_frames(folder / "color")
            depths = images.list_frames(folder / "depth")
            files.append(_FrameFiles(scene, str(folder / "color"), image_paths, depths))
        super().__init__(files, f"{split}.txt", size=size, frames=frames, stride=stride)


class Kitti(DepthFolders):
    """Windows of the drives of KITTI, with sparse depth."""

    name = "KITTI"
    _units_per_meter = 256.0
    _depth_name = "{:010d}.png"

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
          size: See `DepthFolders`.
          frames: See `DepthFolders`.
          stride: See `DepthFolders`.
          camera: Folder of the camera; `image_02` is the left color camera.

        Raises:
          UserError: The layout is wrong, or no drive has enough frames.
        """
        root, files = Path(root), []
        for drive in _list_drives(root, split):
            raw = root / drive[:10] / drive  # the date is the start of the drive's name
            annotated = root / split / drive / DEPTH
            annotated = annotated if os.path.isdir(annotated) else raw / DEPTH
            depths = images.list_frames(annotated / camera)
            image_paths = images.list_frames(raw / camera / "data")
            first, last = min(depths), max(depths)
            image_paths = {n: path for n, path in image_paths.items() if first <= n <= last}
            files.append(_FrameFiles(drive, drive, image_paths, depths))
        what = f"the split {split} of {root}"
        super().__init__(files, what, size=size, frames=frames, stride=stride)


def _list_drives(root: Path, split: str) -> list[str]:
    if os.path.isfile(root / f"{split}.txt"):
        return images.read_list(root / f"{split}.txt")
    found = sorted(glob.glob(f"*/{DEPTH}", root_dir=root / split))
    if not found:
        raise UserError(
            f"{root / split} has no folder <drive>/{DEPTH}, and {root / f'{split}.txt'} does not "
            "exist: extract the annotated depth there, or write a list of drives"
        )
    return [name.partition("/")[0] for name in found]
