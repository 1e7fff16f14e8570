"""Functions that check, load and apply the frozen image teacher of a run.

Shape key: b batch, t frames, f encoded frames, h w pixels, c channels, s patches of a frame,
l taps, d width.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
from absl import logging
from einops import rearrange

from invnext_jax.errors import UserError, check_minimums
from invnext_jax.models import dot_general, scan, teachers
from invnext_jax.models.patches import normalize
from invnext_jax.objectives import teacher_frames
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
    _check_frames(config)
    if t.cache:
        _check_cache(config)


def _check_cache(config: Any) -> None:
    """Checks the options that `config.teacher.cache` needs."""
    name = f"teacher.cache={config.teacher.cache!r}"
    if config.data.augment:
        raise UserError(
            f"{name} needs clips that are the same in each epoch: set data.augment=False"
        )
    if config.teacher.frames_share < 1:
        raise UserError(
            f"{name} stores the outputs for all frames of a clip: set teacher.frames_share=1 "
            f"instead of {config.teacher.frames_share}"
        )
    if "://" in config.teacher.cache:
        raise UserError(f"{name} must be a folder on a local disk")
    if jax.process_count() > 1:
        raise UserError(
            f"{name} supports one process, but the run has {jax.process_count()}: remove it, or "
            "use one host"
        )


def _check_frames(config: Any) -> None:
    """Checks `config.teacher.frames_share`."""
    share, frames = config.teacher.frames_share, config.data.frames
    if not 0 < share <= 1:
        raise UserError(f"teacher.frames_share={share} must be above 0 and at most 1")
    if teacher_frames.count_frames(frames, share) < 1:
        raise UserError(
            f"teacher.frames_share={share} of data.frames={frames} is less than one frame: set it "
            f"to at least {1 / frames:.4g}"
        )
    if share < 1 and "target" in config and config.target.kind == "image":
        raise UserError(
            f"teacher.frames_share={share} must be 1 with target.kind='image', which predicts the "
            "teacher's tokens of all frames"
        )


def resolve_quantization(config: Any, saved: Mapping[str, Any], device: jax.Device) -> Any:
    """Replaces `config.quantize_frozen` "auto" by a format, which is saved with the run.

    The format changes the results, so a run that is resumed on another kind of device keeps it.

    Args:
      config: the run's config, frozen.
      saved: the config in the run's newest checkpoint; {} if there is none.
      device: a device of the run.

    Returns:
      The config, frozen.
    """
    if config.quantize_frozen != dot_general.AUTO:
        return config
    name = saved.get("quantize_frozen", "") if saved else dot_general.select_format(device)
    if not name and jax.process_index() == 0:
        reason = (
            "this run started without them" if saved else f"{device.device_kind} has no fast ones"
        )
        logging.warning("config.quantize_frozen='auto' uses no 8-bit products: %s", reason)
    config = ml_collections.ConfigDict(config)
    config.quantize_frozen = name
    return ml_collections.FrozenConfigDict(config)


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
    frames = teacher_frames.count_frames(config.data.frames, t.frames_share)
    if frames < config.data.frames:
        parts.append(f"it encodes {frames} random frames of the {config.data.frames} of a clip")
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
    with dot_general.quantization(config.quantize_frozen):
        output = teachers.from_config(config).apply({"params": params}, images)
    old, new = t.size // t.patch, video_bthwc.shape[2] // config.encoder.patch
    return output if old == new else teachers.resample_features(output, old, new)


def compute_stored(
    config: Any, params: Any, video_bthwc: jax.Array, *, taps: bool
) -> dict[str, jax.Array]:
    """Computes the outputs that `teacher_cache.TeacherCache` stores, as arrays of a batch.

    Args:
      config: the run's config.
      params: the teacher's parameters.
      video_bthwc: uint8 clips.
      taps: whether a loss needs the tapped layers.

    Returns:
      A dict with "teacher_pooled" [b t d] and "teacher_attention" [b t s], both float32, and, if
      `taps` is True, "teacher_taps" [b l t s d] in `config.dtype`.
    """
    output, t = apply_to_frames(config, params, normalize(video_bthwc)), config.data.frames
    stored = {
        "teacher_pooled": rearrange(output.pooled_bd, "(b t) d -> b t d", t=t),
        "teacher_attention": rearrange(output.attention_bn, "(b t) s -> b t s", t=t),
    }
    if taps:
        taps_bltsd = rearrange(output.taps_lbnd, "l (b t) s d -> b l t s d", t=t)
        stored["teacher_taps"] = taps_bltsd.astype(config.dtype)
    return stored


def read_stored(batch: Mapping[str, jax.Array] | None) -> teachers.TeacherOutput | None:
    """Returns the output of `compute_stored` in a batch as the output of a teacher, float32.

    Returns None if the batch does not contain it. Taps that are not stored are None.
    """
    if not batch or "teacher_pooled" not in batch:
        return None
    taps_lbnd = None
    if "teacher_taps" in batch:
        taps_bltsd = batch["teacher_taps"].astype(jnp.float32)
        taps_lbnd = rearrange(taps_bltsd, "b l t s d -> l (b t) s d")
    return teachers.TeacherOutput(
        taps_lbnd,
        rearrange(batch["teacher_pooled"], "b t d -> (b t) d"),
        rearrange(batch["teacher_attention"], "b t s -> (b t) s"),
    )


def apply_to_clips(
    config: Any,
    params: Any,
    video_bthwc: jax.Array,
    key: jax.Array,
    stored: teachers.TeacherOutput | None = None,
) -> tuple[teachers.TeacherOutput, jax.Array]:
    """Runs the frozen teacher on the fraction `config.teacher.frames_share` of the frames.

    Args:
      config: the run's config.
      params: the teacher's parameters.
      video_bthwc: float32 normalized clips.
      key: random key of the step, for the choice of the frames.
      stored: output of `read_stored` for these clips. The teacher does not run if it is given.

    Returns:
      The output for the encoded frames; and the attention of all frames [b t s], which is that of
      the nearest encoded frame for frames that are not encoded.
    """
    batch, frames = video_bthwc.shape[:2]
    count = teacher_frames.count_frames(frames, config.teacher.frames_share)
    if count == frames:
        output = apply_to_frames(config, params, video_bthwc) if stored is None else stored
        return output, rearrange(output.attention_bn, "(b t) s -> b t s", t=frames)
    frames_bf = teacher_frames.sample_frames(jax.random.fold_in(key, 5), batch, frames, count)
    video_bfhwc = jnp.take_along_axis(video_bthwc, frames_bf[:, :, None, None, None], axis=1)
    output = apply_to_frames(config, params, video_bfhwc)
    attention_bfs = rearrange(output.attention_bn, "(b f) s -> b f s", f=count)
    index_bt = teacher_frames.nearest_frames(frames_bf, frames)
    attention_bts = jnp.take_along_axis(attention_bfs, index_bt[:, :, None], axis=1)
    return output._replace(frames_bf=frames_bf), attention_bts
