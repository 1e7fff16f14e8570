"""How fast clips come: our pipeline against a bare decoding loop and PyTorch's DataLoader.

    python benchmarks/loader.py [--seconds=6] [--rounds=3] [--workers=0] [--quick]

Every reader gives the same clips: 16 frames of 224 x 224, sparse (of the whole video) or dense
(every fourth), from 340 x 256 and 720p files with few key frames, and from prepared ones: ours out
of a shard, the others from files of the same content. A clip costs more the farther it lies from
its key frame, so each batch of each reader has every clip once. The readers take turns, so that a
busy machine is as busy for each. Needs the extra `bench` for the peers; those that are missing are
named. Prints a table and, as its last line, one JSON object.
"""

import json
import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import loader_measures as measures
import loader_readers as readers
import loader_videos as videos
import numpy as np
from absl import app, flags
from loader_measures import Speed

from invnext_jax.data import sources

_SECONDS = flags.DEFINE_float("seconds", 6.0, "Of one measurement, about.", lower_bound=0.1)
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Turns of each reader.", lower_bound=1)
_WORKERS = flags.DEFINE_integer("workers", 0, "Most worker processes; 0: one a core.")
_KINDS = flags.DEFINE_list("kinds", ["raw_256", "raw_720", "prepared"], "Kinds of files.")
_FOLDER = flags.DEFINE_string("folder", "", "Where the files are kept; temporary if empty.")
_FILES = flags.DEFINE_integer("files", 4, "Different files of a kind.", lower_bound=1)
_BATCH = flags.DEFINE_integer("batch", 8, "Different clips, and clips of a batch.", lower_bound=1)
_QUICK = flags.DEFINE_bool("quick", False, "Tiny files and one turn: does it run at all?")

SAMPLINGS = ("dense", "sparse")
PEERS = ("pyav", "decord")


class Case(NamedTuple):
    """Files of a kind, sampled in one way."""

    kind: str
    sampling: str
    manifest: Path
    rows: list[readers.Row]

    @property
    def name(self) -> str:
        """What tables call it."""
        return f"{self.kind}/{self.sampling}"


def make_cases(folder: Path) -> list[Case]:
    """Makes the files."""
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
    """Compares all readers on two clips; gives the peers' mean difference from ours in levels.

    Raises:
        RuntimeError: The bare loops do not give our pipeline's pixels, or a peer other frames.
    """
    load = measures.make_dataset(case.manifest, case.sampling, 1, 1)._load
    manifest = sources.read_manifest(case.manifest)
    differences = dict.fromkeys(present_peers(), 0.0)
    for i in (0, 1):
        ours = load(manifest[i], (None,))["video"][0]
        for read in (readers.bare_all, readers.bare_plan):
            if not np.array_equal(ours, read(case.rows[i])):
                raise RuntimeError(f"{case.name}: {read.__name__} gives other pixels")
        for peer in differences:
            theirs = np.asarray(readers.PeerDataset(peer, case.rows)[i])
            apart = float(np.abs(ours.astype(int) - theirs).mean())
            differences[peer] = max(differences[peer], apart)
            moved = float(np.abs(ours.astype(int) - np.roll(theirs, 1, axis=0)).mean())
            if apart > 0.5 * moved:
                raise RuntimeError(f"{case.name}: {peer} gives other frames ({apart:.1f} levels)")
    return differences


def present_peers() -> list[str]:
    """The peers that can be imported."""
    return [peer for peer in PEERS if not readers.absent(peer)]


