"""Standard errors and confidence intervals over videos.

Videos are the independent units of an evaluation: all frames, objects and captions of a video are
resampled together. All random numbers depend only on `seed`.

Shape key: b videos, n windows, r bootstrap replicates, c classes.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import special

REPLICATES = 2000
LEVEL = 0.95
CHUNK = 2**24  # number of resampled values that are held in memory at once
CLASS_CHUNK = 2**20  # the same for the means over classes, which need more memory


class Interval(NamedTuple):
    """A value with its bootstrap standard error and percentile interval.

    Attributes:
      value: The statistic of all videos.
      standard_error: Standard deviation of the replicates.
      low: Lower end of the interval.
      high: Upper end of the interval.
      n: Number of videos.
    """

    value: float
    standard_error: float
    low: float
    high: float
    n: int

    @property
    def excludes_zero(self) -> bool:
        """Whether zero is outside the interval, for intervals of a difference."""
        return self.low > 0 or self.high < 0


def binomial_standard_error(share: float, count: int) -> float:
    """Computes the binomial standard error of a fraction of `count` trials: sqrt(p (1 - p) / n)."""
    return float(np.sqrt(share * (1.0 - share) / count))


def mean_standard_error(scores_b: np.ndarray) -> float:
    """Computes the standard error of the mean of independent scores; NaN for fewer than two."""
    scores_b = np.asarray(scores_b, np.float64)
    return float(scores_b.std(ddof=1) / np.sqrt(len(scores_b))) if len(scores_b) > 1 else np.nan


def average_by_video(
    scores_n: np.ndarray, videos_n: np.ndarray, weights_n: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Averages the scores of the windows of each video, which are not independent.

    Args:
      scores_n: Score of each window; NaN for windows without a score.
      videos_n: Index of the video of each window, int.
      weights_n: Non-negative weight of each window; None gives equal weights.

    Returns:
      The video indices in ascending order, their scores and their total weights, each [b]. With
      these weights, the mean over videos equals the mean over windows. Videos without a score are
      omitted.
    """
    weights_n = np.ones(len(scores_n)) if weights_n is None else np.asarray(weights_n, np.float64)
    used_n = ~np.isnan(scores_n) & (weights_n > 0)
    videos_b, row_n = np.unique(np.asarray(videos_n)[used_n], return_inverse=True)
    total_b = np.bincount(row_n, weights_n[used_n], minlength=len(videos_b))
    sums_b = np.bincount(row_n, (scores_n * weights_n)[used_n], minlength=len(videos_b))
    return videos_b, sums_b / total_b, total_b


