"""Adds stored outputs of the frozen image teacher to the batches of a run (`config.teacher.cache`).

If each video always gives the same clip, the teacher's outputs for it are also the same. They are
computed once, by a separate compiled function, and then read in later epochs and by later runs.
The step gets the outputs as a part of the batch, whether they were read or computed. Therefore, the
step is compiled once, its shapes do not depend on what is stored, and a run has the same results
with an empty and a full folder. Several threads read the outputs for a batch while the devices
compute the step before.

Shape key: b batch, t frames, h w pixels, c channels.
"""

import concurrent.futures
import contextlib
import functools
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from absl import logging

from invnext_jax.errors import UserError
from invnext_jax.stages import image_teacher
from invnext_jax.stages.output_folder import OutputFolder
from invnext_jax.stages.unused_options import needs_taps
from invnext_jax.training import mesh as mesh_lib

_THREADS = 8
_USABLE = 0.9  # usable fraction of the free space; checkpoints may be on the same disk
_TEACHER = ("kind", "width", "depth", "heads", "mlp_width", "patch", "size", "train_size")
_TEACHER += ("activation", "registers", "gated", "taps", "tap_interval", "resample")
# Options that the outputs depend on. The hash of a clip covers the options of its video.
_OPTIONS = ("dtype", "quantize_frozen", "encoder.patch", "data.frames", "data.size")
_OPTIONS += ("data.sampling", "data.stride", *(f"teacher.{name}" for name in _TEACHER))


def open_cache(run: Any, videos: int, stack: contextlib.ExitStack) -> Iterator[Any]:
    """Returns the iterator over the batches of a run, with the teacher's outputs if it has a cache.

    The folder `config.teacher.cache` is created if it does not exist. The sizes are logged.

    Args:
      run: a `loop.Run`.
      videos: number of videos of the run.
      stack: the exit stack on which the cache is closed.

    Raises:
      UserError: the folder has outputs of another teacher or for other videos or options, has other
        files, or cannot be written, or the outputs do not fit on its disk.
    """
    if not run.config.teacher.cache or "teacher" not in run.frozen:
        return run.data_iter
    cache = TeacherCache(run, videos)
    stack.callback(cache.close)
    print(cache.describe(), flush=True)
    return cache


