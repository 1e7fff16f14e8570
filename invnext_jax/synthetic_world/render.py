"""Renders clips of the synthetic world with their ground truth.

Shape key: t frames, h w pixels, c channels, k objects.
"""

import dataclasses
import functools
import math

import numpy as np

from invnext_jax.synthetic_world import captions
from invnext_jax.synthetic_world import scene as scene_lib
from invnext_jax.synthetic_world.digits import digit_image
from invnext_jax.synthetic_world.scene import Scene
from invnext_jax.synthetic_world.spec import BACKGROUNDS, WorldSpec


@dataclasses.dataclass(frozen=True)
class Clip:
    """A clip and its ground truth. Labels and captions describe object 0.

    Attributes:
      video: uint8 [t h w c], RGB.
      depth: float16 [t h w], distance from the camera.
      boxes: float32 [t k 4], (x0, y0, x1, y1) in [0, 1]; zeros for absent objects. See
          `scene.Scene` for the box of an object that crosses the border.
      visible: int32 [t k], number of visible pixels of the object, on both sides of the border.
      ids: int8 [t h w], 0 for background, k + 1 where object k is visible.
      labels: Class id for each task of the level.
      level: Level of the world.
    """

    video: np.ndarray
    depth: np.ndarray
    boxes: np.ndarray
    visible: np.ndarray
    ids: np.ndarray
    labels: dict[str, int]
    level: str

    @property
    def shape(self) -> int:
        """Class id of the shape, or of the digit on the full level."""
        return self.labels["shape"]

    @property
    def color(self) -> int:
        """Class id of the color."""
        return self.labels["color"]

    @property
    def motion(self) -> int:
        """Class id of the motion."""
        return self.labels["motion"]

    @property
    def image_captions(self) -> list[str]:
        """Captions that match every frame. They never mention the motion."""
        return [c.text for c in captions.image_captions(self.level, self.labels)]

    @property
    def video_caption(self) -> str:
        """Caption that mentions all attributes."""
        return captions.video_caption(self.level, self.labels).text


def render_clip(spec: WorldSpec, index: int) -> Clip:
    """Renders clip `index`. This is a pure function of its arguments.

    Raises:
      UserError: `index` is negative.
    """
    scene = scene_lib.sample_scene(spec, index)
    rng = scene_lib.clip_rng(spec, index, 1)
    if spec.level != "full":
        back_thwc, depth_thw = _plain_background(spec, rng)
    else:
        back_thwc, depth_thw = _textured_background(spec, scene, rng)
    alpha_kthw = [_coverage(spec, scene, k) for k in range(len(scene.kinds))]
    for k in np.flatnonzero(~scene.shown_tk.all(axis=0)):
        alpha_kthw[k] = alpha_kthw[k] * scene.shown_tk[:, k, None, None]
    return _compose(spec, scene, alpha_kthw, back_thwc, depth_thw)


def _compose(spec: WorldSpec, scene: Scene, alpha_kthw, video_thwc, depth_thw) -> Clip:
    """Composites the objects over the background, from farthest to nearest in each frame."""
    count, frames = len(scene.kinds), spec.frames
    ids_thw = np.zeros((frames, spec.size, spec.size), np.int8)
    if count == 1:
        order_tk = np.zeros((frames, 1), int)
        alphas = [alpha_kthw[0]]
    else:
        order_tk = np.argsort(-scene.depth_tk, axis=1, kind="stable")
        stacked_kthw = np.stack(alpha_kthw)
        alphas = [stacked_kthw[order_tk[:, rank], np.arange(frames)] for rank in range(count)]
    for rank, alpha_thw in enumerate(alphas):
        k_t = order_tk[:, rank]
        color_thwc = scene.color_k3[k_t][:, None, None]
        video_thwc = video_thwc + alpha_thw[..., None] * (color_thwc - video_thwc)
        inside_thw = alpha_thw > 0.5
        ids_thw = np.where(inside_thw, (k_t + 1).astype(np.int8)[:, None, None], ids_thw)
        near_t = scene.depth_tk[np.arange(frames), k_t]
        depth_thw = np.where(inside_thw, near_t[:, None, None], depth_thw)
    slots = spec.max_objects
    boxes_tk4 = np.zeros((frames, slots, 4), np.float32)
    boxes_tk4[:, :count] = scene.boxes_tk4
    visible = [np.count_nonzero(ids_thw == k + 1, axis=(1, 2)) for k in range(slots)]
    return Clip(
        video=(video_thwc + 0.5).astype(np.uint8),
        depth=depth_thw.astype(np.float16),
        boxes=boxes_tk4,
        visible=np.stack(visible, axis=1).astype(np.int32),
        ids=ids_thw,
        labels=scene.labels,
        level=spec.level,
    )


