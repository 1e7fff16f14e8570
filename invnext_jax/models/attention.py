"""Scaled dot-product attention: the one place that chooses a kernel.

Shape key: b batch, n query tokens, m key tokens, h heads, e head width.
"""

import jax


def attend(
    q_bnhe: jax.Array, k_bmhe: jax.Array, v_bmhe: jax.Array, window: int | None = None
) -> jax.Array:
    """softmax(q k^T / sqrt(e)) v with the softmax in float32.

    Args:
      q_bnhe: queries.
      k_bmhe: keys.
      v_bmhe: values.
      window: keys farther than this many positions from the query are not seen; None sees all.

    Returns:
      [b n h e] in the dtype of the queries.
    """
    local = None if window is None else (window, window)
    return jax.nn.dot_product_attention(q_bnhe, k_bmhe, v_bmhe, local_window_size=local)
