"""Predictors (latent world models), which predict latents at masked positions (paper section 3.1).

A predictor is a small transformer whose input is the visible latents and mask tokens in raster
order. There are three kinds: the last layers of ModernBERT (rotary positions, two local layers for
each global layer, gated MLPs), a plain ViT, and V-JEPA's predictor.

Shape key: b batch, n tokens, k visible tokens, m masked tokens (or only the predicted ones),
d width, f MLP width, h heads, e head width.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from invnext_jax.errors import UserError
from invnext_jax.models.attention import attend, padded_length
from invnext_jax.models.gather import broadcast_leading, gather_tokens, hide_tokens, unstack
from invnext_jax.models.layers import (
    ACTIVATIONS,
    Block,
    Dtype,
    ProjectionHead,
    check_heads,
    dense,
    layer_norm,
)
from invnext_jax.models.positions import Grid, PositionTable, apply_rotary, sincos_table
from invnext_jax.models.scan import scan_blocks
from invnext_jax.models.sharding import (
    replicate_tokens,
    shard_attention_inputs,
    shard_tokens,
    with_logical_axes,
)
from invnext_jax.models.vit import VisionBlock

KINDS = ("modernbert", "vit", "vjepa")  # values of `config.predictor.kind`
GLOBAL_THETA, LOCAL_THETA = 160_000.0, 10_000.0


class ModernBertLayer(nn.Module):
    """Pre-norm ModernBERT layer without biases.

    `window` is the width of the attention window, which is centered on the query; None means global
    attention.
    """

    heads: int
    mlp_width: int
    window: int | None
    dtype: Dtype

    @nn.compact
    def __call__(
        self, x_bnd: jax.Array, output_bm: jax.Array | None = None, length: int | None = None
    ) -> jax.Array:
        """Adds attention and gated MLP to the float32 residual stream.

        Args:
          x_bnd: residual stream.
          output_bm: positions of the tokens to return; the other tokens are only used as keys and
            values. None returns all tokens.
          length: number of tokens without padding; see `attention.attend`.
        """
        b, n, d = x_bnd.shape
        theta = GLOBAL_THETA if self.window is None else LOCAL_THETA
        half_window = None if self.window is None else self.window // 2
        linear = {"dtype": self.dtype, "use_bias": False}

        h_bnd = layer_norm(1e-5, self.dtype, "attn_norm", bias=False)(x_bnd)
        qkv = dense((3, d), ("embed", None, "heads"), name="qkv", **linear)(h_bnd)
        split = (b, n, self.heads, d // self.heads)
        q_bnhe, k_bnhe, v_bnhe = (part.reshape(split) for part in unstack(qkv))
        if output_bm is not None and half_window is None:
            q_bnhe, k_bnhe, theta = apply_rotary(q_bnhe, theta), apply_rotary(k_bnhe, theta), None
            q_bnd, x_bnd = (gather_tokens(x, output_bm) for x in (q_bnhe.reshape(b, n, d), x_bnd))
            q_bnhe = q_bnd.reshape(b, -1, *split[2:])
        parts = shard_attention_inputs(q_bnhe, k_bnhe, v_bnhe)
        y_bnd = attend(*parts, half_window, theta=theta, length=length).reshape(b, -1, d)
        if output_bm is not None and half_window is not None:  # local attention needs all queries
            y_bnd, x_bnd = (gather_tokens(x, output_bm) for x in (y_bnd, x_bnd))
        proj = dense(d, ("heads", "embed"), name="proj", **linear)
        x_bnd = x_bnd + proj(y_bnd).astype(jnp.float32)

        h_bnd = layer_norm(1e-5, self.dtype, "mlp_norm", bias=False)(x_bnd)
        up = dense((2, self.mlp_width), ("embed", None, "mlp"), name="fc1", **linear)(h_bnd)
        act_bnf, gate_bnf = unstack(up)
        h_bnf = ACTIVATIONS["gelu"](act_bnf) * gate_bnf
        return x_bnd + dense(d, ("mlp", "embed"), name="fc2", **linear)(h_bnf).astype(jnp.float32)


class Predictor(nn.Module):
    """Predictor with mask tokens, a position table, and ModernBERT or plain ViT layers.

    Attributes:
      kind: "modernbert" or "vit".
      encoder_width: width of the encoder's tokens.
      width: width of the layers.
      depth: number of layers.
      heads: number of attention heads per layer.
      mlp_width: hidden width of the MLPs.
      window: width of the attention window of ModernBERT's local layers.
      last_layer: index that the last layer has in the full ModernBERT; layers with an index
        divisible by 3 use global attention.
      table_grid: frames, rows and columns of the position table.
      class_tokens: number of the encoder's class tokens.
      dtype: dtype of the matrix products.
      remat: "none", "dots" or "full".
      unroll: unroll factor of the scan over a ViT's layers.
    """

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
        seen_bk: jax.Array | None = None,
    ) -> jax.Array:
        """Predicts the latents of the masked positions.

        Args:
          tokens_bnd: encoder output [b, class_tokens + k, encoder_width].
          keep_bk: int32 positions of the visible tokens.
          masked_bm: int32 positions of all other tokens.
          grid: frames, rows and columns of the clip.
          chosen_bm: indices into `masked_bm` of the latents to return; None for all. They do not
            affect the values of the latents, because all masked tokens take part in the attention.
          seen_bk: bool, which visible tokens the predictor gets; None for all. Mask tokens replace
            the others and the class tokens, which describe the whole clip.

        Returns:
          Float32 [b m width], in the order of the chosen positions.
        """
        if chosen_bm is None:
            output_bm = masked_bm + self.class_tokens
        else:
            output_bm = jnp.take_along_axis(masked_bm, chosen_bm, axis=1) + self.class_tokens
        x_bnd = self._assemble_tokens(tokens_bnd, keep_bk, masked_bm, grid, seen_bk)
        self.sow("intermediates", "sequence", x_bnd)
        x_bnd = shard_tokens(replicate_tokens(x_bnd))
        x_bnd = ProjectionHead(self.width, False, self.dtype, name="project")(x_bnd)
        self.sow("intermediates", "projected", x_bnd)
        if self.kind == "vit":
            block = Block(self.heads, self.mlp_width, 1.0, self.dtype, name="blocks")
            x_bnd, _ = scan_blocks(
                block, x_bnd, depth=self.depth, remat=self.remat, unroll=self.unroll
            )
            return gather_tokens(x_bnd, output_bm)
        return self._apply_modernbert(x_bnd, output_bm)

    def _assemble_tokens(self, tokens_bnd, keep_bk, masked_bm, grid, seen_bk):
        """Adds positions; returns class tokens, then visible and mask tokens in raster order."""
        c, d = self.class_tokens, self.encoder_width
        init = with_logical_axes(nn.initializers.normal(0.02), ("embed",))
        mask_token_d = self.param("mask_token", init, (d,), jnp.float32)
        tokens_bnd = hide_tokens(tokens_bnd, seen_bk, mask_token_d)
        b, m = masked_bm.shape
        masks_bmd = jnp.broadcast_to(mask_token_d[None, None], (b, m, d))
        # The inverse permutation of (visible, masked) restores raster order.
        inverse_bn = jnp.argsort(jnp.concatenate([keep_bk, masked_bm], axis=1), axis=1)
        x_bnd = jnp.concatenate([tokens_bnd[:, c:], masks_bmd], axis=1)
        x_bnd = jnp.concatenate([tokens_bnd[:, :c], gather_tokens(x_bnd, inverse_bn)], axis=1)
        return x_bnd + broadcast_leading(
            PositionTable(d, self.table_grid, c, name="position")(grid), b
        )

    def _apply_modernbert(self, x_bnd, output_bm=None):
        """Applies all layers; the last one computes only the tokens at `output_bm`."""
        length = x_bnd.shape[1]
        spare = padded_length(x_bnd, self.dtype) - length
        x_bnd = jnp.pad(x_bnd, ((0, 0), (0, spare), (0, 0)))
        for i in range(self.depth):
            index = self.last_layer - self.depth + 1 + i
            window = None if index % 3 == 0 else self.window
            layer = ModernBertLayer
            if self.remat != "none":
                layer = nn.remat(layer, static_argnums=3)
            layer = layer(self.heads, self.mlp_width, window, self.dtype, name=f"layer{i}")
            output = output_bm if i == self.depth - 1 else None
            x_bnd = layer(shard_tokens(x_bnd), output, length if spare else None)
            self.sow("intermediates", f"after{i}", x_bnd)
        return replicate_tokens(x_bnd if output_bm is not None else x_bnd[:, :length])


class VJepaPredictor(nn.Module):
    """V-JEPA's narrow predictor (arXiv 2404.08471) with fixed position embeddings.

    The mask token is initialized to zero. The encoder's class tokens get no position embedding.
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
        seen_bk: jax.Array | None = None,
    ) -> jax.Array:
        """Predicts the latents of the masked positions; see `Predictor`."""
        c, d = self.class_tokens, self.width
        position_nd = jnp.asarray(sincos_table(d, grid, 0))
        init = with_logical_axes(nn.initializers.zeros, ("embed",))
        mask_token_d = self.param("mask_token", init, (d,), jnp.float32)
        embed = dense(d, (None, "embed"), name="embed", dtype=self.dtype)
        x_bnd = hide_tokens(embed(tokens_bnd).astype(jnp.float32), seen_bk, mask_token_d)
        # Attention does not depend on the order of tokens, so mask tokens follow the visible
        # tokens.
        visible_bkd = x_bnd[:, c:] + position_nd[keep_bk]
        masked_bmd = mask_token_d[None, None] + position_nd[masked_bm]
        x_bnd = jnp.concatenate([x_bnd[:, :c], visible_bkd, masked_bmd], axis=1)
        block = VisionBlock(self.heads, self.mlp_width, self.dtype, name="blocks")
        x_bnd, _ = scan_blocks(block, x_bnd, depth=self.depth, remat=self.remat, unroll=self.unroll)
        masked_bmd = x_bnd[:, -masked_bm.shape[1] :]
        if chosen_bm is not None:
            masked_bmd = gather_tokens(masked_bmd, chosen_bm)
        return layer_norm(1e-6, self.dtype, "norm")(masked_bmd).astype(jnp.float32)


