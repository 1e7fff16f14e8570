"""Readers of the loader benchmark. All return the same frames, uint8 [t h w c].

Worker processes import this module.
"""

import dataclasses
import functools
import importlib.util
import time
from collections.abc import Iterator

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image

from invnext_jax.data import clips

FRAMES, STRIDE, SIZE, SHORT = 16, 4, 224, 256
PREFETCH = 4  # clips that are prefetched per process, as in the default config


@dataclasses.dataclass(frozen=True)
class Row:
    """A clip: file, first frame and sampling."""

    path: str
    start: int
    sampling: str

    def choose(self, count: int) -> np.ndarray:
        """Returns the frame numbers of the clip in a file of `count` frames."""
        if self.sampling == "dense":
            chosen = clips.sample_dense(count - self.start, FRAMES, (STRIDE, STRIDE), None)
        else:
            chosen = clips.sample_sparse(count - self.start, FRAMES, None)
        return self.start + chosen


@dataclasses.dataclass(frozen=True)
class CenterClip:
    """This package's reader, without random sampling or augmentation."""

    load: clips.LoadClip

    def __call__(self, record, seeds):
        """Returns the center clips of a row."""
        return self.load(record, (None,) * len(seeds))


@dataclasses.dataclass(frozen=True)
class ReadyClip:
    """Returns a finished clip without decoding, to measure everything else."""

    def __call__(self, record, seeds):
        """Returns the clip of a row."""
        numbers = {"index": record.index, **record.labels}
        columns = {name: np.full(len(seeds), value, np.int32) for name, value in numbers.items()}
        return {"video": _ready_video(len(seeds)), **columns}


@functools.lru_cache(maxsize=1)
def _ready_video(clips: int) -> np.ndarray:
    shape = (clips, FRAMES, SIZE, SIZE, 3)
    return np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)


def _open(path: str):
    container = av.open(path)
    stream = container.streams.video[0]
    stream.codec_context.thread_type, stream.codec_context.thread_count = "SLICE", 1
    return container, stream


def _finish(frame: av.VideoFrame, reformatter: VideoReformatter) -> np.ndarray:
    """Scales the short side to 256, crops the center square and resizes it to 224 x 224."""
    scale = min(1.0, SHORT / min(frame.width, frame.height))
    width, height = round(frame.width * scale), round(frame.height * scale)
    options = {"format": "rgb24", "interpolation": "BILINEAR", "threads": 1}
    image = reformatter.reformat(frame, width=width, height=height, **options).to_ndarray()
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = Image.fromarray(image[top : top + side, left : left + side])
    return np.asarray(square.resize((SIZE, SIZE), Image.Resampling.BILINEAR))


def bare_all(row: Row) -> np.ndarray:
    """Decodes every frame up to the last requested one."""
    container, stream = _open(row.path)
    with container:
        wanted = row.choose(stream.frames).tolist()
        images, reformatter = {}, VideoReformatter()
        for number, frame in enumerate(container.decode(stream)):
            if number in wanted:
                images[number] = _finish(frame, reformatter)
            if number == wanted[-1]:
                break
    return np.stack([images[number] for number in wanted])


def bare_plan(row: Row) -> np.ndarray:
    """Reads the time stamps, seeks to the key frames and skips unreferenced frames."""
    container, stream = _open(row.path)
    with container:
        packets = [(p.pts, p.is_keyframe) for p in container.demux(stream) if p.size]
        times = sorted(time for time, _ in packets)
        keys = sorted(time for time, is_key in packets if is_key)
        wanted = [times[number] for number in row.choose(len(times))]
        images, missing, reformatter = {}, sorted(set(wanted)), VideoReformatter()
        while missing:
            key = max(time for time in keys if time <= missing[0])
            container.seek(key, stream=stream)
            for frame in _decode_group(container, stream, set(missing)):
                if frame.pts in missing:
                    images[frame.pts] = _finish(frame, reformatter)
                    missing.remove(frame.pts)
                later = [time for time in keys if frame.pts < time <= missing[0]] if missing else []
                if not missing or later:
                    break
    return np.stack([images[time] for time in wanted])


