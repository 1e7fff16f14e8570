"""Loads pretrained encoders from runs, exports and published folders, or initializes new ones.

Shape key: b clips, t frames, h w pixels, c channels, n tokens of a frame, d width, k class tokens,
l layers.
"""

import os
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from einops import rearrange

from invnext_jax import field_checks, json_file
from invnext_jax.checkpointing import reader, run_metadata, storage
from invnext_jax.errors import UserError
from invnext_jax.evaluation import imported_encoders
from invnext_jax.evaluation.frozen_encoder import FrozenEncoder, FrozenOutput, select_states
from invnext_jax.models import encoder as encoder_model
from invnext_jax.models.encoder import Encoder
from invnext_jax.models.heads import AttentionPool
from invnext_jax.models.layers import scale_kernels
from invnext_jax.models.patches import normalize
from invnext_jax.stages import registry
from invnext_jax.weights import export, import_weights, match, published
from invnext_jax.weights.files import open_checkpoint
from invnext_jax.weights.model_sizes import LIMITS, check_sizes


class LoadedPredictor(NamedTuple):
    """The predictor of a checkpoint, see `models.predictor`.

    Attributes:
      predictor: module that predicts latents.
      head: module that maps latents to the space of Stage 2's target; None if there is none.
      params: parameters "predictor" and, if there is a head, "head"; float32 NumPy arrays.
      frames: number of frames of the clips that it was trained on.
    """

    predictor: nn.Module
    head: nn.Module | None
    params: Any
    frames: int


class LoadedEncoder(NamedTuple):
    """An encoder module, its parameters (float32 NumPy arrays), and their config.

    `pool` has the parameters of the attention pool; None if the checkpoint has no pool. `predictor`
    is None if the checkpoint has no predictor. For runs, `step` is that of the checkpoint, and
    `damaged` has those of newer ones that were skipped; `run_sha256`: `run_metadata.hash_run`.
    """

    encoder: Encoder
    params: Any
    config: ml_collections.ConfigDict
    pool: Any = None
    predictor: LoadedPredictor | None = None
    step: int | None = None
    damaged: tuple[int, ...] = ()
    run_sha256: str = ""


def load_params(
    path: str | Path, *, ema: bool = False, step: int | None = None
) -> tuple[dict[str, Any], ml_collections.ConfigDict]:
    """Reads trained parameters from a run, an export or a published folder.

    Args:
      path: workdir of a pretraining run, a .safetensors file written by `launch/export.py` or
        `launch/import_weights.py`, or a folder in the published layout.
      ema: whether to read the moving average of a run's parameters instead of the parameters.
      step: step of a run's checkpoint; None for the newest one.

    Returns:
      The parameter trees by part ("encoder", ...), and the config that describes them.

    Raises:
      UserError: the path is empty, or has no weights or no encoder.
    """
    return load_weights(path, ema, step)[:2]


def load_weights(path: str | Path, ema: bool = False, step: int | None = None):
    """Returns the result of `load_params`, and the last three fields of `LoadedEncoder`."""
    source: tuple[Any, ...] = (None, (), "")
    if not str(path):
        raise UserError(
            "config.checkpoint is empty: set it to a run's workdir or a .safetensors file"
        )
    if Path(path).suffix == ".safetensors":
        _check_run_options(path, ema, step)
        params, config = _read_export(path)
    elif published.is_published(path):
        _check_run_options(path, ema, step)
        imported = import_weights.read_video(open_checkpoint(path), path)
        params, config = imported.params, ml_collections.ConfigDict(imported.config)
    else:
        params, config, *source, _ = reader.restore_run(path, ema=ema, step=step)
        config = ml_collections.ConfigDict(config)
        _check_run(params, config, path)
    _require_encoder(params, path)
    _check_fields(config.to_dict(), path)
    return params, config, *source


def _check_run_options(path: str | Path, ema: bool, step: int | None) -> None:
    if ema or step is not None:
        option = "ema" if ema else "step"
        raise UserError(f"{path} is not a run: remove the option {option}, which is for runs")


