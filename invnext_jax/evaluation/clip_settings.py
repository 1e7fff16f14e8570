"""Describes the clips of an evaluation: number of frames, size and sampling, as JSON or text."""

from collections.abc import Mapping
from typing import Any

from invnext_jax.checkpointing import run_metadata
from invnext_jax.data import sources
from invnext_jax.errors import UserError
from invnext_jax.evaluation.frozen_encoder import FrozenEncoder

MAX_PATCHES = 2**15  # of a clip whose sizes nobody specified; attention takes quadratic time
_SHOWN_SOURCES = 3


def check_default_clip(frames: int, size: int, patch: int, advice: str) -> None:
    """Checks the clip of an encoder that may come from an untrusted source.

    Args:
      frames: number of frames.
      size: height and width in pixels.
      patch: height and width of a patch in pixels.
      advice: how to specify the frames and the size.

    Raises:
      UserError: the clip has more than `MAX_PATCHES` patches.
    """
    patches = frames * (size // patch) ** 2
    if patches > MAX_PATCHES:
        raise UserError(
            f"by default, clips of this encoder have {patches:,} patches, which need much time and "
            f"memory: {advice}, such as {frames} and {size}"
        )


def read_settings(config: Any, encoder: FrozenEncoder) -> dict[str, Any]:
    """Returns the frames, size and sampling of the clips, and the clip size of the encoder.

    If `config.data.by_source` changes the sampling of sources, `by_source` has the sampling and the
    stride of each of them.
    """
    data = run_metadata.config_to_json(config)["data"]
    by_source = _read_sources(data)
    return {
        **{name: data[name] for name in ("frames", "size", "short_side")},
        **_read_sampling(data),
        **({"by_source": by_source} if by_source else {}),
        **{"encoder_frames": encoder.frames, "encoder_size": encoder.size},
    }


def describe_clips(clips: Mapping[str, Any]) -> str:
    """Formats the settings that `read_settings` returns as text."""
    size = f"{clips['size']} x {clips['size']} pixels"
    return (
        f"clips of {clips['frames']} frames of {size}, {_describe_sampling(clips)}, "
        f"short side {clips['short_side']}"
    )


def compare_with_training(clips: Mapping[str, Any], config: Any) -> list[str]:
    """Returns a list with a note if the clips differ from those the encoder was trained on.

    Args:
      clips: output of `read_settings`.
      config: the config of the checkpoint, which may be damaged; None if it is unknown. If it has
        no frames or size, those of the encoder's position table are compared, and if it has no
        sampling, as exports of earlier versions, the sampling is not compared.
    """
    data = (config or {}).get("data", {})
    names = ["frames", "size"]
    own = {name: data.get(name, clips.get(f"encoder_{name}", clips[name])) for name in names}
    if trained := _read_trained_sampling(data):
        names += ["sampling", "stride"]
        own |= trained
        if not own["sampling"] == clips["sampling"] == "dense":
            names.remove("stride")  # only dense sampling has one
    options = [f"config.data.{name}={clips[name]}" for name in names if clips[name] != own[name]]
    options += _compare_sources(clips, own) if trained else []
    if not options:
        return []
    sampling = f", {_describe_sampling(own)}" if trained else ""
    return [
        f"The encoder was {'trained on' if 'frames' in data else 'built for'} clips of "
        f"{own['frames']} frames of {own['size']} x {own['size']} pixels{sampling}, but "
        f"{' and '.join(options)}. The results depend on these options."
    ]


def _read_trained_sampling(data: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the sampling in the config of a checkpoint; {} if it has none or is damaged."""
    try:
        return {**_read_sampling(data), "by_source": _read_sources(data)}
    except (LookupError, TypeError, ValueError, AttributeError):
        return {}


def _read_sampling(data: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the sampling, and the mean stride if it is dense."""
    is_dense = data["sampling"] == "dense" and "stride" in data
    return {
        "sampling": data["sampling"],
        "stride": sum(data["stride"]) // 2 if is_dense else None,
    }


def _read_sources(data: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns the sampling of the sources in which `config.data.by_source` changes it."""
    names = map(sources.normalize, data.get("by_source", {}))
    found = {name: _read_sampling(sources.options_of(data, name)) for name in names}
    return {name: fields for name, fields in found.items() if fields != _read_sampling(data)}


def _compare_sources(clips: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    """Describes the sampling of the sources that differs from the training although others agree.

    `clips` and `own` are the settings of the evaluation and of the training.
    """
    found = []
    for name in sorted({*clips.get("by_source", {}), *own["by_source"]}):
        now, before = (part.get("by_source", {}).get(name, part) for part in (clips, own))
        is_same = all(now[field] == before[field] for field in ("sampling", "stride"))
        if not is_same and (now is not clips or before is not own):
            found.append(f"{_describe_sampling({**now, 'by_source': {}})} of {ascii(name)[:40]}")
    return found[:_SHOWN_SOURCES]


def _describe_sampling(settings: Mapping[str, Any]) -> str:
    stride = f" with stride {settings['stride']}" if settings["stride"] is not None else ""
    text = f"{str(settings['sampling'])[:20]} sampling{stride}"
    parts = [
        f"{ascii(name)[:40]}: {_describe_sampling(fields)}"
        for name, fields in list(settings.get("by_source", {}).items())[:_SHOWN_SOURCES]
    ]
    return f"{text} ({', '.join(parts)})" if parts else text
