"""Reads clips for ground truth, with their frame indices and their crop window.

Videos are decoded in worker processes, which a damaged video cannot block or crash for long.

Shape key: t frames, h w pixels, c channels.
"""

import dataclasses
import functools
import queue
import weakref
from typing import Any, NamedTuple

import numpy as np

from invnext_jax.data import clips, sources
from invnext_jax.data.bad_videos import STALLED
from invnext_jax.data.clips import BadClip, ClipSampler, LoadClip
from invnext_jax.data.manifest import VideoRecord
from invnext_jax.evaluation.truth.geometry import ClipGeometry
from invnext_jax.evaluation.truth.truth import BadTruth
from invnext_jax.video import frame_converter
from invnext_jax.video.demux import BadVideo
from invnext_jax.video.frame_converter import Window
from invnext_jax.workers.process_worker import ProcessWorker, WorkerDiedError
from invnext_jax.workers.results import are_arrays
from invnext_jax.workers.supervisor import SupervisedWorker
from invnext_jax.workers.time_limits import ReadStalledError, TimeLimitError

SECONDS = 60.0  # default time limit for a clip


class EvaluationClip(NamedTuple):
    """The clip of a row, and the part of the video that it shows.

    Attributes:
      video_thwc: The frames, uint8 RGB.
      frame_t: Index of each frame in the video, int64.
      geometry: The window of the frames that the clip shows.
    """

    video_thwc: np.ndarray
    frame_t: np.ndarray
    geometry: ClipGeometry


@dataclasses.dataclass
class RecordingSampler:
    """A `ClipSampler` that stores the frame indices and the window that it sampled last.

    Attributes:
      sampler: The sampler.
      frame_t: Indices of the frames that were sampled last, int64.
      window: The window that was sampled last.
      frame_size: Height and width in pixels of the frames from which it was sampled.
    """

    sampler: ClipSampler
    frame_t: np.ndarray | None = None
    window: Window | None = None
    frame_size: tuple[int, int] | None = None

    @property
    def size(self) -> int:
        """Height and width of a clip in pixels."""
        return self.sampler.size

    def sample_frames(self, frame_count: int) -> np.ndarray:
        """Returns the frame indices of the clip, int64 [1 t]."""
        index_rt = self.sampler.sample_frames(frame_count)
        self.frame_t = index_rt[0]
        return index_rt

    def sample_windows(self, height: int, width: int) -> list[Window]:
        """Returns the window of the clip in frames of the given size in pixels."""
        windows = self.sampler.sample_windows(height, width)
        self.window, self.frame_size = windows[0], (height, width)
        return windows

    @property
    def geometry(self) -> ClipGeometry:
        """The window that was sampled last."""
        return ClipGeometry.of_window(self.window, self.frame_size, (self.size, self.size))


def make_sampler(load: LoadClip, source: str) -> RecordingSampler:
    """Makes the sampler of the evaluation clip: centers of equal segments and a centered crop.

    Args:
      load: The loader of the evaluation's clips, which has the sampling options.
      source: Name of the row's data set, for the options in `config.data.by_source`.
    """
    transform = sources.find_entry(load.by_source, source, load.transform)
    return RecordingSampler(ClipSampler(transform, load.frames, load.size, [None]))


