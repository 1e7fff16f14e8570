"""A buffer in which several threads assemble batches without copying each batch."""

import math
import threading
import weakref

import numpy as np


class RecycledMemory:
    """Allocates arrays, reusing the memory of arrays that are no longer referenced.

    The operating system zeroes new memory, which takes longer than copying a clip into it.
    """

    def __init__(self):
        self._free: dict[int, list[bytearray]] = {}

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        """Returns an uninitialized array.

        Its memory is reused after the array and its views are deleted.
        """
        size = math.prod(shape) * np.dtype(dtype).itemsize
        free = self._free.setdefault(size, [])
        try:
            block = free.pop()
        except IndexError:
            block = bytearray(size)
        # If the base were an array, views would refer to the base and would not keep this array
        # alive.
        array = np.ndarray(shape, dtype, block)
        weakref.finalize(array, free.append, block).atexit = False
        return array


class BatchBuffer:
    """Buffer of incomplete batches, which several threads fill.

    Clips are copied directly from the workers' memory to their position in the batch. An additional
    copy to assemble the batch would take up to a tenth of the decoding time.

    Args:
        batch_size: Number of clips per batch.
    """

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self._lock, self._memory = threading.Lock(), RecycledMemory()
        self._pending: dict[int, dict[str, np.ndarray]] = {}
        self._missing: dict[int, int] = {}  # number of missing clips in each incomplete batch

    def write(self, number: int, start: int, clips: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Copies clips, given as arrays [r ...], into batch `number`, starting at position `start`.

        Returns:
            The batch. Other threads may still be writing to it. The buffer forgets a batch once it
            is complete.
        """
        with self._lock:
            if number not in self._pending:
                self._pending[number] = {
                    name: self._memory.empty((self._batch_size, *value.shape[1:]), value.dtype)
                    for name, value in clips.items()
                }
                self._missing[number] = self._batch_size
            batch = self._pending[number]
        for name, value in clips.items():
            batch[name][start : start + len(value)] = value
        with self._lock:
            self._missing[number] -= len(clips["index"])
            if not self._missing[number]:
                del self._pending[number], self._missing[number]
        return batch
