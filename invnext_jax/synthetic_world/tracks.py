"""Tracks of points on the objects of a clip.

Shape key: n points, t frames, k objects, h w pixels, 2 = (x, y).
"""

from typing import NamedTuple

import numpy as np

from invnext_jax.synthetic_world.scene import Scene, clip_rng, sample_scene
from invnext_jax.synthetic_world.spec import WorldSpec


class PointTracks(NamedTuple):
    """Tracks of points that are visible in the start frame.

    Attributes:
      points_nt2: Positions as fractions of the frame, float32 in [0, 1). A point that leaves the
          frame enters it again on the opposite side, like its object.
      occluded_nt: Whether the point is hidden by another object or its object does not exist in
          the frame, bool.
    """

    points_nt2: np.ndarray
    occluded_nt: np.ndarray


def sample_points(
    spec: WorldSpec, index: int, ids_thw: np.ndarray, count: int, start: int = 0
) -> PointTracks:
    """Samples points on the objects that are visible in the frame `start`, and follows them.

    Args:
      spec: Parameters of the world.
      index: Index of the clip.
      ids_thw: Object ids of the clip, see `render.Clip`.
      count: Number of points. Points may coincide if few pixels show an object.
      start: Frame in which all points are visible.

    Raises:
      ValueError: No object is visible in the frame `start`.
    """
    scene, rng = sample_scene(spec, index), clip_rng(spec, index, 2)
    rows, columns = np.nonzero(ids_thw[start])
    if not len(rows):
        raise ValueError(f"no object is visible in frame {start} of clip {index}")
    chosen_n = rng.choice(len(rows), count, replace=len(rows) < count)
    start_n2 = np.stack([columns[chosen_n], rows[chosen_n]], axis=1) + 0.5
    object_n = ids_thw[start][rows[chosen_n], columns[chosen_n]].astype(int) - 1
    points_nt2 = follow(scene, spec.size, object_n, start_n2, start)
    pixel_nt2 = points_nt2.astype(int) % spec.size
    shown_nt = ids_thw[np.arange(spec.frames)[None], pixel_nt2[..., 1], pixel_nt2[..., 0]]
    return PointTracks(
        (points_nt2 / spec.size).astype(np.float32), shown_nt != object_n[:, None] + 1
    )


def follow(
    scene: Scene, size: int, object_n: np.ndarray, start_n2: np.ndarray, start: int = 0
) -> np.ndarray:
    """Moves points with their objects.

    Args:
      scene: The scene.
      size: Side of a frame in pixels.
      object_n: Index of the object of each point, int.
      start_n2: Position of each point in the frame `start` in pixels.
      start: Index of the start frame.

    Returns:
      Positions in pixels, float64 [n t 2], in [0, size).
    """
    center_nt2 = scene.center_tk2[:, object_n].swapaxes(0, 1).astype(np.float64)
    half_nt2 = scene.half_tk2[:, object_n].swapaxes(0, 1).astype(np.float64)
    angle_nt = scene.angle_tk[:, object_n].T.astype(np.float64)
    offset_n2 = (start_n2 - center_nt2[:, start] + size / 2) % size - size / 2
    turn_nt = angle_nt - angle_nt[:, start : start + 1]
    x_n1, y_n1 = np.split(offset_n2 / half_nt2[:, start], 2, axis=1)
    turned_nt2 = np.stack(
        [
            np.cos(turn_nt) * x_n1 - np.sin(turn_nt) * y_n1,
            np.sin(turn_nt) * x_n1 + np.cos(turn_nt) * y_n1,
        ],
        axis=-1,
    )
    return (center_nt2 + turned_nt2 * half_nt2) % size
