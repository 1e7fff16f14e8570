"""Makes frozen encoders from checkpoints of other projects.

Image encoders (SigLIP2, CLIP and DINOv2) are applied to each frame. The supported video encoders
are V-JEPA 2 and VideoMAE.

Shape key: b clips, t frames, h w pixels, c channels, n tokens of a time slot, d width, l layers.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from einops import rearrange, reduce

from invnext_jax.evaluation.frozen_encoder import FrozenEncoder, FrozenOutput, select_states
from invnext_jax.models import teachers, tubelet_encoder
from invnext_jax.models.patches import normalize
from invnext_jax.weights import import_weights, match, video_models
from invnext_jax.weights.files import Checkpoint
from invnext_jax.weights.pixel_stats import read_pixel_stats

DEFAULT_FRAMES = 16  # frames of a clip in the paper's evaluations (Table 15)
KIND_OF_MODEL_TYPE = {  # `model_type` in config.json -> kind of importer
    "siglip": "siglip2",
    "siglip_vision_model": "siglip2",
    "siglip2": "siglip2",
    "siglip2_vision_model": "siglip2",
    "clip": "clip",
    "clip_vision_model": "clip",
    "dinov2": "dinov2",
    "dinov2_with_registers": "dinov2",
    "vjepa2": "vjepa2",
    "videomae": "videomae",
}
_TITLES = {
    "siglip2": "SigLIP2",
    "clip": "CLIP",
    "dinov2": "DINOv2",
    "vjepa2": "V-JEPA 2",
    "videomae": "VideoMAE",
}


def read_folder(checkpoint: Checkpoint, source: str | Path) -> FrozenEncoder:
    """Reads an encoder from a folder in the format of transformers.

    Args:
      checkpoint: the opened folder. `model_type` of its config is in `KIND_OF_MODEL_TYPE`.
      source: path of the folder.

    Raises:
      UserError: the folder does not contain a valid model of this type.
    """
    kind = KIND_OF_MODEL_TYPE[checkpoint.config["model_type"]]
    if kind in video_models.FAMILIES:
        params, sizes = import_weights.read_tubelet_encoder(kind, checkpoint, source)
        return from_tubelet_encoder(params, sizes, read_pixel_stats(source))
    imported = import_weights.read_teacher(kind, checkpoint, source)
    return from_teacher(imported.params["teacher"], imported.config["teacher"])


def read_export(params: Any, config: Mapping[str, Any], source: str | Path) -> FrozenEncoder:
    """Makes a frozen encoder from an export that `launch/import_weights.py` wrote.

    Args:
      params: parameters of the part "teacher".
      config: config of the export.
      source: path of the export, for error messages.

    Raises:
      UserError: the parameters do not match the config.
    """
    with import_weights.config_errors(source):
        encoder = from_teacher(params, config["teacher"])
        expected = jax.eval_shape(encoder.init_params, 0)
    params = match.match_tree(params, expected, f"teacher {source}")
    return dataclasses.replace(encoder, params=params)


def from_teacher(params: Any, sizes: Mapping[str, Any]) -> FrozenEncoder:
    """Makes a frozen encoder from the parameters and sizes of an image teacher.

    The tokens are `last_hidden_state` in transformers and the pooled output is `pooler_output`,
    averaged over frames: for SigLIP2 its pooling head, for CLIP and DINOv2 the normalized class
    token. Register tokens are dropped. The position table is resized for frames of another size.

    Args:
      params: parameters of the teacher.
      sizes: the fields of `config.teacher` that `import_weights.read_teacher` returns.
    """
    kind, side = sizes["kind"], sizes["train_size"]
    config = ml_collections.ConfigDict({"teacher": dict(sizes), "dtype": "float32"})
    config.teacher.update(size=side, taps=0, tap_interval=1.0)
    module = teachers.from_config(config)
    skipped = 0 if kind == "siglip2" else 1 + sizes["registers"]

    def forward(params, video_bthwc, layers):
        t = video_bthwc.shape[1]
        images_bhwc = teachers.preprocess(normalize(video_bthwc), None, kind)
        # The state after layer i is the input of layer i + 1.
        taps = tuple(layer + 1 for layer in sorted(set(layers)))
        _, captured = module.clone(taps=taps).apply(
            {"params": params}, images_bhwc, mutable=["intermediates"]
        )
        states = {name: value[0] for name, value in captured["intermediates"].items()}
        tokens_bnd, layers_lbnd = states["tokens"], select_states(states["taps"], layers)
        class_bkd = None
        if skipped:
            class_bkd = rearrange(tokens_bnd[:, 0], "(b t) d -> b t d", t=t)
        return FrozenOutput(
            tokens_btnd=rearrange(tokens_bnd[:, skipped:], "(b t) n d -> b t n d", t=t),
            class_bkd=class_bkd,
            layers_lbtnd=rearrange(layers_lbnd[:, :, skipped:], "l (b t) n d -> l b t n d", t=t),
            pooled_bd=reduce(states["pooled"], "(b t) d -> b d", "mean", t=t),
        )

    def init_params(seed):
        images_bhwc = jnp.zeros((1, side, side, 3))
        return nn.unbox(jax.jit(module.init)(jax.random.key(seed), images_bhwc)["params"])

    return FrozenEncoder(
        name=_TITLES[kind],
        width=sizes["width"],
        patch=sizes["patch"],
        size=side // sizes["patch"] * sizes["patch"],
        frames=DEFAULT_FRAMES,
        tubelet=1,
        depth=sizes["depth"],
        class_tokens=skipped > 0,
        pool_width=sizes["width"],
        params=params,
        record={"kind": kind, **sizes},
        forward=forward,
        init_params=init_params,
    )


def from_tubelet_encoder(
    params: Any, sizes: Mapping[str, Any], pixel_stats: Mapping[str, Any]
) -> FrozenEncoder:
    """Makes a frozen encoder from a V-JEPA 2 or VideoMAE encoder.

    The tokens are `last_hidden_state` in transformers, which is not normalized in a VideoMAE with
    `use_mean_pooling`. The pooled output is the input of the classifier of a fine-tuned VideoMAE;
    other checkpoints have none. Clips may differ in size from the training clips: the rotary
    positions of V-JEPA 2 are computed for the grid of the clip, and the position table of VideoMAE
    is resized.

    Args:
      params: parameters of the encoder.
      sizes: see `tubelet_encoder.from_sizes`.
      pixel_stats: "mean" and "std" of the pixels; see `weights.pixel_stats.read_pixel_stats`.
    """
    module, tubelet = tubelet_encoder.from_sizes(sizes), sizes["tubelet"]
    mean, std = (np.array(pixel_stats[name], np.float32) for name in ("mean", "std"))

    def forward(params, video_bthwc, layers):
        t = video_bthwc.shape[1] // tubelet
        # State i + 1 is the output of layer i.
        encoder = module.clone(taps=tuple(layer + 1 for layer in sorted(set(layers))))
        out = encoder.apply({"params": params}, normalize(video_bthwc, mean, std))
        layers_lbnd = select_states(out.taps_lbnd, layers)
        return FrozenOutput(
            tokens_btnd=rearrange(out.tokens_bnd, "b (t n) d -> b t n d", t=t),
            class_bkd=None,
            layers_lbtnd=rearrange(layers_lbnd, "l b (t n) d -> l b t n d", t=t),
            pooled_bd=out.pooled_bd,
        )

    def init_params(seed):
        clip_bthwc = jnp.zeros((1, tubelet, module.patch, module.patch, 3))
        return nn.unbox(jax.jit(module.init)(jax.random.key(seed), clip_bthwc)["params"])

    return FrozenEncoder(
        name=_TITLES[module.kind],
        width=module.width,
        patch=module.patch,
        size=module.size,
        frames=module.frames,
        tubelet=tubelet,
        depth=module.depth,
        class_tokens=False,
        pool_width=module.width if module.pool_norm else 0,
        params=params,
        record={**sizes, "pixels": dict(pixel_stats)},
        forward=forward,
        init_params=init_params,
    )
