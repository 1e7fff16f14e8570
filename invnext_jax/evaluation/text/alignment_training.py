"""Trains the text alignment and embeds videos with it.

Without augmentation, the features of the videos are read from a cache. With augmentation, new clips
are sampled in each epoch, and the encoder runs in the training step. The features of the captions
are computed once, unless the text tower is also trained.

Shape key: b videos or pairs, j captions, n tokens, d width.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, reduce

from invnext_jax.checkpointing import run_metadata
from invnext_jax.errors import UserError
from invnext_jax.evaluation import head_training
from invnext_jax.evaluation.evaluators.attentive_training import ClipBatches
from invnext_jax.evaluation.frozen_encoder import FrozenEncoder, FrozenOutput
from invnext_jax.evaluation.heads import text_alignment
from invnext_jax.evaluation.heads.text_alignment import TextAlignment
from invnext_jax.evaluation.inputs import EvalInputs
from invnext_jax.evaluation.text import caption_pairs
from invnext_jax.evaluation.text.text_encoder import TextEncoder
from invnext_jax.evaluation.truth.captions import Captions
from invnext_jax.json_file import hash_json
from invnext_jax.training import mesh as mesh_lib

ATTENTION = "attention"  # the pooling that is trained; for the others, see `features.POOLINGS`
CHUNK = 64  # videos whose cached features are read at once
# Options of `config.text` on which the training does not depend, or only through the captions.
_NOT_IN_KEY = {"train_captions", "val_captions", "choices", "templates", "join", "alignment"}
Batch = dict[str, np.ndarray]


class AlignedModel(NamedTuple):
    """A trained alignment.

    Attributes:
      module: maps features or tokens to the shared space.
      params: has "align", the parameters of the module; "logits", the temperature; and "text", the
        parameters of the text tower, if it was trained.
      loss: training loss of the last step.
    """

    module: TextAlignment
    params: Any
    loss: float


def train(
    inputs: EvalInputs, config: Any, captions: Captions, text: TextEncoder, rows: int
) -> AlignedModel:
    """Trains the projector, the alignment layer and, with `config.text.train_text`, the text tower.

    Args:
      inputs: the frozen encoder and its features.
      config: config of the evaluation; see `config.text`.
      captions: captions of the training videos.
      text: the text encoder.
      rows: number of rows of the training manifest.

    Raises:
      UserError: no readable training video has a caption, or the loss is not finite.
    """
    settings, seed = config.text, config.seed
    key = make_key(config, captions, text)
    saved = inputs.state_file("text_alignment", key, splits=("train",))
    if settings.alignment:
        saved = saved._replace(path=Path(settings.alignment) / "heads" / saved.path.name)
        table = {}  # no batch is read
    else:
        table = _make_table(inputs, key, text, captions, settings.train_text)
    pairs = caption_pairs.group_pairs(captions, rows)
    has_caption = pairs.start[1:] > pairs.start[:-1]
    module = make_module(inputs.encoder, settings, text.tower.out_width)
    functions = _make_functions(module, inputs, config, text)
    with contextlib.ExitStack() as stack:
        if settings.augment:
            rows_b = np.flatnonzero(has_caption)
            clips = ClipBatches(config.data, rows_b, settings.batch_size, 1, seed)
            stack.callback(clips.close)
            videos, read = len(rows_b), clips
        else:
            features = inputs.features("train", dense=settings.pooling == ATTENTION)
            used_b = np.flatnonzero(has_caption[features.index_b])
            if not len(used_b):
                raise UserError(
                    "no readable training video has a caption: check config.text.train_captions"
                )
            videos, read = len(used_b), _feature_batches(features, used_b, settings, seed)

        def batches(step: int) -> Batch:
            batch = read(step)
            index_b = np.asarray(batch.pop("index"))
            place_b, caption_b = pairs.choose(index_b, (seed, step))
            found = {name: value[caption_b] for name, value in table.items()}
            name = "video" if settings.augment else "x"
            return {
                **found,
                name: batch[name][place_b],
                "video_id": index_b[place_b],
                "text_id": captions.group_j[caption_b],
            }

        inputs.note_large_batch("text", settings, videos)
        training = head_training.HeadTraining.for_epochs(
            settings, videos / settings.batch_size, seed, b2=0.98
        )
        if settings.alignment and saved.find_step() != training.steps:
            raise UserError(
                f"config.text.alignment={settings.alignment} has no finished alignment with this "
                "encoder, these training pairs and these options: use the workdir of such an "
                "evaluation, or remove the option to train an alignment"
            )
        trained = head_training.train_heads(
            **functions,
            batches=batches,
            grid=head_training.make_grid((settings.learning_rate,), (settings.weight_decay,)),
            training=training,
            name=f"text alignment, {inputs.name}",
            saved=saved,
            frozen=inputs.encoder.params if settings.augment else None,
        )
    params = jax.device_get(head_training.select_head(trained.params, 0))
    return AlignedModel(module, params, float(trained.loss_g[0]))


def make_key(config: Any, captions: Captions, text: TextEncoder) -> str:
    """Returns a hash of the pairs, the text encoder and the options of a training."""
    options = run_metadata.config_to_json(config)["text"]
    options = {name: value for name, value in options.items() if name not in _NOT_IN_KEY}
    return hash_json([text.key, captions.texts, captions.row_j.tolist(), options])


def _make_table(
    inputs: EvalInputs, key: str, text: TextEncoder, captions: Captions, train_text: bool
) -> Batch:
    """Returns the words of all captions, or their features if the text tower is frozen."""
    words_jn = text.tokenize(captions.texts)
    if train_text:
        return {"words": words_jn}
    saved = inputs.state_file("captions", key, splits=("train",))
    return {"text": _encode_once(saved, text, words_jn)}


def make_module(encoder: FrozenEncoder, settings: Any, width: int) -> TextAlignment:
    """Returns the module. Its pool has the sizes of the checkpoint's pool if there is one."""
    if settings.pooling != ATTENTION:
        return TextAlignment(width)
    if "pool" in encoder.params and encoder.loaded is not None:
        sizes = encoder.loaded.config.encoder
        return TextAlignment(width, sizes.pool_width, sizes.pool_heads)
    return TextAlignment(width, settings.pool_width, settings.pool_heads)


