"""Checks the model sizes that a file specifies against limits, before a model is built."""

from collections.abc import Mapping
from typing import Any

from invnext_jax.errors import UserError

# Maximum value of each config field, several times that of the largest published models.
LIMITS = {
    "width": 2**15,
    "mlp_width": 2**18,
    "pool_width": 2**15,
    "out_width": 2**15,
    "words": 2**22,
    "length": 2**14,
    "depth": 256,
    "last_layer": 512,
    "heads": 1024,
    "pool_heads": 1024,
    "patch": 256,
    "size": 4096,
    "train_size": 4096,
    "short_side": 4096,
    "frames": 4096,
    "tubelet": 256,
    "class_tokens": 1024,
    "registers": 1024,
    "window": 2**20,
    "taps": 512,
    "chunks": 2**20,
    "noise_draws": 1024,
}
MAX_POSITION_VALUES = 2**28  # limit per position table: frames * rows * columns * width
MAX_TOKENS = 2**17  # limit of the patches of a clip, whose attention takes quadratic time
MAX_PIXELS = 2**28  # limit of the pixels of a clip; 0.8 GB
MAX_DEPTH = 16  # maximum number of nested sections
MAX_RATIO = 64  # maximum ratio of the width of an MLP and that of its model


def check_sizes(
    config: Mapping[str, Any], source: str, values: int = MAX_POSITION_VALUES, depth: int = 0
) -> None:
    """Checks all fields of a config, at any depth, that determine the size of a model.

    Args:
      config: Config, or a section of it, with the field names of configs/common.py.
      source: Origin of the config, for the error message.
      values: Maximum number of values in a position table. If the weights file must contain the
        table, this is the number of values in the file.
      depth: Number of sections that contain `config`.

    Raises:
      UserError: A size is not a whole number, or exceeds its limit.
    """
    if depth > MAX_DEPTH:
        raise UserError(
            f"{source} has a config with more than {MAX_DEPTH} nested sections: use the "
            "config of the checkpoint"
        )
    for name, value in config.items():
        if name in LIMITS:
            check_size(value, name, source, LIMITS[name])
        elif isinstance(value, Mapping):
            check_sizes(value, source, values, depth + 1)
    data, encoder = config.get("data", {}), config.get("encoder", {})
    if isinstance(data, Mapping) and isinstance(encoder, Mapping) and "patch" in encoder:
        # The position tables of the other modules have the grid of the clips.
        sections = [section for section in config.values() if isinstance(section, Mapping)]
        width = max(section.get("width", 1) for section in sections)
        _check_table({"width": width, "patch": encoder["patch"], **_sizes(data)}, source, values)
    if "width" in config and "patch" in config:
        _check_table(config, source, values)


def _sizes(data: Mapping[str, Any]) -> dict[str, int]:
    return {name: data[name] for name in ("frames", "size") if name in data}


def _check_table(config: Mapping[str, Any], source: str, values: int) -> None:
    """Raises `UserError` if clips of these sizes or their position table are too large."""
    size, frames = max(config.get("size", 0), config.get("train_size", 0)), config.get("frames", 1)
    tokens = frames * (size // max(config["patch"], 1)) ** 2
    parts = ((tokens, MAX_TOKENS, "patches"), (frames * size**2, MAX_PIXELS, "pixels"))
    for count, limit, what in parts:
        if count > limit:
            raise UserError(
                f"{source} describes clips of {count:,} {what}, but at most {limit:,} are "
                "possible: use the config of the checkpoint"
            )
    count = tokens * config["width"]
    if count > values:
        raise UserError(
            f"{source} describes a position table of {count:,} values, but at most {values:,} are "
            "possible: use the config of the checkpoint"
        )


def check_size(value: Any, name: str, source: str, limit: int) -> None:
    """Raises `UserError` unless `value` is a whole number between 0 and `limit`."""
    if type(value) is not int or not 0 <= value <= limit:  # bool is a subclass of int
        raise UserError(
            f"{source} has {name}={str(value)[:40]!r}, which is not a whole number between 0 and "
            f"{limit}: use the config of the checkpoint"
        )


def find_mlp_width(width: int, ratio: Any, source: str) -> int:
    """Returns the width of an MLP, which config.json describes by its ratio to another width.

    The product with a text or a list would be many copies of it, so `ratio` is checked before.

    Raises:
      UserError: `ratio` is not a number between 0 and `MAX_RATIO`.
    """
    if type(ratio) not in (int, float) or not 0 < ratio <= MAX_RATIO:  # bool is a subclass of int
        raise UserError(
            f"{source} has mlp_ratio={str(ratio)[:40]}, which is not between 0 and {MAX_RATIO}: "
            "use a different checkpoint"
        )
    return int(width * ratio)
