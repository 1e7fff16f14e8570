"""Reads batches of a training pipeline and compares them."""

import numpy as np

from invnext_jax.data import pipeline


def next_batches(config, count, *, state=None, **fields):
    """Returns the next `count` batches and the iterator's state after them.

    `fields` are arguments of `make_train_dataset`; `batch_size` is 5 by default.
    """
    fields = {"seed": 0, "batch_size": 5, **fields}
    iterator = iter(pipeline.make_train_dataset(config, **fields))
    try:
        if state is not None:
            iterator.set_state(state)
        return [next(iterator) for _ in range(count)], iterator.get_state()
    finally:
        iterator.close()


def row_order(batches):
    """Returns the manifest rows of all clips in order."""
    return np.concatenate([batch["index"] for batch in batches]).tolist()


def assert_equal(actual, expected):
    """Checks that two sequences contain the same batches."""
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
