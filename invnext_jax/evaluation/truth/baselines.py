"""Reference values that need no encoder: chance levels and constant predictions.

The result of an encoder is compared with these lower bounds.

Shape key: b videos, t frames, k objects, c classes, h w pixels, n points.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from invnext_jax.evaluation.metrics.depth import DepthRange


def majority_accuracy(train_labels_b: np.ndarray, labels_b: np.ndarray) -> float:
    """Computes the accuracy of always predicting the most frequent training class.

    Args:
      train_labels_b: Class ids of the training videos, int.
      labels_b: Class ids of the held-out videos, int.
    """
    classes_c, count_c = np.unique(train_labels_b, return_counts=True)
    return float(np.mean(labels_b == classes_c[count_c.argmax()]))


def chance_recall(labels_b: np.ndarray, k: int = 5) -> float:
    """Computes the expected class-mean top-k recall of random scores: k / number of classes."""
    return min(1.0, k / len(np.unique(labels_b)))


def prior_scores(train_labels_b: np.ndarray, classes: int, videos: int) -> np.ndarray:
    """Returns the class frequencies of the training videos as scores of each held-out video.

    They are the best predictions that do not depend on the video.

    Args:
      train_labels_b: Class ids of the training videos, int. Ids that are not classes are ignored.
      classes: Number of classes c.
      videos: Number of held-out videos b.

    Returns:
      float64 [b c].
    """
    known_b = train_labels_b[(train_labels_b >= 0) & (train_labels_b < classes)]
    share_c = np.bincount(known_b, minlength=classes) / max(1, len(known_b))
    return np.tile(share_c, (videos, 1))


class MeanDepth:
    """Running mean of the ground-truth depth in meters, for constant predictions.

    Args:
      limits: Range of valid depths.
    """

    def __init__(self, limits: DepthRange):
        self._limits = limits
        self._sum_hw, self._count_hw = None, None

    def add(self, depth_thw: np.ndarray) -> None:
        """Adds the depth of a training clip in meters; all clips have the same height and width."""
        valid_thw = self._limits.valid(depth_thw)
        sums = np.where(valid_thw, depth_thw, 0).sum(axis=0, dtype=np.float64)
        counts = valid_thw.sum(axis=0)
        if self._sum_hw is None:
            self._sum_hw, self._count_hw = np.zeros_like(sums), np.zeros_like(counts)
        self._sum_hw += sums
        self._count_hw += counts

    @classmethod
    def of_clips(cls, clips: Iterable[np.ndarray], limits: DepthRange) -> "MeanDepth":
        """Computes the mean of clips [t h w] in meters."""
        mean = cls(limits)
        for depth_thw in clips:
            mean.add(depth_thw)
        return mean

    @property
    def constant(self) -> float:
        """Mean of all valid pixels in meters."""
        return float(self._sum_hw.sum() / max(1, self._count_hw.sum()))

    def predict_constant(self, shape_thw: tuple[int, int, int]) -> np.ndarray:
        """Predicts the mean of all valid pixels for each pixel, float64 [t h w]."""
        return np.full(shape_thw, self.constant)

    def predict_mean_image(self, frames: int) -> np.ndarray:
        """Predicts the temporal mean of each pixel for all frames, float64 [t h w].

        Pixels that were never valid get the mean of all valid pixels.
        """
        mean_hw = self._sum_hw / np.maximum(self._count_hw, 1)
        mean_hw = np.where(self._count_hw > 0, mean_hw, self.constant)
        return np.broadcast_to(mean_hw, (frames, *mean_hw.shape))


def static_boxes(boxes_tk4: np.ndarray) -> np.ndarray:
    """Predicts that all boxes stay where they are in frame 0, [t k 4]."""
    return np.broadcast_to(boxes_tk4[:1], boxes_tk4.shape)


def static_points(points_nt2: np.ndarray, query_frame_n: np.ndarray) -> np.ndarray:
    """Predicts that all points stay where they are in their query frame, [n t 2]."""
    start_n2 = points_nt2[np.arange(len(points_nt2)), query_frame_n]
    return np.broadcast_to(start_n2[:, None], points_nt2.shape)


def static_masks(ids_thw: np.ndarray) -> np.ndarray:
    """Predicts that the object ids of frame 0 do not change, [t h w]."""
    return np.broadcast_to(ids_thw[:1], ids_thw.shape)


def chance_choice(count_b: Sequence[int]) -> float:
    """Computes the expected accuracy of random answers to questions with `count_b` candidates."""
    return float(np.mean(1 / np.asarray(count_b)))
