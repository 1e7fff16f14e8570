"""Applies the crop and the size of an evaluation clip to boxes, points and label images.

Shape key: t frames, h w pixels, 2 = (x, y), 4 = (x0, y0, x1, y1).
"""

import dataclasses

import numpy as np

from invnext_jax.data import transforms
from invnext_jax.data.transforms import Window


@dataclasses.dataclass(frozen=True)
class ClipGeometry:
    """The window of a picture that a clip shows, as shares of the width and the height.

    Attributes:
        left: Left edge of the window.
        top: Upper edge.
        right: Right edge.
        bottom: Lower edge.
        height: Height of the clip in pixels.
        width: Width of the clip in pixels.
    """

    left: float
    top: float
    right: float
    bottom: float
    height: int
    width: int

    @classmethod
    def of_window(
        cls, window: Window, picture: tuple[int, int], clip: tuple[int, int]
    ) -> "ClipGeometry":
        """Builds the geometry of a window in pixels.

        Args:
            window: Window of the picture.
            picture: Height and width of the picture in pixels.
            clip: Height and width of the clip in pixels.
        """
        height, width = picture
        return cls(
            window.left / width, window.top / height, window.right / width, window.bottom / height,
            *clip,
        )  # fmt: skip

    @classmethod
    def center(cls, picture: tuple[int, int], size: int | None) -> "ClipGeometry":
        """Builds the geometry of the centered square, or of the whole picture if `size` is None.

        Args:
            picture: Height and width of the picture in pixels.
            size: Side of the clip in pixels.
        """
        if size is None:
            return cls(0.0, 0.0, 1.0, 1.0, *picture)
        return cls.of_window(transforms.square_crop(*picture), picture, (size, size))

    def crop_points(self, points: np.ndarray) -> np.ndarray:
        """Converts points [... 2] in shares of the picture to shares of the clip."""
        low = np.array([self.left, self.top])
        return (np.asarray(points, np.float64) - low) / self._sides

    def crop_boxes(self, boxes: np.ndarray, min_area: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """Converts boxes in shares of the picture to shares of the clip, and clips them to it.

        Args:
            boxes: Boxes [... 4] in [0, 1] of the picture.
            min_area: Minimum share of the clip that a box covers after clipping.

        Returns:
            float32 boxes [... 4] in [0, 1], zeros for boxes that are outside or too small; and
            which boxes remain, bool [...].
        """
        low = np.array([self.left, self.top, self.left, self.top])
        scaled = (np.asarray(boxes, np.float64) - low) / np.tile(self._sides, 2)
        with np.errstate(invalid="ignore"):
            clipped = np.clip(scaled, 0, 1)
            sides = np.maximum(clipped[..., 2:] - clipped[..., :2], 0)
            area = sides[..., 0] * sides[..., 1]
            kept = (area > 0) & (area >= min_area)
        return np.where(kept[..., None], clipped, 0).astype(np.float32), kept

    def crop_image(self, image_thw: np.ndarray) -> np.ndarray:
        """Samples a label or depth image at the centers of the clip's pixels, nearest neighbor.

        Args:
            image_thw: Images of the whole picture, at any resolution.
        """
        height, width = image_thw.shape[1:3]
        rows_h = _nearest(self.top, self.bottom, self.height, height)
        columns_w = _nearest(self.left, self.right, self.width, width)
        return image_thw[:, rows_h[:, None], columns_w[None, :]]

    @property
    def _sides(self) -> np.ndarray:
        return np.array([self.right - self.left, self.bottom - self.top])


def _nearest(low: float, high: float, count: int, source: int) -> np.ndarray:
    position_n = (low + (np.arange(count) + 0.5) / count * (high - low)) * source
    # Rounding may put the center of a pixel just below its own cell.
    return np.clip(np.floor(position_n + 1e-9), 0, source - 1).astype(np.int64)