def _make_functions(module, inputs: EvalInputs, config: Any, text: TextEncoder) -> dict[str, Any]:
    """Returns the functions for `head_training.train_heads`."""
    settings, encoder = config.text, inputs.encoder
    shape = jax.eval_shape(
        functools.partial(pool_output, settings.pooling),
        jax.eval_shape(encoder.apply, encoder.params, _clip_shape(config)),
    ).shape

    def init_params(key):
        align = mesh_lib.unbox(module.init(key, jnp.zeros(shape))["params"])
        if "pool" in align and "pool" in encoder.params and encoder.loaded is not None:
            align["pool"] = encoder.params["pool"]
        params = {
            "align": align,
            "logits": text_alignment.init_scale(settings.loss, settings.temperature),
        }
        return params | ({"text": text.params} if settings.train_text else {})

    def prepare(frozen, batch, key):
        del key
        if "video" not in batch:
            return batch
        out = encoder.apply(frozen, batch["video"])
        return {**batch, "x": pool_output(settings.pooling, out)}

    def loss_fn(params, batch, key):
        del key
        video_bd = module.apply({"params": params["align"]}, batch["x"])
        if "text" in params:
            text_bd = text.tower.apply({"params": params["text"]}, batch["words"])
        else:
            text_bd = batch["text"]
        return text_alignment.alignment_loss(
            params["logits"], video_bd, text_bd, batch["video_id"], batch["text_id"]
        )

    return {"init_params": init_params, "loss_fn": loss_fn, "prepare": prepare}


