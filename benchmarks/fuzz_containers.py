"""Damages small videos and checks that each reader returns a clip or a readable error.

    python -m benchmarks.fuzz_containers [--files=20000] [--first=0] [--workers=2] [--keep=FOLDER]

The files are numbered, and file n is the same on all machines with the same version of PyAV.
Supervised worker processes write the files and read them as `prepare_data.py index`, training,
`prepare_data.py shards` and `VideoEncoder` do. The last line of the output is a JSON object with
counts. The exit code is 1 if a reader raises another exception, takes too long, opens another file
or a socket, or leaves one open. Crashes of the decoder end a worker, as in training, and are
counted. `--keep` writes the files of failures and crashes to a folder. With `--files=1 --first=N`,
it always writes file N. Linux only.

Shape key: n frames, h w pixels, c channels.
"""

import argparse
import collections
import dataclasses
import functools
import json
import sys
import tempfile
from pathlib import Path

import av
import numpy as np

from benchmarks.fuzzing.container_mutations import mutate
from benchmarks.fuzzing.fuzz_readers import READERS, CheckFile, name_file
from invnext_jax.monitoring.progress import ProgressMeter
from invnext_jax.workers.process_worker import ProcessWorker, WorkerDiedError, count_cores
from invnext_jax.workers.supervisor import SupervisedWorker
from invnext_jax.workers.time_limits import ReadStalledError, TimeLimitError
from invnext_jax.workers.worker_pool import OrderedPool

FRAMES, HEIGHT, WIDTH = 20, 48, 64
TIMEOUT = 60.0  # seconds for one file and all readers; CPU time has a lower limit
X264 = {"preset": "ultrafast", "g": "8", "bf": "2", "threads": "1"}
# Name -> codec, codec options, container options. Later codecs replace those that PyAV lacks.
BASES = {
    "h264.mp4": ("libx264", X264, {}),
    "fragments.mp4": ("libx264", X264, {"movflags": "frag_keyframe+empty_moov"}),
    "h264.mov": ("libx264", X264, {"movflags": "faststart"}),
    "h264.mkv": ("libx264", X264, {}),
    "h264.ts": ("libx264", X264, {}),
    "h264.flv": ("libx264", X264, {}),
    "mpeg4.avi": ("mpeg4", {"g": "8"}, {}),
    "mjpeg.avi": ("mjpeg", {}, {}),
    "vp9.webm": ("libvpx-vp9", {"g": "8", "cpu-used": "8", "threads": "1"}, {}),
    "theora.ogg": ("libtheora,libvpx", {"g": "8"}, {}),
    "hevc.mp4": (
        "libx265",
        {"preset": "ultrafast", "x265-params": "log-level=none:keyint=8:pools=1:frame-threads=1"},
        {},
    ),
    "mpeg2.mpg": ("mpeg2video", {"g": "8"}, {}),
    "gif.gif": ("gif", {}, {}),
}
PIXEL_FORMATS = {"gif": "rgb8", "mjpeg": "yuvj420p"}


def write_bases(folder: Path) -> tuple[str, ...]:
    """Writes the undamaged videos and returns their paths; omits those without an encoder."""
    folder.mkdir(parents=True, exist_ok=True)
    frames_nhwc = _draw()
    paths = []
    for name, (codecs, options, container) in BASES.items():
        codec = next(filter(_can_encode, codecs.split(",")), None)
        if codec is not None:
            container = {"fflags": "+bitexact", **container}
            _write(folder / name, codec, options, container, frames_nhwc)
            paths.append(str(folder / name))
    return tuple(paths)


def _can_encode(codec: str) -> bool:
    try:
        av.Codec(codec, "w")
    except av.codec.codec.UnknownCodecError:
        return False
    return True


def _write(path: Path, codec: str, options, container_options, frames_nhwc) -> None:
    with av.open(str(path), "w", options=container_options) as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width = frames_nhwc.shape[1:3]
        stream.pix_fmt = PIXEL_FORMATS.get(codec, "yuv420p")
        stream.options = options
        stream.codec_context.flags |= av.codec.context.Flags.bitexact
        for frame_hwc in frames_nhwc:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame_hwc, format="rgb24")))
        container.mux(stream.encode())


