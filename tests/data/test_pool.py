import multiprocessing
import os

import numpy as np
import pytest
from stand_ins import Load, Unloadable, wait_and_tell

from invnext_jax.data import pool as pool_lib
from invnext_jax.data import workers
from invnext_jax.data.sources import VideoRecord


@pytest.mark.parametrize("kind", [workers.ThreadWorker, workers.ProcessWorker])
def test_results_come_in_order_and_not_too_far_ahead(kind):
    begun = []

    def work(number, call):
        begun.append(number)
        return call(number, 0.0 if number % 3 else 0.05)

    pool = pool_lib.OrderedPool(work, lambda: kind(wait_and_tell), workers=2, ahead=3, seconds=60)
    results = [pool.take() for _ in range(10)]
    pool.close()
    assert [result["number"] for result in results] == list(range(10))
    assert max(begun) <= 12
    inside = kind is workers.ThreadWorker
    assert ({result["process"] for result in results} == {os.getpid()}) == inside


def test_arrays_come_back_as_they_were():
    worker = workers.ProcessWorker(Load())
    record = VideoRecord(7, "7.mp4", "a", None, None, {})
    found = worker.call((record, ((1, 2), (3, 4))), 60)
    worker.end()
    expected = Load()(record, ((1, 2), (3, 4)))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)
        assert found[name].dtype == value.dtype
    assert found["video"].flags.writeable


def test_workers_that_do_not_start_end_the_run(capfd):
    pool = pool_lib.OrderedPool(
        lambda number, call: call(number),
        lambda: workers.ProcessWorker(Unloadable()),
        workers=1,
        ahead=1,
        seconds=60,
    )
    with pytest.raises(workers.WorkerStartError, match="main module must be importable"):
        pool.take()
    pool.close()


def test_closing_ends_what_is_under_way():
    pool = pool_lib.OrderedPool(
        lambda number, call: call(number, 30.0),
        lambda: workers.ProcessWorker(wait_and_tell),
        workers=2,
        ahead=4,
        seconds=60,
    )
    pool.close()
    pool.close()
    assert not multiprocessing.active_children()
    with pytest.raises(RuntimeError, match="closed"):
        pool.take()
