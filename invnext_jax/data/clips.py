"""From a row of the manifest to one clip: decode, crop, flip, resize, recolour.

Imports nothing but numpy and the decoder, for each worker process imports it.

Shape key: t frames, h w pixels, c channels.
"""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from invnext_jax.data import decode, sampling, shards, sources, transforms


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
class LoadClip:
    """Decodes a video and cuts a clip from it."""

    frames: int
    sampling: str
    stride: tuple[int, int]
    size: int
    short_side: int
    crop: str
    crop_scales: tuple[float, ...]
    crop_area: tuple[float, float]
    crop_aspect: tuple[float, float]
    jitter: tuple[float, ...]
    flip: bool
    no_flip_sources: tuple[str, ...]

    @classmethod
    def from_config(cls, data_config) -> "LoadClip":
        """Takes the fields of the same names from `config.data`."""
        values = {f.name: getattr(data_config, f.name) for f in dataclasses.fields(cls)}
        lists = {name: tuple(v) for name, v in values.items() if isinstance(v, (list, tuple))}
        return cls(**values | lists)

    def __call__(
        self, record: sources.VideoRecord, seed: tuple[int, ...] | None
    ) -> dict[str, Any] | BadClip:
        """Makes one element of a batch.

        Args:
            record: The row.
            seed: Frames, crop and flip follow from it; None stands for the centre of everything.
        """
        rng = None if seed is None else make_rng(*seed)
        try:
            video_thwc = decode.read_frames(
                shards.read_video(record.path, record.record),
                lambda count: self._sample(count, rng),
                short_side=self.short_side,
                start=record.start,
                end=record.end,
                name=record.name,
            )
        except decode.BadVideo as error:
            return BadClip(record.name, error.kind, str(error))
        if rng is None:
            video_thwc = transforms.resize_center(video_thwc, self.size)
        else:
            video_thwc = self._augment(video_thwc, record.source, rng)
        labels = {name: np.int32(value) for name, value in record.labels.items()}
        video_thwc = np.ascontiguousarray(video_thwc)
        return {"video": video_thwc, "index": np.int32(record.index), **labels}

    def _sample(self, count: int, rng: np.random.Generator | None) -> np.ndarray:
        if self.sampling == "dense":
            return sampling.sample_dense(count, self.frames, self.stride, rng)
        return sampling.sample_sparse(count, self.frames, rng)

    def _augment(self, video_thwc, source: str, rng: np.random.Generator) -> np.ndarray:
        if self.crop == "random_resized":
            window = (self.size, self.crop_area, self.crop_aspect)
            video_thwc = transforms.random_resized_crop(video_thwc, *window, rng)
        else:
            video_thwc = transforms.multi_scale_crop(video_thwc, self.size, self.crop_scales, rng)
        if self.flip and source not in self.no_flip_sources and rng.random() < 0.5:
            video_thwc = transforms.flip(video_thwc)
        if any(self.jitter):
            video_thwc = transforms.jitter_colors(video_thwc, self.jitter, rng)
        return video_thwc


def make_rng(*words: int) -> np.random.Generator:
    """Random numbers that follow from `words` alone."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(words)))
