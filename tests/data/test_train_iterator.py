"""The state of the iterator, and the memory of batches."""

import functools
import re

import numpy as np
import pytest
from batches import assert_equal, next_batches
from fakes import FakeLoad

from invnext_jax.data import pipeline, train_iterator
from invnext_jax.errors import UserError

read_batches = functools.partial(next_batches, batch_size=6, load=FakeLoad())


@pytest.fixture
def config(list_config):
    return list_config


def join(*parts):
    """Concatenates the batches of several processes, as the mesh does."""
    return [
        {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
        for batches in zip(*parts, strict=True)
    ]


def test_a_run_resumes_with_other_numbers_of_workers_and_processes(config):
    load = FakeLoad(bad=(3, 8))
    full, end = read_batches(config, 8, load=load)
    first, state = read_batches(config, 2, load=load)  # within the first epoch
    config.workers = 2
    second, state = read_batches(config, 2, load=load, state=state)
    config.workers = 1
    third, state = read_batches(config, 1, load=load, state=state)
    config.workers = 0
    parts = [
        read_batches(
            config, 3, load=load, state=state, batch_size=6, positions=range(3 * i, 3 * i + 3)
        )
        for i in (0, 1)
    ]
    assert_equal(full, first + second + third + join(parts[0][0], parts[1][0]))
    assert parts[0][1] == parts[1][1] == end == {"clips": 48}


def test_the_state_of_two_processes_is_restored_by_three(config):
    full, _ = read_batches(config, 4)
    _, state = read_batches(config, 2, batch_size=6, positions=range(3, 6))
    parts = [
        read_batches(config, 2, state=state, batch_size=6, positions=(2 * i, 2 * i + 1))[0]
        for i in range(3)
    ]
    assert_equal(full[2:], join(*parts))


def test_the_state_of_another_pipeline_is_refused(config):
    for state, text in (
        ({"parent": {"next_index": 3}}, "another version"),
        ({"clips": 7}, "not a multiple of the batch size"),
    ):
        with pytest.raises(UserError, match=text):
            read_batches(config, 1, state=state)


def test_memory_is_recycled_after_the_last_reference():
    memory = train_iterator.RecycledMemory()
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


@pytest.mark.parametrize("workers", [0, 1])
def test_the_memory_of_the_workers_is_known_after_the_first_batch(workers, config):
    config.workers = workers
    iterator = iter(pipeline.make_train_dataset(config, seed=0, batch_size=6, load=FakeLoad()))
    next(iterator)
    text = iterator.describe_workers()
    iterator.close()
    pattern = r"data: 1 worker on \d+ cores, with at most [1-9]\d* MiB of memory each after .*"
    assert re.fullmatch(pattern if workers else "data: 4 threads of this process", text)
