"""The latent world model: completes the latents of masked positions (paper section 3.1).

A light transformer over visible latents and mask tokens, each at its place: the last layers of
ModernBERT (rotary positions, two local layers for each global one, gated MLP), a plain ViT, or
V-JEPA's predictor.

Shape key: b batch, n tokens, k visible tokens, m masked tokens (or those of them that are wanted),
d width, f MLP width, h heads, e head width.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from invnext_jax.errors import UserError
from invnext_jax.models.attention import attend
from invnext_jax.models.gather import gather_tokens, repeat, unstack
from invnext_jax.models.layers import (
    ACTIVATIONS,
    Block,
    Dtype,
    ProjectionHead,
    check_heads,
    dense,
    layer_norm,
    run_stack,
)
from invnext_jax.models.positions import Grid, PositionTable, apply_rotary, sincos_table
from invnext_jax.models.sharding import (
    logical,
    replicate_tokens,
    shard_attention_inputs,
    shard_tokens,
)
from invnext_jax.models.vit import VisionBlock

KINDS = ("modernbert", "vit", "vjepa")  # of `config.predictor.kind`
GLOBAL_THETA, LOCAL_THETA = 160_000.0, 10_000.0


class ModernBertLayer(nn.Module):
    """Pre-norm layer without biases; `window` None attends globally.

    The window is the number of positions seen in all; half of it lies on each side.
    """

    heads: int
    mlp_width: int
    window: int | None
    dtype: Dtype

    @nn.compact
    def __call__(self, x_bnd: jax.Array, only_bm: jax.Array | None = None) -> jax.Array:
        """Adds attention and gated MLP to the float32 residual stream.

        Args:
          x_bnd: the stream.
          only_bm: places of the tokens to return; the others are but looked at. None returns all.
        """
        b, n, d = x_bnd.shape
        theta = GLOBAL_THETA if self.window is None else LOCAL_THETA
        reach = None if self.window is None else self.window // 2
        linear = {"dtype": self.dtype, "use_bias": False}

        h_bnd = layer_norm(1e-5, self.dtype, "attn_norm", bias=False)(x_bnd)
        qkv = dense((3, d), ("embed", None, "heads"), name="qkv", **linear)(h_bnd)
        split = (b, n, self.heads, d // self.heads)
        q_bnhe, k_bnhe, v_bnhe = (part.reshape(split) for part in unstack(qkv))
        q_bnhe, k_bnhe = apply_rotary(q_bnhe, theta), apply_rotary(k_bnhe, theta)
        if only_bm is not None and reach is None:
            q_bnd, x_bnd = (gather_tokens(x, only_bm) for x in (q_bnhe.reshape(b, n, d), x_bnd))
            q_bnhe = q_bnd.reshape(b, -1, *split[2:])
        y_bnd = attend(*shard_attention_inputs(q_bnhe, k_bnhe, v_bnhe), reach).reshape(b, -1, d)
        if only_bm is not None and reach is not None:  # a window wants all queries in their places
            y_bnd, x_bnd = (gather_tokens(x, only_bm) for x in (y_bnd, x_bnd))
        proj = dense(d, ("heads", "embed"), name="proj", **linear)
        x_bnd = x_bnd + proj(y_bnd).astype(jnp.float32)

        h_bnd = layer_norm(1e-5, self.dtype, "mlp_norm", bias=False)(x_bnd)
        up = dense((2, self.mlp_width), ("embed", None, "mlp"), name="fc1", **linear)(h_bnd)
        act_bnf, gate_bnf = unstack(up)
        h_bnf = ACTIVATIONS["gelu"](act_bnf) * gate_bnf
        return x_bnd + dense(d, ("mlp", "embed"), name="fc2", **linear)(h_bnf).astype(jnp.float32)


class Predictor(nn.Module):
    """Mask tokens at the masked places, positions, projection, a light transformer."""

    kind: str
    encoder_width: int
    width: int
    depth: int
    heads: int
    mlp_width: int
    window: int
    last_layer: int
    table_grid: Grid
    class_tokens: int
    dtype: Dtype = jnp.float32
    remat: str = "none"
    unroll: int = 1

    @nn.compact
    def __call__(
        self,
        tokens_bnd: jax.Array,
        keep_bk: jax.Array,
        masked_bm: jax.Array,
        grid: Grid,
        chosen_bm: jax.Array | None = None,
    ) -> jax.Array:
        """Predicts the latents of the masked positions.

        Args:
          tokens_bnd: encoder output [b, class_tokens + k, encoder_width].
          keep_bk: int32 positions of the visible tokens.
          masked_bm: int32 positions of all others; each position stands in exactly one of both.
          grid: frames, rows and columns of the clip.
          chosen_bm: indices into `masked_bm` of the latents that are wanted; None: all. The others
            take part all the same: what is not wanted changes nothing for what is.

        Returns:
          Float32 [b m width], in the order of the wanted positions.
        """
        if chosen_bm is None:
            wanted_bm = masked_bm + self.class_tokens
        else:
            wanted_bm = jnp.take_along_axis(masked_bm, chosen_bm, axis=1) + self.class_tokens
        x_bnd = self._sequence(tokens_bnd, keep_bk, masked_bm, grid)
        self.sow("intermediates", "sequence", x_bnd)
        x_bnd = shard_tokens(replicate_tokens(x_bnd))
        x_bnd = ProjectionHead(self.width, False, self.dtype, name="project")(x_bnd)
        self.sow("intermediates", "projected", x_bnd)
        if self.kind == "vit":
            block = Block(self.heads, self.mlp_width, 1.0, self.dtype, name="blocks")
            x_bnd, _ = run_stack(
                block, x_bnd, depth=self.depth, remat=self.remat, unroll=self.unroll
            )
            return gather_tokens(x_bnd, wanted_bm)
        return self._modernbert(x_bnd, wanted_bm)

    def _sequence(self, tokens_bnd, keep_bk, masked_bm, grid):
        c, d = self.class_tokens, self.encoder_width
        init = logical(nn.initializers.normal(0.02), ("embed",))
        mask_token_d = self.param("mask_token", init, (d,), jnp.float32)
        b, m = masked_bm.shape
        masks_bmd = jnp.broadcast_to(mask_token_d[None, None], (b, m, d))
        # Visible then masked tokens, put back into raster order by the inverse permutation.
        inverse_bn = jnp.argsort(jnp.concatenate([keep_bk, masked_bm], axis=1), axis=1)
        x_bnd = jnp.concatenate([tokens_bnd[:, c:], masks_bmd], axis=1)
        x_bnd = jnp.concatenate([tokens_bnd[:, :c], gather_tokens(x_bnd, inverse_bn)], axis=1)
        return x_bnd + repeat(PositionTable(d, self.table_grid, c, name="position")(grid), b)

    def _modernbert(self, x_bnd, only_bm=None):
        """All layers; the last one computes nothing for tokens that no loss looks at."""
        for i in range(self.depth):
            number = self.last_layer - self.depth + 1 + i
            window = None if number % 3 == 0 else self.window
            layer = nn.remat(ModernBertLayer) if self.remat != "none" else ModernBertLayer
            layer = layer(self.heads, self.mlp_width, window, self.dtype, name=f"layer{i}")
            x_bnd = layer(shard_tokens(x_bnd), only_bm if i == self.depth - 1 else None)
            self.sow("intermediates", f"after{i}", x_bnd)
        return replicate_tokens(x_bnd)


class VJepaPredictor(nn.Module):
    """The predictor of V-JEPA (arXiv 2404.08471): narrow, with fixed positions and a zero token.

    Our class tokens take part without a position of their own.
    """

    width: int
    depth: int
    heads: int
    mlp_width: int
    class_tokens: int
    dtype: Dtype = jnp.float32
    remat: str = "none"
    unroll: int = 1

    @nn.compact
    def __call__(
        self,
        tokens_bnd: jax.Array,
        keep_bk: jax.Array,
        masked_bm: jax.Array,
        grid: Grid,
        chosen_bm: jax.Array | None = None,
    ) -> jax.Array:
        """Predicts the latents of the masked positions; see `Predictor`."""
        c, d = self.class_tokens, self.width
        position_nd = jnp.asarray(sincos_table(d, grid, 0))
        init = logical(nn.initializers.zeros, ("embed",))
        mask_token_d = self.param("mask_token", init, (d,), jnp.float32)
        embed = dense(d, (None, "embed"), name="embed", dtype=self.dtype)
        x_bnd = embed(tokens_bnd).astype(jnp.float32)
        # Attention knows no order, so the masked tokens simply stand behind the visible ones.
        visible_bkd = x_bnd[:, c:] + position_nd[keep_bk]
        masked_bmd = mask_token_d[None, None] + position_nd[masked_bm]
        x_bnd = jnp.concatenate([x_bnd[:, :c], visible_bkd, masked_bmd], axis=1)
        block = VisionBlock(self.heads, self.mlp_width, self.dtype, name="blocks")
        x_bnd, _ = run_stack(block, x_bnd, depth=self.depth, remat=self.remat, unroll=self.unroll)
        masked_bmd = x_bnd[:, -masked_bm.shape[1] :]
        if chosen_bm is not None:
            masked_bmd = gather_tokens(masked_bmd, chosen_bm)
        return layer_norm(1e-6, self.dtype, "norm")(masked_bmd).astype(jnp.float32)


def check_config(config: Any) -> None:
    """Checks `config.predictor`.

    Raises:
      UserError: an unknown kind, or a width that does not divide by the heads or, for fixed
        positions, by 16.
    """
    check_heads(config, "predictor")
    p = config.predictor
    if p.kind not in KINDS:
        raise UserError(f"predictor.kind={p.kind!r} is none of {', '.join(map(repr, KINDS))}")
    if p.kind == "vjepa" and p.width % 16:
        raise UserError(f"predictor.width={p.width} of kind 'vjepa' must divide by 16")


def from_config(config: Any) -> Predictor | VJepaPredictor:
    """The predictor that a run's config describes."""
    p, e = config.predictor, config.encoder
    side = e.size // e.patch
    shared = {
        "width": p.width,
        "depth": p.depth,
        "heads": p.heads,
        "mlp_width": p.mlp_width,
        "class_tokens": e.class_tokens,
        "dtype": jnp.dtype(config.dtype),
        "remat": config.remat,
        "unroll": getattr(config, "scan_unroll", 1),
    }
    if p.kind == "vjepa":
        return VJepaPredictor(**shared)
    return Predictor(
        kind=p.kind,
        encoder_width=e.width,
        window=p.window,
        last_layer=p.last_layer,
        table_grid=(e.frames, side, side),
        **shared,
    )
