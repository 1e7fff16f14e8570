"""Loads the clips of a manifest row: decodes the video once, then augments each clip.

Worker processes import this module, so it must not import jax, grain or ml_collections.

Shape key: r clips of one video, t frames, h w pixels, c channels.
"""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from invnext_jax import sanitize
from invnext_jax.data import decode, index_files, shards, video_io
from invnext_jax.data import manifest as manifest_lib
from invnext_jax.data import sources as sources_lib
from invnext_jax.data.manifest import VideoRecord
from invnext_jax.synthetic_world import urls
from invnext_jax.video import color_jitter, frame_converter
from invnext_jax.video.frame_converter import Window
from invnext_jax.workers.results import are_arrays, register_result_type

Seed = tuple[int, ...]
Choice = np.random.Generator | float | None  # see `ClipTransform`
MISSING_FRAMES = "missing_frames"  # column of `LoadClip` that is not part of a batch


@register_result_type
class BadClip(NamedTuple):
    """Result for a video from which no clip could be read.

    Attributes:
      path: Path of the video file, or `file#record`.
      kind: Kind of reason: one of `decode.BadVideo.kind`, "time limit" or "worker died".
      reason: A sentence that contains the path.
    """

    path: str
    kind: str
    reason: str


def sample_sparse(frame_count: int, frames: int, rng: np.random.Generator | None) -> np.ndarray:
    """Samples one frame from each of `frames` equally long segments of a video.

    Args:
      frame_count: Number of frames in the video. If it is less than `frames`, some frames are
          repeated.
      frames: Number of frames to sample.
      rng: Draws the position in each segment. None selects the center of the segment.

    Returns:
      int64 [t], non-decreasing.
    """
    position_t = np.full(frames, 0.5) if rng is None else rng.random(frames)
    index_t = ((np.arange(frames) + position_t) * frame_count / frames).astype(np.int64)
    return np.minimum(index_t, frame_count - 1)


def count_dense_span(frames: int, stride: int) -> int:
    """Returns the number of consecutive frames from the first to the last frame of a clip."""
    return (frames - 1) * stride + 1


def sample_dense(
    frame_count: int, frames: int, stride: tuple[int, int], rng: np.random.Generator | None
) -> np.ndarray:
    """Samples frames at a constant stride from a random start.

    Args:
      frame_count: Number of frames in the video. Beyond the end, the last frame is repeated.
      frames: Number of frames to sample.
      stride: Minimum and maximum stride in frames. One stride is drawn per clip.
      rng: Draws the stride and the start. None selects the middle of both ranges.

    Returns:
      int64 [t], non-decreasing.
    """
    low, high = stride
    step = (low + high) // 2 if rng is None else rng.integers(low, high, endpoint=True)
    room = max(0, frame_count - count_dense_span(frames, step))
    start = room // 2 if rng is None else rng.integers(room, endpoint=True)
    return np.minimum(start + step * np.arange(frames), frame_count - 1)


@dataclasses.dataclass(frozen=True)
class ClipTransform:
    """Samples and augments clips. The fields have the same meaning as in `config.data`.

    By default, it samples evenly spaced frames and a square crop, and does not augment.

    `rng` is the random number generator of one clip. If it is a number, the clip is not augmented,
    and the number is the position of the crop (see `frame_converter.square_crop`). None is the
    center. `config.data.by_source` overrides fields for the videos of a source.
    """

    sampling: str = "sparse"
    stride: tuple[int, int] = (1, 1)
    crop: str = "multi_scale"
    crop_scales: tuple[float, ...] = (1.0,)
    crop_area: tuple[float, float] = (1.0, 1.0)
    crop_aspect: tuple[float, float] = (1.0, 1.0)
    jitter: tuple[float, ...] = ()
    flip: bool = False

    def sample_frames(self, frame_count: int, frames: int, rng: Choice) -> np.ndarray:
        """Samples `frames` of the `frame_count` frames of a video."""
        rng = rng if isinstance(rng, np.random.Generator) else None
        if self.sampling == "dense":
            return sample_dense(frame_count, frames, self.stride, rng)
        return sample_sparse(frame_count, frames, rng)

    def count_span(self, frames: int) -> int:
        """Returns how many frames a video needs so that every clip of `frames` frames fits."""
        return count_dense_span(frames, self.stride[1]) if self.sampling == "dense" else frames

    def sample_window(self, height: int, width: int, size: int, rng: Choice) -> Window:
        """Samples a window of a frame, which will be resized to `size` x `size` pixels."""
        if not isinstance(rng, np.random.Generator):
            return frame_converter.square_crop(height, width, 0.5 if rng is None else rng)
        if self.crop == "random_resized":
            return frame_converter.sample_random_resized_crop(
                height, width, self.crop_area, self.crop_aspect, rng
            )
        return frame_converter.sample_multi_scale_crop(height, width, size, self.crop_scales, rng)

    def augment(self, video_thwc: np.ndarray, rng: Choice) -> np.ndarray:
        """Flips a clip and jitters its colors."""
        if not isinstance(rng, np.random.Generator):
            return video_thwc
        if self.flip and rng.random() < 0.5:
            video_thwc = video_thwc[:, :, ::-1]
        if any(self.jitter):
            video_thwc = color_jitter.jitter_colors(video_thwc, self.jitter, rng)
        return video_thwc


