"""Scenes of the synthetic world: labels, trajectories and boxes of a clip, without its pixels.

Objects move on a torus whose period is the side length of the frame. Their start position is
uniformly random, independent of the class. A single frame therefore contains no information about
the motion, and unordered frames do not distinguish a motion from its time reversal.

Shape key: t frames, k objects, 2 = (x, y), 4 = (x0, y0, x1, y1).
"""

import dataclasses
import functools
import math

import numpy as np

from invnext_jax.errors import UserError

LEVELS = ("simple", "full")
SPLITS = ("train", "val", "test")
SHAPES = ("disc", "ring", "square", "triangle", "cross", "saltire", "hourglass", "arch")
COLORS = ("red", "green", "blue", "yellow", "magenta", "cyan")
MOTIONS = ("right", "down-right", "down", "down-left", "left", "up-left", "up", "up-right")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
BACKGROUNDS = ("striped", "checkered", "cloudy", "dotted")
# The motions (0, 1), (2, 3), ... are pairs whose unordered frames have the same distribution.
FULL_MOTIONS = (
    *("left", "right", "up", "down", "closer", "away"),
    *("left then right", "right then left", "up then down", "down then up"),
)
DISTRACTORS = ("disc", "square", "triangle")
MAX_DISTRACTORS = 2
CORNERS = {
    "square": ((-1, -1), (1, -1), (1, 1), (-1, 1)),
    "triangle": ((0, -1), (1, 1), (-1, 1)),
}
RGB = np.array(
    [[235, 50, 45], [50, 205, 70], [65, 105, 250], [240, 220, 50], [230, 70, 215], [60, 215, 225]],
    np.float32,
)

# Rows of scikit-learn's digits data set, which is ordered by writer. The splits do not overlap.
DIGIT_ROWS = {"train": (0, 1300), "val": (1300, 1548), "test": (1548, 1797)}
LOG_SIZE_PERIOD = 1.0  # on the full level, the log-size wraps around like the position


@dataclasses.dataclass(frozen=True)
class WorldSpec:
    """Parameters of a world. Clip i is a pure function of these fields and i.

    Attributes:
        level: "simple" (one bright shape on a nearly plain background, 8 directions) or "full"
            (a digit among distractors over a moving texture, 10 motions).
        size: Side of a frame in pixels, at least 16.
        frames: Frames per clip, at least 2. The full level needs an even number; otherwise
            unordered frames would distinguish "left then right" from "right then left".
        seed: Non-negative seed of the world.
        split: "train", "val" or "test". The splits have no clip and no digit image in common.

    Raises:
        UserError: A field is out of range.
    """

    level: str = "simple"
    size: int = 32
    frames: int = 8
    seed: int = 0
    split: str = "train"

    def __post_init__(self):
        if self.level not in LEVELS:
            raise UserError(f"unknown world level {self.level!r}: choose one of {LEVELS}")
        if self.split not in SPLITS:
            raise UserError(f"unknown world split {self.split!r}: choose one of {SPLITS}")
        if self.size < 16 or self.frames < 2 or self.seed < 0:
            raise UserError(
                f"size={self.size}, frames={self.frames}, seed={self.seed}: "
                "a world needs size >= 16, frames >= 2 and seed >= 0"
            )
        if self.level == "full" and self.frames % 2:
            raise UserError(f"frames={self.frames}: the full level needs an even number of frames")

    @property
    def classes(self) -> dict[str, tuple[str, ...]]:
        """Names of the classes of each task of this level, in the order of the class ids."""
        if self.level == "simple":
            return {"shape": SHAPES, "color": COLORS, "motion": MOTIONS}
        names = {"shape": DIGITS, "color": COLORS, "motion": FULL_MOTIONS}
        return {**names, "background": BACKGROUNDS}


