"""Converts the front camera of Waymo Open (version 2, Parquet) to images and a file of boxes.

    <in>/camera_image/<segment>.parquet     <in>/camera_box/<segment>.parquet
    <out>/<segment>/000000.jpg              the images in temporal order
    <out>/<segment>.json                    the boxes of a segment, written after its images
    <out>/tracks.jsonl                      the boxes of all segments, written last

To resume an interrupted conversion, repeat it. Files are read in a worker process, because PyArrow
ends the process for some damaged files.
"""

import contextlib
import dataclasses
import functools
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from PIL import Image

from invnext_jax import atomic_file, regular_file
from invnext_jax.errors import UserError, summarize_error
from invnext_jax.monitoring.progress import ProgressMeter
from invnext_jax.video import jpeg
from invnext_jax.workers.process_worker import ProcessWorker, WorkerDiedError
from invnext_jax.workers.supervisor import SupervisedWorker
from invnext_jax.workers.time_limits import TimeLimitError

FRONT = 1
CAMERA, TIME, OBJECT = "key.camera_name", "key.frame_timestamp_micros", "key.camera_object_id"
IMAGE = "[CameraImageComponent].image"
BOX = tuple(
    f"[CameraBoxComponent].box.{name}" for name in ("center.x", "center.y", "size.x", "size.y")
)
BYTE_COLUMNS = [IMAGE, OBJECT]
ROWS = 32  # rows of a Parquet file in memory; an image has about 0.3 MB
MAX_BATCH_BYTES = 2**29  # maximum size of these rows after decompression
MAX_ROWS = 2**20  # limit per Parquet file; those of Waymo Open have about 20,000 rows
MAX_GROUP_BYTES = 2**31  # limit per row group: size of the used columns after decompression
READ_BYTES = 2**20  # size of a read from a Parquet file
QUALITY = 95
MAX_BYTES = 2**33  # limit per Parquet file; those of Waymo Open have less than 1 GB
MAX_PIXELS = 2**26  # limit per image; those of Waymo Open have 1920 x 1280
MAX_IMAGES = 4096  # limit per segment; those of Waymo Open have about 200
MAX_PIXEL_BYTES = 2  # limit of an image that is copied, in addition to `MAX_HEADER_BYTES`
MAX_HEADER_BYTES = 2**16
MAX_LINE_BYTES = 2**24  # as in `truth.boxes_jsonl`, which reads the file
MAX_ID_BYTES = 255  # those of Waymo Open have about 40
SECONDS = 3600.0  # time limit per segment; those of Waymo Open need a few seconds
# Allowed names of output folders. Names of output files are excluded.
SEGMENT = re.compile(r"(?!.*\.jsonl?$)[A-Za-z0-9_-][A-Za-z0-9_.-]*")


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
    if not paths or not os.path.isdir(in_dir / "camera_image"):
        raise UserError(
            f"{in_dir} must contain the folders camera_box and camera_image with Parquet files: "
            "download these two components of Waymo Open Perception version 2"
        )
    lines, skipped = [], {}
    with (
        ProgressMeter(len(paths), "segment", quiet=not progress) as meter,
        _start_worker(_ConvertSegment(in_dir, out_dir, short_side)) as convert_segment,
    ):
        for done, path in enumerate(paths, start=1):
            name = path.stem if path.stem.isprintable() else ascii(path.stem)
            if reason := _find_failure(convert_segment, path.stem):
                skipped[name] = reason
                logging.warning("segment %s skipped (%s)", name, reason)
            elif line := _read_line(out_dir / f"{path.stem}.json"):
                lines.append(line)
            meter.update(done, name)
    if not lines:
        raise UserError(f"no segment of {in_dir} can be read, e.g. {next(iter(skipped.values()))}")
    atomic_file.write_text(out_dir / "tracks.jsonl", "".join(lines))
    return WaymoSummary(out_dir / "tracks.jsonl", len(lines), skipped)


@dataclasses.dataclass(frozen=True)
class _ConvertSegment:
    """Converts a segment in a worker process. The attributes are arguments of `convert`."""

    in_dir: Path
    out_dir: Path
    short_side: int

    def __call__(self, segment: str) -> str:
        """Returns the reason why the segment cannot be converted; "" if it was."""
        try:
            _convert_segment(self.in_dir, self.out_dir, segment, self.short_side)
        except Exception as error:  # PyArrow and Pillow raise errors of many types
            return summarize_error(error)
        return ""

    def is_valid(self, result: Any, _segment: str) -> bool:
        """Returns whether a result of the worker has the type that `__call__` returns."""
        return isinstance(result, str)


def _start_worker(
    function: _ConvertSegment,
) -> contextlib.AbstractContextManager[Callable[[str], str]]:
    make_worker = functools.partial(ProcessWorker, function)
    return contextlib.closing(SupervisedWorker(make_worker, SECONDS, tries=1))


def _find_failure(convert_segment: Callable[[str], str], segment: str) -> str:
    """Converts a segment; returns the reason if this fails, and "" otherwise."""
    try:
        return convert_segment(segment)
    except WorkerDiedError as error:
        return f"reading it ended its process ({error})"
    except TimeLimitError:
        return f"it needs more than {SECONDS:g} s"


