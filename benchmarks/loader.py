"""Compares the input pipeline with simple PyAV decoding loops, PyTorch's DataLoader and Grain.

    python benchmarks/loader.py [--mode=decode] [--seconds=3] [--rounds=5] [--workers=0] [--quick]

All readers read the same clips: 16 frames of 224 x 224, sampled sparsely (over the whole video) or
densely (every fourth frame). The files are raw (340 x 256 and 720p, with few key frames) or
prepared. Our pipeline reads prepared videos from a shard; the other readers read files with the
same contents. The cost of a clip increases with its distance from a key frame, so each batch of
each reader contains every clip once. Only one reader runs at a time. Ratios are computed for each
round, and their median over rounds is reported, so that other load on the machine affects all
readers equally. The other libraries need the extra `bench`; missing libraries are listed. The
benchmark prints a table and, as its last line, a JSON object.

`--mode=parent` measures without decoding how many clips per second the training process can take
from its workers, see `loader_parent`.
"""

import collections
import contextlib
import functools
import json
import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import loader_measures as measures
import loader_parent
import loader_readers as readers
import loader_videos as videos
import numpy as np
from absl import app, flags
from loader_measures import Speed
from step import divide

from invnext_jax.data import decode
from invnext_jax.data import manifest as manifest_lib
from invnext_jax.video import frame_converter
from invnext_jax.workers.process_worker import count_cores

_MODE = flags.DEFINE_enum(
    "mode", "decode", ["decode", "parent"], "What is measured: decoding, or the training process."
)
_SECONDS = flags.DEFINE_float(
    "seconds", 3.0, "Approximate seconds per measurement.", lower_bound=0.1
)
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Measurements of each reader.", lower_bound=1)
_WORKERS = flags.DEFINE_integer(
    "workers", 0, "Maximum number of worker processes; 0: one per core."
)
_KINDS = flags.DEFINE_list("kinds", ["raw_256", "raw_720", "prepared"], "Kinds of files.")
_FOLDER = flags.DEFINE_string("folder", "", "Folder of the files; empty: a temporary one.")
_FILES = flags.DEFINE_integer("files", 4, "Number of files of each kind.", lower_bound=1)
_BATCH = flags.DEFINE_integer(
    "batch", 8, "Number of distinct clips; each batch contains each of them once.", lower_bound=1
)
_QUICK = flags.DEFINE_bool("quick", False, "Smoke test: tiny files and one round.")

SAMPLINGS = ("dense", "sparse")
BARE = {"bare, every frame": "all", "bare, planned": "plan"}
PEERS = ("pyav", "decord")


class Case(NamedTuple):
    """A benchmark case: files of one kind and a sampling method."""

    kind: str
    sampling: str
    manifest: Path
    rows: list[readers.Row]

    @property
    def name(self) -> str:
        """Name in the tables."""
        return f"{self.kind}/{self.sampling}"


def make_cases(folder: Path) -> list[Case]:
    """Creates the video files and manifests."""
    frames, files, count = (24, 2, 2) if _QUICK.value else (300, _FILES.value, _BATCH.value)
    paths, shard = {}, {}
    for kind in videos.KINDS:
        if kind.name in _KINDS.value or (kind.name == "raw_256" and "prepared" in _KINDS.value):
            paths[kind.name] = videos.make_raw(folder, kind, files, frames)
    if "prepared" in _KINDS.value:
        shard["prepared"], paths["prepared"] = videos.prepare(paths["raw_256"], folder)
    cases = []
    for kind in _KINDS.value:
        manifest = folder / f"{kind}.csv"
        starts = videos.write_manifest(manifest, paths[kind], count, frames, shard.get(kind))
        for sampling in SAMPLINGS:
            rows = [
                readers.Row(str(paths[kind][i % files]), start, sampling)
                for i, start in enumerate(starts)
            ]
            cases.append(Case(kind, sampling, manifest, rows))
    return cases


