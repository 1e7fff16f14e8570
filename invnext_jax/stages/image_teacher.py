"""Functions that check, load and apply the frozen image teacher of a run.

Shape key: b batch, t frames, h w pixels, c channels, s patches of a frame.
"""

from collections.abc import Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from invnext_jax.errors import UserError, check_minimums
from invnext_jax.models import scan, teachers
from invnext_jax.models.dot_general import quantization
from invnext_jax.weights.export import config_mismatches, open_export, require_part, resolve_path
from invnext_jax.weights.match import match_tree

_TEACHER = ("kind", "width", "depth", "heads", "mlp_width", "patch", "train_size")
_TEACHER += ("activation", "registers", "gated")
_TARGETS = (*_TEACHER, "weights", "size", "taps", "tap_interval")  # options that decide its outputs
_HEADS = frozenset({"align", "align_pooled"})  # groups trained to match its outputs
# Options that have only one value for a kind; files of older versions do not contain them.
_FIXED = {
    "siglip2": {"activation": "gelu_tanh", "registers": 0, "gated": False},
    "clip": {"registers": 0, "gated": False},
    "dinov2": {"activation": "gelu"},
}


def check_teacher(config: Any) -> None:
    """Checks `config.teacher`.

    Raises:
      UserError: the kind is unknown, weights are missing, or the sizes do not match the clips.
    """
    t = config.teacher
    if t.kind not in teachers.KINDS:
        known = " or ".join(map(repr, teachers.KINDS))
        raise UserError(f"teacher.kind={t.kind!r} is unknown: set it to {known}")
    if not t.weights:
        raise UserError("teacher.weights is empty: set it to the .safetensors file of a teacher")
    sizes = ("width", "depth", "heads", "mlp_width", "patch", "size", "train_size", "taps")
    check_minimums(config, {f"teacher.{name}": 1 for name in sizes} | {"teacher.registers": 0})
    if t.size % t.patch:
        # The teacher crops the remaining pixels, so its patches would cover only a part of each
        # frame.
        shift = t.size % t.patch / t.size * (config.data.size // config.encoder.patch)
        raise UserError(
            f"teacher.size={t.size} is not a multiple of teacher.patch={t.patch}, which shifts the "
            f"teacher's patches by up to {shift:.1f} patches of the clip: set "
            f"teacher.size={max(t.size // t.patch, 1) * t.patch}"
        )
    sides = t.size // t.patch, config.data.size // config.encoder.patch
    if sides[0] != sides[1] and not t.resample:
        raise UserError(
            f"teacher.size // teacher.patch = {sides[0]} must equal data.size // encoder.patch = "
            f"{sides[1]} (patches per side): change teacher.size, or set teacher.resample=True"
        )
    scan.select_tap_layers(t.depth, t.taps, t.tap_interval)


def describe_teacher(config: Any) -> str:
    """Returns a sentence with the teacher's file, its image size, and everything interpolated."""
    t, side = config.teacher, config.data.size
    sides = t.size // t.patch, side // config.encoder.patch
    parts = [f"teacher: {t.kind} from {t.weights}, images of {t.size} x {t.size} pixels"]
    if t.size != side:
        parts.append(f"clips of {side} x {side} are resized")
    if t.size != t.train_size:
        parts.append(f"its position table for {t.train_size} x {t.train_size} is interpolated")
    if sides[0] != sides[1]:
        parts.append("its {0} x {0} patches are resampled to {1} x {1}".format(*sides))
    if config.loss.get("align_tokens"):
        taps = scan.select_tap_layers(t.depth, t.taps, t.tap_interval)
        parts.append(f"targets: its tokens after {', '.join(map(str, taps))} of {t.depth} layers")
    return "; ".join(parts)


def describe_change(config: Any, source: Any, groups: Iterable[str]) -> str:
    """Returns a sentence if heads start from a run that had a different teacher, or "".

    Args:
      config: the run's config.
      source: the config of `config.init_from`, of which an export has only some sections; None if
        it is not set.
      groups: names of the parameter groups that are read from `config.init_from`.
    """
    heads = sorted(_HEADS.intersection(groups))
    described = source.get("teacher", {}) if source and heads else {}
    changed = config_mismatches(described, config.teacher, _TARGETS)
    if not changed:
        return ""
    rows = (f"  teacher.{k}={its!r} in that run, {own!r} in this run" for k, own, its in changed)
    return (
        f"{' and '.join(heads)} of {config.init_from} were trained for the outputs of a different "
        "teacher. To initialize them randomly, leave them out of --config.init_parts:\n"
        + "\n".join(rows)
    )


def abstract_teacher(config: Any) -> Any:
    """Returns shapes and logical axes of the teacher's parameters."""
    images = jnp.zeros((1, config.teacher.size, config.teacher.size, 3))
    init = teachers.from_config(config).init
    return jax.eval_shape(init, jax.random.key(0), images)["params"]


def read_teacher(config: Any) -> Any:
    """Reads the teacher's parameters from the file `config.teacher.weights`.

    Raises:
      UserError: the file cannot be read, or its model differs from `config.teacher`.
    """
    path = resolve_path(config.teacher.weights)
    parts, about = open_export(path)
    require_part(path, parts, "teacher")
    described = about.get("config", {}).get("teacher", {})
    described = _FIXED.get(described.get("kind"), {}) | described
    wrong = config_mismatches(described, config.teacher, _TEACHER)
    if wrong:
        rows = (f"config.teacher.{k}={old!r} must be {new!r}" for k, old, new in wrong)
        raise UserError(f"{path} does not match the configured teacher:", *rows)
    return match_tree(parts["teacher"], nn.unbox(abstract_teacher(config)), f"teacher {path}")


def apply_to_frames(config: Any, params: Any, video_bthwc: jax.Array) -> teachers.TeacherOutput:
    """Runs the frozen teacher on all b*t frames; the output has the encoder's grid of patches.

    Args:
      config: the run's config.
      params: the teacher's parameters.
      video_bthwc: float32 normalized clips.
    """
    t = config.teacher
    images = teachers.preprocess(video_bthwc, t.size, t.kind)
    with quantization(config.quantize_frozen):
        output = teachers.from_config(config).apply({"params": params}, images)
    old, new = t.size // t.patch, video_bthwc.shape[2] // config.encoder.patch
    return output if old == new else teachers.resample_features(output, old, new)


def apply_to_clips(
    config: Any, params: Any, video_bthwc: jax.Array
) -> tuple[teachers.TeacherOutput, jax.Array]:
    """Returns the output of `apply_to_frames`, and its attention reshaped to [b t s]."""
    output = apply_to_frames(config, params, video_bthwc)
    frames = video_bthwc.shape[1]
    return output, rearrange(output.attention_bn, "(b t) s -> b t s", t=frames)
