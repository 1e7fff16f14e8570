"""Applies the crop and the size of an evaluation clip to boxes, points and label images.

Shape key: t frames, h w pixels, 2 = (x, y), 4 = (x0, y0, x1, y1).
"""

import dataclasses

import numpy as np

from invnext_jax.video import frame_converter
from invnext_jax.video.frame_converter import Window


@dataclasses.dataclass(frozen=True)
class ClipGeometry:
    """The window of an image that a clip shows, as fractions of the image's width and height.

    Attributes:
      left: Left edge of the window.
      top: Top edge.
      right: Right edge.
      bottom: Bottom edge.
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
        cls, window: Window, image_size: tuple[int, int], clip_size: tuple[int, int]
    ) -> "ClipGeometry":
        """Builds the geometry of a window in pixels.

        Args:
          window: Window in the image, in pixels.
          image_size: Height and width of the image in pixels.
          clip_size: Height and width of the clip in pixels.
        """
        height, width = image_size
        return cls(
            window.left / width, window.top / height, window.right / width, window.bottom / height,
            *clip_size,
        )  # fmt: skip

    @classmethod
    def center(cls, image_size: tuple[int, int], size: int | None) -> "ClipGeometry":
        """Builds the geometry of the centered square, or of the whole image if `size` is None.

        Args:
          image_size: Height and width of the image in pixels.
          size: Side of the clip in pixels.
        """
        if size is None:
            return cls(0.0, 0.0, 1.0, 1.0, *image_size)
        return cls.of_window(frame_converter.square_crop(*image_size), image_size, (size, size))

    def crop_points(self, points: np.ndarray) -> np.ndarray:
        """Converts points [... 2] from fractions of the image to fractions of the clip, float64."""
        low = np.array([self.left, self.top])
        return (np.asarray(points, np.float64) - low) / self._sides

    def crop_boxes(self, boxes: np.ndarray, min_area: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """Converts boxes from fractions of the image to fractions of the clip, and clips them.

        Args:
          boxes: Boxes [... 4] as fractions of the image.
          min_area: Minimum fraction of the clip that a box covers after clipping.

        Returns:
          float32 boxes [... 4] in [0, 1], zeros for boxes that are outside or too small; and
          whether each box remains, bool [...].
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
        """Samples label or depth images at the centers of the clip's pixels (nearest neighbor).

        Args:
          image_thw: Label or depth images of the complete frames, at any resolution.

        Returns:
          [t height width], in the dtype of `image_thw`.
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
    # Because of rounding errors, the center of a pixel may be slightly below its cell.
    return np.clip(np.floor(position_n + 1e-9), 0, source - 1).astype(np.int64)