def check_same(case: Case) -> dict[str, float]:
    """Checks on two clips that all readers return our decoder's frames, resized by Pillow.

    The PyAV loops also resize with Pillow. Our pipeline uses FFmpeg's scaler, and the other
    libraries use their own methods.

    Returns:
      The mean difference in pixel levels for our pipeline and for each other library.

    Raises:
      RuntimeError: A PyAV loop returns different pixels, or our pipeline or another library
          returns different frames.
    """
    load = measures.make_dataset(case.manifest, case.sampling, 1, 1)._load
    manifest = manifest_lib.read_manifest(case.manifest)
    differences = dict.fromkeys(("ours", *present_peers()), 0.0)
    for i, row in enumerate(case.rows[:2]):
        frames = decode.read_frames(row.path, row.choose, short_side=readers.SHORT)
        window = frame_converter.square_crop(*frames.shape[1:3])
        expected = frame_converter.resize(frames, window, readers.SIZE).astype(int)
        for name, read in BARE.items():
            if not np.array_equal(expected, readers.read_bare(read, row)):
                raise RuntimeError(f"{case.name}: {name} returns different pixels")
        for name in differences:
            if name == "ours":
                found = load(manifest[i], (None,))["video"][0]
            else:
                found = np.asarray(readers.read_peer(name, row))
            apart = float(np.abs(expected - found).mean())
            differences[name] = max(differences[name], apart)
            moved = float(np.abs(expected - np.roll(found, 1, axis=0)).mean())
            if apart > 0.5 * moved:
                raise RuntimeError(
                    f"{case.name}: {name} returns different frames ({apart:.1f} levels)"
                )
    return differences


def present_peers() -> list[str]:
    """Returns the names of the other libraries that can be imported."""
    return [peer for peer in PEERS if not readers.absent(peer)]


