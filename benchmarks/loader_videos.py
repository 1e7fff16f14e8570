"""Video files of the loader benchmark: moving fractals, encoded once with PyAV."""

import csv
import dataclasses
import fractions
from pathlib import Path

import av
import numpy as np

from invnext_jax.data import shards, video_io
from invnext_jax.dataset_prep import shard_writer
from invnext_jax.dataset_prep.reencode import Encoding

RATE = 30  # frames per second
PLACES = [  # centers of the zooms in the complex plane
    ("-0.743643887037151", "-0.131825904205330"),
    ("-1.25066", "0.02012"),
    ("-0.7453", "0.1127"),
    ("-0.16070135", "1.0375665"),
]


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
      name: Name in the tables.
      size: Width and height in pixels.
      bits: Bit rate in bits per second.
    """

    name: str
    size: tuple[int, int]
    bits: int


KINDS = (
    Kind("raw_256", (340, 256), 900_000),
    Kind("raw_720", (1280, 720), 5_000_000),
)
COPIES = 4096  # rows of the manifest per clip
GOP = 250  # maximum key frame interval in frames; x264's default


def make_raw(folder: Path, kind: Kind, files: int, frames: int) -> list[Path]:
    """Writes videos with few key frames, as on the web. Existing files are kept."""
    paths = [folder / f"{kind.name}-{frames}-{number}.mp4" for number in range(files)]
    for number, path in enumerate(paths):
        if path.exists():
            continue
        print(f"making {path}", flush=True)
        options = {"preset": "veryfast", "g": str(GOP)}
        images = _zoom(kind.size, *PLACES[number % len(PLACES)], frames)
        _encode(path, images, kind.size, options, kind.bits)
    return paths


def prepare(paths: list[Path], folder: Path) -> tuple[Path, list[Path]]:
    """Re-encodes videos for training, as `launch/prepare_data.py shards` does.

    Returns:
      The path of the shard, and the paths of files with the contents of the records.
    """
    whole = folder / "whole.csv"
    _write_csv(whole, ["path", "source"], [[path, "bench"] for path in paths])
    out = folder / f"prepared-{paths[0].stem}"
    for part in (shard_writer.PARTS, shard_writer.REPORTS):
        (out / part).mkdir(parents=True, exist_ok=True)
    files = (str(whole),)
    plan = shard_writer.ShardPlan(
        *(files, video_io.hash_files(files), str(out), "train", len(paths), 1),
        *((), Encoding(), 600.0),
    )
    print(f"making {plan.shard_path(0)}", flush=True)
    shard_writer.write_shard(plan, 0)
    prepared = [out / path.name for path in paths]
    for number, path in enumerate(prepared):
        path.write_bytes(shards.read_video(str(plan.shard_path(0)), number))
    return Path(plan.shard_path(0)), prepared


def write_manifest(
    path: Path, videos: list[Path], rows: int, frames: int, shard: Path | None = None
) -> list[int]:
    """Writes a manifest of clips that start throughout the files, at the same frames for each kind.

    Each clip is repeated in `COPIES` rows, so that the manifest is as long as a real one. Each clip
    is its own source, so that with equal weights every clip occurs once per batch.

    Args:
      path: The manifest.
      videos: Paths of the files, used in turn.
      rows: Number of clips.
      frames: Number of frames per file.
      shard: Path of a shard with the same videos, which replaces them in the manifest.

    Returns:
      The first frame of each clip.
    """
    spread = np.random.default_rng(0).permutation(rows) / rows
    starts = (spread * max(1, frames - 61)).astype(int).tolist()
    places = [
        (shard, row % len(videos)) if shard else (videos[row % len(videos)], "")
        for row in range(rows)
    ]
    clips = [
        [*place, f"clip {number}", f"{start / RATE:.6f}"]
        for number, (place, start) in enumerate(zip(places, starts, strict=True))
    ]
    _write_csv(path, ["path", "record", "source", "start"], clips * COPIES)
    return starts


def _write_csv(path: Path, header: list[str], rows: list[list]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def _zoom(size: tuple[int, int], x: str, y: str, frames: int):
    graph = av.filter.Graph()
    options = f"size={size[0]}x{size[1]}:rate={RATE}:start_x={x}:start_y={y}:maxiter=2000"
    source, sink = graph.add("mandelbrot", options), graph.add("buffersink")
    source.link_to(sink)
    graph.configure()
    for _ in range(frames):
        yield sink.pull()


def _encode(path: Path, images, size, options: dict[str, str], bits: int) -> None:
    part = path.with_suffix(".part.mp4")
    with av.open(str(part), "w") as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.options = options
        stream.bit_rate = bits
        for number, image in enumerate(images):
            image = image.reformat(*size, format="yuv420p")
            image.pts, image.time_base = number, fractions.Fraction(1, RATE)
            container.mux(stream.encode(image))
        container.mux(stream.encode())
    part.rename(path)