def _check_fields(config: dict[str, Any], path: str | Path) -> None:
    """Checks the fields of a config that are read after the parameters are compared with it."""
    advice, size = "use the config of the checkpoint", field_checks.integer(1, LIMITS["size"])
    fields = {"init_gain": field_checks.NUMBER, "data": field_checks.OBJECT}
    field_checks.check_fields(config, fields, f"{path}: config.", advice)
    if "data" in config:
        sizes = {"frames": size, "size": size}
        field_checks.check_fields(config["data"], sizes, f"{path}: config.data.", advice, sizes)


def _check_run(params: dict[str, Any], config: ml_collections.ConfigDict, path: str | Path) -> None:
    """Checks that the encoder and the pool of a run are those that its config describes.

    Raises:
      UserError: a size is not possible, or a parameter is missing or has another shape.
    """
    check_sizes(config.to_dict(), str(path))
    found = {name: params[name] for name in ("encoder", "pool") if name in params}
    with import_weights.config_errors(path):
        expected = import_weights.part_shapes(config, found)
    match.check_shapes(match.leaf_shapes(found), expected, str(path))


def _read_export(path: str | Path) -> tuple[dict[str, Any], ml_collections.ConfigDict]:
    """Reads the parts of an export that its config describes, after comparing all shapes."""
    params, about = export.open_export(path)
    _require_encoder(params, path)
    with import_weights.config_errors(path):
        config = ml_collections.ConfigDict(run_metadata.upgrade_config(about["config"]))
        # Exports of older versions do not have the size of the training clips.
        if "data" not in config or config.get("stage") not in registry.STAGES:
            params = {name: params[name] for name in ("encoder", "pool") if name in params}
        expected = import_weights.part_shapes(config, params)
    match.check_shapes(match.leaf_shapes(params), expected, str(path))
    return jax.tree.map(np.asarray, params), config


def _require_encoder(params: dict[str, Any], path: str | Path) -> None:
    if "encoder" not in params:
        raise UserError(f"{path} has no encoder, only {sorted(params)}: use a different checkpoint")


def load_encoder(path: str | Path, *, ema: bool = False, step: int | None = None) -> LoadedEncoder:
    """Builds the encoder of a checkpoint. To run it: `encoder.apply({"params": params}, video)`.

    Args:
      path: see `load_params`.
      ema: see `load_params`.
      step: see `load_params`.

    Raises:
      UserError: see `load_params`.
    """
    params, config, *source = load_weights(path, ema, step)
    encoder = encoder_model.from_config(config)
    with import_weights.config_errors(path):
        predictor = _find_predictor(params, config)
    return LoadedEncoder(encoder, params["encoder"], config, params.get("pool"), predictor, *source)


def _find_predictor(params: dict[str, Any], config: Any) -> LoadedPredictor | None:
    """Builds the predictor of a checkpoint; returns None if there is none."""
    if "predictor" not in params or "data" not in config or config.stage not in registry.STAGES:
        return None
    makers = getattr(registry.find_stage(config), "makers", {})
    names = [name for name in ("predictor", "head") if name in params and name in makers]
    if "predictor" not in names:
        return None
    modules = {name: makers[name](config) for name in names}
    found = {name: params[name] for name in names}
    return LoadedPredictor(modules["predictor"], modules.get("head"), found, config.data.frames)


def load_frozen(path: str | Path, *, ema: bool = False, step: int | None = None) -> FrozenEncoder:
    """Loads a frozen encoder of any supported kind. The kind is detected from the files.

    Args:
      path: workdir of a pretraining run; a .safetensors file written by `launch/export.py` or
        `launch/import_weights.py`; a folder in the published layout; or a folder of a SigLIP2,
        CLIP, DINOv2, V-JEPA 2 or VideoMAE model in the format of transformers.
      ema: whether to read the moving average of a run's parameters instead of the parameters.
      step: step of a run's checkpoint; None for the newest one.

    Raises:
      UserError: the path is empty, or has no weights or no encoder.
    """
    folder_config = Path(path) / published.CONFIG
    if Path(path).suffix == ".safetensors":
        params, about = export.open_export(path)
        if "teacher" in params and "encoder" not in params:
            _check_run_options(path, ema, step)
            export.require_part(path, params, "teacher")
            with import_weights.config_errors(path):
                sizes = about["config"]
            return imported_encoders.read_export(params["teacher"], sizes, path)
    elif str(path) and os.path.isfile(folder_config):
        content = json_file.read_object(folder_config)
        model_type = str(content.get("model_type"))[:60]
        if model_type in imported_encoders.KIND_OF_MODEL_TYPE:
            _check_run_options(path, ema, step)
            return imported_encoders.read_folder(open_checkpoint(path), path)
        if published.is_other_model(content):
            known = ", ".join(imported_encoders.KIND_OF_MODEL_TYPE)
            raise UserError(
                f"{folder_config} has model_type={model_type!r}, but an encoder must be a "
                f"published InternVideo-Next or one of {known}: use a different checkpoint"
            )
    return freeze(load_encoder(path, ema=ema, step=step))