@dataclasses.dataclass(frozen=True)
class Scene:
    """Content of a clip before rendering. The labels describe object 0.

    Attributes:
        labels: Class id for each task of `WorldSpec.classes`.
        kinds: Name of each object's outline, or "digit" for the digit.
        center_tk2: Centre in pixels, in [0, size), float32.
        half_tk2: Half width and half height in pixels, float32.
        angle_tk: Rotation in radians, float32.
        depth_tk: Distance from the camera, float32. Nearer objects occlude farther ones.
        color_k3: RGB of each object, float32.
        boxes_tk4: (x0, y0, x1, y1) in [0, 1], float32. An object that crosses the border is drawn
            on both sides. Its box encloses the copy whose centre is in the frame and is clipped to
            the frame. The part on the other side is always smaller and has no box. Occlusion does
            not change the box.
        camera_t2: Camera position in pixels at unit depth, float32.
        digit: Row of the digit image in scikit-learn's data set; -1 on the simple level.
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
    sample = _sample_simple_scene if spec.level == "simple" else _sample_full_scene
    return sample(spec, rng, labels)


def sample_labels(spec: WorldSpec, index: int) -> dict[str, int]:
    """Samples only the labels of clip `index`: the class id of each task."""
    return _draw_labels(spec, clip_rng(spec, index, 0))


def _draw_labels(spec: WorldSpec, rng: np.random.Generator) -> dict[str, int]:
    return {task: int(rng.integers(len(names))) for task, names in spec.classes.items()}


def _sample_simple_scene(
    spec: WorldSpec, rng: np.random.Generator, labels: dict[str, int]
) -> Scene:
    size, times_t = spec.size, np.arange(spec.frames)
    half = size * 6 / 32 * rng.uniform(0.9, 1.12)
    # Objects move at least half a patch per frame if a patch is a quarter of the frame wide.
    speed = size * rng.uniform(4.0, 4.8) / 32
    angle = labels["motion"] * math.pi / 4
    velocity_2 = speed * np.array([math.cos(angle), math.sin(angle)])
    center_t2 = rng.uniform(0, size, 2)[None] + times_t[:, None] * velocity_2[None]
    shape = (spec.frames, 1)
    return _assemble_scene(
        spec,
        labels=labels,
        kinds=(SHAPES[labels["shape"]],),
        center_tk2=center_t2[:, None],
        half_tk2=np.full((*shape, 2), half),
        angle_tk=np.zeros(shape),
        depth_tk=np.full(shape, 3.0 * size * 6 / 32 / half),
        color_k3=RGB[labels["color"]][None] * rng.uniform(0.85, 1.0),
        camera_t2=np.zeros((spec.frames, 2)),
    )


def _sample_full_scene(spec: WorldSpec, rng: np.random.Generator, labels: dict[str, int]) -> Scene:
    size, frames = spec.size, spec.frames
    others = int(rng.integers(MAX_DISTRACTORS + 1))
    camera_t2 = np.arange(frames)[:, None] * _sample_in_disc(rng, size / 32)[None]
    path_t3 = _motion_path(FULL_MOTIONS[labels["motion"]], frames) * rng.uniform(0.10, 0.14)
    log_size_t = path_t3[:, 2] + rng.uniform(0, LOG_SIZE_PERIOD)
    log_size_t = log_size_t % LOG_SIZE_PERIOD - LOG_SIZE_PERIOD / 2
    digit = int(rng.choice(_digit_rows(spec.split, labels["shape"])))
    rows, columns = digit_image(digit).shape
    half_t2 = 0.21 * size * np.exp(log_size_t)[:, None] * np.array([[columns / 8, rows / 8]])
    center_tk2 = [rng.uniform(0, size, 2)[None] + size * path_t3[:, :2]]
    depth_tk, half_tk2, angle_tk = [3.0 * np.exp(-log_size_t)], [half_t2], [np.zeros(frames)]
    color_k3, kinds = [RGB[labels["color"]]], ["digit"]
    for _ in range(others):
        depth = rng.uniform(1.6, 5.0)
        drift_t2 = np.arange(frames)[:, None] * _sample_in_disc(rng, 0.08 * size)[None]
        center_tk2.append(rng.uniform(0, size, 2)[None] + drift_t2)
        depth_tk.append(np.full(frames, depth))
        half_tk2.append(np.full((frames, 2), 0.28 * size / depth * rng.uniform(0.7, 1.2)))
        angle_tk.append(rng.uniform(0, 2 * math.pi) + np.arange(frames) * rng.uniform(-0.4, 0.4))
        color_k3.append(RGB[rng.integers(len(COLORS))] * rng.uniform(0.5, 1.0))
        kinds.append(DISTRACTORS[rng.integers(len(DISTRACTORS))])
    depth_tk = np.stack(depth_tk, axis=1)
    # The digit's path is in screen coordinates, independent of the camera. With parallax, unordered
    # frames of a turning path would distinguish "left then right" from "right then left".
    parallax_tk2 = -2 * camera_t2[:, None] / depth_tk[..., None]
    parallax_tk2[:, 0] = 0
    return _assemble_scene(
        spec,
        labels=labels,
        kinds=tuple(kinds),
        center_tk2=np.stack(center_tk2, axis=1) + parallax_tk2,
        half_tk2=np.stack(half_tk2, axis=1),
        angle_tk=np.stack(angle_tk, axis=1),
        depth_tk=depth_tk,
        color_k3=np.stack(color_k3),
        camera_t2=camera_t2,
        digit=digit,
    )


def _assemble_scene(spec: WorldSpec, *, center_tk2, half_tk2, angle_tk, kinds, **fields) -> Scene:
    """Wraps the centres around the torus, adds the boxes and casts the arrays to float32."""
    center_tk2 = center_tk2 % spec.size
    half_tk2 = np.broadcast_to(half_tk2, center_tk2.shape)
    extent_tk2 = half_tk2 * np.stack(
        [_extent(kind, angle_tk[:, k]) for k, kind in enumerate(kinds)], axis=1
    )
    boxes_tk4 = np.concatenate([center_tk2 - extent_tk2, center_tk2 + extent_tk2], axis=-1)
    arrays = {
        "center_tk2": center_tk2,
        "half_tk2": half_tk2,
        "angle_tk": angle_tk,
        "boxes_tk4": np.clip(boxes_tk4 / spec.size, 0, 1),
    }
    arrays = {name: value.astype(np.float32) for name, value in arrays.items()}
    fields = {k: np.float32(v) if isinstance(v, np.ndarray) else v for k, v in fields.items()}
    return Scene(kinds=kinds, **arrays, **fields)


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
    turning_t = np.abs(
        times_t - (frames - 1) / 2
    )  # symmetric in time, so that each value occurs twice
    line_t = turning_t if "then" in motion else times_t
    first = motion.split()[0]
    axis = {"left": 0, "right": 0, "up": 1, "down": 1, "closer": 2, "away": 2}[first]
    sign = 1 if first in ("right", "down", "closer") else -1
    path_t3 = np.zeros((frames, 3))
    path_t3[:, axis] = line_t * (-sign if "then" in motion else sign)
    return path_t3


@functools.cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn import datasets  # slow to import (1 s); only the full level needs it

    digits = datasets.load_digits()
    return digits.images.astype(np.float32) / 16, digits.target


@functools.cache
def _digit_rows(split: str, digit: int) -> np.ndarray:
    start, stop = DIGIT_ROWS[split]
    return start + np.flatnonzero(_digits()[1][start:stop] == digit)


@functools.cache
def digit_image(row: int) -> np.ndarray:
    """Returns a handwritten digit, cropped to its strokes: float32 in [0, 1], at most 8 x 8."""
    image_hw = _digits()[0][row]
    ys, xs = np.nonzero(image_hw > 0.2)
    return image_hw[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
