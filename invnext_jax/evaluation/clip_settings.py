"""Describes the clips of an evaluation: number of frames, size and sampling, as JSON or text."""

from collections.abc import Mapping
from typing import Any

from invnext_jax.checkpointing import run_metadata
from invnext_jax.evaluation.frozen_encoder import FrozenEncoder


def read_settings(config: Any, encoder: FrozenEncoder) -> dict[str, Any]:
    """Returns the frames, size and sampling of the clips, and the clip size of the encoder."""
    data = run_metadata.config_to_json(config)["data"]
    is_dense = data["sampling"] == "dense"
    return {
        **{name: data[name] for name in ("frames", "size", "short_side", "sampling")},
        "stride": sum(data["stride"]) // 2 if is_dense else None,
        **{"encoder_frames": encoder.frames, "encoder_size": encoder.size},
    }


def describe_clips(clips: Mapping[str, Any]) -> str:
    """Formats the settings that `read_settings` returns as text."""
    stride = f" with stride {clips['stride']}" if clips["sampling"] == "dense" else ""
    size = f"{clips['size']} x {clips['size']} pixels"
    return (
        f"clips of {clips['frames']} frames of {size}, {clips['sampling']} sampling{stride}, "
        f"short side {clips['short_side']}"
    )


def compare_with_training(clips: Mapping[str, Any], config: Any) -> list[str]:
    """Returns a list with a note if the clips differ from those the encoder was trained on.

    Args:
      clips: output of `read_settings`.
      config: the config of the checkpoint, which for exports has only the frames and the size of
        the training clips; None if it is unknown. Without them, those of the encoder's position
        table are compared.
    """
    data = (config or {}).get("data", {})
    names = ["frames", "size", "sampling"]
    own = {name: data.get(name, clips.get(f"encoder_{name}", clips[name])) for name in names}
    if own["sampling"] == clips["sampling"] == "dense" and "stride" in data:
        names.append("stride")
        own["stride"] = sum(data["stride"]) // 2
    changed = [name for name in names if clips[name] != own[name]]
    if not changed:
        return []
    options = " and ".join(f"config.data.{name}={clips[name]}" for name in changed)
    sampling = f", {str(own['sampling'])[:20]} sampling" if "sampling" in data else ""
    sampling += f" with stride {own['stride']}" if "stride" in own else ""
    return [
        f"The encoder was {'trained on' if 'frames' in data else 'built for'} clips of "
        f"{own['frames']} frames of {own['size']} x {own['size']} pixels{sampling}, but {options}. "
        "The results depend on these options."
    ]