def make_readers(case: Case, workers: int) -> dict[str, Callable[[], Speed]]:
    """What takes turns; each measures about `--seconds`."""
    rows, batch = case.rows, len(case.rows)
    bare_rate = max(measures.measure_bare(name, rows).clips for name in ("all", "plan"))

    def clips(count: int) -> int:
        return batch * max(1, round(bare_rate * count * _SECONDS.value / batch))

    single = rows * (clips(1) // batch)

    made = {
        "bare, every frame": lambda: measures.measure_bare("all", single),
        "bare, planned": lambda: measures.measure_bare("plan", single),
        f"bare, planned, {workers} processes": lambda: measures.measure_bare_processes(
            "plan", single, workers
        ),
    }
    for count in sorted({1, workers} | {2**i for i in range(workers.bit_length() - 1)}):
        made[f"pipeline, {count} workers"] = lambda count=count: measures.measure_pipeline(
            case.manifest, case.sampling, count, clips(count), batch
        )
    for peer in present_peers():
        made[f"DataLoader {peer}, {workers} workers"] = lambda peer=peer: (
            measures.measure_dataloader(peer, rows, workers, clips(workers), batch)
        )
    return made


def run_case(case: Case, workers: int, rounds: int) -> dict[str, list[Speed]]:
    """Lets the readers take turns."""
    differences = check_same(case)
    apart = ", ".join(f"{peer} {value:.1f}" for peer, value in differences.items())
    print(f"{case.name}: same pixels; peers' mean difference in levels: {apart}", flush=True)
    found = {}
    made = make_readers(case, workers)
    for number in range(rounds):
        for name, measure in made.items():
            speed = measure()
            found.setdefault(name, []).append(speed)
            done = f"{case.name} {number + 1}/{rounds}"
            print(f"  {done:24s} {name:32s} {speed.clips:8.2f} clips/s", flush=True)
    return found


def print_table(case: Case, found: dict[str, list[Speed]]) -> None:
    """Median, least and greatest of each reader, and processor time."""
    print(f"\n{case.name:34s} clips/s  (least - most)   CPU ms a clip")
    for name, speeds in found.items():
        clips, cpu = [s.clips for s in speeds], [s.cpu for s in speeds]
        spread = f"({min(clips):.2f} - {max(clips):.2f})"
        print(
            f"{name:34s} {statistics.median(clips):7.2f}  {spread:16s}"
            f" {1000 * statistics.median(cpu):7.1f}"
        )
    print(flush=True)


def summarize(found: dict[str, dict[str, list[Speed]]], workers: int) -> dict:
    """The ratios of medians, by case; the headline is the worst case."""

    def clips(case: str, name: str) -> float:
        return statistics.median(speed.clips for speed in found[case][name])

    def cpu(case: str, name: str) -> float:
        return statistics.median(speed.cpu for speed in found[case][name])

    cases, ours, parallel = {}, f"pipeline, {workers} workers", f"{workers} processes"
    for case in found:
        bare = max(("bare, every frame", "bare, planned"), key=lambda name: clips(case, name))
        mine = clips(case, ours)
        cases[case] = {"pipeline_vs_bare": mine / (workers * clips(case, bare))}
        cases[case]["pipeline_vs_bare_processes"] = mine / clips(case, f"bare, planned, {parallel}")
        cases[case]["cpu_vs_bare"] = cpu(case, ours) / max(cpu(case, bare), 1e-9)
        for peer in present_peers():
            theirs = clips(case, f"DataLoader {peer}, {workers} workers")
            cases[case][f"pipeline_vs_dataloader_{peer}"] = mine / theirs
    ratios = {}
    for case in cases.values():
        for name, value in case.items():
            worst = max if name == "cpu_vs_bare" else min
            ratios[name] = worst(ratios.get(name, value), value)
    for sampling in SAMPLINGS:
        raw, prepared = f"raw_256/{sampling}", f"prepared/{sampling}"
        if raw in found and prepared in found:
            ratios[f"prepared_vs_raw_{sampling}"] = clips(prepared, ours) / clips(raw, ours)
    speeds = {case: {name: clips(case, name) for name in found[case]} for case in found}
    return {"ratios": ratios, "cases": cases, "clips_per_second": speeds}


def main(argv: Sequence[str]) -> None:
    """Makes the files, measures, prints."""
    del argv
    workers = _WORKERS.value or len(os.sched_getaffinity(0))
    rounds = 1 if _QUICK.value else _ROUNDS.value
    peers = {peer: readers.absent(peer) for peer in PEERS}
    for peer, reason in peers.items():
        if reason:
            print(f"{peer}: absent, {reason} (pip install 'invnext-jax[bench]')")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(_FOLDER.value or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        found = {}
        for case in make_cases(folder):
            found[case.name] = run_case(case, workers, rounds)
            print_table(case, found[case.name])
    result = summarize(found, workers)
    result |= {"workers": workers, "rounds": rounds, "absent": [p for p in peers if peers[p]]}
    result["load_average"] = os.getloadavg()[0]
    print(json.dumps(result, default=float))


if __name__ == "__main__":
    app.run(main)
