"""Training with workers that hang, die or leak memory."""

import functools
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest
from batches import assert_equal, next_batches
from fakes import ROWS, FakeLoad, measure_growth, worker_pids

from configs import common
from invnext_jax.data import bad_videos as bad_videos_lib
from invnext_jax.data import clips as clips_lib
from invnext_jax.data import manifest as manifest_lib
from invnext_jax.data import pipeline, storage_retries, train_dataset
from invnext_jax.errors import UserError
from invnext_jax.workers import process_worker as workers_lib

read_batches = functools.partial(next_batches, batch_size=6, load=FakeLoad())


@pytest.fixture
def config(list_config):
    return list_config


@pytest.mark.parametrize("workers", [0, 1])
def test_a_decoder_that_hangs_is_killed(workers, config):
    config.update(workers=workers, clip_seconds=1.0)
    bad_videos = bad_videos_lib.BadVideoTracker()
    start = time.monotonic()
    batches, _ = read_batches(config, 4, load=FakeLoad(hangs=(2,)), bad_videos=bad_videos)
    assert time.monotonic() - start < 25
    assert bad_videos.kinds["time limit"] == bad_videos.dropped >= 1
    assert list(bad_videos.reasons) == [str(pathlib.Path(config.manifest).with_name("2.mp4"))]
    config.update(workers=0)
    assert_equal(batches, read_batches(config, 4, load=FakeLoad(bad=(2,)))[0])


def test_a_video_that_kills_its_worker_is_bad(config):
    config.workers = 2
    bad_videos = bad_videos_lib.BadVideoTracker()
    batches, _ = read_batches(config, 4, load=FakeLoad(dies=(2,)), bad_videos=bad_videos)
    assert bad_videos.kinds == {"worker died": bad_videos.dropped}
    config.workers = 0
    assert_equal(batches, read_batches(config, 4, load=FakeLoad(bad=(2,)))[0])


def test_a_video_whose_worker_attacks_its_parent_is_bad(config):
    config.workers = 2
    bad_videos = bad_videos_lib.BadVideoTracker()
    load = FakeLoad(attacks=(2,))
    batches, _ = read_batches(config, 4, load=load, bad_videos=bad_videos)
    assert bad_videos.kinds == {"worker died": bad_videos.dropped}
    config.workers = 0
    assert_equal(batches, read_batches(config, 4, load=FakeLoad(bad=(2,)))[0])


def test_a_clip_is_retried_if_its_worker_dies_once(config, tmp_path):
    config.workers = 1
    bad_videos = bad_videos_lib.BadVideoTracker()
    batches, _ = read_batches(
        config, 3, load=FakeLoad(dies_once=str(tmp_path / "died")), bad_videos=bad_videos
    )
    assert bad_videos.dropped == 0
    config.workers = 0
    assert_equal(batches, read_batches(config, 3)[0])


