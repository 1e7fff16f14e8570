"""A web page that shows the frames, masks and sources of a run's first training clips.

The clips and masks are those of the first steps of a run with one process. The random numbers of a
mask depend only on the index of the clip in its batch. The first clips of a batch therefore have
the same masks as in the complete batch.

Shape key: b clips, t frames, h w pixels, c channels, y x grid rows and columns, s patches of a
frame.
"""

import collections
import csv
import functools
import io
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from absl import logging

from invnext_jax import atomic_file, config_checks, csv_text, regular_file, sanitize
from invnext_jax.data import columns, pipeline
from invnext_jax.data import manifest as manifest_lib
from invnext_jax.data import sources as sources_lib
from invnext_jax.data.access_rules import AccessRules
from invnext_jax.data.bad_videos import BadVideoTracker
from invnext_jax.data.train_order import Mixture
from invnext_jax.errors import UserError
from invnext_jax.evaluation import visualization
from invnext_jax.evaluation.pages import replaced_file, report
from invnext_jax.models.patches import clip_grid
from invnext_jax.objectives import masks
from invnext_jax.stages import image_teacher, registry
from invnext_jax.stages.pixel_sampling import visible_grid
from invnext_jax.training.step import select_microbatch

TEMPLATE = "show_data.html"
MAX_QUARANTINE_BYTES = 2**28  # maximum size of a list of excluded files
MAX_REASONS = 100  # kinds of reasons that a page lists; a list of excluded files may have millions
LOSSLESS_SIDE = 64  # pixels; larger frames use JPEG, because the page would be very large with PNG


class ShownClip(NamedTuple):
    """A training clip with its masks.

    Attributes:
      video_thwc: uint8 frames.
      row: row number in the manifest.
      step: training step that uses the clip, from 0.
      visible: masks, bool [t y x], True for visible patches. Multi-block masking has several.
    """

    video_thwc: np.ndarray
    row: int
    step: int
    visible: list[np.ndarray]


