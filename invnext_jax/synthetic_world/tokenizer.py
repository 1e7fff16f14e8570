"""Captions of the embedded world as word numbers.

Shape key: j captions, n words.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from invnext_jax.synthetic_world.captions import Caption

PAD = "<pad>"


def build_vocabulary(captions: Sequence[Caption]) -> dict[str, int]:
    """Numbers of all words of the captions, in alphabetical order; 0 is padding."""
    words = sorted({word for caption in captions for word in caption.text.split()})
    return {PAD: 0} | {word: number for number, word in enumerate(words, start=1)}


def tokenize(captions: Sequence[Caption], vocabulary: Mapping[str, int], length: int) -> np.ndarray:
    """Word numbers of captions, int32 [j n], padded at the end.

    Raises:
      ValueError: a caption has more than `length` words.
    """
    words_jn = np.zeros((len(captions), length), np.int32)
    for row, caption in enumerate(captions):
        numbers = [vocabulary[word] for word in caption.text.split()]
        if len(numbers) > length:
            raise ValueError(f"{caption.text!r} has {len(numbers)} words, more than {length=}")
        words_jn[row, : len(numbers)] = numbers
    return words_jn