@functools.cache
def _pixels(size: int) -> np.ndarray:
    return np.arange(size, dtype=np.float32) + np.float32(0.5)


def _coverage(spec: WorldSpec, scene: Scene, k: int) -> np.ndarray:
    """Returns the fraction of each pixel covered by object k, with wrap-around: float32 [t h w]."""
    size, pixels_n = spec.size, _pixels(spec.size)
    delta_2tn = pixels_n - scene.center_tk2[:, k].T[..., None]
    delta_2tn = (delta_2tn + size / 2) % size - size / 2
    half_2t = scene.half_tk2[:, k].T
    u_tw, v_th = delta_2tn / half_2t[..., None]
    if scene.kinds[k] == "digit":
        image_ij = digit_image(scene.digit)
        rows_thi = _bilinear_weights(v_th, image_ij.shape[0])
        columns_twj = _bilinear_weights(u_tw, image_ij.shape[1])
        ink_thw = rows_thi @ image_ij @ columns_twj.mT
        return np.clip(2 * ink_thw - 0.3, 0, 1)
    u_thw, v_thw = u_tw[:, None, :], v_th[:, :, None]
    angle_t = scene.angle_tk[:, k]
    if angle_t.any():
        cos_t11, sin_t11 = np.cos(angle_t)[:, None, None], np.sin(angle_t)[:, None, None]
        u_thw, v_thw = cos_t11 * u_thw + sin_t11 * v_thw, cos_t11 * v_thw - sin_t11 * u_thw
    inside_thw = OUTLINES[scene.kinds[k]](u_thw, v_thw)
    return np.clip(inside_thw * half_2t[0][:, None, None] + np.float32(0.5), 0, 1)


def _bilinear_weights(position_tn: np.ndarray, cells: int) -> np.ndarray:
    """Returns the weights [t n i] of linear interpolation along one axis.

    The axis [-1, 1] has i = `cells` equal cells. The weights are 0 outside.
    """
    cell_tn = (position_tn + 1) * np.float32(cells / 2) - np.float32(0.5)
    return np.maximum(0, 1 - np.abs(cell_tn[..., None] - np.arange(cells, dtype=np.float32)))


# Outlines in [-1, 1] x [-1, 1] with v pointing down. Each function returns the approximate signed
# distance to the outline, positive inside.
def _disc(u, v):
    return 1 - np.sqrt(u * u + v * v)


def _ring(u, v):
    radius = np.sqrt(u * u + v * v)
    return np.minimum(1 - radius, radius - np.float32(0.55))


def _square(u, v):
    return 1 - np.maximum(np.abs(u), np.abs(v))


def _triangle(u, v):
    return np.minimum(1 - v, ((v + 1) / 2 - np.abs(u)) * np.float32(0.894))


def _cross(u, v):
    u, v = np.abs(u), np.abs(v)
    return np.minimum(1 - np.maximum(u, v), np.float32(0.33) - np.minimum(u, v))


def _saltire(u, v):
    arm = np.abs(np.abs(u) - np.abs(v)) * np.float32(math.sqrt(0.5))
    return np.minimum(1 - np.maximum(np.abs(u), np.abs(v)), np.float32(0.28) - arm)


def _hourglass(u, v):
    u, v = np.abs(u), np.abs(v)
    return np.minimum(1 - v, (v - u + np.float32(0.1)) * np.float32(math.sqrt(0.5)))


