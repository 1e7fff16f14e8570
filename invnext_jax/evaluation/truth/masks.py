"""Object masks of DAVIS.

    <root>/JPEGImages/480p/<sequence>/<number>.jpg
    <root>/Annotations/480p/<sequence>/<number>.png      indexed colors are object ids
    <root>/ImageSets/2017/<split>.txt                    one sequence per line

Shape key: t frames, h w pixels.
"""

import os
from pathlib import Path

import numpy as np

from invnext_jax.errors import UserError
from invnext_jax.evaluation.truth import images
from invnext_jax.evaluation.truth.truth import BadTruth

MAX_OBJECTS = 64
VOID = 255  # id of pixels without annotation in some data sets with this layout


class DavisMasks:
    """Whole sequences with object ids; see `truth.Truth`.

    Attributes:
      name: "DAVIS".
      sequences: Names of the sequences.
      videos: Index of the sequence of each row, int32, which is the row itself.
    """

    name = "DAVIS"

    def __init__(
        self,
        root: str | os.PathLike,
        split: str = "val",
        *,
        size: int | None = None,
        year: str = "2017",
        resolution: str = "480p",
        max_frames: int | None = None,
    ):
        """Lists the frames of all sequences.

        Args:
          root: Folder with `JPEGImages`, `Annotations` and `ImageSets`.
          split: Name of the list, without ".txt".
          size: Height and width of the clips in pixels, which are center crops. None: images are
              not cropped.
          year: Folder of the list.
          resolution: Folder of the images and annotations.
          max_frames: Maximum number of frames of a sequence; None reads all.

        Raises:
          UserError: The layout is wrong.
        """
        root = Path(root)
        self.sequences = images.read_list(root / "ImageSets" / year / f"{split}.txt")
        self._size, self._image_paths, self._annotations = size, [], []
        for name in self.sequences:
            folder = root / "Annotations" / resolution / name
            if not os.path.isdir(folder):
                raise UserError(f"{folder} does not exist: extract the annotations of {split}.txt")
            image_paths = images.list_frames(root / "JPEGImages" / resolution / name)
            self._image_paths.append(dict(list(image_paths.items())[:max_frames]))
            self._annotations.append(folder)
        self.videos = np.arange(len(self.sequences), dtype=np.int32)
        self.video_names = self.sequences

    def __len__(self) -> int:
        """Returns the number of sequences."""
        return len(self.sequences)

    def load(self, row: int) -> dict[str, np.ndarray]:
        """Reads `video` and `ids` of a sequence; see `truth.Truth.load`.

        Sequences differ in their number of frames. Void pixels have the id 0.
        """
        image_paths, folder = self._image_paths[row], self._annotations[row]
        video_thwc, geometry = images.read_clip(list(image_paths.values()), self._size)
        frames, shape = [], None
        for path in image_paths.values():
            ids_hw = images.read_ids(folder / f"{path.stem}.png")
            shape = shape or ids_hw.shape
            if ids_hw.shape != shape:
                raise BadTruth(
                    f"{folder / path.stem}.png differs in size from the first annotation",
                    "wrong format",
                )
            # Cropped one by one, because annotations can have many more pixels than the images.
            frames.append(geometry.crop_image(ids_hw[None])[0])
        ids_thw = np.stack(frames)
        ids_thw = np.where(ids_thw == VOID, 0, ids_thw)
        objects = len(list_objects(ids_thw))
        if not objects:
            raise BadTruth(f"{folder} has no object in its first frame", "no truth")
        if objects > MAX_OBJECTS:  # such as a gray image, whose values are no ids
            raise BadTruth(
                f"{folder} has {objects} objects in its first frame, more than {MAX_OBJECTS}",
                "wrong format",
            )
        return {"video": video_thwc, "ids": ids_thw}


def list_objects(ids_thw: np.ndarray) -> list[int]:
    """Returns the ids of the objects that are given in frame 0, in ascending order."""
    return [int(number) for number in np.unique(ids_thw[0]) if number > 0]
