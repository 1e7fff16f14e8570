"""Images of handwritten digits from scikit-learn's data set."""

import functools

import numpy as np

# Rows of scikit-learn's digits data set, which is ordered by writer. The splits do not overlap.
DIGIT_ROWS = {"train": (0, 1300), "val": (1300, 1548), "test": (1548, 1797)}


@functools.cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn import datasets  # slow to import (1 s); only the full level needs it

    digits = datasets.load_digits()
    return digits.images.astype(np.float32) / 16, digits.target


@functools.cache
def digit_rows(split: str, digit: int) -> np.ndarray:
    """Returns the rows of the images of a digit that belong to a split, int64."""
    start, stop = DIGIT_ROWS[split]
    return start + np.flatnonzero(_digits()[1][start:stop] == digit)


@functools.cache
def digit_image(row: int) -> np.ndarray:
    """Returns a handwritten digit, cropped to its strokes: float32 in [0, 1], at most 8 x 8."""
    image_hw = _digits()[0][row]
    ys, xs = np.nonzero(image_hw > 0.2)
    return image_hw[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
