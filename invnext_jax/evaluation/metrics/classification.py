"""Classification metrics: top-k accuracy and class-mean recall.

Shape key: b videos, c classes.
"""

from typing import NamedTuple

import numpy as np


class ClassMeanRecall(NamedTuple):
    """Class-mean recall and the values from which it is computed.

    Attributes:
      value: Mean of the recalls of the classes, in [0, 1]; NaN if no video was kept.
      correct_b: Whether each video counts as correct, bool; False for dropped videos.
      kept_b: Whether each video was evaluated, bool.
      classes_c: Ids of the evaluated classes in ascending order, int.
      recall_c: Recall of each evaluated class, float64 in [0, 1].
    """

    value: float
    correct_b: np.ndarray
    kept_b: np.ndarray
    classes_c: np.ndarray
    recall_c: np.ndarray


def is_in_top(scores_bc: np.ndarray, labels_b: np.ndarray, k: int = 1) -> np.ndarray:
    """Returns whether the label is among the `k` classes with the highest scores, bool [b].

    Ties are resolved in favor of the lower class id, as with `np.argmax`. Labels that are not
    columns of the scores, and labels whose score is NaN, are never among the top classes.

    Args:
      scores_bc: Score of each class, float.
      labels_b: Class ids, int.
      k: Number of classes that count as predicted.
    """
    scores_bc = np.where(np.isnan(scores_bc), -np.inf, scores_bc)
    labels_b = np.asarray(labels_b)
    known_b = (labels_b >= 0) & (labels_b < scores_bc.shape[1])
    label_b1 = np.where(known_b, labels_b, 0)[:, None]
    own_b1 = np.take_along_axis(scores_bc, label_b1, axis=1)
    before_bc = np.arange(scores_bc.shape[1])[None] < label_b1
    ahead_b = ((scores_bc > own_b1) | ((scores_bc == own_b1) & before_bc)).sum(axis=1)
    return known_b & (ahead_b < k) & (own_b1[:, 0] > -np.inf)


def class_recalls(
    correct_b: np.ndarray, labels_b: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Computes the recall of each class that occurs in `labels_b`.

    Args:
      correct_b: Whether each video was classified correctly, bool.
      labels_b: Class ids, int.

    Returns:
      The classes in ascending order, their recalls in [0, 1], and their numbers of videos, each
      [c].
    """
    classes_c, class_b = np.unique(labels_b, return_inverse=True)
    count_c = np.bincount(class_b, minlength=len(classes_c))
    right_c = np.bincount(class_b, weights=np.asarray(correct_b, float), minlength=len(classes_c))
    return classes_c, right_c / np.maximum(count_c, 1), count_c


def class_mean_recall(
    scores_bc: np.ndarray,
    labels_b: np.ndarray,
    *,
    k: int = 5,
    train_classes: np.ndarray | None = None,
) -> ClassMeanRecall:
    """Computes the class-mean top-k recall as defined by EPIC-KITCHENS-100 anticipation.

    Only the classes that occur in `labels_b` are scored. Videos of classes without training videos
    are dropped.

    Args:
      scores_bc: Score of each class, float.
      labels_b: Class ids of the held-out videos, int. Videos with a negative id are dropped.
      k: Number of classes that count as predicted.
      train_classes: Class ids of the training videos; None keeps all classes.
    """
    labels_b = np.asarray(labels_b)
    kept_b = (labels_b >= 0) & (labels_b < scores_bc.shape[1])
    if train_classes is not None:
        kept_b &= np.isin(labels_b, train_classes)
    correct_b = np.zeros(len(labels_b), bool)
    if not kept_b.any():
        empty = np.zeros(0)
        return ClassMeanRecall(np.nan, correct_b, kept_b, empty.astype(int), empty)
    classes_c, column_b = np.unique(labels_b[kept_b], return_inverse=True)
    correct_b[kept_b] = is_in_top(scores_bc[kept_b][:, classes_c], column_b, k)
    _, recall_c, _ = class_recalls(correct_b[kept_b], labels_b[kept_b])
    return ClassMeanRecall(float(recall_c.mean()), correct_b, kept_b, classes_c, recall_c)
