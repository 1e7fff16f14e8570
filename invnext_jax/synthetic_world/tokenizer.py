"""Word-level tokenizer for captions of the synthetic world.

Shape key: j captions, n tokens.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from invnext_jax.synthetic_world.captions import Caption

PAD = "<pad>"


def build_vocabulary(captions: Sequence[Caption]) -> dict[str, int]:
    """Returns the id of each word in the captions, in alphabetical order from 1; 0 is padding."""
    words = sorted({word for caption in captions for word in caption.text.split()})
    return {PAD: 0} | {word: number for number, word in enumerate(words, start=1)}


def tokenize(captions: Sequence[Caption], vocabulary: Mapping[str, int], length: int) -> np.ndarray:
    """Returns the token ids of captions, int32 [j n] with n = `length`, padded at the end.

    Raises:
      ValueError: A caption has more than `length` words.
    """
    tokens_jn = np.zeros((len(captions), length), np.int32)
    for row, caption in enumerate(captions):
        ids = [vocabulary[word] for word in caption.text.split()]
        if len(ids) > length:
            raise ValueError(f"{caption.text!r} has {len(ids)} words, more than {length=}")
        tokens_jn[row, : len(ids)] = ids
    return tokens_jn
