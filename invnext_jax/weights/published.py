"""The format of the published InternVideo-Next encoders: a folder with three files.

config.json has the sizes in the section `model_config`. model.safetensors uses the tensor names of
`reference.PUBLISHED`. preprocessor_config.json describes the preprocessing of the pixels.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from invnext_jax.errors import UserError
from invnext_jax.weights.files import SINGLE_FILE, LazyTensor
from invnext_jax.weights.model_sizes import LIMITS, check_size, find_mlp_width
from invnext_jax.weights.pixel_stats import PREPROCESSOR

CONFIG = "config.json"
EXTRA_SECTION = "invnext_jax"  # section of config.json that only this package uses
_NAMES = {768: "Base", 1024: "Large", 1408: "1B"}
# The variant and the drop-path rate of configs/common.py by width and depth. The files lack them.
_VARIANTS = {(768, 12): ("base", 0.1), (1024, 24): ("large", 0.2), (1408, 40): ("1b", 0.2)}


def is_published(path: str | Path) -> bool:
    """Returns whether a path is a folder with weights in one file, unlike the workdir of a run."""
    return os.path.isfile(Path(path) / SINGLE_FILE)


def model_config(encoder: Any) -> dict[str, Any]:
    """Converts a run's `config.encoder` to the `model_config` of config.json."""
    ratio = encoder.mlp_width / encoder.width
    if int(encoder.width * ratio) != encoder.mlp_width:  # the released code truncates, too
        ratio = math.nextafter(ratio, math.inf)
    # The released configs do not contain the number of class tokens, which is 4.
    class_tokens = {} if encoder.class_tokens == 4 else {"cls_token_num": encoder.class_tokens}
    return {
        **class_tokens,
        "attn_pool_num_heads": encoder.pool_heads,
        "clip_embed_dim": encoder.pool_width,
        "depth": encoder.depth,
        "embed_dim": encoder.width,
        "img_size": encoder.size,
        "mlp_ratio": int(ratio) if ratio.is_integer() else ratio,
        "num_frames": encoder.frames,
        "num_heads": encoder.heads,
        "patch_size": encoder.patch,
        "tubelet_size": 1,
    }


def is_other_model(config: Mapping[str, Any]) -> bool:
    """Returns whether config.json describes a model that is not an InternVideo-Next encoder."""
    # A run's config.json has no `model_type`; InternVideo-Next's has one of the other fields.
    return "model_type" in config and config.keys().isdisjoint(("model_config", "embed_dim"))


def encoder_config(config: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Converts config.json to the fields of `config.encoder`; inverts `model_config`.

    Args:
      config: contents of config.json.
      source: origin of the file, for the error message.

    Raises:
      UserError: the model is another one, or a size is missing, not a number or not supported.
    """
    if is_other_model(config):
        raise UserError(
            f"the config.json of {source} has model_type={str(config['model_type'])[:60]!r}, which "
            "is not an InternVideo-Next encoder and cannot initialize a run: use a published "
            "InternVideo-Next encoder, a run or an export"
        )
    sizes = config.get("model_config", config)
    if not isinstance(sizes, Mapping):
        raise UserError(
            f"the config.json of {source} has a model_config that is not a JSON object: "
            "download it again"
        )
    needed = ("embed_dim", "depth", "num_heads", "patch_size", "img_size", "num_frames")
    missing = [name for name in needed if name not in sizes]
    if missing:
        raise UserError(
            f"the config.json of {source} lacks {', '.join(missing)} (in model_config): copy the "
            "config.json of the published encoder next to its model.safetensors"
        )
    if sizes.get("tubelet_size", 1) != 1:
        raise UserError(
            f"{source} has tubelet_size={sizes['tubelet_size']}, but only 1 is "
            "supported: use a different checkpoint"
        )
    check_size(sizes["embed_dim"], "embed_dim", source, LIMITS["width"])
    return {
        "width": sizes["embed_dim"],
        "depth": sizes["depth"],
        "heads": sizes["num_heads"],
        "mlp_width": find_mlp_width(sizes["embed_dim"], sizes.get("mlp_ratio", 4), source),
        "drop_path": 0.0,
        "patch": sizes["patch_size"],
        "size": sizes["img_size"],
        "frames": sizes["num_frames"],
        "class_tokens": sizes.get("cls_token_num", 4),
        "layer_scale": 1e-5,
        "pool_heads": sizes.get("attn_pool_num_heads", 16),
        "pool_width": sizes.get("clip_embed_dim", 768),
    }


def find_variant(encoder: Mapping[str, Any]) -> tuple[str, float] | None:
    """Returns the variant with the sizes of an encoder and its drop-path rate; None for others.

    Args:
      encoder: output of `encoder_config`.
    """
    return _VARIANTS.get((encoder["width"], encoder["depth"]))


def write_configs(
    folder: Path, encoder: Any, extra: Mapping[str, Any], dtype: str, mean: list, std: list
) -> None:
    """Writes config.json and preprocessor_config.json.

    Args:
      folder: the folder that contains model.safetensors.
      encoder: a run's `config.encoder`.
      extra: contents of the section `EXTRA_SECTION`.
      dtype: dtype of the tensors.
      mean: mean of each channel, for pixel values from 0 to 1.
      std: standard deviation of each channel.
    """
    config = {
        "model_type": f"InternVideoNext_{_NAMES.get(encoder.width, 'Custom')}",
        "model_config": model_config(encoder),
        "torch_dtype": dtype,
        EXTRA_SECTION: dict(extra),
    }
    preprocessor = {
        "do_resize": True,
        "size": {"shortest_edge": encoder.size},
        "resample": 3,  # bicubic
        "do_center_crop": True,
        "crop_size": {"height": encoder.size, "width": encoder.size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": mean,
        "image_std": std,
    }
    for name, content in ((CONFIG, config), (PREPROCESSOR, preprocessor)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def to_pretraining_names(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Renames published tensors to the names of the pretraining code; names of that code are kept.

    Raises:
      UserError: a tensor exists under both names.
    """
    renamed = {name: name.removeprefix("model.").replace(".lr_scale", ".gamma") for name in tensors}
    if len(set(renamed.values())) < len(renamed):
        raise UserError(
            "the file has some tensors twice, with and without the prefix 'model.': save them once"
        )
    return {renamed[name]: tensor for name, tensor in tensors.items()}
