"""Takes batches of a training pipeline and compares them."""

import numpy as np

from invnext_jax.data import pipeline


def take(config, count, *, state=None, **fields):
    """The next `count` batches and the iterator's state after them.

    `fields` go to `make_train_dataset`; batches have five clips if not told otherwise.
    """
    fields = {"seed": 0, "batch_size": 5, **fields}
    iterator = iter(pipeline.make_train_dataset(config, **fields))
    try:
        if state is not None:
            iterator.set_state(state)
        return [next(iterator) for _ in range(count)], iterator.get_state()
    finally:
        iterator.close()


def assert_equal(ours, theirs):
    """Checks that two sequences hold the same batches."""
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
