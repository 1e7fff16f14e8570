"""Inputs that know less, or more, than a video encoder: the brackets of a probe's figure.

The first frame shows what needs no video; the bag of frames what needs no order; the ordered track
of ground-truth boxes what a perfect tracker could tell.

Shape key: b videos, t frames, h w pixels, c channels, k objects, d features.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange, reduce

from invnext_jax.evaluation.features import task_labels

MAX_SIDE = 32  # pixel controls see videos reduced to about this side


def load_videos(batches: Iterable[Mapping[str, Any]]) -> tuple[np.ndarray, dict, np.ndarray]:
    """Reads a whole manifest into memory.

    Returns:
      uint8 videos [b t h w c], labels by task, and int32 row numbers [b], without padding.
    """
    videos, labels, index = [], [], []
    for batch in batches:
        real_b = np.asarray(batch["index"]) >= 0
        videos.append(np.asarray(batch["video"])[real_b])
        index.append(np.asarray(batch["index"])[real_b])
        labels.append({k: np.asarray(v)[real_b] for k, v in task_labels(batch).items()})
    joined = {task: np.concatenate([part[task] for part in labels]) for task in labels[0]}
    return np.concatenate(videos), joined, np.concatenate(index)


def first_frame(video_bthwc: np.ndarray) -> np.ndarray:
    """Pixels of the first frame: float32 [b d], values from 0 to 1."""
    return rearrange(_shrink(video_bthwc[:, :1]), "b 1 h w c -> b (h w c)")


def bag_of_frames(video_bthwc: np.ndarray) -> np.ndarray:
    """Mean and spread of each pixel over the frames, blind to their order: float32 [b d]."""
    small_bthwc = _shrink(video_bthwc)
    parts = [small_bthwc.mean(axis=1), small_bthwc.std(axis=1)]
    return np.concatenate([rearrange(part, "b h w c -> b (h w c)") for part in parts], axis=1)


def _shrink(video_bthwc: np.ndarray) -> np.ndarray:
    """Means over square blocks of pixels, so that the side is about `MAX_SIDE`."""
    block = max(1, min(video_bthwc.shape[2:4]) // MAX_SIDE)
    h, w = (side // block * block for side in video_bthwc.shape[2:4])
    cut_bthwc = video_bthwc[:, :, :h, :w].astype(np.float32) / 255
    pattern = "b t (h p) (w q) c -> b t h w c"
    return reduce(cut_bthwc, pattern, "mean", p=block, q=block)


def load_boxes(manifest: str | Path, rows: Iterable[int]) -> np.ndarray | None:
    """Ground-truth boxes of videos of the embedded world, from the `gt` folder by its manifest.

    Args:
      manifest: CSV of a split, "train.csv"; the boxes of row 3 are in gt/train/000003.npz.
      rows: row numbers in the manifest.

    Returns:
      float32 [b t k 5]: box corners in [0, 1], then whether the object can be seen; None if there
      is no ground truth.
    """
    manifest = Path(manifest)
    folder = manifest.parent / "gt" / manifest.stem
    paths = [folder / f"{row:06d}.npz" for row in rows]
    if not all(path.is_file() for path in paths):
        return None
    tracks = []
    for path in paths:
        with np.load(path) as truth:
            visible_tk1 = truth["visible"].astype(np.float32)[..., None]
            tracks.append(np.concatenate([truth["boxes"], visible_tk1], axis=-1))
    return np.stack(tracks).astype(np.float32)


def first_box(box_btkd: np.ndarray) -> np.ndarray:
    """The boxes of the first frame: [b d]."""
    return rearrange(box_btkd[:, 0], "b k d -> b (k d)")


def bag_of_boxes(box_btkd: np.ndarray) -> np.ndarray:
    """All frames' boxes, sorted by place instead of time: [b d].

    Each object's boxes are sorted by column and once more by row, so nothing but the order is lost.
    """
    # Rounded, and with every coordinate as a tie-break: a sort must not fall back on time.
    corners_btkd = np.round(box_btkd, 4)
    center_btk2 = (corners_btkd[..., 0:2] + corners_btkd[..., 2:4]).round(3)
    parts = [box_btkd.mean(axis=1), box_btkd.std(axis=1)]
    parts = [rearrange(part, "b k d -> b (k d)") for part in parts]
    rest = [corners_btkd[..., i] for i in range(corners_btkd.shape[-1])]
    for first, second in ((0, 1), (1, 0)):
        keys = (*rest, center_btk2[..., second], center_btk2[..., first])  # the last one leads
        order_btk = np.lexsort(keys, axis=1)
        sorted_btkd = np.take_along_axis(corners_btkd, order_btk[..., None], axis=1)
        parts.append(rearrange(sorted_btkd, "b t k d -> b (t k d)"))
    return np.concatenate(parts, axis=1)


def ordered_boxes(box_btkd: np.ndarray) -> np.ndarray:
    """All boxes in their order, and each centre's step, wrapped round the frame: [b d]."""
    center_btk2 = (box_btkd[..., 0:2] + box_btkd[..., 2:4]) / 2
    step_btk2 = (np.diff(center_btk2, axis=1) + 0.5) % 1.0 - 0.5
    return np.concatenate(
        [
            rearrange(box_btkd, "b t k d -> b (t k d)"),
            rearrange(step_btk2, "b t k d -> b (t k d)"),
            rearrange(np.median(step_btk2, axis=1), "b k d -> b (k d)"),
        ],
        axis=1,
    )