class TeacherCache:
    """Iterator over the batches of a run with the stored outputs of the image teacher.

    It has all methods of the run's `data.train_iterator.TrainIterator`. Close both after use.
    """

    def __init__(self, run: Any, videos: int):
        """Opens the folder; see `open_cache`."""
        self._data_iter, self._mesh, self._params = run.data_iter, run.mesh, run.frozen["teacher"]
        self._training, self._videos = run.training, videos
        config, stage = run.config, run.training.stage
        described = _describe(config, run.checkpointer.record)
        shapes = abstract_outputs(stage, config)
        self._store = OutputFolder(
            Path(config.teacher.cache), shapes, described, "config.teacher.cache"
        )
        self._stored = min(self._store.count_files(), videos)
        self._check_size()
        self._apply_teacher = jax.jit(_make_compute(stage, config))
        self._pool = concurrent.futures.ThreadPoolExecutor(_THREADS)
        self._writes, self._read, self._computed, self._failure = [], 0, 0, ""

    def __iter__(self) -> "TeacherCache":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        return self.add_outputs(next(self._data_iter))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._data_iter, name)

    def describe(self) -> str:
        """Returns a sentence with the number of stored clips and the sizes."""
        return (
            f"teacher cache: {self._stored:,} of {self._videos:,} clips are stored in "
            f"{self._store.folder}; a clip needs {_size(self._store.clip_bytes)}, all clips "
            f"{_size(self._videos * self._store.clip_bytes)}"
        )

    def add_outputs(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns a batch with the teacher's outputs, see `image_teacher.compute_stored`.

        Args:
          batch: "video", uint8 [b t h w c], and "index", int [b], the rows of the manifest.
        """
        b, shapes = len(batch["index"]), self._store.shapes.items()
        arrays = {name: np.empty((b, *shape.shape), shape.dtype) for name, shape in shapes}
        rows = batch["index"].tolist()
        hashes = self._pool.map(self._store.hash_clip, batch["video"])
        outputs = [{name: array[i] for name, array in arrays.items()} for i in range(b)]
        clips = list(zip(rows, hashes, outputs, strict=True))
        found = list(self._pool.map(self._store.read, *zip(*clips, strict=True)))
        missing = [i for i in range(b) if not found[i]]
        self._read += b - len(missing)
        self._computed += len(missing)
        self._wait()  # so that at most one batch waits to be written
        group = mesh_lib.batch_shards(self._mesh)
        for first in range(0, len(missing), group):
            part = missing[first : first + group]
            padded = part + part[-1:] * (group - len(part))
            computed = self._compute(batch["video"][padded])
            for place, i in enumerate(part):
                for name, output in outputs[i].items():
                    output[...] = computed[name][place]
                self._writes.append(self._pool.submit(self._store.write, *clips[i]))
        return {**batch, **arrays}

    def summary(self) -> str:
        """Returns a summary of clips, workers and the cache for the log."""
        self._wait()
        text = f"teacher cache: {self._read:,} clips read, {self._computed:,} computed"
        text += f"; some could not be written ({self._failure})" if self._failure else ""
        return "\n".join(filter(None, (self._data_iter.summary(), text)))

    def close(self) -> None:
        """Waits until all outputs are written. Does not close the iterator of the run."""
        self._pool.shutdown()

    def _compute(self, video_bthwc: np.ndarray) -> dict[str, np.ndarray]:
        """Computes the outputs for one clip per shard of the batch; compiled in the first call."""
        video = mesh_lib.shard_batch({"video": video_bthwc}, self._mesh)["video"]
        with self._training.trace_options(self._mesh):
            return jax.device_get(self._apply_teacher(self._params, video))

    def _wait(self) -> None:
        """Waits for all writes. If one fails, a warning is logged and the run continues."""
        for write in self._writes:
            error = write.exception()
            if error is not None and not self._failure:
                self._failure = str(error)
                logging.warning("teacher.cache: outputs cannot be written (%s)", error)
        self._writes.clear()

    def _check_size(self) -> None:
        """Raises `UserError` if the missing outputs do not fit on the disk."""
        folder, clip_bytes = self._store.folder, self._store.clip_bytes
        clips, free = self._videos - self._stored, shutil.disk_usage(folder).free
        if clips * clip_bytes > _USABLE * free:
            raise UserError(
                f"config.teacher.cache={str(folder)!r} needs {_size(clips * clip_bytes)} for the "
                f"outputs for {clips:,} clips ({_size(clip_bytes)} each), more than {_USABLE:.0%} "
                f"of the {_size(free)} that its disk has left: set it to a folder on a larger "
                "disk, or use fewer videos or a smaller teacher"
            )


def abstract_outputs(stage: Any, config: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns shape and dtype of the stored outputs for one clip, by name."""
    side, params = config.data.size, nn.unbox(image_teacher.abstract_teacher(config))
    video = jax.ShapeDtypeStruct((1, config.data.frames, side, side, 3), np.uint8)
    shapes = jax.eval_shape(_make_compute(stage, config), params, video)
    return {k: jax.ShapeDtypeStruct(v.shape[1:], v.dtype) for k, v in sorted(shapes.items())}


def _make_compute(stage: Any, config: Any) -> Callable[[Any, jax.Array], dict[str, jax.Array]]:
    taps = needs_taps(stage, config)
    return functools.partial(image_teacher.compute_stored, config, taps=taps)


def _describe(config: Any, record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns everything that the outputs depend on, except the clips, by name."""
    described: dict[str, Any] = {"version": 1}
    for name in _OPTIONS:
        described[name] = functools.reduce(lambda tree, part: tree[part], name.split("."), config)
    described["data.by_source"] = {
        source: used
        for source, fields in config.data.by_source.items()
        if (used := {k: v for k, v in fields.items() if k in ("sampling", "stride")})
    }
    described["SHA-256 of the teacher"] = record["frozen_sha256"]["teacher"]
    described["SHA-256 of the manifests"] = record["manifest_sha256"]
    return described


def _size(count: float) -> str:
    """Formats a number of bytes."""
    return f"{count / 1e9:.3g} GB" if count >= 1e9 else f"{count / 1e6:.3g} MB"
