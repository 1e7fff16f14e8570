"""From a row of the manifest to clips: decode once, then crop, flip, resize, recolour each.

Imports nothing of jax or grain, for each worker process imports it.

Shape key: r clips of one video, t frames, h w pixels, c channels.
"""

import dataclasses
import functools
import traceback
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from invnext_jax.data import decode, manifest, sampling, transforms, video_io
from invnext_jax.data.frames import Window

Seed = tuple[int, ...]


class BadClip(NamedTuple):
    """A video that gave no clip.

    Attributes:
        path: Its file, or `file#record`.
        kind: The reason's class, see `decode.BadVideo`; or "time limit" or "worker died".
        reason: A sentence that names the file.
    """

    path: str
    kind: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Cut:
    """Which frames of a video make a clip, and what is done to them: see `config.data`.

    `config.data.by_source` may give any field another value for the videos of a source.
    """

    sampling: str
    stride: tuple[int, int]
    crop: str
    crop_scales: tuple[float, ...]
    crop_area: tuple[float, float]
    crop_aspect: tuple[float, float]
    jitter: tuple[float, ...]
    flip: bool

    def sample(self, count: int, frames: int, rng: np.random.Generator | None) -> np.ndarray:
        """Numbers of the frames to take of `count`."""
        if self.sampling == "dense":
            return sampling.sample_dense(count, frames, self.stride, rng)
        return sampling.sample_sparse(count, frames, rng)

    def window(
        self, height: int, width: int, *, size: int, rng: np.random.Generator | None
    ) -> Window:
        """What to take of a picture, to be resized to `size` pixels a side."""
        if rng is None:
            return transforms.center_crop(height, width)
        if self.crop == "random_resized":
            return transforms.sample_random_resized_crop(
                height, width, self.crop_area, self.crop_aspect, rng
            )
        return transforms.sample_multi_scale_crop(height, width, size, self.crop_scales, rng)

    def recolour(self, video_thwc: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
        """Flips a clip and changes its colours."""
        if rng is None:
            return video_thwc
        if self.flip and rng.random() < 0.5:
            video_thwc = transforms.flip(video_thwc)
        if any(self.jitter):
            video_thwc = transforms.jitter_colors(video_thwc, self.jitter, rng)
        return video_thwc


@dataclasses.dataclass(frozen=True)
class LoadClip:
    """Decodes a video and cuts clips from it."""

    frames: int
    size: int
    short_side: int
    cut: Cut
    by_source: Mapping[str, Cut]

    @classmethod
    def from_config(cls, data_config) -> "LoadClip":
        """Takes the fields of the same names from `config.data`."""
        cut = Cut(**{f.name: _plain(data_config[f.name]) for f in dataclasses.fields(Cut)})
        by_source = {
            source: dataclasses.replace(cut, **{name: _plain(v) for name, v in own.items()})
            for source, own in data_config.by_source.items()
        }
        return cls(data_config.frames, data_config.size, data_config.short_side, cut, by_source)

    def __call__(
        self, record: manifest.VideoRecord, seeds: Sequence[Seed | None]
    ) -> dict[str, Any] | BadClip:
        """Makes clips of one video, which is opened once and each of whose frames is decoded once.

        Args:
            record: The row.
            seeds: One for each clip: its frames, crop, flip and colours follow from it; None stands
                for the centre of everything.

        Returns:
            `video` uint8 [r t h w c], and `index` and the labels int32 [r]; or why there is none.
        """
        cut = self.by_source.get(record.source, self.cut)
        rngs = [None if seed is None else make_rng(*seed) for seed in seeds]
        try:
            videos = video_io.read_clips(
                record.path,
                lambda count: np.stack([cut.sample(count, self.frames, r) for r in rngs]),
                [functools.partial(cut.window, size=self.size, rng=r) for r in rngs],
                self.size,
                short_side=self.short_side,
                start=record.start,
                end=record.end,
                record=record.record,
            )
        except decode.BadVideo as error:
            return BadClip(record.name, error.kind, str(error))
        except (ValueError, ArithmeticError) as error:  # of odd headers
            if not _is_decoders(error):
                raise
            reason = f"{record.name}: {type(error).__name__}: {error}"
            return BadClip(record.name, "corrupt", reason)
        videos = [cut.recolour(video, rng) for video, rng in zip(videos, rngs, strict=True)]
        numbers = {"index": record.index, **record.labels}
        columns = {name: np.full(len(rngs), value, np.int32) for name, value in numbers.items()}
        # A single clip, the common case, is not copied once more.
        video_rthwc = np.stack(videos) if len(videos) > 1 else np.ascontiguousarray(videos[0])[None]
        return {"video": video_rthwc, **columns}


def _is_decoders(error: Exception) -> bool:
    """Whether PyAV raised it; any other is a mistake in the code. Its files have relative names."""
    steps = traceback.walk_tb(error.__traceback__)
    return any(frame.f_code.co_filename.startswith("av/") for frame, _ in steps)


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, (list, tuple)) else value


def make_rng(*words: int) -> np.random.Generator:
    """Random numbers that follow from `words` alone."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(words)))