def bootstrap_mean(
    scores_b: np.ndarray,
    weights_b: np.ndarray | None = None,
    *,
    replicates: int = REPLICATES,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval:
    """Bootstraps a (weighted) mean over videos.

    Args:
      scores_b: Score of each video.
      weights_b: Non-negative weight of each video, such as its number of boxes. The statistic is
          sum(weights * scores) / sum(weights). None gives equal weights.
      replicates: Number of resamples.
      level: Coverage of the interval.
      seed: Seed of the resampling.

    Raises:
      ValueError: There is no video, or no weight is positive.
    """
    weights_b = np.ones(len(scores_b)) if weights_b is None else weights_b
    if not np.sum(weights_b) > 0:
        raise ValueError("a mean needs at least one video with a positive weight")
    statistic = _weighted_mean(scores_b, weights_b)
    return _bootstrap_rows(statistic, len(scores_b), replicates, level, seed)


def bootstrap(
    statistic: Callable[[np.ndarray], float],
    n: int,
    *,
    replicates: int = REPLICATES,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval:
    """Bootstraps any statistic over videos.

    Args:
      statistic: Function from row numbers [b] of the resampled videos to a number.
      n: Number of videos, at least 1.
      replicates: Number of resamples.
      level: Coverage of the interval.
      seed: Seed of the resampling.
    """

    def of_rows(rows_rb: np.ndarray) -> np.ndarray:
        return np.array([statistic(rows_b) for rows_b in rows_rb])

    return _bootstrap_rows(of_rows, n, replicates, level, seed)


def paired_difference(
    scores: tuple[np.ndarray, np.ndarray],
    rows: tuple[np.ndarray, np.ndarray],
    weights: tuple[np.ndarray, np.ndarray] | None = None,
    *,
    classes: tuple[np.ndarray, np.ndarray] | None = None,
    replicates: int = REPLICATES,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval:
    """Bootstraps the difference of the means of two evaluations of the same videos.

    Both evaluations are resampled with the same videos, so that the difficulty of the videos
    cancels. Videos that only one evaluation has are ignored.

    Args:
      scores: Scores [b] of the first and of the second evaluation.
      rows: Row number in the manifest of each score; unique in each evaluation.
      weights: Weights [b] of each evaluation, as in `bootstrap_mean`.
      classes: Classes [b] of each evaluation, int. If given, the statistic is the mean over the
          classes that occur in a replicate of the mean score of the class, and `weights` is unused.
      replicates: Number of resamples.
      level: Coverage of the interval.
      seed: Seed of the resampling.

    Returns:
      Interval of mean(second) - mean(first).

    Raises:
      ValueError: The evaluations have no video in common.
    """
    common, *places = np.intersect1d(*rows, assume_unique=True, return_indices=True)
    if not len(common):
        raise ValueError("the two evaluations have no video in common")
    if classes is not None:
        make_mean, others = _class_mean, classes
    else:
        make_mean = _weighted_mean
        others = weights or tuple(np.ones(len(part)) for part in scores)
    first, second = (
        make_mean(np.asarray(score_b)[place_b], np.asarray(other_b)[place_b])
        for score_b, other_b, place_b in zip(scores, others, places, strict=True)
    )

    def statistic(rows_rb: np.ndarray) -> np.ndarray:
        return second(rows_rb) - first(rows_rb)

    return _bootstrap_rows(statistic, len(common), replicates, level, seed)


def _weighted_mean(scores_b: np.ndarray, weights_b: np.ndarray) -> Callable:
    """Returns the function from row numbers [r b] to the weighted means [r] of these rows."""
    weights_b = np.asarray(weights_b, np.float64)
    sums_b = np.asarray(scores_b, np.float64) * weights_b
    sums_b = np.where(weights_b > 0, sums_b, 0.0)  # scores of weight 0 may be NaN

    def mean(rows_rb: np.ndarray) -> np.ndarray:
        total_r = weights_b[rows_rb].sum(axis=1)
        # If a resample contains only videos of weight 0, its mean is NaN.
        return sums_b[rows_rb].sum(axis=1) / np.where(total_r > 0, total_r, np.nan)

    return mean


def _class_mean(scores_b: np.ndarray, classes_b: np.ndarray) -> Callable:
    """Returns the function from row numbers [r b] to the class means [r] of these rows."""
    found_c, class_b = np.unique(classes_b, return_inverse=True)
    scores_b = np.asarray(scores_b, np.float64)
    classes = len(found_c)

    def average(rows_rb: np.ndarray) -> np.ndarray:
        replicates = len(rows_rb)
        cells = (class_b[rows_rb] + classes * np.arange(replicates)[:, None]).ravel()
        count_rc, sum_rc = (
            np.bincount(cells, weights, replicates * classes).reshape(replicates, classes)
            for weights in (None, scores_b[rows_rb].ravel())
        )
        return (sum_rc / np.maximum(count_rc, 1)).sum(axis=1) / (count_rc > 0).sum(axis=1)

    def mean(rows_rb: np.ndarray) -> np.ndarray:
        step = max(1, CLASS_CHUNK // len(scores_b))
        parts = [average(rows_rb[n : n + step]) for n in range(0, len(rows_rb), step)]
        return np.concatenate(parts)

    return mean


def _bootstrap_rows(
    statistic: Callable[[np.ndarray], np.ndarray], n: int, replicates: int, level: float, seed: int
) -> Interval:
    """Bootstraps a statistic of row numbers [r b]; replicates that are NaN are ignored."""
    rng = np.random.default_rng(seed)
    value = float(statistic(np.arange(n)[None])[0])
    step = max(1, CHUNK // n)
    parts = []
    for start in range(0, replicates, step):
        count = min(step, replicates - start)
        parts.append(statistic(rng.integers(n, size=(count, n))))
    found_r = np.concatenate(parts)
    found_r = found_r[~np.isnan(found_r)]
    if not len(found_r):
        return Interval(value, np.nan, np.nan, np.nan, n)
    tail = _expanded_tail((1 - level) / 2, n)
    low, high = np.quantile(found_r, [tail, 1 - tail])
    return Interval(value, float(found_r.std()), float(low), float(high), n)


def _expanded_tail(tail: float, n: int) -> float:
    """Returns the quantile of the replicates at which an interval over `n` videos ends.

    The spread of the replicates is too small by sqrt((n - 1) / n), and a normal distribution is
    assumed where Student's t has longer tails. For few videos, percentile intervals would
    therefore be too short. The expanded percentiles correct both (Hesterberg, arXiv 1411.5279).
    They approach `tail` for many videos.
    """
    if n < 2:
        return tail
    return float(special.ndtr(special.stdtrit(n - 1, tail) * np.sqrt(n / (n - 1))))
