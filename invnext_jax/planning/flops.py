"""What a training step computes, from the config alone: FLOPs of the matrix products by component.

Only products of matrices count, two FLOPs a multiplication and addition; norms, activations and
softmaxes do not, nor what `remat` computes again. Backward, each product costs once for the
gradient of its weights and once for that of its input, where these are needed.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from invnext_jax.objectives import masks

_TIME_WIDTH = 256  # of the diffusion decoder's timestep code


@dataclasses.dataclass
class Count:
    """FLOPs of one component for one clip.

    Attributes:
        trained: whether gradients flow through it.
        forward: FLOPs of the forward pass.
        backward: FLOPs of the backward pass.
        layers: share of `forward` that lies in rematerialised layers.
        pairs: share of `forward` that is attention between tokens.
    """

    trained: bool = True
    forward: float = 0.0
    backward: float = 0.0
    layers: float = 0.0
    pairs: float = 0.0

    def dense(self, n: float, inputs: int, outputs: int, *, input_gradient: bool = True) -> float:
        """A linear layer over n tokens."""
        flops = 2.0 * n * inputs * outputs
        self._add(flops, 1 + input_gradient)
        return flops

    def attend(self, pairs: float, width: int) -> float:
        """Softmax attention of so many query-key pairs."""
        flops = 4.0 * pairs * width
        self._add(flops, 2)
        self.pairs += flops
        return flops

    def transformer(
        self, n: int, pairs: float, width: int, mlp: int, depth: int, wanted: int | None = None
    ) -> None:
        """Blocks over n tokens, of which `wanted` (all) go on behind the attention.

        `mlp` is the sum of the widths of the MLP's linear layers.
        """
        wanted = n if wanted is None else wanted
        for _ in range(depth):
            flops = self.dense(n, width, 3 * width) + self.attend(pairs, width)
            self.layers += flops + self.dense(wanted, width, width + mlp)

    def head(self, n: int, inputs: int, outputs: int) -> None:
        """A projection head of two linear layers."""
        self.dense(n, inputs, inputs)
        self.dense(n, inputs, outputs)

    def _add(self, flops: float, gradients: int) -> None:
        self.forward += flops
        self.backward += gradients * flops * self.trained


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Tokens of a clip: all patches, and of each mask the visible and the predicted ones."""

    patches: int
    visible: tuple[int, ...]
    predicted: tuple[int, ...]
    class_tokens: int