def freeze(loaded: LoadedEncoder) -> FrozenEncoder:
    """Makes a frozen encoder from a loaded checkpoint of this package."""
    config, encoder = loaded.config, loaded.encoder
    e = config.encoder
    pool = AttentionPool(e.get("pool_width"), e.get("pool_heads"), encoder.dtype)
    skipped = encoder.class_tokens

    def forward(params, video_bthwc, layers):
        t = video_bthwc.shape[1]
        # State i + 1 is the output of layer i.
        module = encoder.clone(taps=tuple(layer + 1 for layer in sorted(set(layers))))
        out = module.apply({"params": params["encoder"]}, normalize(video_bthwc))
        layers_lbnd, pooled_bd = select_states(out.taps_lbnd, layers), None
        if "pool" in params:
            pooled_bd = pool.apply({"params": params["pool"]}, out.tokens_bnd)
        return FrozenOutput(
            tokens_btnd=rearrange(out.tokens_bnd[:, skipped:], "b (t n) d -> b t n d", t=t),
            class_bkd=out.tokens_bnd[:, :skipped] if skipped else None,
            layers_lbtnd=rearrange(layers_lbnd[:, :, skipped:], "l b (t n) d -> l b t n d", t=t),
            pooled_bd=pooled_bd,
        )

    params = {"encoder": loaded.params}
    if loaded.pool is not None:
        params["pool"] = loaded.pool
    return FrozenEncoder(
        name="InternVideo-Next",
        width=encoder.width,
        patch=encoder.patch,
        size=encoder.size,
        frames=encoder.frames,
        tubelet=1,
        depth=encoder.depth,
        class_tokens=skipped > 0,
        pool_width=e.pool_width if loaded.pool is not None else 0,
        params=params,
        record={
            "kind": "internvideo_next",
            "encoder": run_metadata.config_to_json(e),
            "dtype": config.dtype,
            "init_gain": config.get("init_gain", 1.0),
        },
        forward=forward,
        init_params=lambda seed: {"encoder": init_encoder(config, seed)},
        loaded=loaded,
    )


def init_encoder(config: Any, seed: int) -> Any:
    """Returns randomly initialized parameters of the encoder of `config`."""
    e = config.encoder
    clip_bthwc = jnp.zeros((1, e.frames, e.size, e.size, 3))
    init = jax.jit(encoder_model.from_config(config).init)
    params = nn.meta.unbox(init(jax.random.key(seed), clip_bthwc)["params"])
    return scale_kernels(params, config.get("init_gain", 1.0), without=("patch_embed",))


def read_export_config(path: str | Path) -> dict[str, Any]:
    """Returns the config stored in an export, in either layout; {} if there is none."""
    path = Path(path)
    source = path / published.CONFIG if os.path.isdir(path) else path.with_suffix(".json")
    try:
        about = json_file.read_object(source)
    except UserError:
        return {}
    about = about.get(published.EXTRA_SECTION, {}) if os.path.isdir(path) else about
    config = about.get("config", {}) if isinstance(about, dict) else {}
    return config if isinstance(config, dict) else {}


def list_steps(checkpoint: str | Path) -> list[int]:
    """Returns the steps of the checkpoints of a run, oldest first; [] for other encoders."""
    folder = storage.open_path("the checkpoint", checkpoint) / reader.CHECKPOINTS_FOLDER
    return reader.finished_steps(folder)
