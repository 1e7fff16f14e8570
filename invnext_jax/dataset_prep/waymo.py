"""Converts the front camera of Waymo Open (version 2, Parquet) to images and a file of boxes.

    <in>/camera_image/<segment>.parquet     <in>/camera_box/<segment>.parquet
    <out>/<segment>/000000.jpg              the images in temporal order
    <out>/<segment>.json                    the boxes of a segment, written after its images
    <out>/tracks.jsonl                      the boxes of all segments, written last

To resume an interrupted conversion, repeat it.
"""

import io
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from PIL import Image

from invnext_jax import atomic_file
from invnext_jax.errors import UserError
from invnext_jax.monitoring.progress import ProgressMeter

FRONT = 1
CAMERA, TIME, OBJECT = "key.camera_name", "key.frame_timestamp_micros", "key.camera_object_id"
PICTURE = "[CameraImageComponent].image"
BOX = tuple(
    f"[CameraBoxComponent].box.{name}" for name in ("center.x", "center.y", "size.x", "size.y")
)
ROWS = 32  # rows of a Parquet file in memory; an image has about 0.3 MB
QUALITY = 95


class WaymoSummary(NamedTuple):
    """Result of a conversion.

    Attributes:
        tracks: Path of the file of boxes.
        segments: Number of segments in the file.
        skipped: Reason for each segment that cannot be read.
    """

    tracks: Path
    segments: int
    skipped: dict[str, str]

    def __str__(self) -> str:
        text = f"{self.tracks}: {self.segments} segments"
        reasons = "".join(f"\n  {name}: {reason}" for name, reason in self.skipped.items())
        return text + (f"; {len(self.skipped)} skipped:{reasons}" if reasons else "")


def convert(
    in_dir: str | os.PathLike,
    out_dir: str | os.PathLike,
    *,
    short_side: int = 448,
    progress: bool = True,
) -> WaymoSummary:
    """Converts all segments of a split. Damaged segments are skipped and listed.

    Args:
        in_dir: Folder of a split, with `camera_image` and `camera_box`.
        out_dir: Output folder.
        short_side: Shorter side of the images in pixels; 0 copies the original files.
        progress: Whether to show progress.

    Raises:
        UserError: The layout is wrong, or no segment can be read.
    """
    in_dir, out_dir = Path(in_dir), Path(out_dir)
    if short_side < 0:
        raise UserError(f"short_side={short_side} must not be negative: use 0 for original files")
    paths = sorted((in_dir / "camera_box").glob("*.parquet"))
    if not paths or not (in_dir / "camera_image").is_dir():
        raise UserError(
            f"{in_dir} must contain the folders camera_box and camera_image with Parquet files: "
            "download these two components of Waymo Open Perception version 2"
        )
    lines, skipped = [], {}
    with ProgressMeter(len(paths), "segment", quiet=not progress) as meter:
        for done, path in enumerate(paths, start=1):
            finished = out_dir / f"{path.stem}.json"
            try:
                if not finished.is_file():
                    line = _convert_segment(in_dir, out_dir, path.stem, short_side)
                    atomic_file.write_text(finished, json.dumps(line) + "\n")
                lines.append(finished.read_text())
            except (OSError, ValueError, KeyError, SyntaxError) as error:
                skipped[path.stem] = f"{type(error).__name__}: {error}".partition("\n")[0]
                logging.warning("segment %s skipped (%s)", path.stem, skipped[path.stem])
            meter.update(done, path.stem)
    if not lines:
        raise UserError(f"no segment of {in_dir} can be read, e.g. {next(iter(skipped.values()))}")
    atomic_file.write_text(out_dir / "tracks.jsonl", "".join(lines))
    return WaymoSummary(out_dir / "tracks.jsonl", len(lines), skipped)


def _convert_segment(in_dir: Path, out_dir: Path, segment: str, short_side: int) -> dict[str, Any]:
    """Writes the images of a segment and returns its boxes as a line of the file of boxes."""
    if not re.fullmatch(r"[\w.-]+", segment):
        raise ValueError(
            f"the name {segment!r} has characters that are not allowed in a folder name"
        )
    times, sizes = [], set()
    images = in_dir / "camera_image" / f"{segment}.parquet"
    # Two passes, so that images are numbered in temporal order with few of them in memory.
    order = {time: n for n, time in enumerate(sorted(row[TIME] for row in _front(images, [TIME])))}
    for row in _front(images, [TIME, PICTURE]):
        data, size = _shrink(row[PICTURE], short_side)
        sizes.add(size)
        times.append(row[TIME])
        atomic_file.write_bytes(out_dir / segment / f"{order[row[TIME]]:06d}.jpg", data)
    if len(order) < 2 or len(order) != len(times) or len(sizes) != 1:
        raise ValueError(f"{len(times)} images of the front camera with sizes {sorted(sizes)}")
    seconds = float(np.median(np.diff(sorted(times)))) / 1e6
    tracks: dict[str, dict[str, list]] = {}
    for row in _front(in_dir / "camera_box" / f"{segment}.parquet", [TIME, OBJECT, *BOX]):
        if row[TIME] in order:
            x, y, width, height = (float(row[name]) for name in BOX)
            track = tracks.setdefault(str(row[OBJECT]), {"frames": [], "boxes": []})
            track["frames"].append(order[row[TIME]])
            corners = x - width / 2, y - height / 2, x + width / 2, y + height / 2
            track["boxes"].append([round(corner, 2) for corner in corners])
    (height, width), fps = sizes.pop(), round(1 / seconds, 3)
    return {"video": segment, "fps": fps, "width": width, "height": height, "tracks": tracks}


def _front(path: Path, columns: list[str]) -> Iterator[dict[str, Any]]:
    """Yields the rows of the front camera."""
    from pyarrow import parquet  # slow to import

    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(ROWS, columns=[CAMERA, *columns]):
            yield from (row for row in batch.to_pylist() if row[CAMERA] == FRONT)


def _shrink(data: bytes, short_side: int) -> tuple[bytes, tuple[int, int]]:
    """Returns a JPEG image of the given short side, and the height and width of the original."""
    with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
        width, height = image.size
        scale = short_side / min(width, height)
        if not 0 < scale < 1:
            return data, (height, width)
        size = round(width * scale), round(height * scale)
        buffer = io.BytesIO()
        image.resize(size, Image.Resampling.BILINEAR).save(buffer, "JPEG", quality=QUALITY)
        return buffer.getvalue(), (height, width)
