"""Tokenizers: the published tokenizer of a text tower, or a tokenizer of words.

The published tokenizer runs in a worker process, because its file may contain regular expressions
and replacements that take endless time or memory, and the package `tokenizers` crashes on some
damaged files.

Shape key: j captions, n tokens.
"""

import collections
import dataclasses
import functools
import importlib.util
import os
import re
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from invnext_jax import json_file
from invnext_jax.errors import UserError
from invnext_jax.workers.process_worker import ProcessWorker, WorkerDiedError
from invnext_jax.workers.results import are_arrays
from invnext_jax.workers.time_limits import TimeLimitError

MAX_BYTES = 2**27  # SigLIP 2's tokenizer.json is 34 MB
FILE, SETTINGS, SPECIAL = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
ADVICE = "download the tokenizer of the model again"
TEXTS_PER_CALL = 4096
SECONDS = 300.0  # time limit for these texts, and for reading the files before the first ones
MAX_VOCABULARY = 2**16  # words of `WordTokenizer`
MAX_COUNTED = 2**20  # words that are counted at a time
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
      texts: texts whose words are the vocabulary; only the most frequent `MAX_VOCABULARY` are kept.
      length: maximum number of words of a caption.
    """

    def __init__(self, texts: Sequence[str], length: int):
        found = sorted(_count_words(texts))
        self._ids = {word: number for number, word in enumerate(found, start=2)}
        self.length, self.words = length, len(found) + 2

    def tokenize(self, texts: Sequence[str]) -> tuple[np.ndarray, int]:
        """See `Tokenizer`."""
        rows = [[self._ids.get(word, 1) for word in split_words(text)] for text in texts]
        return pad_rows(rows, self.length, 0), sum(len(row) > self.length for row in rows)


def _count_words(texts: Sequence[str]) -> list[str]:
    """Returns the most frequent words. Words with the same count are kept in order of appearance.

    The counts are exact for up to `MAX_COUNTED` words.
    """
    counts: collections.Counter[str] = collections.Counter()
    for text in texts:
        counts.update(split_words(text))
        if len(counts) > MAX_COUNTED:  # keeps the memory limited
            counts = collections.Counter(dict(counts.most_common(MAX_VOCABULARY)))
    return [word for word, _ in counts.most_common(MAX_VOCABULARY)]


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
        self._lower, self.length, self._path = lower, length, Path(folder) / FILE
        _check_file(self._path)
        self._worker = ProcessWorker(_Encode(str(folder), length))
        weakref.finalize(self, self._worker.close)
        self.words = self._call([])["words"]

    def tokenize(self, texts: Sequence[str]) -> tuple[np.ndarray, int]:
        """See `Tokenizer`.

        Raises:
          UserError: the tokenizer cannot encode the texts.
        """
        texts = [text.lower() for text in texts] if self._lower else list(texts)
        words_jn, cut = np.zeros((len(texts), self.length), np.int32), 0
        for first in range(0, len(texts), TEXTS_PER_CALL):
            part = slice(first, first + TEXTS_PER_CALL)
            found = self._call(texts[part])
            words_jn[part], cut = found["words_jn"], cut + int(found["cut_j"].sum())
        return words_jn, cut

    def _call(self, texts: list[str]) -> dict[str, Any]:
        try:
            found = self._worker.call((texts,), SECONDS)
        except TimeLimitError as error:
            raise UserError(
                f"{self._path} needs more than {SECONDS:g} s for {len(texts)} captions: {ADVICE}"
            ) from error
        except WorkerDiedError as error:
            raise UserError(f"the tokenizer {self._path} crashed ({error}): {ADVICE}") from error
        except RuntimeError as error:  # the last line of a traceback is the reason
            reason = str(error).strip().rpartition("\n")[2][:200]
            raise UserError(f"{self._path} cannot be used ({reason}): {ADVICE}") from error
        if isinstance(found, str):
            raise UserError(found)
        return found


def _check_file(path: Path) -> None:
    if not os.path.isfile(path):
        raise UserError(
            f"{path.parent} has no {FILE}: download it, or write it with transformers: "
            "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        )
    if importlib.util.find_spec("tokenizers") is None:
        raise UserError(
            f"reading {path} needs the package tokenizers: pip install 'invnext-jax[text]'"
        )


@dataclasses.dataclass(frozen=True)
class _Encode:
    """Encodes texts in a worker process.

    Attributes:
      folder: folder with the tokenizer.
      length: number of tokens of a text.
    """

    folder: str
    length: int

    def __call__(self, texts: list[str]) -> dict[str, Any] | str:
        """Returns ids, int32 [j n], and whether each text was cut; or the reason of an error."""
        try:
            tokenizer, pad, words = _load(Path(self.folder), self.length)
        except UserError as error:
            return str(error)
        found = tokenizer.encode_batch(texts)
        rows = [encoding.ids for encoding in found]
        if (largest := max(map(max, filter(None, rows)), default=0)) >= words:
            return f"{Path(self.folder) / FILE} adds the unknown token {largest}: {ADVICE}"
        cut_j = np.array([bool(encoding.overflowing) for encoding in found], bool)
        return {"words_jn": pad_rows(rows, self.length, pad), "cut_j": cut_j, "words": words}

    def is_valid(self, result: Any, texts: list[str]) -> bool:
        """Returns whether a result of the worker has the structure that `__call__` returns."""
        if isinstance(result, str):
            return True
        if not isinstance(result, dict) or type(words := result.get("words")) is not int:
            return False
        arrays = {name: value for name, value in result.items() if name != "words"}
        forms = {"words_jn": (np.int32, (len(texts), self.length)), "cut_j": (bool, (len(texts),))}
        ids_jn = result.get("words_jn")
        return are_arrays(arrays, forms) and bool(((ids_jn >= 0) & (ids_jn < words)).all())


@functools.lru_cache(maxsize=1)
def _load(folder: Path, length: int) -> tuple[Any, int, int]:
    """Returns a tokenizer that cuts texts, the id of its padding, and 1 + the largest id."""
    tokenizer, settings = _read_file(folder / FILE), _read_settings(folder)
    _add_end_token(tokenizer, settings, folder)
    tokenizer.no_padding()
    tokenizer.enable_truncation(length)
    words = 1 + max(tokenizer.get_vocab().values(), default=0)
    return tokenizer, _find_token(tokenizer, settings, "pad_token", folder), words


def _read_file(path: Path) -> Any:
    import tokenizers

    json_file.read_object(path, ADVICE, MAX_BYTES)
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises no narrower class
        reason = str(error)[:200]
        raise UserError(f"{path} is not a tokenizer ({reason}): {ADVICE}") from error


def _read_settings(folder: Path) -> dict[str, Any]:
    """Returns the contents of the files in `SPECIAL` and `SETTINGS`; missing files are skipped."""
    found = {}
    for name in (SPECIAL, SETTINGS):
        if os.path.isfile(folder / name):
            found |= json_file.read_object(folder / name, ADVICE)
    return found


def _find_token(tokenizer: Any, settings: dict[str, Any], name: str, folder: Path) -> int:
    """Returns the id of a special token such as "pad_token"."""
    token = settings.get(name)
    text = token.get("content") if isinstance(token, dict) else token
    number = tokenizer.token_to_id(text) if isinstance(text, str) else None
    if number is None:
        raise UserError(
            f"{folder} has {name}={ascii(text)[:80]}, which is not a token of {FILE}: add it to "
            f"{SETTINGS}"
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
