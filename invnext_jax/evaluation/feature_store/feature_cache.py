"""A disk cache of extracted features, so that each encoder runs only once on each manifest.

The features of one encoder and one split are stored in chunks (see `feature_store`). A command that
is repeated after an interruption extracts only the missing chunks, and several processes extract
different chunks at the same time. The key of the features is a hash of the encoder's config and
parameters, the contents of the manifest and of its videos, the options for selecting and resizing
frames, and the `FeatureOptions`.

Shape key: b videos or clips, v views of a video, t frames, h w pixels, c channels.
"""

import dataclasses
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from einops import rearrange

from invnext_jax.data.pipeline import EvalDataset
from invnext_jax.errors import UserError
from invnext_jax.evaluation.feature_store import extraction
from invnext_jax.evaluation.feature_store.feature_folder import LABEL, FeatureFolder, open_folder
from invnext_jax.evaluation.features import FeatureOptions, VideoFeatures
from invnext_jax.evaluation.frozen_encoder import FrozenEncoder
from invnext_jax.json_file import hash_json
from invnext_jax.monitoring.progress import ProgressMeter
from invnext_jax.multihost import consensus

CHUNK_ROWS, CHUNK_BYTES = 512, 2**28  # maximum size of a chunk; killing a process loses at most one
_WAIT_SECONDS = 24 * 3600.0  # how long a process waits for the chunks of other processes
# Options of `config.data` that affect neither the selection of videos nor their pixels. The
# manifest is among them because the key contains a hash of its contents instead of its path.
NOT_IN_KEY = ("root", "manifest", "held_out", "workers", "prefetch", "protocols", "other_hosts")
NOT_IN_KEY += ("augment",)


class FeatureSource(NamedTuple):
    """The videos whose features are extracted.

    Attributes:
      rows: number of rows of the manifest.
      clip_shape: shape of a clip, [t h w c].
      batch_size: number of videos of a batch.
      make_batches: function (rows of the manifest, rows of a block) -> batches; see
        `pipeline.make_eval_dataset`.
    """

    rows: int
    clip_shape: tuple[int, ...]
    batch_size: int
    make_batches: Callable[[Sequence[int], int], EvalDataset]