def _arch(u, v):
    u = np.abs(u)
    hole = np.minimum(np.float32(0.42) - u, v + np.float32(0.35))
    return np.minimum(1 - np.maximum(u, np.abs(v)), -hole)


OUTLINES = {
    "disc": _disc,
    "ring": _ring,
    "square": _square,
    "triangle": _triangle,
    "cross": _cross,
    "saltire": _saltire,
    "hourglass": _hourglass,
    "arch": _arch,
}


def _plain_background(spec: WorldSpec, rng: np.random.Generator):
    """Returns a static dark background with gradient and noise [1 h w c], and its depth [t h w]."""
    size = spec.size
    angle, strength = rng.uniform(0, 2 * math.pi), rng.uniform(0, 12)
    along_n = (_pixels(size) / size - np.float32(0.5)) * np.float32(strength)
    slope_hw = math.cos(angle) * along_n[None, :] + math.sin(angle) * along_n[:, None]
    grain_hw = 2.5 * rng.standard_normal((size, size), np.float32)
    base_c = rng.uniform(12, 40, 3).astype(np.float32)
    back_hwc = (slope_hw + grain_hw)[..., None] + base_c
    depth_thw = np.full((spec.frames, size, size), 6, np.float32)
    return np.clip(back_hwc, 0, 255)[None].astype(np.float32), depth_thw


def _textured_background(spec: WorldSpec, scene: Scene, rng: np.random.Generator):
    """Returns a tilted, textured ground [t h w c] that moves by parallax, and its depth [t h w]."""
    size, pixels_n = spec.size, _pixels(spec.size)
    depth_h = np.float32(rng.uniform(6, 9)) - np.float32(2.5) * pixels_n / size
    shift_th2 = 2 * scene.camera_t2[:, None] / depth_h[None, :, None]
    x_thw = (pixels_n[None, None, :] + shift_th2[:, :, None, 0]) / size
    y_thw = ((pixels_n[None, :] + shift_th2[..., 1]) / size)[..., None]
    family = BACKGROUNDS[scene.labels["background"]]
    mix_thw = np.clip(TEXTURES[family](x_thw, y_thw, rng), 0, 1)
    low_c, high_c = rng.uniform(10, 60, 3), rng.uniform(50, 115, 3)
    low_c, high_c = low_c.astype(np.float32), high_c.astype(np.float32)
    depth_thw = np.broadcast_to(depth_h[None, :, None], (spec.frames, size, size))
    return low_c + mix_thw[..., None] * (high_c - low_c), depth_thw


def _sample_wave(rng: np.random.Generator, low: float, high: float):
    """Samples wave numbers along x and y, and a phase, in radians for coordinates in [0, 1]."""
    angle, number = rng.uniform(0, math.pi), 2 * math.pi * rng.uniform(low, high)
    wave = (number * math.cos(angle), number * math.sin(angle), rng.uniform(0, 2 * math.pi))
    return tuple(np.float32(value) for value in wave)


def _striped(x, y, rng):
    a, b, phase = _sample_wave(rng, 3, 8)
    return 0.5 + np.sin(a * x + b * y + phase)


def _checkered(x, y, rng):
    a, b, phase = _sample_wave(rng, 2, 4)
    return 0.5 + 3 * np.sin(a * x + b * y + phase) * np.sin(b * x - a * y + phase)


def _cloudy(x, y, rng):
    total = np.float32(0.5)
    for low in (0.5, 0.8, 1.2, 2.0):
        a, b, phase = _sample_wave(rng, low, 2 * low)
        total = total + np.float32(0.25 / math.sqrt(low)) * np.sin(a * x + b * y + phase)
    return total


def _dotted(x, y, rng):
    a, b, phase = _sample_wave(rng, 3, 6)
    return 2 * (np.cos(a * x + b * y + phase) + np.cos(b * x - a * y + phase)) - 1.6


TEXTURES = {"striped": _striped, "checkered": _checkered, "cloudy": _cloudy, "dotted": _dotted}
