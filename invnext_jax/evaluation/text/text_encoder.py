"""Text encoders: a text tower with its tokenizer.

Shape key: j captions, n tokens, d width.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from invnext_jax.checkpointing import frozen_hashes
from invnext_jax.errors import UserError
from invnext_jax.evaluation.text.tokenizers import (
    FileTokenizer,
    Tokenizer,
    WordTokenizer,
    split_words,
)
from invnext_jax.models.layers import scale_kernels
from invnext_jax.models.text_tower import TextTower
from invnext_jax.training import mesh as mesh_lib
from invnext_jax.weights import import_weights
from invnext_jax.weights.files import open_checkpoint

BATCH = 256  # number of captions that are encoded at once
# Sizes of the text tower that is used without a published one, for example on the synthetic world.
SMALL = {"width": 64, "depth": 2, "heads": 4, "mlp_width": 128, "out_width": 64}
MAX_WORDS = 64  # maximum number of words of a caption
_DEVIATION = 0.02  # standard deviation of the initial parameters; too small for a narrow tower


@dataclasses.dataclass(frozen=True, eq=False)
class TextEncoder:
    """A text tower with its tokenizer.

    Attributes:
      name: short name for messages.
      tower: module of the text tower.
      params: parameters, float32 NumPy arrays.
      tokenizer: its tokenizer.
    """

    name: str
    tower: TextTower
    params: Any
    tokenizer: Tokenizer

    @property
    def key(self) -> str:
        """Hash of the parameters, SHA-256."""
        return frozen_hashes.hash_groups({"params": self.params})["params"]

    def tokenize(self, texts: Sequence[str]) -> np.ndarray:
        """Returns token ids, int32 [j n]; prints how many texts were too long."""
        words_jn, cut = self.tokenizer.tokenize(texts)
        if cut:
            print(
                f"note: {cut} of {len(texts)} captions have more than {self.tokenizer.length} "
                f"tokens, the length of {self.name}, and are cut",
                flush=True,
            )
        return words_jn

    def encode(self, params: Any, words_jn: np.ndarray) -> np.ndarray:
        """Encodes captions in batches, as unit vectors float32 [j d].

        Args:
          params: `self.params`, or trained ones.
          words_jn: output of `tokenize`.
        """
        apply = jax.jit(self.tower.apply)
        params, found = jax.device_put(params), []
        size = min(BATCH, len(words_jn))
        for first in range(0, len(words_jn), size):
            part_jn = words_jn[first : first + size]
            padded_jn = np.pad(part_jn, ((0, size - len(part_jn)), (0, 0)), mode="edge")
            found.append(jax.device_get(apply({"params": params}, padded_jn))[: len(part_jn)])
        return np.concatenate(found)


def load_text_encoder(folder: str | Path) -> TextEncoder:
    """Loads the text tower and the tokenizer of a SigLIP, SigLIP 2 or CLIP folder.

    Raises:
      UserError: the folder has no such tower, or its tokenizer is missing, damaged or too large.
    """
    imported = import_weights.read_text_tower(open_checkpoint(folder), folder)
    tower = TextTower(**imported.config["text"])
    lower = not tower.causal  # the tokenizer.json of CLIP converts to lower case
    tokenizer = FileTokenizer(folder, tower.length, lower=lower)
    if tokenizer.words > tower.words:
        raise UserError(
            f"the tokenizer of {folder} has {tokenizer.words} tokens, but the model has "
            f"{tower.words}: use the tokenizer that belongs to the model"
        )
    return TextEncoder(Path(folder).name, tower, imported.params["text"], tokenizer)


def make_text_encoder(texts: Sequence[str], seed: int) -> TextEncoder:
    """Makes a small text encoder with random parameters.

    Its vocabulary is that of `texts`, with at most `tokenizers.MAX_VOCABULARY` words.
    """
    longest = max(len(split_words(text)) for text in texts)
    tokenizer = WordTokenizer(texts, min(max(1, longest), MAX_WORDS))
    tower = TextTower(words=tokenizer.words, length=tokenizer.length, **SMALL)
    inputs_jn = jnp.zeros((1, tokenizer.length), jnp.int32)
    params = mesh_lib.unbox(jax.jit(tower.init)(jax.random.key(seed), inputs_jn)["params"])
    # With this gain, layers keep the scale of their inputs, and embeddings have length 1.
    gain = 1 / (_DEVIATION * tower.width**0.5)
    params = scale_kernels(params, gain, without=())
    params["embed"]["embedding"] *= gain
    params["position"] *= gain
    return TextEncoder("the small text tower", tower, jax.device_get(params), tokenizer)
