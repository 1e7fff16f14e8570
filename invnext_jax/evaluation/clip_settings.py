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


def compare_with_encoder(clips: Mapping[str, Any]) -> list[str]:
    """Returns a list with a note if the clips differ from those the encoder was built for."""
    own = {name: clips[f"encoder_{name}"] for name in ("frames", "size")}
    changed = [name for name, value in own.items() if clips[name] != value]
    if not changed:
        return []
    options = " and ".join(f"config.data.{name}={clips[name]}" for name in changed)
    return [
        f"The encoder was built for clips of {own['frames']} frames of {own['size']} x "
        f"{own['size']} pixels, but {options}. The results depend on these options."
    ]