def _convert_segment(in_dir: Path, out_dir: Path, segment: str, short_side: int) -> None:
    """Converts a segment if it has not been converted yet."""
    if not SEGMENT.fullmatch(segment):
        raise ValueError(f"the name {segment!r} is not allowed for an output folder")
    if os.path.islink(out_dir / segment):
        raise ValueError(f"its folder is a symbolic link: remove {out_dir / segment}")
    finished = out_dir / f"{segment}.json"
    if _read_line(finished):
        return
    line = json.dumps(_write_segment(in_dir, out_dir, segment, short_side)) + "\n"
    if len(line) > MAX_LINE_BYTES:
        raise ValueError(f"its boxes have {len(line)} bytes, more than {MAX_LINE_BYTES}")
    atomic_file.write_text(finished, line)


def _read_line(path: Path) -> str:
    """Returns the boxes of a segment that was converted earlier; "" if they are not valid."""
    try:
        line = regular_file.read_bytes(path, MAX_LINE_BYTES).decode()
        return line if isinstance(json.loads(line), dict) and line.count("\n") == 1 else ""
    except (OSError, ValueError, RecursionError):
        return ""


def _write_segment(in_dir: Path, out_dir: Path, segment: str, short_side: int) -> dict[str, Any]:
    """Writes the images of a segment and returns its boxes."""
    times, sizes = [], set()
    images = in_dir / "camera_image" / f"{segment}.parquet"
    # Two passes, so that images are numbered in temporal order with few of them in memory.
    expected = sorted(row[TIME] for row in _front(images, [TIME]))
    if len(expected) > MAX_IMAGES:
        raise ValueError(f"{len(expected)} images of the front camera are more than {MAX_IMAGES}")
    order = {time: number for number, time in enumerate(expected)}
    for row in _front(images, [TIME, IMAGE]):
        data, size = _shrink(row[IMAGE], short_side)
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
            track = tracks.setdefault(_read_id(row[OBJECT]), {"frames": [], "boxes": []})
            track["frames"].append(order[row[TIME]])
            corners = x - width / 2, y - height / 2, x + width / 2, y + height / 2
            if not np.isfinite(corners).all():  # also if the sum of two large numbers is not
                raise ValueError("a box is not finite")
            track["boxes"].append([round(corner, 2) for corner in corners])
    (height, width), fps = sizes.pop(), round(1 / seconds, 3)
    return {"video": segment, "fps": fps, "width": width, "height": height, "tracks": tracks}


def _read_id(value: Any) -> str:
    """Returns the id of an object as text. A Parquet file can store the same long id many times."""
    if isinstance(value, str | bytes) and len(value) > MAX_ID_BYTES:
        raise ValueError(f"the id of an object has {len(value)} bytes, more than {MAX_ID_BYTES}")
    return str(value)


def _front(path: Path, columns: list[str]) -> Iterator[dict[str, Any]]:
    """Yields the rows of the front camera."""
    from pyarrow import parquet  # slow to import

    used = [CAMERA, *columns]
    # A value that is stored once in a dictionary would otherwise be copied for each row.
    options = {"read_dictionary": [name for name in columns if name in BYTE_COLUMNS]}
    with (
        regular_file.open_binary(path, MAX_BYTES) as source,
        parquet.ParquetFile(source, buffer_size=READ_BYTES, **options) as file,
    ):
        _check_metadata(file.metadata, used)
        for batch in file.iter_batches(ROWS, columns=used):
            if batch.nbytes > MAX_BATCH_BYTES:
                raise ValueError(f"{ROWS} rows have more than {MAX_BATCH_BYTES} bytes")
            for row, camera in enumerate(batch[CAMERA].to_pylist()):
                if camera == FRONT:
                    yield {name: batch[name][row].as_py() for name in columns}


def _check_metadata(metadata: Any, used: Sequence[str]) -> None:
    """Checks the sizes and types in the metadata of a Parquet file, before its rows are read.

    Raises:
      ValueError: The file has too many rows or bytes, or a column has nested or other values.
    """
    if metadata.num_rows > MAX_ROWS:
        raise ValueError(f"{metadata.num_rows} rows are more than {MAX_ROWS}")
    numbers = []
    for number in range(metadata.num_columns):
        column = metadata.schema.column(number)
        # The paths of nested columns start with the name of the column.
        if not any(f"{column.path}.".startswith(f"{name}.") for name in used):
            continue
        numbers.append(number)
        is_bytes = column.physical_type in ("BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY")
        if column.max_repetition_level or (is_bytes and column.path not in BYTE_COLUMNS):
            raise ValueError(f"the column {column.path} has values of a wrong type")
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        size = sum(group.column(number).total_uncompressed_size for number in numbers)
        if size > MAX_GROUP_BYTES:
            raise ValueError(f"{size} bytes of a row group are more than {MAX_GROUP_BYTES}")


def _shrink(data: bytes, short_side: int) -> tuple[bytes, tuple[int, int]]:
    """Returns a JPEG image of the given short side, and the height and width of the original."""
    jpeg.check_scans(data)
    with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise ValueError(f"an image has {width} x {height} pixels, more than {MAX_PIXELS}")
        scale = short_side / min(width, height)
        if not 0 < scale < 1:
            if len(data) > MAX_HEADER_BYTES + MAX_PIXEL_BYTES * width * height:
                raise ValueError(f"an image of {width} x {height} pixels has {len(data)} bytes")
            return data, (height, width)
        size = round(width * scale), round(height * scale)
        buffer = io.BytesIO()
        image.resize(size, Image.Resampling.BILINEAR).save(buffer, "JPEG", quality=QUALITY)
        return buffer.getvalue(), (height, width)
