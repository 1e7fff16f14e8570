"""Scenes of the synthetic world: labels, trajectories and boxes of a clip, without its pixels.

Objects move on a torus whose period is the side length of the frame. Their start position is
uniformly random, independent of the class. A single frame therefore contains no information about
the motion, and unordered frames do not distinguish a motion from its time reversal.

Shape key: t frames, k objects, 2 = (x, y), 4 = (x0, y0, x1, y1).
"""

import dataclasses
import math

import numpy as np

from invnext_jax.errors import UserError
from invnext_jax.synthetic_world.digits import digit_image, digit_rows
from invnext_jax.synthetic_world.spec import (
    COLORS,
    FULL_MOTIONS,
    MAX_DISTRACTORS,
    MOTIONS,
    SHAPES,
    SPLITS,
    WorldSpec,
)

DISTRACTORS = ("disc", "square", "triangle")
CORNERS = {
    "square": ((-1, -1), (1, -1), (1, 1), (-1, 1)),
    "triangle": ((0, -1), (1, 1), (-1, 1)),
}
RGB = np.array(
    [[235, 50, 45], [50, 205, 70], [65, 105, 250], [240, 220, 50], [230, 70, 215], [60, 215, 225]],
    np.float32,
)
CUE_RGB = np.concatenate([RGB, np.array([[250, 140, 30], [240, 240, 240]], np.float32)])

CUE_HALF = 2.5 / 32  # half the side of the cue, as a fraction of the frame's side
LOG_SIZE_PERIOD = 1.0  # on the full level, the log-size wraps around like the position


@dataclasses.dataclass(frozen=True)
class Scene:
    """Content of a clip before rendering. The labels describe object 0.

    Attributes:
      labels: Class id for each task of `WorldSpec.classes`.
      kinds: Name of each object's outline, or "digit" for the digit.
      center_tk2: Center in pixels, in [0, size), float32.
      half_tk2: Half width and half height in pixels, float32.
      angle_tk: Rotation in radians, float32.
      depth_tk: Distance from the camera, float32. Nearer objects occlude farther ones.
      color_k3: RGB of each object, float32.
      boxes_tk4: (x0, y0, x1, y1) in [0, 1], float32. An object that crosses the border is drawn
          on both sides. Its box encloses the copy whose center is in the frame and is clipped to
          the frame. The part on the other side is always smaller and has no box. Occlusion does
          not change the box.
      camera_t2: Camera position in pixels at unit depth, float32.
      shown_tk: Whether the object exists in the frame, bool. The boxes of the other objects are
          zero.
      digit: Row of the digit image in scikit-learn's data set; -1 without a digit.
    """

    labels: dict[str, int]
    kinds: tuple[str, ...]
    center_tk2: np.ndarray
    half_tk2: np.ndarray
    angle_tk: np.ndarray
    depth_tk: np.ndarray
    color_k3: np.ndarray
    boxes_tk4: np.ndarray
    camera_t2: np.ndarray
    shown_tk: np.ndarray
    digit: int = -1


def clip_rng(spec: WorldSpec, index: int, stream: int) -> np.random.Generator:
    """Returns the random number generator of one of the independent streams of clip `index`."""
    words = (spec.seed, SPLITS.index(spec.split), index, stream)
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(words)))


def sample_scene(spec: WorldSpec, index: int) -> Scene:
    """Samples the labels and trajectories of clip `index`, in about 0.1 ms.

    Raises:
      UserError: `index` is negative.
    """
    if index < 0:
        raise UserError(f"clip index {index} must not be negative")
    rng = clip_rng(spec, index, 0)
    labels = _draw_labels(spec, rng)
    return SAMPLERS[spec.level](spec, rng, labels)


def sample_labels(spec: WorldSpec, index: int) -> dict[str, int]:
    """Samples only the labels of clip `index`: the class id of each task."""
    return _draw_labels(spec, clip_rng(spec, index, 0))


def _draw_labels(spec: WorldSpec, rng: np.random.Generator) -> dict[str, int]:
    drawn = (task for task in spec.classes if task != "action")
    labels = {task: int(rng.integers(len(spec.classes[task]))) for task in drawn}
    if "action" in spec.classes:
        labels["action"] = labels["verb"] * len(SHAPES) + labels["noun"]
    return labels


def _sample_simple_scene(
    spec: WorldSpec, rng: np.random.Generator, labels: dict[str, int]
) -> Scene:
    half, speed = _sample_half_and_speed(spec, rng)
    steps_t2 = np.arange(spec.frames)[:, None] * (speed * _direction(labels["motion"]))[None]
    center_t2 = rng.uniform(0, spec.size, 2)[None] + steps_t2
    color_c = RGB[labels["color"]] * rng.uniform(0.85, 1.0)
    shape = _simple_object(spec, SHAPES[labels["shape"]], center_t2, half, color_c)
    others = _sample_distractors(spec, rng, spec.clutter or 0, depths=(3.7, 5.5), dim=0.5)
    return _assemble_scene(spec, [shape, *others], labels)