# `config.data.by_source` can override these fields.
BY_SOURCE_FIELDS = tuple(field.name for field in dataclasses.fields(ClipTransform))


@dataclasses.dataclass
class ClipSampler:
    """Samples frames and windows of the clips that `read_clips` reads from one video.

    Attributes:
      transform: Transform that draws frames and windows.
      frames: Number of frames per clip.
      size: Height and width of a clip in pixels.
      rngs: `rng` of each clip, see `ClipTransform`.
      frame_count: Number of frames of the video; set by `sample_frames`.
    """

    transform: ClipTransform
    frames: int
    size: int
    rngs: Sequence[Choice]
    frame_count: int = 0

    def sample_frames(self, frame_count: int) -> np.ndarray:
        """Returns the frame numbers of each clip, int64 [r t]."""
        self.frame_count = frame_count
        numbers = [self.transform.sample_frames(frame_count, self.frames, r) for r in self.rngs]
        return np.stack(numbers)

    def sample_windows(self, height: int, width: int) -> list[Window]:
        """Returns the window of each clip in frames of the given size."""
        return [self.transform.sample_window(height, width, self.size, r) for r in self.rngs]


def read_clips(record: VideoRecord, sampler: ClipSampler, short_side: int | None) -> np.ndarray:
    """Reads clips from one video, which is opened once; each frame is decoded at most once.

    Only the sampled window of a frame is scaled and converted, in one pass.

    Args:
      record: Manifest row of a video in a local or remote file, a shard or a rendered world.
      sampler: Called once for the frame numbers, then once for the windows. Windows are in pixels
          of the upright frames after scaling to `short_side`.
      short_side: Target length of the shorter side in pixels. Smaller videos are not enlarged.
          None keeps the size. Rendered worlds ignore it.

    Returns:
      uint8 [r t h w c], RGB, frames of `sampler.size` x `sampler.size` pixels.

    Raises:
      BadVideo: The video cannot be opened or decoded.
    """
    size = sampler.size
    if video_io.is_world(record.path):
        video_thwc = urls.render_frames(record.path)
        index_rt = sampler.sample_frames(len(video_thwc))
        windows = sampler.sample_windows(*video_thwc.shape[1:3])
        resize, pairs = frame_converter.resize, zip(index_rt, windows, strict=True)
        return np.stack([resize(video_thwc[i_t], window, size) for i_t, window in pairs])
    convert, windows = frame_converter.FrameConverter(short_side), None
    window = {"start": record.start, "end": record.end}
    with video_io.open_video(record.path, record.record, **window) as video:
        index_rt = sampler.sample_frames(len(video))
        clips_rthwc = np.empty((*index_rt.shape, size, size, 3), np.uint8)
        for number, frame in video.frames(index_rt.ravel().tolist()):
            if windows is None:
                windows = sampler.sample_windows(*convert.frame_size(frame))
            for clip, window in enumerate(windows):
                if (selected_t := index_rt[clip] == number).any():
                    clips_rthwc[clip, selected_t] = convert(number, frame, window, size)
    return clips_rthwc


