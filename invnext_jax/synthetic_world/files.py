"""Writes clips of the embedded world as H.264 files with a manifest and all ground truths.

    <out>/spec.json                     what the world is; another spec is refused
    <out>/<split>/000000.mp4            the clip, 8 frames a second
    <out>/gt/<split>/000000.npz         depth, boxes, visible, ids: see `render.Clip`
    <out>/<split>.captions.jsonl        image-level and video-level captions with their attributes
    <out>/<split>.csv                   the manifest, written when everything else is there

Every file appears under its name only when it is complete, so a killed run is simply repeated.
"""

import csv
import io
import json
import multiprocessing
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from invnext_jax import atomic_file
from invnext_jax.errors import UserError
from invnext_jax.monitoring.progress_meter import ProgressMeter
from invnext_jax.synthetic_world import captions as captions_lib
from invnext_jax.synthetic_world import render, scene
from invnext_jax.synthetic_world.scene import WorldSpec

FRAMES_PER_SECOND = 8
FORMAT = 1  # raised when the same spec comes to mean other clips
SOURCE = "world"
# Full colour resolution and little loss: the shapes are a dozen pixels wide.
PIXEL_FORMAT, QUALITY = "yuv444p", 10
PART_SECONDS = 60  # half files older than this are what a killed run left


def write_world(
    spec: WorldSpec,
    out_dir: str | os.PathLike,
    videos: int,
    *,
    workers: int = 1,
    progress: bool = True,
) -> Path:
    """Writes clips 0 to `videos` - 1 of `spec`; what is there already is not written again.

    Args:
        spec: Which world; the splits of one world share a folder.
        out_dir: Folder, made when missing.
        videos: How many clips.
        workers: Processes; 1 writes in this one.
        progress: Show a bar on a terminal, plain lines elsewhere.

    Returns:
        Path of the manifest.

    Raises:
        UserError: `videos` is not positive, or `out_dir` holds another world.
        RuntimeError: A worker process ended before its work was done.
    """
    if videos < 1:
        raise UserError(f"videos={videos} must be at least 1")
    out_dir = Path(out_dir)
    _claim_folder(spec, out_dir)
    manifest = out_dir / f"{spec.split}.csv"
    if manifest.exists() and manifest.read_text().count("\n") == videos + 1:
        return manifest
    todo = _unfinished(spec, out_dir, videos)
    done = videos - len(todo)
    with ProgressMeter(videos, "clip", initial=done, quiet=not progress) as meter:
        for more in _write_all(spec, out_dir, todo, min(workers, len(todo))):
            done += more
            meter.update(done, spec.split)
    _write_tables(spec, out_dir, videos, manifest)
    return manifest


def _claim_folder(spec: WorldSpec, out_dir: Path) -> None:
    ours = {"format": FORMAT, "level": spec.level, "size": spec.size}
    ours |= {"frames": spec.frames, "seed": spec.seed}
    path = out_dir / "spec.json"
    for folder in (out_dir / spec.split, out_dir / "gt" / spec.split):
        folder.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        atomic_file.write_text(path, json.dumps(ours))
    found = json.loads(path.read_text())
    if found != ours:
        raise UserError(
            f"{out_dir} holds the world {found}, not {ours}: name another folder or delete it"
        )


def _paths(spec: WorldSpec, out_dir: Path, index: int) -> tuple[Path, Path]:
    name = f"{index:06d}"
    return out_dir / spec.split / f"{name}.mp4", out_dir / "gt" / spec.split / f"{name}.npz"


def _unfinished(spec: WorldSpec, out_dir: Path, videos: int) -> list[int]:
    for part in out_dir.glob(f"**/.*{atomic_file.TEMPORARY_SUFFIX}"):
        if time.time() - part.stat().st_mtime > PART_SECONDS:
            part.unlink(missing_ok=True)
    # A clip's video is renamed into place after its ground truth, so one listing tells.
    names = {entry.name for entry in os.scandir(out_dir / spec.split)}
    return [index for index in range(videos) if f"{index:06d}.mp4" not in names]


def _write_all(spec: WorldSpec, out_dir: Path, todo: list[int], workers: int) -> Iterator[int]:
    """Yields how many more clips are done, now and then."""
    if workers <= 1:
        for index in todo:
            _write_clip(spec, out_dir, index)
            yield 1
        return
    context = multiprocessing.get_context("spawn")  # this process may hold threads
    done = context.Value("q", 0)
    processes = [
        context.Process(target=_work, args=(spec, out_dir, todo[i::workers], done), daemon=True)
        for i in range(workers)
    ]
    for process in processes:
        process.start()
    seen = 0
    while any(process.is_alive() for process in processes):
        time.sleep(0.1)
        yield done.value - seen
        seen = done.value
    if done.value < len(todo):
        codes = [process.exitcode for process in processes]
        raise RuntimeError(f"{done.value} of {len(todo)} clips written, exit codes {codes}")
    yield done.value - seen


def _work(spec: WorldSpec, out_dir: Path, todo: Iterable[int], done) -> None:
    parent = multiprocessing.parent_process()
    for index in todo:
        if not parent.is_alive():  # killed: nobody is left to stop us
            return
        _write_clip(spec, out_dir, index)
        with done.get_lock():
            done.value += 1


def _write_clip(spec: WorldSpec, out_dir: Path, index: int) -> None:
    clip = render.render_clip(spec, index)
    video_path, truth_path = _paths(spec, out_dir, index)
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer, depth=clip.depth, boxes=clip.boxes, visible=clip.visible, ids=clip.ids
    )
    atomic_file.write_bytes(truth_path, buffer.getvalue())
    atomic_file.write_bytes(video_path, encode_mp4(clip.video))


def encode_mp4(video: np.ndarray, *, frames_per_second: int = FRAMES_PER_SECOND) -> bytes:
    """Encodes uint8 [t h w c] RGB as H.264 in full colour resolution."""
    buffer, reformatter = io.BytesIO(), VideoReformatter()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=frames_per_second)
        stream.height, stream.width = video.shape[1:3]
        stream.pix_fmt = PIXEL_FORMAT
        stream.options = {"crf": str(QUALITY), "preset": "veryfast", "threads": "1"}
        stream.options |= {"rc-lookahead": "0"}  # its result differs from run to run
        for image_hwc in video:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image_hwc), format="rgb24")
            frame = reformatter.reformat(frame, format=PIXEL_FORMAT, threads=1)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


def _write_tables(spec: WorldSpec, out_dir: Path, videos: int, manifest: Path) -> None:
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
