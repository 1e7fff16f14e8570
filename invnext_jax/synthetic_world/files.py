"""Writes clips of the synthetic world to disk: H.264 files, a manifest and all ground truth.

    <out>/spec.json                 parameters of the world, which must not change
    <out>/<split>/000000.mp4        the clip, 8 frames per second
    <out>/gt/<split>/000000.npz     depth, boxes, visible and ids; see `render.Clip`
    <out>/<split>.captions.jsonl    image-level and video-level captions with their attributes
    <out>/<split>.csv               the manifest, written last

Files are written atomically. An interrupted run resumes when it is repeated.
"""

import concurrent.futures
import csv
import functools
import io
import json
import multiprocessing
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from invnext_jax import atomic_file, json_file, regular_file
from invnext_jax.errors import UserError
from invnext_jax.monitoring.progress import ProgressMeter
from invnext_jax.synthetic_world import captions as captions_lib
from invnext_jax.synthetic_world import render, scene
from invnext_jax.synthetic_world.spec import WorldSpec

FRAMES_PER_SECOND = 8
FORMAT = 1  # increase this if a code change produces different clips for the same spec
SOURCE = "world"
MAX_MANIFEST_BYTES = 2**30  # a row has about 30 bytes
# No chroma subsampling and little compression, because shapes are only about a dozen pixels wide.
PIXEL_FORMAT, CRF = "yuv444p", 10
CLIPS_PER_TASK = 8  # clips that a worker process writes per task


def write_world(
    spec: WorldSpec,
    out_dir: str | os.PathLike,
    videos: int,
    *,
    workers: int = 1,
    progress: bool = True,
) -> Path:
    """Writes clips 0 to `videos` - 1 of `spec`. Existing clips are kept.

    Args:
      spec: Parameters of the world. All splits of a world use the same folder.
      out_dir: Output folder, created if missing.
      videos: Number of clips.
      workers: Number of processes. 1 writes in the current process.
      progress: Whether to show progress: a bar on a terminal, plain lines otherwise.

    Returns:
      Path of the manifest.

    Raises:
      UserError: `videos` is not positive, or `out_dir` contains a different world or more clips.
      RuntimeError: A worker process died.
    """
    if videos < 1:
        raise UserError(f"videos={videos} must be at least 1")
    out_dir = Path(out_dir)
    _prepare_folder(spec, out_dir)
    manifest = out_dir / f"{spec.split}.csv"
    lines = _count_lines(manifest)
    existing = max(lines - 1, _count_clips(spec, out_dir))
    if existing > videos:
        raise UserError(
            f"{out_dir / spec.split} has {existing} clips, more than {videos}: request at least "
            f"{existing}, use a different folder or delete it"
        )
    if lines == videos + 1:
        return manifest
    pending = _pending_clips(spec, out_dir, videos)
    done = videos - len(pending)
    with ProgressMeter(videos, "clip", initial=done, quiet=not progress) as meter:
        for _ in _write_clips(spec, out_dir, pending, workers):
            done += 1
            meter.update(done, spec.split)
    _write_tables(spec, out_dir, videos, manifest)
    return manifest


def _prepare_folder(spec: WorldSpec, out_dir: Path) -> None:
    expected = {"format": FORMAT, "level": spec.level, "size": spec.size}
    expected |= {"frames": spec.frames, "seed": spec.seed}
    expected |= {name: value for name, value in _options(spec).items() if value is not None}
    path = out_dir / "spec.json"
    for folder in (out_dir / spec.split, out_dir / "gt", out_dir / "gt" / spec.split):
        if os.path.islink(folder):
            raise UserError(f"{folder} is a symbolic link: remove it, or use a different folder")
        folder.mkdir(parents=True, exist_ok=True)
    if not os.path.lexists(path):
        atomic_file.write_text(path, json.dumps(expected))
    existing = json_file.read_object(path, "use a different folder or delete it")
    if existing != expected:
        raise UserError(
            f"{out_dir} contains the world {existing}, not {expected}: use a different folder or "
            "delete it"
        )


def _count_lines(manifest: Path) -> int:
    """Returns the number of lines of a finished manifest; 0 if it cannot be read."""
    try:
        return regular_file.read_bytes(manifest, MAX_MANIFEST_BYTES).count(b"\n")
    except OSError:
        return 0


def _count_clips(spec: WorldSpec, out_dir: Path) -> int:
    """Returns the largest number of an existing clip plus 1; 0 if there are no clips."""
    names = (re.fullmatch(r"(\d{6,})\.mp4", e.name) for e in os.scandir(out_dir / spec.split))
    return max((int(name[1]) + 1 for name in names if name), default=0)


