"""Measures how many clips per second one training process can take from its workers.

The workers do not decode: each returns the same finished clip of 16 x 224 x 224 x 3 bytes (2.4 MB)
again and again. The work of the parent per clip is then all that is left: the order, the messages,
the checks of an answer, and the copy into the batch. Its CPU time hardly depends on other load of
the machine, unlike the wall time, in which the workers compete with the parent for the cores.
"""

import csv
import resource
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import loader_readers as readers
import numpy as np

from configs import common
from invnext_jax.data import pipeline

CLIP_BYTES = readers.FRAMES * readers.SIZE * readers.SIZE * 3
ROWS, SHARDS = 100_000, 100  # of the manifest, whose files do not exist
COPIED_BYTES = 2**29  # copied to measure the memory bandwidth


class Parent(NamedTuple):
    """Result of one measurement.

    Attributes:
      clips: Clips per second of wall time.
      cpu: CPU seconds of the parent per clip, summed over its threads.
      user: Part of `cpu` outside of the kernel.
    """

    clips: float
    cpu: float
    user: float


def write_manifest(folder: Path) -> Path:
    """Writes a manifest with records of shards that do not exist."""
    path = folder / "ready.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "record", "source", "label_action"])
        size = ROWS // SHARDS
        rows.writerows([f"{i // size}.array_record", i % size, "a", i % 400] for i in range(ROWS))
    return path


def open_pipeline(manifest: Path, workers: int, batch: int):
    """Returns an iterator over batches of finished clips from this package's workers."""
    return iter(_make_dataset(manifest, workers, batch))


def open_grain(manifest: Path, workers: int, batch: int):
    """Returns an iterator over the same batches from Grain's worker processes."""
    order = _make_dataset(manifest, workers, batch).mixture.order
    return readers.open_grain(order, readers.ReadyClip(), workers, batch)


def _make_dataset(manifest: Path, workers: int, batch: int):
    config = common.data()
    config.update(manifest=str(manifest), workers=workers)
    return pipeline.make_train_dataset(config, seed=0, batch_size=batch, load=readers.ReadyClip())


OPEN = {"pipeline": open_pipeline, "grain": open_grain}


def measure(iterator: Iterator[dict[str, Any]], batch: int, seconds: float) -> Parent:
    """Measures the batches that arrive in about `seconds` seconds."""
    batches, start, before = 0, time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    while time.perf_counter() - start < seconds or not batches:
        next(iterator)
        batches += 1
    passed, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    user = after.ru_utime - before.ru_utime
    cpu = user + after.ru_stime - before.ru_stime
    clips = batches * batch
    return Parent(clips / passed, cpu / clips, user / clips)


def measure_copies() -> float:
    """Returns the bytes that one core copies per CPU second, clip by clip, from and to memory."""
    clips = COPIED_BYTES // CLIP_BYTES
    target = np.ones((clips, CLIP_BYTES), np.uint8)  # `np.zeros` would not allocate it yet
    source = np.ones((clips, CLIP_BYTES), np.uint8)
    start = time.process_time()
    for number in range(clips):
        target[number] = source[number]
    return clips * CLIP_BYTES / (time.process_time() - start)


def run(folder: Path, workers: int, batch: int, rounds: int, seconds: float) -> dict[str, Any]:
    """Measures the pipeline of this package, Grain's workers and the memory bandwidth in turn.

    Returns:
      The medians over the rounds. `copies` is the parent's CPU time per clip in copies of a clip:
      its floor is the number of times that the parent copies a clip.
    """
    manifest = write_manifest(folder)
    found = {name: [] for name in OPEN}
    bandwidths = []
    for number in range(rounds):
        bandwidths.append(measure_copies())
        for name, open_reader in OPEN.items():
            iterator = open_reader(manifest, workers, batch)
            try:
                for _ in range(4):  # all processes have started, and all memory has been used once
                    next(iterator)
                parent = measure(iterator, batch, seconds)
            finally:
                iterator.close()
            found[name].append(parent)
            print(
                f"  {number + 1}/{rounds} {name:10s} {parent.clips:8.1f} clips/s, parent "
                f"{1000 * parent.cpu:.3f} ms of CPU per clip ({1000 * parent.user:.3f} user); "
                f"memory {bandwidths[-1] / 1e9:.1f} GB/s",
                flush=True,
            )
    bandwidth = statistics.median(bandwidths)
    result = {"clip_bytes": CLIP_BYTES, "copy_gb_per_cpu_second": bandwidth / 1e9}
    for name, parents in found.items():
        cpu = statistics.median(parent.cpu for parent in parents)
        result[name] = {
            "clips_per_second": statistics.median(parent.clips for parent in parents),
            "parent_cpu_ms_per_clip": 1000 * cpu,
            "clips_per_cpu_second": 1 / cpu,
            "copies": cpu * bandwidth / CLIP_BYTES,
        }
    return result