def check_config(config: Any) -> None:
    """Checks `config.predictor`.

    Raises:
      UserError: the kind is unknown, or the width is not divisible by the number of heads or, with
        fixed positions, by 16, or, with rotary positions, by twice the number of heads.
    """
    check_heads(config, "predictor")
    p = config.predictor
    if p.kind not in KINDS:
        raise UserError(f"predictor.kind={p.kind!r} must be one of {', '.join(map(repr, KINDS))}")
    if p.kind == "vjepa" and p.width % 16:
        raise UserError(f"predictor.width={p.width} of kind 'vjepa' must be divisible by 16")
    if p.kind == "modernbert" and p.width % (2 * p.heads):  # rotary positions turn pairs
        raise UserError(
            f"config.predictor.width={p.width} of kind 'modernbert' must be divisible by twice "
            f"predictor.heads={p.heads}"
        )


def unused_options(config: Any) -> dict[str, str]:
    """Returns the options of `config.predictor` that its kind does not use, with the reason."""
    if config.predictor.kind == "modernbert":
        return {}
    reason = f"config.predictor.kind={config.predictor.kind!r} does not read it: set the kind to "
    return {f"predictor.{name}": f"{reason}'modernbert'" for name in ("window", "last_layer")}


def from_config(config: Any) -> Predictor | VJepaPredictor:
    """Builds the predictor of a run's config."""
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
