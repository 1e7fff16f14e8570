"""Ground truth of synthetic worlds: rendered (`world:` URLs) or read from files.

The files are written by `launch/make_world.py`.

Shape key: t frames, k objects, n points, h w pixels.
"""

import io
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from invnext_jax import regular_file
from invnext_jax.data import manifest as manifest_lib
from invnext_jax.data import video_io
from invnext_jax.data.clips import LoadClip
from invnext_jax.data.manifest import VideoRecord
from invnext_jax.errors import UserError
from invnext_jax.evaluation.truth import clip_reader
from invnext_jax.evaluation.truth.clip_reader import SECONDS, ClipReader, EvaluationClip
from invnext_jax.evaluation.truth.truth import BadTruth
from invnext_jax.synthetic_world import files, render, tracks, urls
from invnext_jax.synthetic_world.spec import WorldSpec

POINTS = 32
ARRAYS = ("depth", "boxes", "visible", "ids")
# NumPy parses the headers of arrays with `ast`, which is not thread-safe in Python 3.11
# (python/cpython#106905).
_READ_LOCK = threading.Lock()
MAX_DIGITS = 18  # of the number of a clip
MAX_BYTES = 2**30  # maximum size of a ground-truth file, before and after decompression


class _Location(NamedTuple):
    """Source of the clip of a row.

    Attributes:
      spec: Parameters of the world.
      index: Index of the clip in the world.
      file: File with the ground truth; None if the clip is rendered.
    """

    spec: WorldSpec
    index: int
    file: Path | None


class WorldTruth:
    """Depth, boxes, object ids and point tracks of a world; see `truth.Truth`.

    Attributes:
      name: "world".
      videos: Index of the video of each row, int32, which is the row itself.
    """

    name = "world"

    def __init__(
        self, manifest: str, load: LoadClip, *, points: int = POINTS, seconds: float = SECONDS
    ):
        """Reads the manifest.

        Args:
          manifest: Manifests of rendered or written worlds, separated by commas.
          load: The loader of the evaluation's clips, which has the sampling options.
          points: Number of points of each clip.
          seconds: Time limit for reading a clip.

        Raises:
          UserError: A row is not a clip of a world, or the worlds differ in their number of
              objects.
        """
        self._manifest = manifest_lib.read_manifest(manifest)
        self._load, self._points, self._reader = load, points, ClipReader(seconds)
        self._specs: dict[str, WorldSpec] = {}
        counts = {self._locate(record).spec.max_objects for record in self._manifest}
        if len(counts) > 1:
            raise UserError(
                f"the worlds of {manifest} differ in their number of objects, {sorted(counts)}: "
                "use clips of one world"
            )
        self.videos = np.arange(len(self._manifest), dtype=np.int32)
        self.video_names: list[str] = []  # they are those of the manifest

    def __len__(self) -> int:
        """Returns the number of clips."""
        return len(self._manifest)

    def load(self, row: int) -> dict[str, np.ndarray]:
        """Reads the clip and the ground truth of a row; see `truth.Truth.load`.

        Objects are `present` where a part of them is visible. Point tracks start in frame 0.
        """
        record = self._manifest[row]
        place = self._locate(record)
        if place.file is None:
            rendered = render.render_clip(place.spec, place.index)
            clip = clip_reader.crop_rendered(rendered.video, self._load, record.source)
            truth = {name: getattr(rendered, name) for name in ARRAYS}
        else:
            truth = _check_shapes(read_arrays(place.file), place)
            clip = clip_reader.read_evaluation_clip(self._reader, record, self._load)
        return self._align(place, clip, truth)

    def _align(self, place: _Location, clip: EvaluationClip, truth: dict) -> dict[str, np.ndarray]:
        frame_t, geometry = clip.frame_t, clip.geometry
        try:
            boxes_tk4, kept_tk = geometry.crop_boxes(truth["boxes"][frame_t])
            found = tracks.sample_points(
                place.spec, place.index, truth["ids"], self._points, start=int(frame_t[0])
            )
            points_nt2 = geometry.crop_points(found.points_nt2[:, frame_t]).astype(np.float32)
            outside_nt = ((points_nt2 < 0) | (points_nt2 >= 1)).any(axis=-1)
            return {
                "video": clip.video_thwc,
                "depth": geometry.crop_image(truth["depth"][frame_t]).astype(np.float32),
                "boxes": boxes_tk4,
                "present": kept_tk & (truth["visible"][frame_t] > 0),
                "ids": geometry.crop_image(truth["ids"][frame_t]).astype(np.int32),
                "points": points_nt2,
                "occluded": found.occluded_nt[:, frame_t] | outside_nt,
            }
        except (IndexError, ValueError) as error:
            raise BadTruth(f"clip {place.index}: {error}", "no truth") from error

    def _locate(self, record: VideoRecord) -> _Location:
        if video_io.is_world(record.path):
            name, _, index = record.path.rpartition("#")
            if name not in self._specs:
                self._specs[name] = urls.parse(name).spec
            return _Location(self._specs[name], int(index), None)
        path = Path(record.path)
        folder = str(path.parent)
        if folder not in self._specs:
            world = path.parent.parent
            if not os.path.isdir(world / "gt" / path.parent.name):
                raise UserError(
                    f"{path} has no ground truth in {world / 'gt'}: use a world that "
                    "launch/make_world.py wrote, or a world: URL"
                )
            self._specs[folder] = files.read_spec(world, path.parent.name)
        if not path.stem.isdecimal() or len(path.stem) > MAX_DIGITS:
            raise UserError(f"{path} is not a clip of a world: its name is not a number")
        return _Location(self._specs[folder], int(path.stem), find_file(path))


def find_file(path: Path) -> Path:
    """Returns the ground-truth file of a clip."""
    return path.parent.parent / "gt" / path.parent.name / f"{path.stem}.npz"


def _check_shapes(truth: dict[str, np.ndarray], place: _Location) -> dict[str, np.ndarray]:
    """Returns `truth`; raises `BadTruth` if its shapes or ids are not those of the world."""
    spec = place.spec
    images, objects = (spec.frames, spec.size, spec.size), (spec.frames, spec.max_objects)
    shapes = {"depth": images, "boxes": (*objects, 4), "visible": objects, "ids": images}
    for name, shape in shapes.items():
        if truth[name].shape != shape:
            raise BadTruth(
                f"{place.file}: {name} has the shape {truth[name].shape}, not {shape}",
                "wrong format",
            )
    if not 0 <= truth["ids"].min() <= truth["ids"].max() <= spec.max_objects:
        raise BadTruth(f"{place.file}: ids has unknown objects", "wrong format")
    return truth


def read_arrays(path: Path, names: Sequence[str] = ARRAYS) -> dict[str, np.ndarray]:
    """Reads arrays of numbers from a file that `launch/make_world.py` wrote.

    Raises:
      BadTruth: The file is missing or damaged, or too large when decompressed.
    """
    try:
        data = io.BytesIO(regular_file.read_bytes(path, MAX_BYTES))
        regular_file.check_archive_size(data, MAX_BYTES)
        with _READ_LOCK, np.load(data, allow_pickle=False) as truth:
            found = {name: truth[name] for name in names}
        if strange := [name for name, array in found.items() if array.dtype.kind not in "biuf"]:
            raise ValueError(f"{strange[0]} has no numbers")
        return found
    except FileNotFoundError as error:
        raise BadTruth(f"{path} is missing", "missing") from error
    except Exception as error:  # NumPy's and zipfile's parsers raise errors of many types
        raise BadTruth(f"{path} cannot be read ({error})", "truncated") from error
