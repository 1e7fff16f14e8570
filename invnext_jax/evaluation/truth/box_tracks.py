"""Windows of videos with boxes of tracked objects, from a file in the format of `boxes_jsonl`.

Shape key: n boxes, t frames, k objects, 4 = (x0, y0, x1, y1).
"""

import dataclasses
import os
from pathlib import Path

import numpy as np

from invnext_jax.data.manifest import VideoRecord
from invnext_jax.errors import UserError
from invnext_jax.evaluation.truth import images
from invnext_jax.evaluation.truth.boxes_jsonl import VideoTracks, read_tracks
from invnext_jax.evaluation.truth.clip_reader import SECONDS, ClipReader
from invnext_jax.evaluation.truth.geometry import ClipGeometry
from invnext_jax.evaluation.truth.track_windows import WindowRules, select_windows
from invnext_jax.evaluation.truth.truth import BadTruth
from invnext_jax.video import frame_converter
from invnext_jax.video.demux import BadVideo
from invnext_jax.video.frame_converter import Window

MAX_WINDOWS = 2**20  # of a file; the videos of Waymo Open have about 10,000
_RATE_TOLERANCE = 0.02  # relative; 29.97 frames per second count as 30


class BoxTracks:
    """Windows of videos with boxes; see `truth.Truth`.

    Attributes:
      name: "boxes".
      videos: Index of the video of each row, int32.
    """

    name = "boxes"

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        size: int = 224,
        rules: WindowRules | None = None,
        seconds: float = SECONDS,
    ):
        """Reads the boxes and selects the windows.

        Args:
          path: File of boxes.
          size: Height and width of the clips in pixels, which are center crops.
          rules: Rules that select the windows; by default, those of Waymo Open.
          seconds: Time limit for reading a clip of a video file.

        Raises:
          UserError: The file cannot be read, or no window satisfies the rules, or too many do.
        """
        self._rules, self._size = rules or WindowRules(), size
        self._reader = ClipReader(seconds)
        self._tracks = read_tracks(path)
        self._windows: list[tuple[int, range]] = []
        for number, tracks in enumerate(self._tracks):
            _, kept_n = self._crop(tracks, tracks.box_n4)
            windows = select_windows(
                *(tracks.frame_n[kept_n], tracks.object_n[kept_n], tracks.frame_count),
                *(self._rules, tracks.fps),
            )
            self._windows += [(number, window) for window in windows]
            if len(self._windows) > MAX_WINDOWS:
                raise UserError(
                    f"{path} has more than {MAX_WINDOWS} windows: divide the file, or use a larger "
                    "stride"
                )
        if not self._windows:
            raise UserError(
                f"no window of {path} satisfies the rules ({self._rules.describe()}): lower "
                "config.data.frames, or check that the boxes are in pixels"
            )
        self.videos = np.array([number for number, _ in self._windows], np.int32)
        self.video_names = [tracks.path.name for tracks in self._tracks]

    def __len__(self) -> int:
        """Returns the number of windows."""
        return len(self._windows)

    def describe_rates(self) -> str:
        """Returns a sentence about windows whose frame rate is not that of the rules, or "".

        Every n-th frame of a video is used, so its rate is divided by a whole number.
        """
        wanted = self._rules.fps
        rates = [
            self._tracks[number].fps / (frames[1] - frames[0]) for number, frames in self._windows
        ]
        other = [rate for rate in rates if wanted and abs(rate / wanted - 1) > _RATE_TOLERANCE]
        if not other:
            return ""
        low, high = f"{min(other):.3g}", f"{max(other):.3g}"
        return (
            f"{len(other):,} of {len(rates):,} windows have {low}"
            f"{f' to {high}' if low != high else ''} instead of {wanted:g} frames per second, "
            "because only every n-th frame of a video can be used"
        )

    def window(self, row: int) -> tuple[Path, range]:
        """Returns the path of the video and the frame indices of a row."""
        number, frames = self._windows[row]
        return self._tracks[number].path, frames

    def load(self, row: int) -> dict[str, np.ndarray]:
        """Reads `video`, `boxes` and `present` of a window; see `truth.Truth.load`.

        The objects are those of the first frame, padded with zeros to `max_objects`.
        """
        number, frames = self._windows[row]
        tracks, count = self._tracks[number], self._rules.max_objects
        original_tk4, present_tk = tracks.of_frames(frames)
        cropped_tk4, kept_tk = self._crop(tracks, original_tk4)
        present_tk &= kept_tk
        chosen_k = np.flatnonzero(present_tk[0])
        boxes_tk4 = np.zeros((len(frames), count, 4), np.float32)
        present = np.zeros((len(frames), count), bool)
        present[:, : len(chosen_k)] = present_tk[:, chosen_k]
        boxes_tk4[:, : len(chosen_k)] = cropped_tk4[:, chosen_k] * present_tk[:, chosen_k, None]
        return {"video": self._read_video(tracks, frames), "boxes": boxes_tk4, "present": present}

    def _crop(self, tracks: VideoTracks, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        geometry = ClipGeometry.center((tracks.height, tracks.width), self._size)
        return geometry.crop_boxes(boxes, self._rules.min_area)

    def _read_video(self, tracks: VideoTracks, frames: range) -> np.ndarray:
        if os.path.isdir(tracks.path):
            try:
                image_paths = list(images.list_frames(tracks.path).values())
            except UserError as error:
                raise BadTruth(str(error), "missing") from error
            if frames[-1] >= len(image_paths):
                raise BadTruth(f"{tracks.path}: frame {len(image_paths)} is missing", "missing")
            return images.read_clip([image_paths[n] for n in frames], self._size)[0]
        record = VideoRecord(0, str(tracks.path), "", None, None, {})
        sampler = _FixedFrames(frames, self._size)
        return self._reader.read(record, sampler, None).video_thwc


@dataclasses.dataclass(frozen=True)
class _FixedFrames:
    """Samples the given frames and the centered square; can replace a `ClipSampler`."""

    numbers: range
    size: int

    @property
    def frames(self) -> int:
        return len(self.numbers)

    def sample_frames(self, frame_count: int) -> np.ndarray:
        if self.numbers[-1] >= frame_count:
            raise BadVideo(
                f"it has {frame_count} frames, but frame {self.numbers[-1]} has boxes", "truncated"
            )
        return np.array(self.numbers)[None]

    def sample_windows(self, height: int, width: int) -> list[Window]:
        return [frame_converter.square_crop(height, width)]