def _options(spec: WorldSpec) -> dict[str, float | None]:
    """Returns the options of the world; None for options with their default values."""
    defaults = WorldSpec()
    options = {name: getattr(spec, name) for name in ("object_size", "speed", "clutter")}
    return {k: None if v == getattr(defaults, k) else v for k, v in options.items()}


def read_spec(out_dir: str | os.PathLike, split: str) -> WorldSpec:
    """Reads the parameters of a written world from its folder.

    Raises:
      UserError: The folder has no `spec.json`, or the file is damaged or of another format.
    """
    path = Path(out_dir) / "spec.json"
    fields = json_file.read_object(path, "write the world again with launch/make_world.py")
    if fields.pop("format", None) != FORMAT:
        raise UserError(f"{path} has another format than {FORMAT}: write the world again")
    try:
        return WorldSpec(split=split, **fields)
    except TypeError as error:
        raise UserError(f"{path} is damaged ({error}): write the world again") from error


def _clip_paths(spec: WorldSpec, out_dir: Path, index: int) -> tuple[Path, Path]:
    name = f"{index:06d}"
    return out_dir / spec.split / f"{name}.mp4", out_dir / "gt" / spec.split / f"{name}.npz"


def _pending_clips(spec: WorldSpec, out_dir: Path, videos: int) -> list[int]:
    for temporary in out_dir.glob(f"**/.*{atomic_file.TEMPORARY_SUFFIX}"):
        atomic_file.remove_if_abandoned(temporary)
    # A clip's video is written after its ground truth, so checking for the video is enough.
    names = {entry.name for entry in os.scandir(out_dir / spec.split)}
    return [index for index in range(videos) if f"{index:06d}.mp4" not in names]


def _write_clips(
    spec: WorldSpec, out_dir: Path, pending: list[int], workers: int
) -> Iterator[None]:
    """Writes the missing clips; yields None after each clip."""
    write = functools.partial(_write_clip, spec, out_dir)
    if workers <= 1 or len(pending) <= 1:
        yield from map(write, pending)
        return
    with concurrent.futures.ProcessPoolExecutor(
        min(workers, len(pending)),
        mp_context=multiprocessing.get_context(
            "spawn"
        ),  # forking is unsafe if this process has threads
        initializer=_exit_with_parent,
    ) as pool:
        yield from pool.map(write, pending, chunksize=CLIPS_PER_TASK)


def _exit_with_parent() -> None:
    """Exits this worker process when its parent is killed. The pool itself does not do this."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _write_clip(spec: WorldSpec, out_dir: Path, index: int) -> None:
    clip = render.render_clip(spec, index)
    video_path, truth_path = _clip_paths(spec, out_dir, index)
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer, depth=clip.depth, boxes=clip.boxes, visible=clip.visible, ids=clip.ids
    )
    atomic_file.write_bytes(truth_path, buffer.getvalue())
    atomic_file.write_bytes(video_path, encode_mp4(clip.video))


def encode_mp4(video: np.ndarray, *, frames_per_second: int = FRAMES_PER_SECOND) -> bytes:
    """Encodes uint8 [t h w c] RGB as H.264 without chroma subsampling."""
    buffer, reformatter = io.BytesIO(), VideoReformatter()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=frames_per_second)
        stream.height, stream.width = video.shape[1:3]
        stream.pix_fmt = PIXEL_FORMAT
        stream.options = {"crf": str(CRF), "preset": "veryfast", "threads": "1"}
        stream.options |= {"rc-lookahead": "0"}  # lookahead makes the output non-deterministic
        for image_hwc in video:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image_hwc), format="rgb24")
            frame = reformatter.reformat(frame, format=PIXEL_FORMAT, threads=1)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


def _write_tables(spec: WorldSpec, out_dir: Path, videos: int, manifest: Path) -> None:
    """Writes the captions and then the manifest."""
    tasks = tuple(spec.classes)
    table, captions = io.StringIO(), []
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["path", "source", *(f"label_{task}" for task in tasks)])
    for index in range(videos):
        labels = scene.sample_labels(spec, index)
        name = f"{spec.split}/{index:06d}.mp4"
        writer.writerow([name, SOURCE, *(labels[task] for task in tasks)])
        captions.append(_caption_line(spec.level, name, labels))
    atomic_file.write_text(out_dir / f"{spec.split}.captions.jsonl", "".join(captions))
    atomic_file.write_text(manifest, table.getvalue())


def _caption_line(level: str, name: str, labels: dict[str, int]) -> str:
    video = captions_lib.video_caption(level, labels)
    images = captions_lib.image_captions(level, labels)
    line = {
        "video": name,
        "caption": video.text,
        "attributes": video.attributes,
        "image_captions": [{"text": c.text, "attributes": c.attributes} for c in images],
    }
    return json.dumps(line) + "\n"
