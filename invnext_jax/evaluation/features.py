"""Frozen encoders: loading one, and what the probes read from its final output.

Shape key: b videos, t frames, h w pixels, c channels, y x grid rows and columns, n grid tokens,
d width.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from einops import rearrange

from invnext_jax.checkpointing import reader, run_metadata
from invnext_jax.errors import UserError
from invnext_jax.models import encoder as encoder_model
from invnext_jax.models.encoder import Encoder
from invnext_jax.models.layers import scale_kernels
from invnext_jax.models.patches import normalize
from invnext_jax.objectives import losses
from invnext_jax.weights import export, import_weights, published
from invnext_jax.weights.files import SINGLE_FILE, open_checkpoint

POOLINGS = ("mean", "frames")


class LoadedEncoder(NamedTuple):
    """A module, its parameters (numpy, float32), and the config that describes it.

    `pool` has the parameters of its attention pool, if the checkpoint holds one.
    """

    encoder: Encoder
    params: Any
    config: ml_collections.ConfigDict
    pool: Any = None


def load_params(
    path: str | Path, *, ema: bool = False
) -> tuple[dict[str, Any], ml_collections.ConfigDict]:
    """Reads trained parameters from a run's workdir or from an exported .safetensors file.

    Args:
      path: workdir of a pretraining run, a .safetensors file that `launch/export.py` or
        `launch/import_weights.py` wrote, or a folder in the published layout.
      ema: whether a run's moving average is wanted instead of its parameters.

    Returns:
      One parameter tree for each part ("encoder", ...), and the config that describes them.

    Raises:
      UserError: there is nothing to read, or no encoder in it.
    """
    if not str(path):
        raise UserError("config.checkpoint is empty: name a run's workdir or a .safetensors file")
    if Path(path).suffix == ".safetensors":
        params, about = export.read_export(path)
        config = ml_collections.ConfigDict(run_metadata.upgrade_config(about["config"]))
    elif (Path(path) / SINGLE_FILE).is_file():
        imported = import_weights.read_video(open_checkpoint(path), path)
        params, config = imported.params, ml_collections.ConfigDict(imported.config)
    else:
        params, config, _ = reader.restore_run(path, ema=ema)
        config = ml_collections.ConfigDict(config)
    if "encoder" not in params:
        raise UserError(f"{path} holds no encoder, only {sorted(params)}: name another checkpoint")
    return params, config


def read_config(path: str | Path) -> dict[str, Any]:
    """The config in an export of either layout; {} if there is none of ours."""
    path = Path(path)
    source = path / published.CONFIG if path.is_dir() else path.with_suffix(".json")
    try:
        about = json.loads(source.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    about = about.get(published.EXTRA_SECTION, {}) if path.is_dir() else about
    return about.get("config", {})


def load_encoder(path: str | Path, *, ema: bool = False) -> LoadedEncoder:
    """Builds the encoder of a run or an export; `apply({"params": params}, video)` runs it.

    Args:
      path: see `load_params`; so is `ema`.
      ema: whether a run's moving average is wanted.

    Raises:
      UserError: see `load_params`.
    """
    params, config = load_params(path, ema=ema)
    encoder = encoder_model.from_config(config)
    return LoadedEncoder(encoder, params["encoder"], config, params.get("pool"))


def init_encoder(config: Any, seed: int) -> Any:
    """Parameters of the same encoder as it is before any training, from `seed`."""
    e = config.encoder
    clip_bthwc = jnp.zeros((1, e.frames, e.size, e.size, 3))
    init = jax.jit(encoder_model.from_config(config).init)
    params = nn.meta.unbox(init(jax.random.key(seed), clip_bthwc)["params"])
    return scale_kernels(params, config.init_gain, without=("patch_embed",))


@dataclasses.dataclass(frozen=True)
class TokenStatistics:
    """What the grid tokens of many videos are made of.

    Attributes:
      position_share: share of their variance that the mean token of each position explains.
      effective_rank: exponential of the entropy of their covariance's spectrum, from 1 to d.
      effective_rank_within: the same after the mean token of each position is taken off.
      feature_std: mean over the channels of the standard deviation over all tokens.
      width: d.
    """

    position_share: float
    effective_rank: float
    effective_rank_within: float
    feature_std: float
    width: int


@dataclasses.dataclass(frozen=True)
class VideoFeatures:
    """Pooled features and labels of all videos of a manifest, in its order.

    Attributes:
      pooled: by pooling: "mean" float32 [b d], "frames" float32 [b, t*d].
      labels: by task: int32 [b].
      index_b: int32 row number in the manifest; videos that cannot be read are missing.
      tokens: statistics of the grid tokens.
    """

    pooled: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    index_b: np.ndarray
    tokens: TokenStatistics


def extract(encoder: Encoder, params: Any, batches: Iterable[Mapping[str, Any]]) -> VideoFeatures:
    """Runs the frozen encoder over a manifest; compiles once, as all batches have one size.

    Args:
      encoder: module.
      params: its parameters.
      batches: of the evaluation pipeline; rows with index -1 are padding.
    """

    @jax.jit
    def run(params, video_bthwc, real_b):
        tokens_bnd = encoder.apply({"params": params}, normalize(video_bthwc)).tokens_bnd
        tokens_bnd = tokens_bnd[:, encoder.class_tokens :]
        frames_btd = jnp.mean(
            rearrange(tokens_bnd, "b (t s) d -> b t s d", t=video_bthwc.shape[1]), axis=2
        )
        real_tokens = jnp.where(real_b[:, None, None], tokens_bnd, 0.0)
        highest = jax.lax.Precision.HIGHEST
        second_dd = jnp.einsum("bnd,bne->de", real_tokens, real_tokens, precision=highest)
        return frames_btd, jnp.sum(real_tokens, axis=0), second_dd

    params = jax.device_put(params)
    frames, labels, index, moments = [], [], [], None
    for batch in batches:
        real_b = batch["index"] >= 0
        frames_btd, *sums = jax.device_get(run(params, batch["video"], real_b))
        sums = [np.asarray(part, np.float64) for part in sums]
        moments = sums if moments is None else [a + b for a, b in zip(moments, sums, strict=True)]
        frames.append(frames_btd[real_b])
        index.append(np.asarray(batch["index"])[real_b])
        labels.append({k: np.asarray(v)[real_b] for k, v in task_labels(batch).items()})
    frames_btd, index_b = np.concatenate(frames), np.concatenate(index)
    return VideoFeatures(
        pooled={
            "mean": frames_btd.mean(axis=1),
            "frames": rearrange(frames_btd, "b t d -> b (t d)"),
        },
        labels={task: np.concatenate([part[task] for part in labels]) for task in labels[0]},
        index_b=index_b,
        tokens=token_statistics(*moments, videos=len(index_b)),
    )


def task_labels(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The labels of a batch by task: "label_shape" becomes "shape"."""
    return {k.removeprefix("label_"): v for k, v in batch.items() if k.startswith("label_")}


