import mmap
import os
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest
from stand_ins import Load, Unloadable, children, tell_about_process, wait_and_tell

from invnext_jax.data import worker_main, workers
from invnext_jax.data import worker_pool as worker_pool_lib
from invnext_jax.data.manifest import VideoRecord


@pytest.mark.parametrize("kind", [workers.ThreadWorker, workers.ProcessWorker])
def test_results_come_in_order_and_not_too_far_ahead(kind):
    begun = []

    def work(number, call):
        begun.append(number)
        return call(number, 0.0 if number % 3 else 0.05)

    pool = worker_pool_lib.OrderedPool(
        work, lambda: kind(wait_and_tell), workers=2, ahead=3, seconds=60
    )
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
    pool = worker_pool_lib.OrderedPool(
        lambda number, call: call(number),
        lambda: workers.ProcessWorker(Unloadable()),
        workers=1,
        ahead=1,
        seconds=60,
    )
    with pytest.raises(workers.WorkerStartError, match="died at its start .exit code 1"):
        pool.take()
    pool.close()


def test_closing_ends_what_is_under_way():
    pool = worker_pool_lib.OrderedPool(
        lambda number, call: call(number, 30.0),
        lambda: workers.ProcessWorker(wait_and_tell),
        workers=2,
        ahead=4,
        seconds=60,
    )
    pool.close()
    pool.close()
    assert not children()
    with pytest.raises(RuntimeError, match="closed"):
        pool.take()


@pytest.mark.parametrize("module", ["data.clips", "dataset_prep.probing"])
def test_a_worker_holds_what_its_function_needs_and_nothing_else(module):
    worker = workers.ProcessWorker(tell_about_process)
    found = worker.call((f"invnext_jax.{module}",), 60)
    memory = worker.memory()
    worker.end()
    assert "av" in found["modules"] and "numpy" in found["modules"]
    heavy = {"jax", "jaxlib", "flax", "grain", "ml_collections", "pytest", "scipy", "matplotlib"}
    assert not heavy & set(found["modules"])
    assert found["environment"]["JAX_PLATFORMS"] == "cpu"
    assert found["environment"]["CUDA_VISIBLE_DEVICES"] == ""
    assert found["ignores_interrupt"]
    assert 0 <= memory < 150 * 2**20


def test_large_results_of_any_form_come_back():
    worker = workers.ProcessWorker(make_nested)
    for number in (3, 5):  # the second takes the place of the first
        found, expected = worker.call((number,), 60), make_nested(number)
        assert found[0] == expected[0]
        for ours, theirs in zip(found[1], expected[1], strict=True):
            np.testing.assert_array_equal(ours["a"], theirs["a"])
    worker.end()


def make_nested(number):
    arrays = [np.full((100, 99 + i), number + i, np.float32) for i in range(3)]
    return ("text", number), [{"a": array} for array in [*arrays, arrays[0][:, ::2]]]


def test_results_that_the_shared_memory_cannot_hold_come_back(monkeypatch):
    monkeypatch.setattr(worker_main, "SHARED_BYTES", 2**14)
    memory = mmap.mmap(-1, worker_main.SHARED_BYTES)
    value = [np.arange(3000, dtype=np.int32), np.arange(4000, dtype=np.int32), np.arange(3)]
    data, lengths = worker_main.dump(value, memory)
    assert lengths == [12000]
    for ours, theirs in zip(workers._load(data, lengths, memory), value, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_what_stands_in_the_main_script_is_refused(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            from invnext_jax.data import workers
            def work(): pass
            workers.ProcessWorker(work)
            """
        )
    )
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    command = [sys.executable, script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "stands in the main script" in done.stderr and "move it into a module" in done.stderr


def test_an_ended_worker_closes_its_files_and_is_dead_to_calls():
    worker = workers.ProcessWorker(wait_and_tell)
    failed = []

    def call():
        try:
            worker.call((0, 30.0), 60)
        except (workers.WorkerDiedError, workers.WorkerStartError) as error:
            failed.append(error)

    inside = threading.Thread(target=call)
    inside.start()
    time.sleep(0.2)
    worker.end()
    inside.join(5)
    assert not inside.is_alive() and len(failed) == 1
    assert worker._connection.closed and worker._memory.closed
    worker.end()
    call()
    assert len(failed) == 2


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="not of this system")
def test_only_cores_that_may_be_used_count():
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert workers.count_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)