def pool_output(pooling: str, out: FrozenOutput) -> jax.Array:
    """Returns the tokens [b n d] for `ATTENTION`, or pooled features [b d]."""
    tokens_btnd = out.tokens_btnd
    if pooling == ATTENTION:
        return rearrange(tokens_btnd, "b t n d -> b (t n) d")
    if pooling == "pool":
        return out.pooled_bd
    if pooling == "class":
        return rearrange(out.class_bkd, "b k d -> b (k d)")
    if pooling == "frames":
        return rearrange(jnp.mean(tokens_btnd, axis=2), "b t d -> b (t d)")
    return reduce(tokens_btnd, "b t n d -> b d", "mean")


def embed_videos(
    inputs: EvalInputs, config: Any, model: AlignedModel
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the embeddings [b d] of all readable held-out videos, and their manifest rows [b]."""
    settings, encoder = config.text, inputs.encoder

    @jax.jit
    def run(params, frozen, batch):
        x = batch["x"] if "x" in batch else None
        if x is None:
            x = pool_output(settings.pooling, encoder.apply(frozen, batch["video"]))
        return model.module.apply({"params": params}, x)

    in_step = settings.augment and settings.pooling == ATTENTION
    frozen = jax.device_put(encoder.params) if in_step else None
    params, found, index = jax.device_put(model.params["align"]), [], []
    for batch in _held_out_batches(inputs, settings, in_step):
        index_b = np.asarray(batch.pop("index"))
        name = "x" if "x" in batch else "video"
        found.append(jax.device_get(run(params, frozen, {name: batch[name]}))[index_b >= 0])
        index.append(index_b[index_b >= 0])
    return np.concatenate(found), np.concatenate(index)


def _held_out_batches(inputs: EvalInputs, settings: Any, in_step: bool) -> Iterator[Batch]:
    if in_step:
        yield from map(dict, inputs.dataset.batches("val"))
        return
    features = inputs.features("val", dense=settings.pooling == ATTENTION)
    for first in range(0, len(features), CHUNK):
        rows_b = np.arange(first, min(first + CHUNK, len(features)))
        padded_b = np.pad(rows_b, (0, CHUNK - len(rows_b)), mode="edge")
        index_b = np.where(np.arange(CHUNK) < len(rows_b), features.index_b[padded_b], -1)
        yield {"x": _read_features(features, padded_b, settings.pooling), "index": index_b}


def _feature_batches(features, used_b, settings, seed) -> Callable[[int], Batch]:
    """Returns a function step -> batch of cached features. Each epoch has a different order."""
    size = settings.batch_size

    @functools.lru_cache(maxsize=2)
    def order(epoch):
        return np.random.default_rng((seed, epoch)).permutation(used_b)

    def read(step):
        places = np.arange(step * size, (step + 1) * size)
        epochs = places // len(used_b)
        rows_b = np.array([order(e)[p % len(used_b)] for e, p in zip(epochs, places, strict=True)])
        x = _read_features(features, rows_b, settings.pooling)
        return {"x": x, "index": features.index_b[rows_b]}

    return read


def _read_features(features, rows_b: np.ndarray, pooling: str) -> np.ndarray:
    if pooling != ATTENTION:
        return features.pooled(pooling, rows_b)
    tokens = features.arrays["tokens"].take(rows_b)[:, features.views // 2]
    return rearrange(np.asarray(tokens), "b t s d -> b (t s) d")


def _encode_once(saved, text: TextEncoder, words_jn: np.ndarray) -> np.ndarray:
    """Returns the features of captions. They are read from a file if they are stored."""
    empty_jd = np.zeros((len(words_jn), text.tower.out_width), np.float32)
    text_jd, done = saved.restore(empty_jd)
    if not done:
        print(f"text alignment: encoding {len(words_jn)} captions with {text.name}", flush=True)
        text_jd = text.encode(text.params, words_jn)
        saved.save(1, text_jd)
    return text_jd


def _clip_shape(config: Any) -> jax.ShapeDtypeStruct:
    data = config.data
    return jax.ShapeDtypeStruct((1, data.frames, data.size, data.size, 3), jnp.uint8)
