"""Re-encodes videos for training: small, upright, and cheap to decode from any frame.

Groups of pictures are short, so that every frame is close to a key frame. Three out of four frames
are not referenced by other frames, so the decoder can skip them. `fastdecode` disables arithmetic
coding and the deblocking filter.
"""

import contextlib
import dataclasses
import fractions
import io
from collections.abc import Iterator
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from invnext_jax.data import decode, shards, video_io
from invnext_jax.errors import UserError
from invnext_jax.video.frame_converter import FrameConverter
from invnext_jax.video.frame_index import FrameTimes

TIME_BASE = fractions.Fraction(1, 90_000)  # seconds
MAX_BYTES = 2**30  # limit per encoded video; a record must be smaller than 2 GiB
VIDEO_COLUMNS = ("frames", "width", "height", "fps", "duration")  # properties of the encoded video
MIN_KEPT = 0.5  # a video is kept if at least this share of its frames precedes the damage
PRESETS = tuple("ultrafast superfast veryfast faster fast medium slow slower veryslow".split())


@dataclasses.dataclass(frozen=True)
class Encoding:
    """Options of the encoder.

    Attributes:
      short_side: Target length of the shorter side in pixels. Smaller videos are not enlarged.
      crf: Constant rate factor of x264. Lower values give better quality and larger files.
      gop: Maximum key frame interval in frames.
      preset: Preset of x264. Slower presets give smaller files.
    """

    short_side: int = 256
    crf: int = 21
    gop: int = 12
    preset: str = "veryfast"

    def validate(self) -> None:
        """Raises `UserError` if x264 does not accept a value."""
        if self.short_side < 16 or self.short_side % 2:
            raise UserError(f"--short_side={self.short_side} must be even and at least 16")
        if not 0 <= self.crf <= 51:
            raise UserError(f"--crf={self.crf} must be between 0 and 51")
        if self.gop < 1:
            raise UserError(f"--gop={self.gop} must be at least 1")
        if self.preset not in PRESETS:
            raise UserError(f"--preset={self.preset!r} must be one of {', '.join(PRESETS)}")

    def x264_options(self) -> dict[str, str]:
        """Returns the options of x264. It uses one thread, because there is one worker per core."""
        return {
            "crf": str(self.crf),
            "preset": self.preset,
            "tune": "fastdecode",
            "g": str(self.gop),
            "bf": "3",
            "x264-params": "b-pyramid=none:b-adapt=0",
            "threads": "1",
        }


@dataclasses.dataclass(frozen=True)
class Reencoder:
    """Decodes and encodes one video. It is called in worker processes."""

    encoding: Encoding

    def __call__(
        self, path: str, record: int | None, start: float | None, end: float | None
    ) -> dict[str, Any]:
        """Decodes all frames from `start` to `end` and encodes them.

        Args:
          path: Path of a local or remote video file or of a shard.
          record: Position in the shard, or None for a video file.
          start: Start in seconds. None is the beginning.
          end: End in seconds. None is the end.

        Returns:
          A dict with `video`, an MP4 file that starts at time 0, as uint8 [bytes]; and `frames`,
          `width`, `height`, `fps` and `duration`. If the video was cut at a damaged frame,
          `damage` describes this. If the video is bad, the dict contains `reason` and possibly
          `kind` instead.
        """
        name = shards.name_video(path, record)
        try:
            window = {"start": start, "end": end}
            with video_io.open_video(path, record, **window) as video:
                return self._encode(video)
        except decode.BadVideo as error:
            return {"reason": str(error).removeprefix(f"{name}: "), "kind": error.kind}
        except MemoryError:  # caused by damaged headers
            return {"reason": "not enough memory"}

    def is_valid(self, result: Any, *task: Any) -> bool:
        """Returns whether a worker's result has the structure that `__call__` returns."""
        del task
        if not isinstance(result, dict):
            return False
        if "reason" in result:
            return all(isinstance(value, str) for value in result.values())
        numbers = {name: value for name, value in result.items() if name in VIDEO_COLUMNS}
        video, damage = result.get("video"), result.get("damage", "")
        return (
            result.keys() - {"damage"} == {"video", *VIDEO_COLUMNS}
            and all(type(n) in (int, float) and 0 < n < 2**31 for n in numbers.values())
            and isinstance(damage, str)
            and isinstance(video, np.ndarray)
            and video.dtype == np.uint8
            and video.ndim == 1
        )

    def _encode(self, video: decode.VideoReader) -> dict[str, Any]:
        times, reformatter, damage = video.times, VideoReformatter(), []
        with contextlib.ExitStack() as stack:
            for number, frame in _frames_before_damage(video, damage):
                if number == 0:  # the reader may restart at frame 0; see `VideoReader.frames`
                    stack.close()
                    buffer, stream, last = io.BytesIO(), None, -1
                    convert = FrameConverter(self.encoding.short_side)
                    container = stack.enter_context(av.open(buffer, "w", format="mp4"))
                image_hwc = _crop_to_even(convert(number, frame))
                if stream is None:
                    stream = self._add_stream(container, image_hwc.shape, times)
                picture = av.VideoFrame.from_ndarray(image_hwc, format="rgb24")
                picture = reformatter.reformat(picture, format="yuv420p", threads=1)
                last = max(last + 1, round(times[number] / TIME_BASE))  # time stamps must increase
                picture.pts, picture.time_base = last, TIME_BASE
                container.mux(stream.encode(picture))
                if buffer.tell() > MAX_BYTES:
                    raise decode.BadVideo(f"more than {MAX_BYTES} bytes after encoding", "too long")
            container.mux(stream.encode())
        count, span = number + 1, times[number]
        fps = (count - 1) / span if span > 0 else times.fps
        return {
            "video": np.frombuffer(buffer.getvalue(), np.uint8),
            "frames": count,
            "width": stream.width,
            "height": stream.height,
            "fps": round(fps, 3),
            "duration": round(span + 1 / fps, 3),
            **({"damage": damage[0]} if damage else {}),
        }

    def _add_stream(self, container, shape_hwc: tuple[int, ...], times: FrameTimes):
        rate = fractions.Fraction(min(max(times.fps, 1.0), 240.0)).limit_denominator(1001)
        stream = container.add_stream("libx264", rate=rate)
        stream.height, stream.width = shape_hwc[:2]
        stream.pix_fmt, stream.options = "yuv420p", self.encoding.x264_options()
        stream.time_base = stream.codec_context.time_base = TIME_BASE
        return stream


def _frames_before_damage(
    video: decode.VideoReader, damage: list[str]
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Yields (number, frame) up to the first frame that cannot be decoded.

    The reason is appended to `damage`.

    Raises:
      BadVideo: Too many frames follow the damage.
      av.FFmpegError: As for `BadVideo`.
    """
    number = -1
    try:
        for number, frame in video.frames(range(len(video))):  # noqa: B007, used after the loop
            yield number, frame
    except (decode.BadVideo, av.FFmpegError) as error:
        if number + 1 < max(1, MIN_KEPT * len(video)):
            raise
        damage.append(
            f"kept {number + 1} of {len(video)} frames, which precede the damage: {error}"
        )


def _crop_to_even(image_hwc: np.ndarray) -> np.ndarray:
    """Removes an odd last row and column, because yuv420p needs even height and width."""
    height, width = (side // 2 * 2 for side in image_hwc.shape[:2])
    if not height or not width:
        raise decode.BadVideo("less than two pixels wide or high", "too small")
    return np.ascontiguousarray(image_hwc[:height, :width])
