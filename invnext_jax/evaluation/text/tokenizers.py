"""Tokenizers: the published tokenizer of a text tower, or a tokenizer of words.

Shape key: j captions, n tokens.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from invnext_jax import json_file
from invnext_jax.errors import UserError

MAX_BYTES = 2**27  # SigLIP 2's tokenizer.json is 34 MB
FILE, SETTINGS, SPECIAL = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
ADVICE = "download the tokenizer of the model again"
_WORD = re.compile(r"\w+")


class Tokenizer(Protocol):
    """A tokenizer with a fixed number of tokens for each caption.

    Attributes:
      length: number of tokens of a caption, including padding.
      words: size of the vocabulary.
    """

    length: int
    words: int

    def tokenize(self, texts: Sequence[str]) -> tuple[np.ndarray, int]:
        """Returns token ids, int32 [j n], and the number of captions that were too long and cut."""
        ...


class WordTokenizer:
    """Tokenizer of lower-case words. Token 0 is padding, and 1 is any word not in the vocabulary.

    Args:
      texts: texts whose words are the vocabulary.
      length: maximum number of words of a caption.
    """

    def __init__(self, texts: Sequence[str], length: int):
        found = sorted({word for text in texts for word in split_words(text)})
        self._ids = {word: number for number, word in enumerate(found, start=2)}
        self.length, self.words = length, len(found) + 2

    def tokenize(self, texts: Sequence[str]) -> tuple[np.ndarray, int]:
        """See `Tokenizer`."""
        rows = [[self._ids.get(word, 1) for word in split_words(text)] for text in texts]
        return pad_rows(rows, self.length, 0), sum(len(row) > self.length for row in rows)


def split_words(text: str) -> list[str]:
    """Returns the words of a text in lower case."""
    return _WORD.findall(text.lower())


def pad_rows(rows: Sequence[Sequence[int]], length: int, pad: int) -> np.ndarray:
    """Returns rows of ids that are cut or padded at the end, int32 [j n]."""
    words_jn = np.full((len(rows), length), pad, np.int32)
    for number, row in enumerate(rows):
        words_jn[number, : len(row)] = row[:length]
    return words_jn


class FileTokenizer:
    """The tokenizer in the tokenizer.json of a model's folder.

    Args:
      folder: folder in the format of transformers.
      length: number of tokens of a caption. The end token is kept when a caption is cut.
      lower: whether texts are converted to lower case, as SigLIP 2 needs.

    Raises:
      UserError: the file is missing or damaged, its padding token is unknown, or the package
        `tokenizers` is not installed.
    """

    def __init__(self, folder: str | Path, length: int, *, lower: bool):
        self._lower, self.length = lower, length
        self._tokenizer = _read_file(Path(folder))
        settings = _read_settings(Path(folder))
        _add_end_token(self._tokenizer, settings, Path(folder))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(length)
        self._pad = _find_token(self._tokenizer, settings, "pad_token", Path(folder))
        self.words = self._tokenizer.get_vocab_size()

    def tokenize(self, texts: Sequence[str]) -> tuple[np.ndarray, int]:
        """See `Tokenizer`."""
        texts = [text.lower() for text in texts] if self._lower else list(texts)
        found = self._tokenizer.encode_batch(texts)
        cut = sum(bool(encoding.overflowing) for encoding in found)
        return pad_rows([encoding.ids for encoding in found], self.length, self._pad), cut


def _read_file(folder: Path) -> Any:
    path = folder / FILE
    if not path.is_file():
        raise UserError(
            f"{folder} has no {FILE}: download it, or write it with transformers: "
            "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        )
    json_file.read_object(path, ADVICE, MAX_BYTES)
    try:
        import tokenizers
    except ImportError as error:
        raise UserError(
            f"reading {path} needs the package tokenizers: pip install 'invnext-jax[text]'"
        ) from error
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises no narrower class
        reason = str(error)[:200]
        raise UserError(f"{path} is not a tokenizer ({reason}): {ADVICE}") from error


def _read_settings(folder: Path) -> dict[str, Any]:
    """Returns the contents of the other files of a tokenizer; files may be missing."""
    found = {}
    for name in (SPECIAL, SETTINGS):
        if (folder / name).is_file():
            found |= json_file.read_object(folder / name, ADVICE)
    return found


def _find_token(tokenizer: Any, settings: dict[str, Any], name: str, folder: Path) -> int:
    """Returns the id of a special token such as "pad_token"."""
    token = settings.get(name)
    text = token.get("content") if isinstance(token, dict) else token
    number = tokenizer.token_to_id(text) if isinstance(text, str) else None
    if number is None:
        raise UserError(
            f"{folder} has {name}={text!r}, which is not a token of {FILE}: add it to {SETTINGS}"
        )
    return number


def _add_end_token(tokenizer: Any, settings: dict[str, Any], folder: Path) -> None:
    """Adds the end token if the settings require it and tokenizer.json does not add it."""
    if not settings.get("add_eos_token"):
        return
    number = _find_token(tokenizer, settings, "eos_token", folder)
    if tokenizer.encode("a").ids[-1:] == [number]:
        return
    from tokenizers.processors import TemplateProcessing

    end = tokenizer.id_to_token(number)
    tokenizer.post_processor = TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, number)]
    )