def open_readers(
    case: Case, workers: int, stack: contextlib.ExitStack
) -> dict[str, Callable[[], Speed]]:
    """Opens the readers; `stack` closes them.

    Returns:
      A function for each reader that measures its speed for about `--seconds`.
    """
    rows, batch = case.rows, len(case.rows)
    bare_rate = max(measures.measure_bare(name, rows).clips for name in BARE.values())

    def clips(count: int) -> int:
        """Returns a number of clips that gives each process the same number of batches."""
        whole = batch * count
        return whole * max(1, round(bare_rate * count * _SECONDS.value / whole))

    single = rows * (clips(1) // batch)
    opened, made = {}, {}
    for peer in present_peers():  # opened first, because DataLoader forks this process
        name = f"DataLoader {peer}, {workers} workers"
        opened[name] = workers, measures.open_dataloader(peer, rows, workers, batch)
    for count in sorted({1, workers} | {2**i for i in range(workers.bit_length() - 1)}):
        pipeline = measures.open_pipeline(case.manifest, case.sampling, count, batch)
        opened[f"pipeline, {count} workers"] = count, pipeline
    opened[_grain(workers)] = (
        workers,
        measures.open_grain(case.manifest, case.sampling, workers, batch),
    )
    for name, read in BARE.items():
        made[name] = functools.partial(measures.measure_bare, read, single)
    processes = measures.BareProcesses("plan", single, workers)
    stack.callback(processes.close)
    made[_processes(workers)] = processes.measure
    for name, (count, reader) in reversed(opened.items()):
        stack.callback(reader.close)
        made[name] = functools.partial(reader.measure, clips(count), bare_rate * count)
    return made


def _grain(workers: int) -> str:
    return f"Grain, {workers} workers"


def _processes(workers: int) -> str:
    return f"bare, planned, {workers} processes"


def take_turns(cases: list[Case], workers: int, rounds: int) -> dict[str, dict[str, list[Speed]]]:
    """Measures each reader of each case once in each of `rounds` rounds."""
    found = {case.name: collections.defaultdict(list) for case in cases}
    with contextlib.ExitStack() as stack:
        made = {}
        for case in cases:
            differences = check_same(case)
            apart = ", ".join(f"{name} {value:.1f}" for name, value in differences.items())
            print(f"{case.name}: same frames; mean difference in levels: {apart}", flush=True)
            made[case.name] = open_readers(case, workers, stack)
        for number in range(rounds):
            for sampling in SAMPLINGS:  # raw and prepared files are measured close in time
                for case in (case for case in cases if case.sampling == sampling):
                    for name, measure in made[case.name].items():
                        speed = measure()
                        found[case.name][name].append(speed)
                        done = f"{case.name} {number + 1}/{rounds}"
                        print(f"  {done:24s} {name:32s} {speed.clips:8.2f} clips/s", flush=True)
    return found


def print_table(case: Case, found: dict[str, list[Speed]]) -> None:
    """Prints the median, minimum and maximum of each reader's speed and CPU time."""
    print(f"\n{case.name:34s} clips/s  (min - max)   CPU ms per clip")
    for name, speeds in found.items():
        clips, cpu = [s.clips for s in speeds], [s.cpu for s in speeds]
        spread = f"({min(clips):.2f} - {max(clips):.2f})"
        print(
            f"{name:34s} {statistics.median(clips):7.2f}  {spread:16s}"
            f" {1000 * statistics.median(cpu):7.1f}"
        )
    print(flush=True)


def summarize(found: dict[str, dict[str, list[Speed]]], workers: int) -> dict:
    """Computes the ratios in each round.

    Returns:
      The median, minimum and maximum of each ratio over the rounds, and its worst case.
    """

    def clips(case: str, name: str) -> list[float]:
        return [speed.clips for speed in found[case][name]]

    def cpu(case: str, name: str) -> list[float]:
        return [max(speed.cpu, 1e-9) for speed in found[case][name]]

    ours, cases = f"pipeline, {workers} workers", {}
    for case in found:
        bare = max(BARE, key=lambda name: statistics.median(clips(case, name)))
        ceiling = [workers * rate for rate in clips(case, bare)]
        mine = clips(case, ours)
        cases[case] = {
            "pipeline_vs_bare": divide(mine, ceiling),
            "pipeline_vs_bare_processes": divide(mine, clips(case, _processes(workers))),
            "pipeline_vs_grain": divide(mine, clips(case, _grain(workers))),
            "cpu_vs_bare": divide(cpu(case, ours), cpu(case, bare)),
        }
        for peer in present_peers():
            theirs = clips(case, f"DataLoader {peer}, {workers} workers")
            cases[case][f"pipeline_vs_dataloader_{peer}"] = divide(mine, theirs)
    ratios = {}
    for case in cases.values():
        for name, (value, _) in case.items():
            worst = max if name == "cpu_vs_bare" else min
            ratios[name] = worst(ratios.get(name, value), value)
    for sampling in SAMPLINGS:
        raw, prepared = f"raw_256/{sampling}", f"prepared/{sampling}"
        if raw in found and prepared in found:
            faster, _ = divide(clips(prepared, ours), clips(raw, ours))
            ratios[f"prepared_vs_raw_{sampling}"] = faster
    speeds = {
        case: {name: round(statistics.median(clips(case, name)), 3) for name in found[case]}
        for case in found
    }
    return {"ratios": ratios, "cases": cases, "clips_per_second": speeds}


def main(argv: Sequence[str]) -> None:
    """Creates the files, runs all measurements and prints the results."""
    del argv
    workers = _WORKERS.value or count_cores()
    rounds = 1 if _QUICK.value else _ROUNDS.value
    if _MODE.value == "parent":
        with tempfile.TemporaryDirectory() as folder:
            arguments = workers, _BATCH.value, rounds, _SECONDS.value
            result = loader_parent.run(Path(folder), *arguments)
        print(json.dumps(result | {"workers": workers, "load_average": os.getloadavg()[0]}))
        return
    peers = {peer: readers.absent(peer) for peer in PEERS}
    for peer, reason in peers.items():
        if reason:
            print(f"{peer} is skipped: {reason} (pip install 'invnext-jax[bench]')")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(_FOLDER.value or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        cases = make_cases(folder)
        found = take_turns(cases, workers, rounds)
        for case in cases:
            print_table(case, found[case.name])
    result = summarize(found, workers)
    result |= {"workers": workers, "rounds": rounds, "absent": [p for p in peers if peers[p]]}
    result["load_average"] = os.getloadavg()[0]
    print(json.dumps(result))


if __name__ == "__main__":
    app.run(main)