def _decode_group(container, stream, wanted: set[int]) -> Iterator[av.VideoFrame]:
    for packet in container.demux(stream):
        stream.codec_context.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
        yield from packet.decode()


def read_bare(name: str, row: Row) -> np.ndarray:
    """Reads a row with the PyAV loop `name`: "all" or "plan"."""
    return {"all": bare_all, "plan": bare_plan}[name](row)


def time_bare(name: str, rows: list[Row]) -> tuple[float, float]:
    """Reads rows one by one; returns the wall time and the CPU time in seconds."""
    start, start_cpu = time.perf_counter(), time.process_time()
    for row in rows:
        read_bare(name, row)
    return time.perf_counter() - start, time.process_time() - start_cpu


class _GrainLoad:
    """Calls a loading function of this package for Grain; returns one clip without an axis for it.

    Args:
      load: The function, as for `pipeline.make_train_dataset`.
    """

    def __init__(self, load):
        self._load = load

    def __call__(self, position: int, record) -> dict[str, np.ndarray]:
        clips = self._load(record, ((0, position),))
        return {name: value[0] for name, value in clips.items()}


def open_grain(order, load, workers: int, batch: int):
    """Returns an iterator over batches of Grain's `mp_prefetch` with the given loading function.

    Each process decodes in one thread. The batches are assembled in this process, so that the order
    does not depend on the number of processes.

    Args:
      order: A `grain.MapDataset` of the rows of a manifest.
      load: As for `pipeline.make_train_dataset`. It must not return a `BadClip`.
      workers: Number of processes.
      batch: Number of clips in a batch.
    """
    import grain

    clips = order.map_with_index(_GrainLoad(load)).to_iter_dataset(
        grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    )
    options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=PREFETCH)
    return iter(clips.mp_prefetch(options).batch(batch))


def absent(peer: str) -> str:
    """Returns the reason why the library `peer` cannot be measured, or "" if it can."""
    needed = ["torch"] + ["decord"] * (peer == "decord")
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    return f"{missing[0]} is not installed" if missing else ""


@dataclasses.dataclass(frozen=True)
class PeerDataset:
    """A typical dataset for `torch.utils.data.DataLoader` that decodes with another library."""

    peer: str
    rows: list[Row]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> np.ndarray:
        return read_peer(self.peer, self.rows[index])


def read_peer(peer: str, row: Row):
    """Reads a row with the library `peer`, "pyav" or "decord", in its usual way."""
    return {"pyav": _read_pyav, "decord": _read_decord}[peer](row)


def _read_pyav(row: Row):
    """Decodes up to the last frame, then resizes and center-crops as torchvision does."""
    import torch

    images = {}
    with av.open(row.path) as container:
        stream = container.streams.video[0]
        wanted = row.choose(stream.frames).tolist()
        for number, frame in enumerate(container.decode(stream)):
            if number in wanted:
                images[number] = frame.to_ndarray(format="rgb24")
            if number >= wanted[-1]:
                break
    video_tchw = torch.from_numpy(np.stack([images[i] for i in wanted])).permute(0, 3, 1, 2)
    height, width = video_tchw.shape[2:]
    size = [round(side * SIZE / min(height, width)) for side in (height, width)]
    video_tchw = torch.nn.functional.interpolate(
        video_tchw, size=size, mode="bilinear", antialias=True
    )
    return _cut(video_tchw.permute(0, 2, 3, 1)).contiguous()


def _read_decord(row: Row):
    """Reads a row with decord, which also scales the frames."""
    import decord
    import torch

    with av.open(
        row.path
    ) as container:  # decord needs the output width and height when it opens the file
        stream = container.streams.video[0]
        width, height = stream.width, stream.height
    scale = SIZE / min(width, height)
    size = {"width": round(width * scale), "height": round(height * scale)}
    reader = decord.VideoReader(row.path, num_threads=1, **size)
    video_thwc = reader.get_batch(row.choose(len(reader))).asnumpy()
    return torch.from_numpy(np.ascontiguousarray(_cut(video_thwc)))


def _cut(video_thwc):
    height, width = video_thwc.shape[1:3]
    top, left = (height - SIZE) // 2, (width - SIZE) // 2
    return video_thwc[:, top : top + SIZE, left : left + SIZE]
