"""Checks how the arrays of a checkpoint are compressed."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tensorstore

from invnext_jax.checkpointing import storage

# Orbax writes Zstandard. TensorStore decompresses other formats before it compares the sizes.
_COMPRESSORS = {"zstd", "none"}
_CODECS = {"bytes", "crc32c", "sharding_indexed", "transpose", "zstd"}  # of zarr 3


def check_compressors(state: storage.Path, names: Sequence[str]) -> None:
    """Checks that arrays have no other compressors than those of Orbax.

    Args:
      state: local folder of the state of a checkpoint.
      names: names of arrays.

    Raises:
      ValueError: an array has another compressor, or its metadata is damaged.
    """
    base: dict[str, Any] = {"driver": "file", "path": f"{state}/"}
    if storage.exists(state / "manifest.ocdbt"):
        base = {"driver": "ocdbt", "base": base}
    store = tensorstore.KvStore.open(base).result()
    keys = [f"{name}/{file}" for name in names for file in (".zarray", "zarr.json")]
    for key, reading in [(key, store.read(key)) for key in keys]:
        content = json.loads(reading.result().value or "{}")
        if unknown := _find_compressors(content) - _COMPRESSORS - _CODECS:
            raise ValueError(f"{key} has the unknown compressors {sorted(unknown)!r:.200}")


def _find_compressors(content: Mapping[str, Any]) -> set[str]:
    compressor = content.get("compressor") or {"id": "none"}
    return {str(compressor["id"]), *_find_codecs(content.get("codecs") or ())}


def _find_codecs(codecs: Sequence[Any]) -> Iterator[str]:
    for codec in codecs:
        codec = codec if isinstance(codec, dict) else {"name": codec}
        yield str(codec["name"])
        options = codec.get("configuration", {})
        for name in ("codecs", "index_codecs"):
            yield from _find_codecs(options.get(name, ()))
