"""The layout of the published InternVideo-Next encoders: three files in a folder.

config.json nests the sizes under `model_config`, model.safetensors holds the names of
`reference.PUBLISHED`, preprocessor_config.json says what the pixels go through.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from invnext_jax.errors import UserError
from invnext_jax.weights.files import Tensor

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
EXTRA = "invnext_jax"  # our section of config.json: what other readers do not ask for
_NAMES = {768: "Base", 1024: "Large", 1408: "1B"}


def model_config(encoder: Any) -> dict[str, Any]:
    """The sizes as config.json names them, from a run's `config.encoder`."""
    ratio = encoder.mlp_width / encoder.width
    if int(encoder.width * ratio) != encoder.mlp_width:  # their code cuts, not rounds
        ratio = math.nextafter(ratio, math.inf)
    # The released configs do not name the class tokens: they are 4.
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


def encoder_config(config: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The inverse of `model_config`: fields of `config.encoder` from the content of config.json.

    Raises:
      UserError: a size is missing, or one that we do not build.
    """
    sizes = config.get("model_config", config)
    needed = ("embed_dim", "depth", "num_heads", "patch_size", "img_size", "num_frames")
    missing = [name for name in needed if name not in sizes]
    if missing:
        raise UserError(
            f"the config.json of {source} lacks {', '.join(missing)} (under model_config): put the "
            "config.json of the published encoder beside its model.safetensors"
        )
    if sizes.get("tubelet_size", 1) != 1:
        raise UserError(f"{source} has tubelet_size={sizes['tubelet_size']}; only 1 is built here")
    return {
        "width": sizes["embed_dim"],
        "depth": sizes["depth"],
        "heads": sizes["num_heads"],
        "mlp_width": int(sizes["embed_dim"] * sizes.get("mlp_ratio", 4)),
        "drop_path": 0.0,
        "patch": sizes["patch_size"],
        "size": sizes["img_size"],
        "frames": sizes["num_frames"],
        "class_tokens": sizes.get("cls_token_num", 4),
        "layer_scale": 1e-5,
        "pool_heads": sizes.get("attn_pool_num_heads", 16),
        "pool_width": sizes.get("clip_embed_dim", 768),
    }


def write_configs(
    folder: Path, encoder: Any, extra: Mapping[str, Any], dtype: str, mean: list, std: list
) -> None:
    """Writes config.json and preprocessor_config.json.

    Args:
      folder: where model.safetensors lies.
      encoder: a run's `config.encoder`.
      extra: JSON-able; our own section.
      dtype: of the tensors.
      mean: of the pixels, from 0 to 1.
      std: likewise.
    """
    config = {
        "model_type": f"InternVideoNext_{_NAMES.get(encoder.width, 'Custom')}",
        "model_config": model_config(encoder),
        "torch_dtype": dtype,
        EXTRA: dict(extra),
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


def pretraining_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names of the pretraining code, whichever of the two namings `tensors` has.

    Raises:
      UserError: a tensor is there in both.
    """
    renamed = {name: name.removeprefix("model.").replace(".lr_scale", ".gamma") for name in tensors}
    if len(set(renamed.values())) < len(renamed):
        raise UserError("the file holds tensors twice, with and without the prefix 'model.'")
    return {renamed[name]: tensor for name, tensor in tensors.items()}