def test_a_worker_killed_from_outside_is_replaced(config):
    expected, _ = read_batches(config, 8)
    config.update(workers=2, prefetch=1)
    iterator = iter(pipeline.make_train_dataset(config, seed=0, batch_size=6, load=FakeLoad()))
    batches = [next(iterator)]
    for child in worker_pids():
        os.kill(child, signal.SIGKILL)
    batches += [next(iterator) for _ in range(7)]
    assert "2 workers replaced" in iterator.summary()
    iterator.close()
    assert not worker_pids()
    assert_equal(expected, batches)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_stalls_is_replaced_but_not_bad(workers, config, tmp_path):
    expected, _ = read_batches(config, 4, load=FakeLoad(bad=(2,)))
    config.update(workers=workers, clip_seconds=0.5)
    bad_videos = bad_videos_lib.BadVideoTracker(max_bad_share=0.0)
    bad_videos.write_quarantine(tmp_path)
    batches, _ = read_batches(config, 4, load=FakeLoad(stalls=(2,)), bad_videos=bad_videos)
    assert_equal(batches, expected)
    assert bad_videos.kinds == {"stalled read": bad_videos.dropped} and bad_videos.dropped >= 1
    assert not (tmp_path / "quarantine.csv").exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_waits_for_storage_that_does_not_answer(
    workers, config, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(storage_retries, "MIN_PAUSE", 0.05)
    expected, _ = read_batches(config, 3)
    gate = tmp_path / "gate"
    gate.touch()
    config.update(workers=workers, clip_seconds=0.4)
    dataset = pipeline.make_train_dataset(
        config, seed=0, batch_size=6, load=FakeLoad(gate=str(gate))
    )
    iterator = iter(dataset)

    def open_gate():
        while iterator.failed_reads < 12:  # at least three of each worker
            time.sleep(0.02)
        gate.unlink()

    opener = threading.Thread(target=open_gate)
    opener.start()
    try:
        batches = [next(iterator) for _ in range(3)]
    finally:
        iterator.close()
        opener.join()
    assert_equal(batches, expected)
    assert iterator.dropped == 0 and iterator.failed_reads >= 4
    assert "(the read does not return); trying again in 0.05 s" in caplog.text


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_ends_if_the_reads_of_all_files_fail(workers, config, monkeypatch, caplog):
    monkeypatch.setattr(storage_retries, "MIN_PAUSE", 0.005)
    monkeypatch.setattr(storage_retries, "MAX_PAUSE", 0.02)
    config.workers = workers
    load = FakeLoad(errors=tuple(range(ROWS)))
    with pytest.raises(UserError, match="no readable video among the first 100 clips") as caught:
        read_batches(config, 1, load=load)
    assert str(caught.value).endswith("mp4: broken\n       100  unreadable")
    assert "(broken); trying again in 0.02 s" in caplog.text


@pytest.mark.parametrize("workers", [0, 1])
def test_slow_reads_do_not_count_for_the_time_limit(workers, config):
    expected, _ = read_batches(config, 1)
    config.update(workers=workers, clip_seconds=0.5)
    bad_videos = bad_videos_lib.BadVideoTracker()
    load = FakeLoad(slow_reads=(0.2, 0.2, 0.2, 0.2))
    dataset = pipeline.make_train_dataset(
        config, seed=0, batch_size=6, load=load, bad_videos=bad_videos
    )
    iterator = iter(dataset)
    assert iterator.describe_wait() == ""
    batches, reason = [next(iterator)], iterator.describe_wait()
    iterator.close()
    assert_equal(batches, expected)
    assert bad_videos.dropped == 0
    assert "Storage is the limit" in reason and f"config.data.workers={workers})" in reason


def test_a_pool_that_waits_for_storage_closes_at_once(config, tmp_path):
    (tmp_path / "gate").touch()
    config.update(workers=1, clip_seconds=0.2)
    load = FakeLoad(gate=str(tmp_path / "gate"))
    iterator = iter(pipeline.make_train_dataset(config, seed=0, batch_size=6, load=load))
    caller = threading.Thread(target=lambda: pytest.raises(RuntimeError, next, iterator))
    caller.start()
    while iterator.failed_reads < 2:
        time.sleep(0.05)
    start = time.monotonic()
    iterator.close()
    caller.join()
    assert time.monotonic() - start < 4 and not worker_pids()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bug_is_not_a_bad_video(workers, config):
    config.workers = workers
    with pytest.raises((KeyError, RuntimeError), match="a mistake in the code"):
        read_batches(config, 4, load=FakeLoad(raises=(2,)))


def test_a_run_ends_if_all_videos_hang(config, monkeypatch):
    config.clip_seconds = 0.02
    monkeypatch.setattr(train_dataset, "MAX_WORKER_FAILURES", 2)
    with pytest.raises(UserError, match="2 videos in a row are bad(.|\n)*2  time limit"):
        read_batches(config, 1, load=FakeLoad(hangs=tuple(range(ROWS))))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_an_open_iterator_does_not_delay_the_exit(config, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            import sys
            from fakes import ROWS, FakeLoad, worker_pids
            from configs import common
            from invnext_jax.data import pipeline

            config = common.data()
            config.update(manifest=sys.argv[1], workers=2)
            iterator = iter(pipeline.make_train_dataset(
                config, seed=0, batch_size=2, load=FakeLoad(hangs=(3, 5, 7))))
            next(iterator)
            print(*worker_pids(), flush=True)
            raise KeyError("on the way")
            """
        )
    )
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([os.getcwd(), f"{os.getcwd()}/tests/support"]),
    }
    done = subprocess.run(
        [sys.executable, script, config.manifest],
        env=environment,
        capture_output=True,
        text=True,
        timeout=50,  # less than SIGTERM_GRACE_SECONDS
        check=False,
    )
    assert done.returncode == 1 and "on the way" in done.stderr, done.stderr
    children = done.stdout.split()
    assert len(children) == 2
    assert not any(pathlib.Path(f"/proc/{child}").exists() for child in children)


def bytes_held(process):
    return int(pathlib.Path(f"/proc/{process}/statm").read_text().split()[1]) * 4096


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_stays_flat(config, world_folder):
    config.update(manifest=str(world_folder / "train.csv"), frames=8, size=32, short_side=32)
    config.workers = 1
    iterator = iter(pipeline.make_train_dataset(config, seed=0, batch_size=10))
    held = []
    for _ in range(220):
        next(iterator)
        held.append([bytes_held(process) for process in (*worker_pids(), os.getpid())])
    # A leak of one array per clip would be 48 MB. The first 3,000 clips fill the heap: up to 1 MB.
    grown = np.array(held[-1]) - held[20]
    assert (grown < 2**21).all(), f"{grown} bytes in 2,000 clips"
    assert "MiB per worker" in iterator.summary()
    iterator.close()


@pytest.mark.skipif(sys.platform != "linux", reason="asks glibc")
def test_loading_clips_does_not_leak_memory(world_folder):
    config = common.data()
    config.update(frames=4, size=32, short_side=32)  # 4 of 8 frames, so that decoding ends early
    rows = list(manifest_lib.read_manifest(world_folder / "train.csv"))
    worker = workers_lib.ProcessWorker(measure_growth)
    grown = worker.call((clips_lib.LoadClip.from_config(config), rows, 300), 60)
    worker.close()
    assert grown < 50, f"{grown:.0f} bytes per clip"  # an abandoned generator of PyAV leaks 150
