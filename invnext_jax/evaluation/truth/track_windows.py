"""Selects windows of tracked boxes by the rules for object tracking on Waymo Open.

Source: InternVideo-Next, appendix A.4, and Scaling 4D Representations.

Shape key: n boxes, t frames, k objects, 4 = (x0, y0, x1, y1).
"""

import dataclasses

import numpy as np

from invnext_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class WindowRules:
    """Rules that select the windows of a video for the evaluation.

    Attributes:
      frames: Number of frames of a window.
      fps: Frame rate of the windows, to which the video is subsampled. None keeps all frames.
      stride: Minimum distance between the starts of two windows, in subsampled frames.
      min_area: Minimum fraction of the clip that a box covers; smaller boxes are dropped.
      max_objects: Maximum number of objects in the first frame, and the size k of the arrays.
      min_presence: Minimum fraction of the frames in which each object of the first frame has a
          box.
      min_together: Minimum number of frames in which all objects of the first frame have a box.
      max_gap: Maximum number of consecutive frames without a box of an object.

    Raises:
      UserError: A rule cannot be satisfied.
    """

    frames: int = 16
    fps: float | None = 5.0
    stride: int = 3
    min_area: float = 0.005
    max_objects: int = 25
    min_presence: float = 0.7
    min_together: int = 10
    max_gap: int = 5

    def __post_init__(self):
        if self.frames < 2 or self.stride < 1 or self.max_objects < 1:
            raise UserError(
                f"frames={self.frames}, stride={self.stride}, max_objects={self.max_objects}: "
                "windows of boxes need frames >= 2, stride >= 1 and max_objects >= 1"
            )
        if self.min_together > self.frames:
            raise UserError(
                f"min_together={self.min_together} must not exceed frames={self.frames}"
            )

    def describe(self) -> str:
        """Returns the rules in words, for messages."""
        rate = f" at {self.fps:g} frames per second" if self.fps else ""
        return (
            f"{self.frames} frames{rate}, 1 to {self.max_objects} objects in the first frame, each "
            f"with at least {self.min_area:.1%} of the area of the clip and a box in at least "
            f"{self.min_presence:.0%} of the frames"
        )

    def step(self, video_fps: float) -> int:
        """Returns the step between frames of a window in frames of the video, at least 1."""
        return max(1, round(video_fps / self.fps)) if self.fps else 1

    def keeps(self, present_tk: np.ndarray) -> bool:
        """Returns whether a window satisfies the rules.

        Args:
          present_tk: Whether each object has a box in each frame, bool.
        """
        tracked_tk = present_tk[:, present_tk[0]]
        if not 1 <= tracked_tk.shape[1] <= self.max_objects:
            return False
        if (tracked_tk.mean(axis=0) < self.min_presence).any():
            return False
        if tracked_tk.all(axis=1).sum() < self.min_together:
            return False
        return all(longest_gap(present_t) <= self.max_gap for present_t in tracked_tk.T)


def longest_gap(present_t: np.ndarray) -> int:
    """Returns the largest number of consecutive frames without a box."""
    edges = np.flatnonzero(np.concatenate([[True], present_t, [True]]))
    return int(np.diff(edges).max()) - 1


def select_windows(
    frame_n: np.ndarray,
    object_n: np.ndarray,
    frame_count: int,
    rules: WindowRules,
    video_fps: float,
) -> list[range]:
    """Selects the windows of a video that satisfy the rules, in temporal order.

    The start moves by one subsampled frame after a window that is not selected, and by
    `rules.stride` after one that is.

    Args:
      frame_n: Frame of each box of the video in ascending order, int.
      object_n: Object of each box, int.
      frame_count: Number of frames of the video.
      rules: The rules.
      video_fps: Frame rate of the video.

    Returns:
      The indices of the video's frames in each window.
    """
    step, windows, next_start = min(rules.step(video_fps), max(1, frame_count)), [], 0
    # The video is subsampled first, so that windows start at multiples of the step.
    sampled_n = frame_n % step == 0
    frame_n, object_n = frame_n[sampled_n] // step, object_n[sampled_n]
    last_start = -(-frame_count // step) - rules.frames
    # Only windows whose first frame has a box can satisfy the rules.
    for start in np.unique(frame_n).tolist():
        if not next_start <= start <= last_start:
            continue
        rows = slice(*np.searchsorted(frame_n, [start, start + rules.frames]))
        objects_k, index_n = np.unique(object_n[rows], return_inverse=True)
        present_tk = np.zeros((rules.frames, len(objects_k)), bool)
        present_tk[frame_n[rows] - start, index_n] = True
        if rules.keeps(present_tk):
            windows.append(range(step * start, step * (start + rules.frames), step))
            next_start = start + rules.stride
    return windows
