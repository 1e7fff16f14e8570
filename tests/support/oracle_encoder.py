"""Frozen encoders with known features, and inputs of evaluators, for tests of evaluators.

The tokens of the oracle are the ground truth of each frame, so a correct evaluation reaches nearly
perfect scores. The blind encoder returns the same tokens for all clips, so a correct evaluation
reaches the chance level.

Shape key: b clips, t frames, h w pixels, c channels, n patches of a frame, d truth values,
m known clips, l layers.
"""

import jax
import jax.numpy as jnp
import numpy as np

from invnext_jax.evaluation import evaluation_data
from invnext_jax.evaluation.dense import truth_source
from invnext_jax.evaluation.evaluation_data import EvaluationData
from invnext_jax.evaluation.feature_store.feature_cache import FeatureCache
from invnext_jax.evaluation.frozen_encoder import FrozenEncoder, FrozenOutput
from invnext_jax.evaluation.inputs import EvalInputs

_CODES = 4  # number of independent hash codes of a clip


def make_oracle(
    video_mthwc: np.ndarray, truth_mtnd: np.ndarray, *, patch: int = 8
) -> FrozenEncoder:
    """Makes an encoder that looks up the ground truth of each clip by a hash of its pixels.

    Args:
      video_mthwc: uint8 clips that the evaluation will use. Clips may occur more than once.
      truth_mtnd: ground truth of each clip, which becomes its tokens: [m t d] for values of a
        frame, or [m t n d] for values of each patch.
      patch: patch size.

    Returns:
      An encoder whose tokens of an unknown clip are zeros.
    """
    m, t, h, w, _ = video_mthwc.shape
    n = (h // patch) * (w // patch)
    truth_mtnd = np.asarray(truth_mtnd, np.float32)
    if truth_mtnd.ndim == 3:
        truth_mtnd = np.broadcast_to(truth_mtnd[:, :, None], (m, t, n, truth_mtnd.shape[-1]))
    codes_mk = np.asarray(jax.jit(jax.vmap(_hash_clip))(video_mthwc))
    params = {"codes": codes_mk, "truth": np.array(truth_mtnd)}

    def forward(params, video_bthwc, layers):
        codes_bk = jax.vmap(_hash_clip)(jnp.asarray(video_bthwc))
        same_bm = jnp.all(codes_bk[:, None] == params["codes"][None], axis=-1)
        found_b = jnp.any(same_bm, axis=1)
        tokens_btnd = params["truth"][jnp.argmax(same_bm, axis=1)]
        tokens_btnd = jnp.where(found_b[:, None, None, None], tokens_btnd, 0.0)
        return _output(tokens_btnd, layers)

    return _encoder("oracle", params, forward, truth_mtnd.shape[-1], patch, h, t)


def make_blind(*, width: int = 8, patch: int = 8, size: int = 32, frames: int = 8) -> FrozenEncoder:
    """Makes an encoder whose tokens are the same for all clips, frames and patches."""
    params = {"token": np.linspace(-1.0, 1.0, width, dtype=np.float32)}

    def forward(params, video_bthwc, layers):
        b, t, h, w, _ = video_bthwc.shape
        shape = (b, t, (h // patch) * (w // patch), width)
        return _output(jnp.broadcast_to(params["token"][None, None, None], shape), layers)

    return _encoder("blind", params, forward, width, patch, size, frames)


def add_places(code_mtnd: np.ndarray, gain: float = 8.0) -> np.ndarray:
    """Appends the time and the patch of each token as one-hot codes.

    Tokens of real encoders contain their position, too. Heads with learned queries need it to find
    the tokens of a patch.

    Args:
      code_mtnd: truth of each token.
      gain: the one in the codes. Larger values are learned in fewer steps.
    """
    m, t, n, _ = code_mtnd.shape
    time_mtnt = np.broadcast_to(gain * np.eye(t)[None, :, None], (m, t, n, t))
    patch_mtnn = np.broadcast_to(gain * np.eye(n), (m, t, n, n))
    return np.concatenate([code_mtnd, time_mtnt, patch_mtnn], axis=-1)


def balance(code: np.ndarray) -> np.ndarray:
    """Makes codes [... d] on which a LayerNorm is linear.

    A value is appended that gives all codes the same norm, and then the negative of all values,
    which gives them the mean 0. Without this, the LayerNorm of a head mixes the values of a code.
    """
    square = np.square(code).sum(axis=-1, keepdims=True)
    rest = np.sqrt(np.maximum(square.max() - square, 0))
    half = np.concatenate([code, rest], axis=-1)
    return np.concatenate([half, -half], axis=-1).astype(np.float32)


def resolve(config, encoder, world="", **changes):
    """Resolves a config for an encoder. `world` has the level and the options of a world URL."""
    if world:
        level, _, options = world.partition("?")
        config.train_manifest = f"world:{level}/train?{options}"
        config.val_manifest = f"world:{level}/val?{options}"
    else:
        config.train_manifest = config.val_manifest = ""
    config.data.workers = 0
    config.update(changes)
    return evaluation_data.resolve(config, encoder)


def make_inputs(config, encoder, folder, name="encoder", tasks=()):
    """Makes the inputs of an evaluator for a resolved config."""
    dataset = EvaluationData(config, tasks)
    return EvalInputs(name, dataset, lambda: encoder, FeatureCache(folder / "features"))


def read_truth(settings, config, splits=("train", "val")):
    """Reads the ground truth of all rows of the splits: arrays [m ...] by name."""
    rows = []
    for split in splits:
        truth = truth_source.open_truth(settings, split, config)
        rows += [truth.load(row) for row in range(len(truth))]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def make_truth_oracle(settings, config, make_tokens, patch, splits=("train", "val")):
    """Makes an encoder whose tokens are computed from the ground truth.

    Args:
      settings: the section of the evaluator.
      config: the resolved config.
      make_tokens: function (arrays of all rows) -> tokens [m t n d] or [m t d].
      patch: patch size of the encoder.
      splits: splits whose clips are known.
    """
    truth = read_truth(settings, config, splits)
    return make_oracle(truth["video"], make_tokens(truth), patch=patch)


def _hash_clip(video_thwc):
    """Returns `_CODES` uint32 hash codes of a clip: sums of the pixels times odd random numbers."""
    flat_p = jnp.ravel(video_thwc).astype(jnp.uint32)
    index_p = jnp.arange(flat_p.size, dtype=jnp.uint32)
    codes = []
    for number in range(_CODES):
        # A multiplicative hash of the position, then of the pixel at this position.
        mixed_p = (index_p + jnp.uint32(number * 7919 + 1)) * jnp.uint32(2654435761)
        mixed_p = (mixed_p ^ (mixed_p >> 15)) * jnp.uint32(2246822519)
        mixed_p = (mixed_p ^ (mixed_p >> 13)) | jnp.uint32(1)
        codes.append(jnp.sum(flat_p * mixed_p, dtype=jnp.uint32))
    return jnp.stack(codes)


def _output(tokens_btnd, layers):
    layers_lbtnd = jnp.broadcast_to(tokens_btnd[None], (len(layers), *tokens_btnd.shape))
    return FrozenOutput(tokens_btnd, None, layers_lbtnd, None)


def _encoder(name, params, forward, width, patch, size, frames):
    def init_params(seed):
        del seed
        return jax.tree.map(np.zeros_like, params)

    return FrozenEncoder(
        name=name,
        width=width,
        patch=patch,
        size=size,
        frames=frames,
        tubelet=1,
        depth=12,
        class_tokens=False,
        pool_width=0,
        params=params,
        record={"kind": name, "width": width, "patch": patch},
        forward=forward,
        init_params=init_params,
    )
