"""FLOPs of a training step by component, computed from the config alone.

Only matrix products are counted, with two FLOPs per multiply-add. Norms, activations, softmaxes and
the recomputation of `remat` are not counted. In the backward pass, the gradients of the weights and
of the input each cost as many FLOPs as the forward product. Gradients that are not needed are not
counted.

A stage's method `count_flops` calls these functions for the components of the stage.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from invnext_jax.models.decoder import TIME_WIDTH
from invnext_jax.objectives import masks, prediction_task, teacher_frames


@dataclasses.dataclass
class FlopCount:
    """FLOPs of one component for one clip. The `add_*` methods add layers to the count.

    Attributes:
      dtype: dtype of the matrix products, "float32" or "bfloat16".
      trained: whether gradients flow through the component.
      forward: FLOPs of the forward pass.
      backward: FLOPs of the backward pass.
      layers: FLOPs of `forward` that are in transformer layers, which `remat="full"` recomputes.
      attention: FLOPs of `forward` that compute attention scores and weighted sums.
      float32: FLOPs of `forward` and `backward` that are in float32 products.
    """

    dtype: str = "bfloat16"
    trained: bool = True
    forward: float = 0.0
    backward: float = 0.0
    layers: float = 0.0
    attention: float = 0.0
    float32: float = 0.0

    def add_dense(
        self, n: float, inputs: int, outputs: int, *, input_gradient: bool = True
    ) -> float:
        """Adds a linear layer over n tokens."""
        flops = 2.0 * n * inputs * outputs
        self._add(flops, 1 + input_gradient)
        return flops

    def add_attention(self, pairs: float, width: int) -> float:
        """Adds softmax attention over `pairs` query-key pairs."""
        flops = 4.0 * pairs * width
        self._add(flops, 2)
        self.attention += flops
        return flops

    def add_transformer(
        self, n: float, pairs: float, width: int, mlp: int, depth: int, outputs: int | None = None
    ) -> None:
        """Adds transformer layers.

        Args:
          n: number of tokens. Each one is used as query, key and value.
          pairs: number of query-key pairs of one layer.
          width: width of the tokens.
          mlp: sum of the widths of the MLP's linear layers.
          depth: number of layers.
          outputs: number of tokens that pass through the output projection and the MLP; n if
            None.
        """
        outputs = n if outputs is None else outputs
        for _ in range(depth):
            flops = self.add_dense(n, width, 3 * width) + self.add_attention(pairs, width)
            self.layers += flops + self.add_dense(outputs, width, width + mlp)

    def add_projection_head(self, n: float, inputs: int, outputs: int) -> None:
        """Adds a projection head of two linear layers over n tokens."""
        self.add_dense(n, inputs, inputs)
        self.add_dense(n, inputs, outputs)

    def add_attention_pool(self, n: float, width: int, outputs: int) -> None:
        """Adds an attention pool, in which one query attends to n tokens."""
        self.add_dense(n, width, 2 * width)
        self.add_dense(1, width, width)
        self.add_attention(n, width)
        self.add_dense(1, width, outputs)

    def _add(self, flops: float, gradients: int) -> None:
        self.forward += flops
        self.backward += gradients * flops * self.trained
        if self.dtype == "float32":
            self.float32 += flops * (1 + gradients * self.trained)


@dataclasses.dataclass(frozen=True)
class TokenLengths:
    """Token counts of one clip.

    Attributes:
      patches: number of all patches.
      visible: number of visible patches, for each mask.
      predicted: number of predicted patches, for each mask.
      class_tokens: number of class tokens of the encoder.
    """

    patches: int
    visible: tuple[int, ...]
    predicted: tuple[int, ...]
    class_tokens: int


def token_lengths(config: Any, most_masks: int | None = None) -> TokenLengths:
    """Returns the token counts of a clip, from the shapes of the masks.

    Args:
      config: the run's config.
      most_masks: maximum number of masks that the stage uses; None for all masks.
    """
    frames, side = config.data.frames, config.data.size // config.encoder.patch
    attention_bts = jax.ShapeDtypeStruct((1, frames, side * side), jnp.float32)
    sample = functools.partial(
        masks.sample_masks, batch=1, grid=(frames, side, side), settings=config.mask
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    shapes = jax.eval_shape(lambda key, a_bts: sample(key, attention_bts=a_bts), key, attention_bts)
    shapes = shapes[:most_masks]
    visible = tuple(keep_bk.shape[1] for keep_bk, _ in shapes)
    share = config.mask.predicted
    predicted = tuple(
        prediction_task.predicted_count(masked_bm.shape[1], share) for _, masked_bm in shapes
    )
    return TokenLengths(frames * side * side, visible, predicted, config.encoder.class_tokens)


def count_teacher_frames(config: Any) -> int:
    """Returns the number of frames of a clip that the image teacher encodes in a step."""
    if config.teacher.cache:  # outputs that are not stored yet are computed before the step
        return 0
    return teacher_frames.count_frames(config.data.frames, config.teacher.frames_share)


def count_teacher(config: Any) -> FlopCount:
    """Counts the FLOPs of the frozen image teacher."""
    t, frames = config.teacher, count_teacher_frames(config)
    count = FlopCount(dtype="float32", trained=False)
    if config.data.size != t.size:  # bicubic resizing of the rows, then of the columns
        count.add_dense(frames * 3 * config.data.size, config.data.size, t.size)
        count.add_dense(frames * 3 * t.size, config.data.size, t.size)
    old, new = t.size // t.patch, config.data.size // config.encoder.patch
    if old != new:  # taps and attention are resampled along rows, then along columns
        count.add_dense(frames * old * (t.taps * t.width + 1), old, new)
        count.add_dense(frames * new * (t.taps * t.width + 1), old, new)
    count.dtype, n = config.dtype, old**2
    count.add_dense(frames * n, 3 * t.patch**2, t.width)
    n += 0 if t.kind == "siglip2" else 1 + t.registers
    layers = 3 if t.gated else 2
    count.add_transformer(frames * n, frames * n * n, t.width, layers * t.mlp_width, t.depth)
    # Attention of the pooling query. In teachers with a class token, its attention in the last
    # layer is computed a second time to output the attention weights.
    count.add_dense(frames * n, t.width, 2 * t.width)
    count.add_attention(1.5 * frames * n, t.width)
    count.add_dense(frames, t.width, 2 * t.width)
    if t.kind == "siglip2":
        count.add_dense(frames, t.width, 2 * t.mlp_width)
    return count


def count_encoder(config: Any, tokens: TokenLengths, *, trained: bool = True) -> FlopCount:
    """Counts the FLOPs of the student encoder, which runs on the visible tokens of each mask."""
    count, e = FlopCount(config.dtype, trained), config.encoder
    for k in tokens.visible:
        count.add_dense(k, 3 * e.patch**2, e.width)
        _add_layers(count, e, k + tokens.class_tokens)
    return count


def count_target_encoder(config: Any, tokens: TokenLengths) -> FlopCount:
    """Counts the FLOPs of a target encoder, which runs on all patches without gradients.

    The encoder has the sizes of the student.
    """
    unmasked = dataclasses.replace(tokens, visible=(tokens.patches,))
    return count_encoder(config, unmasked, trained=False)


def count_predictor(config: Any, tokens: TokenLengths, *, dense_windows: bool = False) -> FlopCount:
    """Counts the FLOPs of the predictor.

    Args:
      config: the run's config.
      tokens: token counts of a clip.
      dense_windows: whether to count all query-key pairs of local attention, which an unfused
        kernel computes, instead of only the pairs within the window.
    """
    count, p = FlopCount(config.dtype), config.predictor
    n = tokens.patches + tokens.class_tokens
    for visible, predicted in zip(tokens.visible, tokens.predicted, strict=True):
        if p.kind == "vjepa":
            count.add_dense(visible + tokens.class_tokens, config.encoder.width, p.width)
            _add_layers(count, p, n)
            continue
        count.add_projection_head(n, config.encoder.width, p.width)
        if p.kind == "vit":
            _add_layers(count, p, n)
            continue
        for i in range(p.last_layer - p.depth + 1, p.last_layer + 1):
            # The last layer outputs only the predicted tokens. If it is local, it still computes
            # all queries.
            outputs = predicted if i == p.last_layer else n
            if i % 3 == 0:
                pairs = outputs * n
            else:
                pairs = n * n if dense_windows else _window_pairs(n, p.window // 2)
            count.add_transformer(n, pairs, p.width, 3 * p.mlp_width, 1, outputs)
    return count


def count_decoder(config: Any, tokens: TokenLengths) -> FlopCount:
    """Counts the FLOPs of the pixel decoder, which decodes every predicted patch."""
    d, pixels = config.decoder, 3 * config.encoder.patch**2
    count, width = FlopCount(d.dtype), d.width
    for predicted in tokens.predicted:
        n = predicted * (d.noise_draws if d.kind == "diffusion" else 1)
        if d.kind != "diffusion":
            hidden = [width] * (d.depth - 1 if d.kind == "mlp" else 0)
            sizes = [config.predictor.width, *hidden, pixels]
            for inputs, outputs in zip(sizes, sizes[1:], strict=False):
                count.add_dense(n, inputs, outputs)
            continue
        count.add_dense(n, TIME_WIDTH, width, input_gradient=False)
        count.add_dense(n, width, width)
        count.add_dense(n, config.predictor.width, width)
        count.add_dense(n, pixels, width, input_gradient=False)
        count.add_dense(n, width, (5 * d.depth + 2) * width)
        count.add_dense(n, width, 2 * pixels)
    return count


def sum_flops(counts: Mapping[str, FlopCount], batch_size: int) -> float:
    """Returns the model FLOPs (forward and backward) of one training step on the whole batch."""
    return batch_size * sum(count.forward + count.backward for count in counts.values())


def split_flops(counts: Mapping[str, FlopCount], batch_size: int) -> dict[str, float]:
    """Returns the FLOPs of `sum_flops` by the dtype of the products, "bfloat16" and "float32"."""
    float32 = batch_size * sum(count.float32 for count in counts.values())
    return {"bfloat16": sum_flops(counts, batch_size) - float32, "float32": float32}


def sum_recomputed_flops(counts: Mapping[str, FlopCount], batch_size: int, remat: str) -> float:
    """Returns the FLOPs that rematerialization adds to the model FLOPs of one step.

    Args:
      counts: FLOPs of each component.
      batch_size: number of clips in the whole batch.
      remat: value of `config.remat`.
    """
    trained = [count for count in counts.values() if count.trained]
    recomputed = {
        "none": 0.0,
        "dots": sum(count.attention for count in trained),  # outputs of linear layers are saved
        "full": sum(count.layers for count in trained),
    }
    return batch_size * recomputed[remat]


def _add_layers(count: FlopCount, sizes: Any, n: int) -> None:
    """Adds transformer layers with full attention over n tokens and two-layer MLPs."""
    count.add_transformer(n, n * n, sizes.width, 2 * sizes.mlp_width, sizes.depth)


def _window_pairs(n: int, reach: int) -> int:
    """Returns the number of query-key pairs that are at most `reach` positions apart."""
    reach = min(reach, n - 1)
    return n * (2 * reach + 1) - reach * (reach + 1)
