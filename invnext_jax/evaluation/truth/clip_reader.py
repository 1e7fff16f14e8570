"""Reads the evaluation clip of a manifest row, with its frame indices and its crop window.

Shape key: t frames, h w pixels, c channels.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from invnext_jax.data import clips, frame_converter, sources
from invnext_jax.data.clips import ClipSampler, LoadClip
from invnext_jax.data.demux import BadVideo
from invnext_jax.data.frame_converter import Window
from invnext_jax.data.manifest import VideoRecord
from invnext_jax.evaluation.truth.geometry import ClipGeometry
from invnext_jax.evaluation.truth.truth import BadTruth


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


def read_evaluation_clip(record: VideoRecord, load: LoadClip) -> EvaluationClip:
    """Reads the same clip as `load(record, [None])`, with its frame indices and window.

    Raises:
      BadTruth: The video cannot be read.
    """
    sampler = make_sampler(load, record.source)
    try:
        video_thwc = clips.read_clips(record, sampler, load.short_side)[0]
    except BadVideo as error:
        raise BadTruth(f"{record.name}: {error}", error.kind) from error
    return EvaluationClip(video_thwc, sampler.frame_t, sampler.geometry)


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
