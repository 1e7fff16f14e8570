"""Safetensors on disk, tensor by tensor: read on demand (one file or shards), written as a stream.

Nothing here needs torch, and nothing unpickles.
"""

import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from invnext_jax.errors import UserError

_CODES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_PICKLES = (".bin", ".pth", ".pt", ".ckpt", ".pkl", ".tar")
_CONVERT = (
    "pickles can run any code, so they are not read; convert it once where it comes from: "
    "safetensors.torch.save_file(torch.load(FILE, weights_only=True), 'model.safetensors'), or of "
    "what lies in it under 'module', 'model' or 'state_dict'"
)


class Tensor(NamedTuple):
    """A tensor that is not read yet: `read()` gives it as float32."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


class Checkpoint(NamedTuple):
    """Tensors by name, and config.json beside them ({} if there is none)."""

    tensors: dict[str, Tensor]
    config: dict[str, Any]


class Reading(Mapping):
    """Tensors as a mapping from name to array that reads at each look-up."""

    def __init__(self, tensors: Mapping[str, Tensor]):
        self._tensors = tensors

    def __getitem__(self, name: str) -> np.ndarray:
        return self._tensors[name].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def open_checkpoint(source: str | Path) -> Checkpoint:
    """Opens a .safetensors file, or a folder as Hugging Face's tools write it.

    Args:
      source: file, or folder with model.safetensors, or with model.safetensors.index.json and the
        shards that it names. config.json is looked for in the same folder.

    Raises:
      UserError: nothing to read there, a pickle, a missing shard, a damaged file.
    """
    source = Path(source)
    if source.is_dir():
        return Checkpoint(_open_folder(source), _read_config(source))
    _refuse_pickle(source)
    if not source.is_file():
        raise UserError(f"there is no file or folder {source}")
    return Checkpoint(_open_file(source), _read_config(source.parent))


def write_tensors(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    *,
    dtype: str = "float32",
    metadata: Mapping[str, str],
) -> None:
    """Writes a .safetensors file; only one tensor at a time is held in memory.

    Args:
      path: the file; it must not exist.
      tensors: by name, in the order of the file.
      dtype: "float32", "float16" or "bfloat16".
      metadata: goes into the header.
    """
    code, kind = _CODES[dtype], jnp.dtype(dtype)
    header, start = {"__metadata__": dict(metadata)}, 0
    for name, tensor in tensors.items():
        end = start + kind.itemsize * math.prod(tensor.shape)
        header[name] = {"dtype": code, "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format wants the data aligned
    with open(path, "xb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            file.write(np.ascontiguousarray(tensor.read(), kind).reshape(-1).view(np.uint8).data)


def _open_folder(folder: Path) -> dict[str, Tensor]:
    if (folder / SINGLE).is_file():
        return _open_file(folder / SINGLE)
    if (folder / INDEX).is_file():
        return _open_shards(folder)
    for path in sorted(folder.iterdir()):
        _refuse_pickle(path)
    raise UserError(f"{folder} holds neither {SINGLE} nor {INDEX}: name the checkpoint's folder")


def _open_shards(folder: Path) -> dict[str, Tensor]:
    files = _read_json(folder / INDEX).get("weight_map")
    if not isinstance(files, dict) or not files:
        raise UserError(f"{folder / INDEX} names no shards (weight_map): download it again")
    # A name in an index may not lead out of the folder.
    shards = sorted({Path(str(file)).name for file in files.values()})
    missing = [shard for shard in shards if not (folder / shard).is_file()]
    if missing:
        raise UserError(
            f"{folder} lacks {len(missing)} of {len(shards)} shards: {', '.join(missing)}; "
            "download them again"
        )
    found = {shard: _open_file(folder / shard) for shard in shards}
    tensors = {}
    for name, file in files.items():
        shard = Path(str(file)).name
        if name not in found[shard]:
            raise UserError(f"{folder / shard} lacks the tensor {name}: download it again")
        tensors[name] = found[shard][name]
    return tensors


def _open_file(path: Path) -> dict[str, Tensor]:
    if path.suffix != ".safetensors":
        raise UserError(f"{path} is no .safetensors file")
    # Imported here and below, so that a step on random clips needs no safetensors (gpu-check).
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged ({error}): download or export it again") from error
    return {name: Tensor(shape, _reader(path, name)) for name, shape in shapes.items()}


def _reader(path: Path, name: str) -> Callable[[], np.ndarray]:
    def read():
        from safetensors import safe_open

        with safe_open(path, "np") as file:
            return np.asarray(file.get_tensor(name), dtype=np.float32)

    return read


def _read_config(folder: Path) -> dict[str, Any]:
    return _read_json(folder / "config.json") if (folder / "config.json").is_file() else {}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged ({error}): download it again") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no table of values: download it again")
    return found


def _refuse_pickle(path: Path) -> None:
    if path.suffix in _PICKLES:
        raise UserError(f"{path} is a pickle: {_CONVERT}")