def token_lengths(config: Any) -> Lengths:
    """How long the token streams of a run are."""
    frames, side = config.data.frames, config.data.size // config.encoder.patch
    attention_bts = jax.ShapeDtypeStruct((1, frames, side * side), jnp.float32)
    draw = functools.partial(
        masks.sample_masks, batch=1, grid=(frames, side, side), settings=config.mask
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    drawn = jax.eval_shape(lambda key, a_bts: draw(key, attention_bts=a_bts), key, attention_bts)
    visible = tuple(keep_bk.shape[1] for keep_bk, _ in drawn)
    share = config.mask.predicted
    predicted = tuple(masks.predicted_count(masked_bm.shape[1], share) for _, masked_bm in drawn)
    return Lengths(frames * side * side, visible, predicted, config.encoder.class_tokens)


def count_flops(config: Any, *, whole_windows: bool = False) -> dict[str, Count]:
    """FLOPs of every component of a training step, for one clip.

    Args:
        config: a run's config.
        whole_windows: whether local attention counts as if it looked at all tokens, which is what a
            plain kernel computes; else what the window holds.
    """
    tokens = token_lengths(config)
    if config.stage == "stage1":
        found = {"teacher": _teacher(config, 1.0)} if _needs_teacher(config) else {}
    else:
        found = {"target": _target(config, tokens)}
        if config.mask.kind == "semantic" and config.target.kind != "image":
            found["teacher"] = _teacher(config, 1.0)
    found["encoder"] = _encoder(config, tokens.visible, tokens.class_tokens)
    decodes = bool(config.loss.pixels)
    if decodes or config.loss.get("predict", 0):
        found["predictor"] = _predictor(config, tokens, whole_windows)
    if decodes:
        found["decoder"] = _decoder(config, tokens)
    found["heads"] = _heads(config, tokens)
    return found


def step_flops(config: Any) -> float:
    """Model FLOPs of one training step of the whole batch."""
    counts = count_flops(config).values()
    return config.batch_size * sum(count.forward + count.backward for count in counts)


def recomputed_flops(config: Any) -> float:
    """FLOPs of one step that rematerialisation adds to the model's."""
    trained = [count for count in count_flops(config).values() if count.trained]
    again = {
        "none": 0.0,
        "dots": sum(count.pairs for count in trained),  # linear layers are kept
        "full": sum(count.layers for count in trained),
    }
    return config.batch_size * again[config.remat]


def _needs_teacher(config: Any) -> bool:
    aligns = config.loss.align_tokens or config.loss.align_pooled
    return bool(aligns) or config.mask.kind == "semantic"


def _blocks(count: Count, sizes: Any, n: int) -> None:
    count.transformer(n, n * n, sizes.width, 2 * sizes.mlp_width, sizes.depth)


def _encoder(config: Any, visible: tuple[int, ...], class_tokens: int) -> Count:
    count, e = Count(), config.encoder
    for k in visible:
        count.dense(k, 3 * e.patch**2, e.width)
        _blocks(count, e, k + class_tokens)
    return count


def _target(config: Any, tokens: Lengths) -> Count:
    if config.target.kind == "image":
        return _teacher(config, 1.0)
    count = _encoder(config, (tokens.patches,), tokens.class_tokens)
    return dataclasses.replace(count, trained=False, backward=0.0)


def _teacher(config: Any, share: float) -> Count:
    count, t = Count(trained=False), config.teacher
    n = (t.size // t.patch) ** 2
    frames = config.data.frames * share
    if config.data.size != t.size:  # bicubic resizing of rows, then of columns
        count.dense(frames * 3 * config.data.size, config.data.size, t.size)
        count.dense(frames * 3 * t.size, config.data.size, t.size)
    count.dense(frames * n, 3 * t.patch**2, t.width)
    n += 0 if t.kind == "siglip2" else 1 + t.registers
    layers = 3 if t.gated else 2
    count.transformer(frames * n, frames * n * n, t.width, layers * t.mlp_width, t.depth)
    # The pooling query, or the class token once more in the last layer, whose weights are wanted.
    count.dense(frames * n, t.width, 2 * t.width)
    count.attend(1.5 * frames * n, t.width)
    count.dense(frames, t.width, 2 * t.width)
    if t.kind == "siglip2":
        count.dense(frames, t.width, 2 * t.mlp_width)
    return count


def _predictor(config: Any, tokens: Lengths, whole_windows: bool) -> Count:
    count, p, n = Count(), config.predictor, tokens.patches + tokens.class_tokens
    for visible, predicted in zip(tokens.visible, tokens.predicted, strict=True):
        if p.kind == "vjepa":
            count.dense(visible + tokens.class_tokens, config.encoder.width, p.width)
            _blocks(count, p, n)
            continue
        count.head(n, config.encoder.width, p.width)
        if p.kind == "vit":
            _blocks(count, p, n)
            continue
        for i in range(p.last_layer - p.depth + 1, p.last_layer + 1):
            # Of the last layer only these places are wanted; a window still sees all queries.
            wanted = predicted if i == p.last_layer else n
            if i % 3 == 0:
                pairs = wanted * n
            else:
                pairs = n * n if whole_windows else _window_pairs(n, p.window // 2)
            count.transformer(n, pairs, p.width, 3 * p.mlp_width, 1, wanted)
    return count


def _window_pairs(n: int, reach: int) -> int:
    """Query-key pairs no farther apart than `reach`."""
    reach = min(reach, n - 1)
    return n * (2 * reach + 1) - reach * (reach + 1)


def _decoder(config: Any, tokens: Lengths) -> Count:
    count, d, pixels = Count(), config.decoder, 3 * config.encoder.patch**2
    width = d.width
    for predicted in tokens.predicted:
        n = predicted * (d.noise_draws if d.kind == "diffusion" else 1)
        if d.kind != "diffusion":
            hidden = [width] * (d.depth - 1 if d.kind == "mlp" else 0)
            sizes = [config.predictor.width, *hidden, pixels]
            for inputs, outputs in zip(sizes, sizes[1:], strict=False):
                count.dense(n, inputs, outputs)
            continue
        count.dense(n, _TIME_WIDTH, width, input_gradient=False)
        count.dense(n, width, width)
        count.dense(n, config.predictor.width, width)
        count.dense(n, pixels, width, input_gradient=False)
        count.dense(n, width, (5 * d.depth + 2) * width)
        count.dense(n, width, 2 * pixels)
    return count


def _heads(config: Any, tokens: Lengths) -> Count:
    count, e, loss = Count(), config.encoder, config.loss
    if config.stage == "stage2":
        width = config.teacher.width if config.target.kind == "image" else e.width
        for visible, predicted in zip(tokens.visible, tokens.predicted, strict=True):
            if loss.predict:
                count.head(predicted, config.predictor.width, width)
            if loss.align_visible:
                count.head(visible, e.width, width)
        return count
    (visible,) = tokens.visible
    if loss.align_tokens:
        count.head(config.teacher.taps * visible, e.width, config.teacher.width)
    if loss.align_pooled:
        n = visible + tokens.class_tokens
        count.dense(n, e.width, 2 * e.width)
        count.dense(1, e.width, e.width)
        count.attend(n, e.width)
        count.dense(1, e.width, e.pool_width)
        count.head(1, e.pool_width, config.teacher.width)
    return count