def _sample_anticipation_scene(
    spec: WorldSpec, rng: np.random.Generator, labels: dict[str, int]
) -> Scene:
    """Samples a shape that turns in the last third, and the cue that indicates its direction."""
    frames, size = spec.frames, spec.size
    half, speed = _sample_half_and_speed(spec, rng)
    directions = [int(rng.integers(len(MOTIONS))), labels["verb"]]
    steps_t2 = np.stack([_direction(directions[t >= spec.context_frames]) for t in range(frames)])
    steps_t2[0] = 0
    center_t2 = rng.uniform(0, size, 2)[None] + speed * np.cumsum(steps_t2, axis=0)
    color_c = RGB[rng.integers(len(COLORS))] * rng.uniform(0.85, 1.0)
    shape = _simple_object(spec, SHAPES[labels["noun"]], center_t2, half, color_c)
    cue = _Object(
        kind="square",
        center_t2=np.broadcast_to(rng.uniform(0, size, 2)[None], (frames, 2)),
        half_t2=np.full((frames, 2), CUE_HALF * size),
        depth_t=np.ones(frames),
        color_c=CUE_RGB[labels["verb"]],
        shown_t=np.arange(frames) < frames // 3,
    )
    others = _sample_distractors(spec, rng, spec.clutter or 0, depths=(3.7, 5.5), dim=0.5)
    return _assemble_scene(spec, [shape, cue, *others], labels)


def _sample_half_and_speed(spec: WorldSpec, rng: np.random.Generator) -> tuple[float, float]:
    """Samples half the size of a shape in pixels for object size 1, and its pixels per frame."""
    half = spec.size * 6 / 32 * rng.uniform(0.9, 1.12)
    # Objects move at least half a patch per frame if a patch is a quarter of the frame wide.
    return half, spec.size * rng.uniform(4.0, 4.8) / 32 * spec.speed


def _direction(motion: int) -> np.ndarray:
    return np.array([math.cos(motion * math.pi / 4), math.sin(motion * math.pi / 4)])


def _simple_object(spec: WorldSpec, kind: str, center_t2, half: float, color_c) -> "_Object":
    return _Object(
        kind=kind,
        center_t2=center_t2,
        half_t2=np.full((spec.frames, 2), half * spec.object_size),
        depth_t=np.full(spec.frames, 3.0 * spec.size * 6 / 32 / half),
        color_c=color_c,
    )


def _sample_full_scene(spec: WorldSpec, rng: np.random.Generator, labels: dict[str, int]) -> Scene:
    size, frames = spec.size, spec.frames
    others = int(rng.integers(MAX_DISTRACTORS + 1))
    camera_t2 = np.arange(frames)[:, None] * _sample_in_disc(rng, size / 32)[None]
    speed = rng.uniform(0.10, 0.14) * spec.speed
    path_t3 = _motion_path(FULL_MOTIONS[labels["motion"]], frames) * speed
    log_size_t = path_t3[:, 2] + rng.uniform(0, LOG_SIZE_PERIOD)
    log_size_t = log_size_t % LOG_SIZE_PERIOD - LOG_SIZE_PERIOD / 2
    row = int(rng.choice(digit_rows(spec.split, labels["shape"])))
    rows, columns = digit_image(row).shape
    half_t2 = 0.21 * size * np.exp(log_size_t)[:, None] * np.array([[columns / 8, rows / 8]])
    digit = _Object(
        kind="digit",
        center_t2=rng.uniform(0, size, 2)[None] + size * path_t3[:, :2],
        half_t2=half_t2 * spec.object_size,
        depth_t=3.0 * np.exp(-log_size_t),
        color_c=RGB[labels["color"]],
    )
    count = others if spec.clutter is None else spec.clutter
    distractors = _sample_distractors(spec, rng, count, depths=(1.6, 5.0), dim=1.0)
    # The digit's path is in screen coordinates, independent of the camera. With parallax, unordered
    # frames of a turning path would distinguish "left then right" from "right then left".
    distractors = [
        dataclasses.replace(o, center_t2=o.center_t2 + -2 * camera_t2 / o.depth_t[:, None])
        for o in distractors
    ]
    return _assemble_scene(spec, [digit, *distractors], labels, camera_t2=camera_t2, digit=row)


