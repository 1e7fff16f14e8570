import math
import os
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest
from fakes import FakeLoad, Unloadable, describe_process, sleep_and_report, worker_pids

from invnext_jax.data.manifest import VideoRecord
from invnext_jax.workers import process_worker as workers
from invnext_jax.workers import time_limits
from invnext_jax.workers import worker_pool as worker_pool_lib


@pytest.mark.parametrize("kind", [time_limits.ThreadWorker, workers.ProcessWorker])
def test_results_are_in_order_and_not_too_far_ahead(kind):
    begun = []

    def work(number, call):
        begun.append(number)
        return call(number, 0.0 if number % 3 else 0.05)

    pool = worker_pool_lib.OrderedPool(
        work, lambda: kind(sleep_and_report), workers=2, ahead=3, timeout=60
    )
    results = [pool.next_result() for _ in range(10)]
    pool.close()
    assert [result["number"] for result in results] == list(range(10))
    assert max(begun) <= 12
    inside = kind is time_limits.ThreadWorker
    assert ({result["process"] for result in results} == {os.getpid()}) == inside


def test_arrays_are_returned_unchanged():
    worker = workers.ProcessWorker(FakeLoad())
    record = VideoRecord(7, "7.mp4", "a", None, None, {})
    result = worker.call((record, ((1, 2), (3, 4))), 60)
    worker.close()
    expected = FakeLoad()(record, ((1, 2), (3, 4)))
    assert result.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(result[name], value)
        assert result[name].dtype == value.dtype
    assert result["video"].flags.writeable


def test_workers_that_do_not_start_end_the_run(capfd):
    pool = worker_pool_lib.OrderedPool(
        lambda number, call: call(number),
        lambda: workers.ProcessWorker(Unloadable()),
        workers=1,
        ahead=1,
        timeout=60,
    )
    with pytest.raises(workers.WorkerStartError, match="died during startup .exit code 1"):
        pool.next_result()
    pool.close()


def test_close_ends_pending_tasks():
    pool = worker_pool_lib.OrderedPool(
        lambda number, call: call(number, 30.0),
        lambda: workers.ProcessWorker(sleep_and_report),
        workers=2,
        ahead=4,
        timeout=60,
    )
    pool.close()
    pool.close()
    assert not worker_pids()
    with pytest.raises(RuntimeError, match="closed"):
        pool.next_result()


@pytest.mark.parametrize("module", ["data.clips", "dataset_prep.probing"])
def test_a_worker_imports_only_what_its_function_needs(module):
    worker = workers.ProcessWorker(describe_process)
    result = worker.call((f"invnext_jax.{module}",), 60)
    memory = worker.peak_memory()
    worker.close()
    assert "av" in result["modules"] and "numpy" in result["modules"]
    heavy = {"jax", "jaxlib", "flax", "grain", "ml_collections", "pytest", "scipy", "matplotlib"}
    assert not heavy & set(result["modules"])
    assert result["environment"]["JAX_PLATFORMS"] == "cpu"
    assert result["environment"]["CUDA_VISIBLE_DEVICES"] == ""
    assert result["ignores_interrupt"]
    assert 0 <= memory < 150 * 2**20


def test_large_arrays_in_nested_results_are_returned():
    worker = workers.ProcessWorker(make_nested)
    for number in (3, 5):  # the second overwrites the first
        result, expected = worker.call((number,), 60), make_nested(number)
        assert result[0] == expected[0]
        for one, other in zip(result[1], expected[1], strict=True):
            np.testing.assert_array_equal(one["a"], other["a"])
    worker.close()


def make_nested(number):
    arrays = [np.full((100, 99 + i), number + i, np.float32) for i in range(3)]
    return ("text", number), [{"a": array} for array in [*arrays, arrays[0][:, ::2]]]


def test_a_function_of_the_main_script_is_refused(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            from invnext_jax.workers import process_worker as workers
            def work(): pass
            workers.ProcessWorker(work)
            """
        )
    )
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    command = [sys.executable, script]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "is defined in the main script" in done.stderr and "move it into a module" in done.stderr


def test_a_closed_worker_closes_its_files_and_refuses_calls():
    worker = workers.ProcessWorker(sleep_and_report)
    failed = []

    def call():
        try:
            worker.call((0, 30.0), 60)
        except (workers.WorkerDiedError, workers.WorkerStartError) as error:
            failed.append(error)

    inside = threading.Thread(target=call)
    inside.start()
    time.sleep(0.2)
    worker.close()
    inside.join(5)
    assert not inside.is_alive() and len(failed) == 1
    assert worker._connection.fileno() == -1 and worker._memory.closed
    worker.close()
    call()
    assert len(failed) == 2


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="not of this system")
def test_count_cores_respects_the_affinity():
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert workers.count_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)


def test_count_cores_respects_the_cpu_quota(monkeypatch):
    cores = len(os.sched_getaffinity(0))
    for quota, expected in ((math.inf, cores), (0.5, 1), (0.001, 1), (cores - 0.5, cores)):
        monkeypatch.setattr(workers, "read_cpu_quota", lambda quota=quota: quota)
        assert workers.count_cores() == expected


def test_default_workers_are_the_cores_divided_among_the_processes(monkeypatch, caplog):
    count = worker_pool_lib.count_workers
    monkeypatch.setattr(worker_pool_lib, "count_cores", lambda: 96)
    assert [count(-1, n) for n in (1, 8, 200)] == [96, 12, 1]
    assert count(0) == 0 and count(12, 8) == 12 and not caplog.records
    assert count(13, 8) == 13
    assert "config.data.workers=13 in each of 8 processes exceeds the 96 cores" in caplog.text


def make_closed_pool(file_of_task, **fields):
    """Returns a pool whose workers have ended, with all tasks waiting."""
    pool = worker_pool_lib.OrderedPool(
        lambda number, _: number,
        lambda: time_limits.ThreadWorker(sleep_and_report),
        file_of_task=file_of_task,
        timeout=60,
        **fields,
    )
    pool.close()
    pool._waiting, pool._next_task, pool._next_result, pool._skipped = [], 0, 0, 0
    return pool


def test_workers_prefer_the_files_that_they_have_read():
    pool = make_closed_pool(lambda number: "ab"[number % 2], workers=2, ahead=8)
    one, other = {}, {}
    assert [pool._pop_task(files) for files in (one, other, one, one, other, other)] == [
        *(0, 1, 2, 4),
        *(3, 5),
    ]
    assert one == {"a": None} and other == {"b": None}


def test_results_are_in_order_if_workers_prefer_files():
    pool = worker_pool_lib.OrderedPool(
        lambda number, worker: worker(number, 0.001)["number"],
        lambda: time_limits.ThreadWorker(sleep_and_report),
        workers=3,
        ahead=10,
        timeout=60,
        file_of_task=lambda number: str(number % 4),
    )
    assert [pool.next_result() for _ in range(60)] == list(range(60))
    pool.close()


def test_a_task_is_not_skipped_forever():
    pool = make_closed_pool(lambda number: "b" if number == 2 else "a", workers=2, ahead=8)
    files = {}
    assert [pool._pop_task(files) for _ in range(9)] == [0, 1, 3, 4, 2, 5, 6, 7, None]