def token_statistics(sum_nd: np.ndarray, second_dd: np.ndarray, videos: int) -> TokenStatistics:
    """Statistics of [videos, n, d] tokens from their moments.

    Args:
      sum_nd: float64 sum over the videos of the token at each position.
      second_dd: float64 sum over videos and positions of the outer product of a token with itself.
      videos: number of videos.
    """
    n, d = sum_nd.shape
    mean_nd = sum_nd / videos
    mean_d = mean_nd.mean(axis=0)
    offset_nd = mean_nd - mean_d[None]
    total_dd = second_dd / (videos * n) - np.outer(mean_d, mean_d)
    between_dd = offset_nd.T @ offset_nd / n
    within_dd, total = total_dd - between_dd, np.trace(total_dd)
    share = losses.explained_share(np.trace(within_dd), total) if total > 0 else 0.0
    return TokenStatistics(
        position_share=float(share),
        effective_rank=effective_rank(total_dd),
        effective_rank_within=effective_rank(within_dd),
        feature_std=float(np.mean(np.sqrt(np.clip(np.diag(total_dd), 0, None)))),
        width=d,
    )


def effective_rank(covariance_dd: np.ndarray) -> float:
    """Exponential of the entropy of a covariance's spectrum: 1 for rank one, d for the identity."""
    spectrum_d = np.linalg.eigvalsh(covariance_dd)
    return float(losses.rank_of_spectrum(spectrum_d)) if (spectrum_d > 0).any() else 0.0