def write_page(config: ml_collections.ConfigDict, out: str | Path, clips: int = 16) -> Path:
    """Writes a web page of the first training clips of a run.

    Args:
      config: config of the run.
      out: HTML file to write.
      clips: number of clips to show.

    Raises:
      UserError: the config is invalid, a file is missing, no video can be read, or `out` is another
        file, see `replaced_file`.
    """
    if clips < 1:
        raise UserError(f"clips={clips} must be at least 1")
    replaced_file.check_replaceable(out)
    registry.find_stage(config)
    config_checks.check_config(config)
    masks.check_settings(config.mask, (config.data.size // config.encoder.patch) ** 2)
    bad_videos = BadVideoTracker()
    shown = list(sample_clips(config, clips, bad_videos))
    manifest = manifest_lib.read_manifest(
        config.data.manifest, AccessRules.from_config(config.data)
    )
    page = report.render(
        TEMPLATE,
        facts=_describe(config, manifest, shown[0].visible),
        clips=[_describe_clip(config, manifest[clip.row], clip) for clip in shown],
        dropped=count_reasons(bad_videos.reasons),
        quarantined=_read_quarantines(manifest.file),
    )
    atomic_file.write_text(out, page)
    return Path(out)


def sample_clips(
    config: ml_collections.ConfigDict, clips: int, bad_videos: BadVideoTracker
) -> Iterator[ShownClip]:
    """Yields the first clips of a run, with the masks of their training steps.

    Args:
      config: config of the run.
      clips: number of clips.
      bad_videos: records the videos that could not be read.
    """
    frozen = {}
    if masks.needs_attention(config.mask):
        image_teacher.check_teacher(config)
        frozen["teacher"] = image_teacher.read_teacher(config)
    stage = registry.find_stage(config)
    sample_visible = jax.jit(functools.partial(stage.sample_visible, config))
    root_key = jax.random.key(config.seed)
    # Reads one video at a time. The order and the crops of clips do not depend on the batch size.
    repeats = config.data.repeats
    if config.batch_size % repeats:
        raise UserError(f"{config.batch_size=} must be divisible by config.data.repeats={repeats}")
    dataset = pipeline.make_train_dataset(
        config.data, seed=config.seed, batch_size=repeats, bad_videos=bad_videos
    )
    iterator = iter(dataset)
    try:
        for step, first in enumerate(range(0, clips, config.batch_size)):
            count = min(config.batch_size, clips - first)
            batch = [next(iterator) for _ in range(-(-count // repeats))]
            video_bthwc = np.concatenate([one["video"] for one in batch])[:count]
            row_b = np.concatenate([one["index"] for one in batch])[:count]
            key = jax.random.fold_in(root_key, step)
            grid = clip_grid(video_bthwc, config.encoder.patch)
            # Each microbatch has its own key; see `select_microbatch`.
            masks_b = [[] for _ in row_b]
            for index in range(min(config.accumulate, count)):
                microbatch_key = select_microbatch({}, key, index, config.accumulate)[1]
                part_bthwc = video_bthwc[index :: config.accumulate]
                for keep_bk in jax.device_get(sample_visible(frozen, part_bthwc, microbatch_key)):
                    for i, mask_tyx in enumerate(visible_grid(keep_bk, grid)):
                        masks_b[index + i * config.accumulate].append(mask_tyx)
            for i, row in enumerate(row_b):
                yield ShownClip(video_bthwc[i], int(row), step, masks_b[i])
    finally:
        if hasattr(iterator, "close"):  # stops the workers
            iterator.close()


def count_reasons(reasons: Mapping[str, str]) -> list[tuple[str, int]]:
    """Counts dropped files by kind of reason; the most frequent kinds come first.

    After `MAX_REASONS` kinds, the last entry counts the files of all others.

    Args:
      reasons: maps paths to reasons. Paths and numbers in the text of a reason are removed, so that
        reasons of the same kind become equal.
    """
    kinds = collections.Counter()
    for path, reason in reasons.items():
        kind = reason.removeprefix(f"{path}: ").replace(path, "...").partition(": /")[0]
        kind = re.sub(r"\[Errno -?\d+\] ", "", kind)
        kinds[sanitize.shorten(re.sub(r"\b\d+(\.\d+)?\b", "N", kind))] += 1
    found = kinds.most_common()
    found, others = found[:MAX_REASONS], found[MAX_REASONS:]
    count = sum(number for _, number in others)
    return found + ([(f"{len(others):,} other reasons", count)] if others else [])


def _read_quarantines(manifests: str) -> list[tuple[str, int]]:
    """Counts files that `launch/prepare_data.py` excluded, from the list next to the manifest."""
    reasons = {}
    for name in manifest_lib.split_names(manifest_lib.find_manifests(manifests)):
        path = Path(name).with_suffix(".quarantine.csv")
        if os.path.isfile(path):
            try:
                with regular_file.open_binary(path, MAX_QUARANTINE_BYTES) as file:
                    text = io.TextIOWrapper(
                        file, encoding="utf-8", errors="backslashreplace", newline=""
                    )
                    rows = csv.reader(csv_text.read_lines(text))
                    names = next(rows, [])
                    columns.check_count(str(path), names)
                    csv_text.check_repeated(str(path), names)
                    at, why = names.index("path"), names.index("reason")
                    found = {}
                    for cells in filter(None, rows):
                        csv_text.check_cells(f"line {rows.line_num}", cells, names)
                        found[cells[at]] = cells[why]
                    reasons |= found
            except (OSError, ValueError, csv.Error) as error:  # a UserError is a ValueError
                logging.warning("%s is damaged and skipped: %r", path, error)
    return count_reasons(reasons)


def _describe(
    config: ml_collections.ConfigDict,
    manifest: manifest_lib.Manifest,
    visible: Sequence[np.ndarray],
) -> dict[str, str]:
    data, rows = config.data, collections.Counter(manifest.sources)
    shares = Mixture(manifest, data.weights, config.seed).shares
    sources = [
        f"{name or 'no name'} {rows[name]:,} ({share:.1%} of the clips)"
        for name, share in sorted(shares.items(), key=lambda pair: -pair[1])
    ]
    sources[8:] = [f"{len(rows) - 8} more"] if len(rows) > 8 else []
    crops = f"crops of {', '.join(f'{scale:g}' for scale in data.crop_scales)} of the short side"
    if data.crop == "random_resized":
        crops = "crops of {:g} to {:g} of the area".format(*data.crop_area)
    stride = " to ".join(f"{n:g}" for n in dict.fromkeys(data.stride))
    sampling = f"{data.sampling} sampling"
    sampling += f" with stride {stride}" if data.sampling == "dense" else ""
    entries = sources_lib.merge_overrides(data.by_source)
    overrides = [
        f"{name}: {', '.join(f'{field} {value}' for field, value in fields.items())}"
        for name in shares
        if (fields := sources_lib.find_entry(entries, name, {}))
    ]
    return {
        "run": f"{registry.find_stage(config).title}, {config.variant}",
        "seed": str(config.seed),
        "manifest": sanitize.redact_urls(data.manifest),
        "videos": f"{len(manifest):,}",
        "sources": ", ".join(sources),
        "clips": f"{data.frames} frames of {data.size} px, {sampling}, {crops}"
        + (f", {data.repeats} of a video" if data.repeats > 1 else ""),
        "mirrored": "half of them" if data.flip else "never",
        **({"exceptions": "; ".join(overrides)} if overrides else {}),
        "mask": "; ".join(_name_mask(config.mask, i, mask) for i, mask in enumerate(visible)),
        "batch": f"{config.batch_size} clips",
    }


def _name_mask(settings: ml_collections.ConfigDict, number: int, visible_tyx: np.ndarray) -> str:
    """Describes a mask by its fraction of whole patches, which differs from that in the config."""
    share = np.mean(visible_tyx)
    if settings.kind != "multi_block":
        return f"{settings.kind}, {1 - share:.0%} hidden"
    count, area = settings.blocks[number]
    return f"multi-block, {count} blocks of {area:.0%}, {share:.0%} visible"


def _describe_clip(
    config: ml_collections.ConfigDict, record: manifest_lib.VideoRecord, clip: ShownClip
) -> dict[str, Any]:
    to_uri = functools.partial(
        visualization.to_data_uri, lossless=clip.video_thwc.shape[1] <= LOSSLESS_SIDE
    )
    strips = [{"title": "Frames", "caption": "", "uri": to_uri(clip.video_thwc)}]
    for number, visible_tyx in enumerate(clip.visible):
        title = f"Mask {number + 1}" if len(clip.visible) > 1 else "Mask"
        uri = to_uri(visualization.hide_patches(clip.video_thwc, visible_tyx))
        caption = _name_mask(config.mask, number, visible_tyx)
        strips.append({"title": title, "caption": caption, "uri": uri})
    facts = {"source": record.source or "no name", "step": clip.step + 1, "row": clip.row}
    if record.start is not None or record.end is not None:
        facts["seconds"] = f"{record.start or 0:g} to {'end' if record.end is None else record.end}"
    return {"path": record.name, "facts": facts | record.labels, "strips": strips}