def _sample_distractors(
    spec: WorldSpec,
    rng: np.random.Generator,
    count: int,
    depths: tuple[float, float],
    dim: float,
) -> list["_Object"]:
    """Samples slow, rotating objects at a depth in `depths`; `dim` multiplies their brightness."""
    size, times_t, found = spec.size, np.arange(spec.frames), []
    for _ in range(count):
        depth = rng.uniform(*depths)
        drift_t2 = times_t[:, None] * _sample_in_disc(rng, 0.08 * size)[None]
        center_t2 = rng.uniform(0, size, 2)[None] + drift_t2
        half = 0.28 * size / depth * rng.uniform(0.7, 1.2)
        angle_t = rng.uniform(0, 2 * math.pi) + times_t * rng.uniform(-0.4, 0.4)
        color_c = RGB[rng.integers(len(COLORS))] * rng.uniform(0.5, 1.0) * dim
        found.append(
            _Object(
                kind=DISTRACTORS[rng.integers(len(DISTRACTORS))],
                center_t2=center_t2,
                half_t2=np.full((spec.frames, 2), half),
                depth_t=np.full(spec.frames, depth),
                color_c=color_c,
                angle_t=angle_t,
            )
        )
    return found


@dataclasses.dataclass(frozen=True)
class _Object:
    """An object of a scene; see `Scene` for the fields."""

    kind: str
    center_t2: np.ndarray
    half_t2: np.ndarray
    depth_t: np.ndarray
    color_c: np.ndarray
    angle_t: np.ndarray | None = None
    shown_t: np.ndarray | None = None


def _assemble_scene(
    spec: WorldSpec, objects: list[_Object], labels: dict[str, int], *, camera_t2=None, digit=-1
) -> Scene:
    """Wraps the centers around the torus, adds the boxes and casts the arrays to float32."""
    frames = spec.frames
    center_tk2 = np.stack([o.center_t2 for o in objects], axis=1) % spec.size
    half_tk2 = np.stack([o.half_t2 for o in objects], axis=1)
    angles = [np.zeros(frames) if o.angle_t is None else o.angle_t for o in objects]
    shown = [np.ones(frames, bool) if o.shown_t is None else o.shown_t for o in objects]
    shown_tk = np.stack(shown, axis=1)
    extent_tk2 = half_tk2 * np.stack(
        [_extent(o.kind, angle_t) for o, angle_t in zip(objects, angles, strict=True)], axis=1
    )
    boxes_tk4 = np.concatenate([center_tk2 - extent_tk2, center_tk2 + extent_tk2], axis=-1)
    boxes_tk4 = np.clip(boxes_tk4 / spec.size, 0, 1) * shown_tk[..., None]
    return Scene(
        labels=labels,
        kinds=tuple(o.kind for o in objects),
        center_tk2=center_tk2.astype(np.float32),
        half_tk2=half_tk2.astype(np.float32),
        angle_tk=np.stack(angles, axis=1).astype(np.float32),
        depth_tk=np.stack([o.depth_t for o in objects], axis=1).astype(np.float32),
        color_k3=np.stack([o.color_c for o in objects]).astype(np.float32),
        boxes_tk4=boxes_tk4.astype(np.float32),
        camera_t2=np.float32(np.zeros((frames, 2)) if camera_t2 is None else camera_t2),
        shown_tk=shown_tk,
        digit=digit,
    )


def _extent(kind: str, angle_t: np.ndarray) -> np.ndarray:
    """Returns half the width and height [t 2] of an outline that fills [-1, 1] before rotation."""
    if kind == "disc" or not angle_t.any():
        return np.ones((len(angle_t), 2))
    corners_n2 = np.array(CORNERS[kind])
    cos_t, sin_t = np.cos(angle_t), np.sin(angle_t)
    x_tn = cos_t[:, None] * corners_n2[None, :, 0] - sin_t[:, None] * corners_n2[None, :, 1]
    y_tn = sin_t[:, None] * corners_n2[None, :, 0] + cos_t[:, None] * corners_n2[None, :, 1]
    return np.stack([np.abs(x_tn).max(1), np.abs(y_tn).max(1)], axis=1)


def _sample_in_disc(rng: np.random.Generator, radius: float) -> np.ndarray:
    angle = rng.uniform(0, 2 * math.pi)
    return radius * math.sqrt(rng.uniform()) * np.array([math.cos(angle), math.sin(angle)])


def _motion_path(motion: str, frames: int) -> np.ndarray:
    """Returns the path (x, y, log-size) [t 3] of a full-level motion at unit speed."""
    times_t = np.arange(frames)
    turning_t = np.abs(times_t - (frames - 1) / 2)  # each value occurs twice
    line_t = turning_t if "then" in motion else times_t
    first = motion.split()[0]
    axis = {"left": 0, "right": 0, "up": 1, "down": 1, "closer": 2, "away": 2}[first]
    sign = 1 if first in ("right", "down", "closer") else -1
    path_t3 = np.zeros((frames, 3))
    path_t3[:, axis] = line_t * (-sign if "then" in motion else sign)
    return path_t3


SAMPLERS = {
    "simple": _sample_simple_scene,
    "full": _sample_full_scene,
    "anticipation": _sample_anticipation_scene,
}