class FeatureCache:
    """A folder with cached features. It must be visible to all processes.

    Attributes:
      folder: path of the folder, which has a folder for each encoder name and split.
      max_gb: maximum size in gigabytes of the features of one encoder and split.
    """

    def __init__(self, folder: str | Path, max_gb: float = math.inf):
        self.folder, self.max_gb = Path(folder), max_gb

    def get(
        self,
        name: str,
        key: str,
        encoder: FrozenEncoder,
        source: FeatureSource,
        options: FeatureOptions,
    ) -> VideoFeatures:
        """Returns the features of all readable videos; extracts those that are not stored.

        Args:
          name: name of the folder, for example "encoder-train". Features with a different key are
            deleted.
          key: see `feature_key`.
          encoder: the encoder.
          source: the videos.
          options: what is extracted.

        Raises:
          UserError: the features are larger than `max_gb` or than the free space, or are not
            finite; or no video can be read.
        """
        kinds = sorted(extraction.shapes_of_clip(encoder, source.clip_shape, options))
        key = hash_json([key, dataclasses.asdict(options), kinds])
        with consensus.all_hosts_agree("the stored features") as shared:
            if jax.process_index() == 0:
                row_bytes = self._row_bytes(encoder, source, options)
                largest = min(CHUNK_ROWS, CHUNK_BYTES // row_bytes)
                # No batch contains videos of two chunks. If chunks consist of complete batches,
                # batches need no padding.
                chunk_rows = max(1, largest // source.batch_size) * source.batch_size
                store = open_folder(self.folder / name, key, source.rows, chunk_rows)
                missing = store.missing_chunks()
                if missing:
                    self._check_size(name, source.rows, source.rows * row_bytes / 1e9)
                shared.value = [store.chunk_rows, missing]
        chunk_rows, missing = shared.value
        store = FeatureFolder(self.folder / name, chunk_rows, source.rows)
        with consensus.all_hosts_agree("the features", timeout_seconds=_WAIT_SECONDS):
            mine = missing[jax.process_index() :: jax.process_count()]
            if mine:
                _extract(store, name, mine, encoder, source, options)
        with consensus.all_hosts_agree("reading the features"):
            return store.read()

    def fits(self, encoder: FrozenEncoder, source: FeatureSource, options: FeatureOptions) -> bool:
        """Returns whether the features are not larger than `max_gb`."""
        return source.rows * self._row_bytes(encoder, source, options) / 1e9 <= self.max_gb

    def _row_bytes(self, encoder, source, options) -> int:
        shapes = extraction.shapes_of_clip(encoder, source.clip_shape, options).values()
        return options.views * sum(math.prod(x.shape) * x.dtype.itemsize for x in shapes)

    def _check_size(self, name: str, rows: int, size: float) -> None:
        """Prints the size in gigabytes, and raises `UserError` if it is too large."""
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free / 1e9
        what = f"the features of {rows} videos need {size:.3g} GB"
        if size > self.max_gb:
            raise UserError(
                f"{what}, more than config.features.max_gb={self.max_gb:g}: raise it, or set "
                "config.features.dtype='float16'"
            )
        if size > free:
            raise UserError(f"{what}, but {self.folder} has {free:.3g} GB left: use another disk")
        shown = f"{size:.3g} GB" if size >= 1 else f"{1e3 * size:.3g} MB"
        print(f"{name}: the features of {rows} videos need {shown} in {self.folder}", flush=True)


def feature_key(
    encoder_key: str, manifest_digest: str, video_digest: str, data: dict[str, Any]
) -> str:
    """Returns the key of the features of an encoder on a manifest.

    Args:
      encoder_key: hash of the encoder's config and parameters.
      manifest_digest: hash of the manifest's contents.
      video_digest: hash of the contents of its videos.
      data: `config.data` with resolved sizes, as JSON.
    """
    clips = {name: value for name, value in data.items() if name not in NOT_IN_KEY}
    return hash_json([encoder_key, manifest_digest, video_digest, clips])


def _extract(
    store: FeatureFolder,
    name: str,
    chunks: Sequence[int],
    encoder: FrozenEncoder,
    source: FeatureSource,
    options: FeatureOptions,
) -> None:
    """Extracts and writes some chunks, in ascending order."""
    rows = [row for chunk in chunks for row in store.rows_of(chunk)]
    batches = source.make_batches(rows, store.chunk_rows)
    shapes = extraction.shapes_of_clip(encoder, source.clip_shape, options)
    empty = {k: np.zeros((0, options.views, *x.shape), x.dtype) for k, x in shapes.items()}
    columns = {k: np.zeros(0, np.int32) for k in ("index", *batches.manifest.labels)}
    pending, parts, done = list(chunks), [(empty, columns)], 0

    def write_before(chunk: float) -> None:
        """Writes all pending chunks before `chunk`.

        The collected parts belong to the first one. The others have no readable videos.
        """
        while pending and pending[0] < chunk:
            arrays, columns = (_concatenate(trees) for trees in zip(*parts, strict=True))
            missing = len(store.rows_of(pending[0])) - len(columns["index"])
            # The counter contains all failures of this chunk, and possibly those of later chunks.
            complete = not missing or not batches.bad_videos.transient
            store.write(pending.pop(0), arrays, columns, complete=complete)
            del parts[1:]

    with ProgressMeter(len(rows), "video", quiet=jax.process_index() > 0) as meter:
        meter.update(0, f"features of {name}")
        for found, batch in extraction.run_extractor(encoder, batches, options):
            write_before(int(batch["index"][0]) // store.chunk_rows)
            parts.append(_make_part(found, batch, options.views))
            done += len(parts[-1][1]["index"])
            meter.update(done)
        write_before(math.inf)
    if short := batches.bad_videos.short:
        print(
            f"{short} of {done} videos have fewer frames than a clip can span, so that their clips "
            "repeat frames",
            flush=True,
        )
    if missing := batches.bad_videos.transient:
        kinds = ", ".join(f"{count} x {kind}" for kind, count in missing.items())
        print(
            f"{sum(missing.values())} videos could not be read ({kinds}), but may be readable "
            "later. The features are used but not cached. Repeat the command to try again.",
            flush=True,
        )


def _make_part(found: Mapping[str, np.ndarray], batch: Mapping[str, np.ndarray], views: int):
    """Returns the features [b v ...] and the columns of a batch, without padding."""
    real = np.asarray(batch["index"]) >= 0
    names = [name for name in batch if name == "index" or name.startswith(LABEL)]
    columns = {name: np.asarray(batch[name])[real][::views] for name in names}
    arrays = {}
    for kind, value in found.items():
        if kind in extraction.MOMENTS:
            columns[kind] = value.astype(np.float64)
            continue
        arrays[kind] = rearrange(value[real], "(b v) ... -> b v ...", v=views)
        if not np.isfinite(arrays[kind]).all():
            cure = "check the checkpoint"
            if value.dtype != np.float32:
                cure += ", or set config.features.dtype='float32'"
            raise UserError(
                f"the features of row {columns['index'][0]} or the next rows are not finite: {cure}"
            )
    return arrays, columns


def _concatenate(trees: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Concatenates the arrays with the same name, and sums the moments."""
    names = {name: None for tree in trees for name in tree}
    parts = {name: [tree[name] for tree in trees if name in tree] for name in names}
    return {
        name: np.sum(arrays, axis=0) if name in extraction.MOMENTS else np.concatenate(arrays)
        for name, arrays in parts.items()
    }