@dataclasses.dataclass(frozen=True)
class LoadClip:
    """Loads the clips of a manifest row. It is called in worker processes.

    Attributes:
      frames: Number of frames per clip.
      size: Height and width of a clip in pixels.
      short_side: As in `read_clips`.
      transform: Default sampling and augmentation.
      by_source: Maps the name of a source to the transform that replaces the default.
      index_files: Files with stored frame indexes, see `index_files`.
    """

    frames: int
    size: int
    short_side: int
    transform: ClipTransform
    by_source: Mapping[str, ClipTransform]
    index_files: tuple[str, ...] = ()

    @classmethod
    def from_config(cls, data_config, manifest: manifest_lib.Manifest | None = None) -> "LoadClip":
        """Builds a loader from `config.data`. Without a manifest, names of sources are exact."""
        transform = ClipTransform(**{n: _to_tuple(data_config[n]) for n in BY_SOURCE_FIELDS})
        entries = sources_lib.merge_overrides(data_config.by_source)
        by_source = {
            source: dataclasses.replace(transform, **{n: _to_tuple(v) for n, v in fields.items()})
            for source in (entries if manifest is None else dict.fromkeys(manifest.sources))
            if (fields := sources_lib.find_entry(entries, source, {}))
        }
        names = manifest_lib.split_names(manifest.file) if manifest is not None else ()
        files = tuple(map(index_files.stored_file, names))
        sizes = (data_config[name] for name in ("frames", "size", "short_side"))
        return cls(*sizes, transform, by_source, files)

    def prefetch(self, record: VideoRecord, file_ahead: str = "") -> None:
        """Reads a video of a shard, and another shard, into the operating system's page cache."""
        shards.read_ahead(file_ahead)
        with contextlib.suppress(decode.BadVideo):  # reported when the video is loaded
            shards.read_example(record.path, record.record)

    def __call__(
        self, record: VideoRecord, seeds: Sequence[Seed | float | None]
    ) -> dict[str, Any] | BadClip:
        """Loads clips from one video.

        Args:
          record: Manifest row.
          seeds: One seed per clip, which determines frames, crop, flip and colors. A number or None
              disables augmentation, see `ClipTransform`.

        Returns:
          A dict with `video` uint8 [r t h w c], and `index`, the labels and `MISSING_FRAMES` int32
          [r]; or a `BadClip` if the video is bad. `MISSING_FRAMES` is how many frames the video
          lacks for every clip to fit, see `ClipTransform.count_span`.
        """
        video_io.CACHE.load(self.index_files)
        transform = self.by_source.get(record.source, self.transform)
        rngs = [make_rng(*seed) if isinstance(seed, tuple) else seed for seed in seeds]
        sampler = ClipSampler(transform, self.frames, self.size, rngs)
        try:
            videos = read_clips(record, sampler, self.short_side)
        except decode.BadVideo as error:
            return BadClip(record.name, error.kind, sanitize.redact_error(str(error), record.path))
        videos = [transform.augment(video, rng) for video, rng in zip(videos, rngs, strict=True)]
        missing = max(0, transform.count_span(self.frames) - sampler.frame_count)
        numbers = {"index": record.index, **record.labels, MISSING_FRAMES: missing}
        columns = {name: np.full(len(rngs), value, np.int32) for name, value in numbers.items()}
        video_rthwc = np.stack(videos) if len(videos) > 1 else np.ascontiguousarray(videos[0])[None]
        return {"video": video_rthwc, **columns}

    def is_valid(self, result: Any, record: VideoRecord, seeds: Sequence[Seed | None]) -> bool:
        """Returns whether a worker's result has the structure that `__call__` returns."""
        if isinstance(result, BadClip):
            return result.path == record.name
        clips, numbers = len(seeds), {"index": record.index, **record.labels}
        forms = {name: (np.int32, (clips,)) for name in numbers}
        forms[MISSING_FRAMES] = (np.int32, (clips,))
        forms["video"] = (np.uint8, (clips, self.frames, self.size, self.size, 3))
        return are_arrays(result, forms) and all((result[n] == v).all() for n, v in numbers.items())


def _to_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, (list, tuple)) else value


def make_rng(*words: int) -> np.random.Generator:
    """Returns a random number generator that depends only on `words`."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(words)))
