"""The memory of batches is reused."""

import numpy as np

from invnext_jax.data import batch_buffer


def test_memory_is_recycled_after_the_last_reference():
    memory = batch_buffer.RecycledMemory()
    first = memory.empty((4, 3), np.int32)
    first[:] = 7
    place, part = first.ctypes.data, first[1:][::2]
    other = memory.empty((4, 3), np.int32)
    del first
    assert memory.empty((4, 3), np.int32).ctypes.data not in (place, other.ctypes.data)
    np.testing.assert_array_equal(part, 7)
    del part
    again = memory.empty((2, 6), np.float32)  # the same number of bytes
    assert again.ctypes.data == place and again.shape == (2, 6) and again.dtype == np.float32