class ClipReader:
    """Reads clips in worker processes. It has as many processes as threads call it at once.

    Args:
      seconds: Time limit for a clip.
    """

    def __init__(self, seconds: float = SECONDS):
        self._seconds, self._workers = seconds, queue.SimpleQueue()  # idle workers
        weakref.finalize(self, _close_all, self._workers)

    def read(
        self, record: VideoRecord, sampler: ClipSampler, short_side: int | None
    ) -> EvaluationClip:
        """Reads one clip; see `clips.read_clips`.

        Raises:
          BadTruth: The video cannot be read.
        """
        try:
            worker = self._workers.get_nowait()
        except queue.Empty:
            make_worker = functools.partial(ProcessWorker, _ReadClip())
            worker = SupervisedWorker(make_worker, self._seconds)
        try:
            found = worker(record, sampler, short_side)
        except TimeLimitError as error:
            reason = f"{record.name}: took longer than {self._seconds:g} s"
            raise BadTruth(reason, "time limit") from error
        except ReadStalledError as error:
            reason = f"{record.name}: a read took longer than {self._seconds:g} s"
            raise BadTruth(reason, STALLED) from error
        except WorkerDiedError as error:
            raise BadTruth(f"{record.name}: its worker died twice", "worker died") from error
        else:
            if isinstance(found, BadClip):
                raise BadTruth(found.reason, found.kind)
            video_thwc = found["video_thwc"].copy()  # the worker overwrites its memory
            window, size = Window(*found["window"].tolist()), (sampler.size,) * 2
            geometry = ClipGeometry.of_window(window, tuple(found["frame_size"].tolist()), size)
            return EvaluationClip(video_thwc, found["frame_t"].copy(), geometry)
        finally:
            self._workers.put(worker)


def _close_all(workers: queue.SimpleQueue) -> None:
    while not workers.empty():
        workers.get_nowait().close()


@dataclasses.dataclass(frozen=True)
class _ReadClip:
    """Reads one clip in a worker process."""

    def __call__(
        self, record: VideoRecord, sampler: ClipSampler, short_side: int | None
    ) -> dict[str, Any] | BadClip:
        """Returns the frames, their indices, the window, and the size of the video's frames."""
        recorder = RecordingSampler(sampler)
        try:
            video_thwc = clips.read_clips(record, recorder, short_side)[0]
        except BadVideo as error:
            reason = str(error).removeprefix(f"{record.name}: ")
            return BadClip(record.name, error.kind, f"{record.name}: {reason}")
        numbers = {"window": recorder.window, "frame_size": recorder.frame_size}
        numbers |= {"frame_t": recorder.frame_t}
        arrays = {name: np.array(value, np.int64) for name, value in numbers.items()}
        return {"video_thwc": video_thwc, **arrays}

    def is_valid(self, result: Any, record: VideoRecord, sampler: ClipSampler, *_: Any) -> bool:
        """Returns whether a result of the worker has the structure that `__call__` returns."""
        if isinstance(result, BadClip):
            return result.path == record.name
        forms = {"video_thwc": (np.uint8, (sampler.frames, sampler.size, sampler.size, 3))}
        forms |= {"frame_t": (np.int64, (sampler.frames,)), "window": (np.int64, (4,))}
        forms |= {"frame_size": (np.int64, (2,))}
        if not are_arrays(result, forms) or (result["frame_t"] < 0).any():
            return False
        window, (height, width) = Window(*result["window"].tolist()), result["frame_size"].tolist()
        is_inside = 0 <= window.left < window.right <= width
        return is_inside and 0 <= window.top < window.bottom <= height


def read_evaluation_clip(reader: ClipReader, record: VideoRecord, load: LoadClip) -> EvaluationClip:
    """Reads the same clip as `load(record, [None])`, with its frame indices and window.

    Raises:
      BadTruth: The video cannot be read.
    """
    return reader.read(record, make_sampler(load, record.source).sampler, load.short_side)


def crop_rendered(video_thwc: np.ndarray, load: LoadClip, source: str) -> EvaluationClip:
    """Samples and crops the evaluation clip of a rendered video, as `clips.read_clips` does.

    Args:
      video_thwc: All frames of the video, uint8.
      load: See `make_sampler`.
      source: See `make_sampler`.
    """
    sampler = make_sampler(load, source)
    frame_t = sampler.sample_frames(len(video_thwc))[0]
    (window,) = sampler.sample_windows(*video_thwc.shape[1:3])
    resized_thwc = frame_converter.resize(video_thwc[frame_t], window, load.size)
    return EvaluationClip(resized_thwc, frame_t, sampler.geometry)
