"""Joints of persons in JHMDB.

    <root>/Rename_Images/<class>/<clip>/<number>.png
    <root>/joint_positions/<class>/<clip>/joint_positions.mat     pos_img, float [2 j t], from 1
    <root>/splits/<class>_test_split<number>.txt                  "<clip>.avi 1": train, 2: test

Shape key: t frames, j joints, 2 = (x, y).
"""

import os
from pathlib import Path

import numpy as np

from invnext_jax import regular_file
from invnext_jax.errors import UserError
from invnext_jax.evaluation.truth import images, matlab_file
from invnext_jax.evaluation.truth.truth import BadTruth

MEMBERS = {"train": "1", "val": "2"}
ENDING = "_test_split"
JOINTS = 15
MAX_BYTES = 2**24  # maximum size of a file of joints; a typical file has about 10 kB


class JhmdbJoints:
    """Whole clips with joints; see `truth.Truth`.

    Attributes:
      name: "JHMDB".
      clips: Class and name of each clip.
      videos: Index of the clip of each row, int32, which is the row itself.
    """

    name = "JHMDB"

    def __init__(
        self,
        root: str | os.PathLike,
        split: str = "val",
        *,
        size: int | None = None,
        number: int = 1,
    ):
        """Reads the lists of a split.

        Args:
          root: Folder with `Rename_Images`, `joint_positions` and `splits`.
          split: "train" or "val", which is the test part of the split.
          size: Height and width of the clips in pixels, which are center crops. None: images are
              not cropped.
          number: Number of the split, 1 to 3.

        Raises:
          UserError: `split` is unknown, or the layout is wrong.
        """
        if split not in MEMBERS:
            raise UserError(f"split={split!r} must be one of {tuple(MEMBERS)}")
        root, self._size = Path(root), size
        self.clips: list[tuple[str, str]] = []
        for path in sorted((root / "splits").glob(f"*{ENDING}{number}.txt")):
            action = path.stem.rpartition(ENDING)[0]
            for line in images.read_lines(path):
                name, _, member = line.strip().partition(" ")
                if member.strip() == MEMBERS[split]:
                    stem = Path(name).stem
                    if not all(map(images.is_folder_name, (name, stem, action))):
                        raise UserError(
                            f"{path} has the clip {name[:80]!r}, which is not a file name: correct "
                            "the list"
                        )
                    self.clips.append((action, stem))
        images.check_unique(["/".join(clip) for clip in self.clips], root / "splits")
        if not self.clips:
            raise UserError(
                f"{root / 'splits'} has no list *{ENDING}{number}.txt with clips of {split}: "
                "extract the splits of JHMDB there"
            )
        for part in ("Rename_Images", "joint_positions"):
            if not os.path.isdir(root / part):
                raise UserError(f"{root / part} does not exist: extract this part of JHMDB")
        self._root = root
        self.videos = np.arange(len(self.clips), dtype=np.int32)
        self.video_names = ["/".join(clip) for clip in self.clips]

    def __len__(self) -> int:
        """Returns the number of clips."""
        return len(self.clips)

    def load(self, row: int) -> dict[str, np.ndarray]:
        """Reads `video`, `joints` and `visible` of a clip; see `truth.Truth.load`.

        Joints are in pixels of the returned frames. Joints outside the frames are not visible.
        """
        action, name = self.clips[row]
        try:
            image_paths = images.list_frames(self._root / "Rename_Images" / action / name)
        except UserError as error:
            raise BadTruth(str(error), "missing") from error
        path = self._root / "joint_positions" / action / name / "joint_positions.mat"
        joints_tj2 = _read_joints(path)
        frames = min(len(image_paths), len(joints_tj2))
        if not frames:
            raise BadTruth(f"{path}: pos_img has no frames", "no truth")
        video_thwc, geometry = images.read_clip(list(image_paths.values())[:frames], self._size)
        with images.open_image(next(iter(image_paths.values()))) as image:
            width, height = image.size
        # The center of the first pixel is 1 in the file and 0.5 pixels in the clip's fractions.
        shares_tj2 = geometry.crop_points((joints_tj2[:frames] - 0.5) / (width, height))
        inside_tj = ((shares_tj2 >= 0) & (shares_tj2 < 1)).all(axis=-1)
        pixels_tj2 = shares_tj2 * (geometry.width, geometry.height) - 0.5
        return {
            "video": video_thwc,
            "joints": np.nan_to_num(pixels_tj2).astype(np.float32),
            "visible": inside_tj,
        }


def _read_joints(path: Path) -> np.ndarray:
    """Returns the array `pos_img` of a file as float64 [t j 2]."""
    try:
        data = regular_file.read_bytes(path, MAX_BYTES)
        positions_2jt = matlab_file.read_array(data, "pos_img").astype(np.float64)
    except FileNotFoundError as error:
        raise BadTruth(f"{path} is missing", "missing") from error
    except (OSError, ValueError) as error:
        raise BadTruth(f"{path} cannot be read ({error})", "truncated") from error
    if positions_2jt.ndim != 3 or positions_2jt.shape[:2] != (2, JOINTS):
        raise BadTruth(
            f"{path}: pos_img has the shape {positions_2jt.shape}, not [2, {JOINTS}, frames]",
            "wrong format",
        )
    return np.transpose(positions_2jt, (2, 1, 0))