def _draw() -> np.ndarray:
    """Returns gray frames of moving stripes, uint8 [n h w c]."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    values_nhw = [128 + 90 * np.sin((x + 3 * i) / 9 + y / (20 + i)) for i in range(FRAMES)]
    return np.repeat(np.stack(values_nhw)[..., None].astype(np.uint8), 3, -1)


@dataclasses.dataclass
class Summary:
    """Counts of outcomes.

    Attributes:
      outcomes: Number of files for each reader and outcome.
      failures: Number of the file -> description, for the outcomes that must not occur.
      crashes: Number of the file -> exit code of its worker.
      restarts: Number of replaced workers.
      slowest: CPU seconds of the slowest reader.
      peak_bytes: Peak resident memory of a worker.
    """

    outcomes: dict[str, collections.Counter]
    failures: dict[int, str] = dataclasses.field(default_factory=dict)
    crashes: dict[int, str] = dataclasses.field(default_factory=dict)
    restarts: int = 0
    slowest: float = 0.0
    peak_bytes: int = 0

    def add(self, number: int, result: dict | str) -> None:
        """Adds the result of `run_file`."""
        if isinstance(result, str):
            (self.crashes if result.startswith("worker died") else self.failures)[number] = result
            return
        self.slowest = max(self.slowest, result["seconds"])
        self.peak_bytes = max(self.peak_bytes, result["peak_bytes"])
        for name, counter in self.outcomes.items():
            known = result[name] in ("clip", "refused")
            counter[result[name] if known else "failure"] += 1
            if not known:
                self.failures[number] = f"{name}: {result[name]}"

    def as_json(self, files: int) -> str:
        """Returns the summary as a line of JSON."""
        fields = {"files": files, **self.outcomes, "crashes": self.crashes}
        fields |= {"failures": sorted(self.failures), "restarts": self.restarts}
        fields |= {"slowest_seconds": round(self.slowest, 2), "peak_mib": self.peak_bytes >> 20}
        return json.dumps(fields)


def run_file(number: int, worker: SupervisedWorker) -> dict | str:
    """Returns the result of `CheckFile`, or a sentence if it did not return."""
    try:
        return worker(number)
    except (TimeLimitError, ReadStalledError):
        return f"took longer than {TIMEOUT:g} s"
    except WorkerDiedError as error:
        return f"worker died: {error}"


def check_files(
    bases: tuple[str, ...], folder: Path, numbers: range, workers: int, quiet: bool = False
) -> Summary:
    """Makes and reads damaged files in worker processes.

    Args:
      bases: Paths of the undamaged files.
      folder: Folder for temporary files.
      numbers: Numbers of the damaged files.
      workers: Number of processes.
      quiet: Whether to suppress the progress.
    """
    summary = Summary({name: collections.Counter() for name in READERS})

    def run_task(position: int, worker: SupervisedWorker) -> dict | str | None:
        # The pool prefetches beyond the last task.
        return run_file(numbers[position], worker) if position < len(numbers) else None

    pool = OrderedPool(
        run_task,
        functools.partial(ProcessWorker, CheckFile(bases, str(folder))),
        workers=min(workers, len(numbers)),
        ahead=4 * workers,
        timeout=TIMEOUT,
    )
    try:
        with ProgressMeter(len(numbers), "file", quiet=quiet) as progress:
            for done, number in enumerate(numbers, start=1):
                summary.add(number, pool.next_result())
                failed = f"{len(summary.failures)} failures, {len(summary.crashes)} crashes"
                progress.update(done, failed)
    finally:
        pool.close()
    summary.restarts = pool.restarts
    return summary


def main() -> int:
    """Runs the command and returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--files", type=int, default=20_000, help="number of damaged files")
    parser.add_argument("--first", type=int, default=0, help="number of the first file")
    parser.add_argument("--workers", type=int, default=count_cores(), help="number of processes")
    parser.add_argument("--keep", type=Path, help="folder for the files of failures and crashes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        bases = write_bases(folder / "bases")
        numbers = range(options.first, options.first + options.files)
        summary = check_files(bases, folder, numbers, options.workers)
        for number, sentence in sorted({**summary.failures, **summary.crashes}.items()):
            print(f"file {number} ({Path(bases[number % len(bases)]).name}): {sentence}")
        if options.keep is not None:
            alone = [options.first] if options.files == 1 else []
            _keep(options.keep, bases, sorted({*summary.failures, *summary.crashes, *alone}))
    print(summary.as_json(options.files))
    return int(bool(summary.failures))


def _keep(folder: Path, bases: tuple[str, ...], numbers: list[int]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    data = [Path(path).read_bytes() for path in bases]
    for number in numbers:
        (folder / name_file(bases, number)).write_bytes(mutate(data, number))


if __name__ == "__main__":
    sys.exit(main())
