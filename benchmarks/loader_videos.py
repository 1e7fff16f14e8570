"""The files that the loader's benchmark reads: made once, of moving fractals, by PyAV."""

import csv
import dataclasses
import fractions
from pathlib import Path

import av
import numpy as np

RATE = 30  # frames a second
PLACES = [  # where the pictures zoom in
    ("-0.743643887037151", "-0.131825904205330"),
    ("-1.25066", "0.02012"),
    ("-0.7453", "0.1127"),
    ("-0.16070135", "1.0375665"),
]


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        name: What tables call it.
        size: Width and height in pixels.
        bits: A second.
    """

    name: str
    size: tuple[int, int]
    bits: int


KINDS = (
    Kind("raw_256", (340, 256), 900_000),
    Kind("raw_720", (1280, 720), 5_000_000),
)
# Cheap to decode, a tenth larger: frames that nothing refers to can be skipped.
PREPARED = {
    "preset": "veryfast",
    "g": "12",
    "crf": "21",
    "tune": "fastdecode",
    "x264-params": "b-pyramid=none:b-adapt=0:bframes=3",
}
GOP = 250  # frames from one key frame to the next, x264's default


def make_raw(folder: Path, kind: Kind, files: int, frames: int) -> list[Path]:
    """Writes videos with few key frames, as they come from the web; those there are kept."""
    paths = [folder / f"{kind.name}-{frames}-{number}.mp4" for number in range(files)]
    for number, path in enumerate(paths):
        if path.exists():
            continue
        print(f"making {path}", flush=True)
        options = {"preset": "veryfast", "g": str(GOP)}
        pictures = _zoom(kind.size, *PLACES[number % len(PLACES)], frames)
        _encode(path, pictures, kind.size, options, kind.bits)
    return paths


def prepare(paths: list[Path], folder: Path) -> list[Path]:
    """Encodes videos anew for training: short side 256, a key frame every 12; keeps their order.

    Returns:
        The prepared files; those there are kept.
    """
    prepared = [folder / f"prepared-{path.name}" for path in paths]
    for path, out in zip(paths, prepared, strict=True):
        if out.exists():
            continue
        print(f"making {out}", flush=True)
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            scale = min(1.0, 256 / min(stream.width, stream.height))
            size = tuple(2 * round(side * scale / 2) for side in (stream.width, stream.height))
            _encode(out, container.decode(stream), size, PREPARED)
    return prepared


def write_manifest(path: Path, videos: list[Path], rows: int, frames: int) -> list[int]:
    """Writes `rows` clips that begin at different frames, the same ones for every kind.

    Returns:
        The first frame of each.
    """
    rng = np.random.default_rng(0)
    starts = rng.integers(0, max(1, frames - 61), rows).tolist()
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["path", "source", "start"])
        for row, start in enumerate(starts):
            table.writerow([videos[row % len(videos)], "bench", f"{start / RATE:.6f}"])
    return starts


def _zoom(size: tuple[int, int], x: str, y: str, frames: int):
    graph = av.filter.Graph()
    options = f"size={size[0]}x{size[1]}:rate={RATE}:start_x={x}:start_y={y}:maxiter=2000"
    source, sink = graph.add("mandelbrot", options), graph.add("buffersink")
    source.link_to(sink)
    graph.configure()
    for _ in range(frames):
        yield sink.pull()


def _encode(path: Path, pictures, size, options: dict[str, str], bits: int | None = None) -> None:
    part = path.with_suffix(".part.mp4")
    with av.open(str(part), "w") as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.options = options
        if bits:
            stream.bit_rate = bits
        for number, picture in enumerate(pictures):
            picture = picture.reformat(*size, format="yuv420p")
            picture.pts, picture.time_base = number, fractions.Fraction(1, RATE)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    part.rename(path)
