"""Safetensors checkpoints: lazy reading of one file or of shards, and writing tensor by tensor.

Neither PyTorch nor pickle is used.
"""

import dataclasses
import json
import math
import os
import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from invnext_jax import json_file, regular_file
from invnext_jax.errors import UserError

_DTYPE_CODES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_READABLE_CODES = ("F64", *_DTYPE_CODES.values())
MAX_TENSORS = 2**13  # each is read separately, and each reading parses the header of the file
MAX_HEADER_BYTES = 2**24  # 2 KiB for each tensor
SINGLE_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
_WRAPPERS = re.compile(r"\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_MODULES = re.compile(r"(module\.)*")
_PICKLE_SUFFIXES = (".bin", ".pth", ".pt", ".ckpt", ".pkl", ".tar")
_CONVERT = (
    "pickles are not read because they can run any code. Convert it on a machine with PyTorch: "
    "safetensors.torch.save_file(torch.load(FILE, weights_only=True), 'model.safetensors'). If the "
    "loaded dict has an entry 'module', 'model' or 'state_dict', save that entry"
)


@dataclasses.dataclass(frozen=True, eq=False)
class LazyTensor:
    """A tensor that is read on demand, by `read()` or by a function of NumPy, as float32."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        del copy  # each call reads the tensor again
        return np.asarray(self.read(), dtype)


class Checkpoint(NamedTuple):
    """An opened checkpoint.

    Attributes:
      tensors: tensors by name.
      config: contents of config.json in the same folder; {} if there is none.
    """

    tensors: dict[str, LazyTensor]
    config: dict[str, Any]


class LazyArrays(Mapping):
    """Mapping from tensor names to arrays. Each lookup reads the file."""

    def __init__(self, tensors: Mapping[str, LazyTensor]):
        self._tensors = tensors

    def __getitem__(self, name: str) -> np.ndarray:
        return self._tensors[name].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def open_checkpoint(source: str | Path) -> Checkpoint:
    """Opens a .safetensors file or a folder in Hugging Face format.

    Args:
      source: a file, or a folder with either model.safetensors or model.safetensors.index.json and
        its shards. config.json is read from the same folder.

    Raises:
      UserError: there is no checkpoint, the file is a pickle, or a file is missing or damaged.
    """
    source = Path(source)
    files = source.glob("*.safetensors") if os.path.isdir(source) else [source]
    if problem := regular_file.describe_sparse(files):
        raise UserError(f"{source} is damaged ({problem}): download it again")
    if os.path.isdir(source):
        return Checkpoint(_strip_wrappers(_open_folder(source), source), _read_config(source))
    _reject_pickle(source)
    if not os.path.isfile(source):
        raise UserError(f"{source} {regular_file.describe_missing(source)}: check the path")
    return Checkpoint(_strip_wrappers(_open_file(source), source), _read_config(source.parent))


def _strip_wrappers(tensors: dict[str, LazyTensor], source: Path) -> dict[str, LazyTensor]:
    """Removes prefixes added to names by torch.compile, FSDP and DistributedDataParallel."""
    renamed = {name: _WRAPPERS.sub("", name) for name in tensors}
    # A model may have a submodule "module". DistributedDataParallel adds the prefix to all names.
    prefix = min((_MODULES.match(name).end() for name in renamed.values()), default=0)
    renamed = {name: new[prefix:] for name, new in renamed.items()}
    if len(set(renamed.values())) < len(renamed):
        raise UserError(
            f"{source} has some tensors twice, with and without a prefix such as '_orig_mod.': "
            "save only one of the two models"
        )
    return {renamed[name]: tensor for name, tensor in tensors.items()}


def write_tensors(
    path: str | Path,
    tensors: Mapping[str, LazyTensor],
    *,
    dtype: str = "float32",
    metadata: Mapping[str, str],
) -> None:
    """Writes a .safetensors file, with only one tensor at a time in memory.

    Args:
      path: the file; it must not exist.
      tensors: tensors by name, in the order of writing.
      dtype: "float32", "float16" or "bfloat16".
      metadata: metadata for the header.

    Raises:
      UserError: a finite value is too large for `dtype`.
    """
    code, np_dtype = _DTYPE_CODES[dtype], jnp.dtype(dtype)
    header, start = {"__metadata__": dict(metadata)}, 0
    for name, tensor in tensors.items():
        end = start + np_dtype.itemsize * math.prod(tensor.shape)
        header[name] = {"dtype": code, "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format requires 8-byte alignment of the data
    with open(path, "xb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, tensor in tensors.items():
            file.write(_cast(name, tensor.read(), np_dtype).reshape(-1).view(np.uint8).data)


def _cast(name: str, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Converts a tensor to a contiguous array. Raises a `UserError` if a value overflows."""
    with np.errstate(over="ignore"):
        converted = np.ascontiguousarray(array, dtype)
    overflows = np.isinf(converted) & np.isfinite(array) if dtype != np.float32 else None
    if overflows is not None and overflows.any():
        value = np.asarray(array)[overflows].flat[0]
        raise UserError(
            f"{name} holds {value:g}, which {dtype.name} cannot represent (its largest value is "
            f"{float(jnp.finfo(dtype).max):g}): use --dtype=float32"
            + " or --dtype=bfloat16"
            * (dtype == np.float16)
        )
    return converted


def require_model_type(config: Mapping[str, Any], kind: str, types: Sequence[str]) -> None:
    """Checks that config.json describes one of the model types that can be imported as `kind`.

    Raises:
      UserError: config.json describes a different type of model.
    """
    model_type = config.get("model_type")
    if model_type not in types:
        raise UserError(
            f"config.json has model_type={model_type!r}, but --kind={kind} needs "
            f"{' or '.join(types)}: change --kind or use a different checkpoint"
        )


def require_values(config: Mapping[str, Any], supported: Mapping[str, Any]) -> None:
    """Checks the options in config.json for which only one value is supported.

    Args:
      config: contents of config.json; missing options are accepted.
      supported: the supported value of each option.

    Raises:
      UserError: an option has an unsupported value.
    """
    for name, value in supported.items():
        if config.get(name, value) != value:
            raise UserError(
                f"config.json has {name}={config[name]!r}, but only {value!r} is supported: use "
                "a different checkpoint"
            )


def _open_folder(folder: Path) -> dict[str, LazyTensor]:
    if os.path.isfile(folder / SINGLE_FILE):
        return _open_file(folder / SINGLE_FILE)
    if os.path.isfile(folder / INDEX_FILE):
        return _open_shards(folder)
    for path in sorted(folder.iterdir()):
        _reject_pickle(path)
    raise UserError(
        f"{folder} has neither {SINGLE_FILE} nor {INDEX_FILE}: use the folder of the checkpoint"
    )


def _open_shards(folder: Path) -> dict[str, LazyTensor]:
    files = json_file.read_object(folder / INDEX_FILE).get("weight_map")
    if not isinstance(files, dict) or not files:
        raise UserError(f"{folder / INDEX_FILE} lists no shards (weight_map): download it again")
    _check_count(len(files), folder / INDEX_FILE)
    # Only the file name is used, so that the index cannot refer to files outside the folder.
    shards = sorted({Path(str(file)).name for file in files.values()})
    existing = {path.name for path in folder.iterdir() if os.path.isfile(path)}
    missing = [shard for shard in shards if shard not in existing]
    if missing:
        raise UserError(
            f"{folder} lacks {len(missing)} of {len(shards)} shards ({', '.join(missing)[:1000]}): "
            "download them again"
        )
    names_of_shard = {shard: [] for shard in shards}
    for name, file in files.items():
        names_of_shard[Path(str(file)).name].append(name)
    tensors = {}
    for shard, names in names_of_shard.items():
        found = _open_file(folder / shard)
        if missing := [name for name in names if name not in found]:
            raise UserError(f"{folder / shard} lacks the tensor {missing[0]}: download it again")
        tensors |= {name: found[name] for name in names}
    return tensors


def _check_count(tensors: int, source: Path) -> None:
    if tensors > MAX_TENSORS:
        raise UserError(
            f"{source} has {tensors} tensors, but at most {MAX_TENSORS} are read: use the "
            "weights of the model alone"
        )


def _open_file(path: Path) -> dict[str, LazyTensor]:
    """Reads the header of a file. The tensors are read on demand."""
    if path.suffix != ".safetensors":
        raise UserError(f"{path} is not a .safetensors file: use a .safetensors file or its folder")
    # Imported here so that a step on random clips (gpu-check) does not need safetensors.
    from safetensors import SafetensorError, safe_open

    try:
        with regular_file.open_regular(path) as file:
            header_bytes = int.from_bytes(file.read(8), "little")
        if header_bytes > MAX_HEADER_BYTES:
            raise UserError(
                f"{path} has a header of {header_bytes} bytes, more than {MAX_HEADER_BYTES}: "
                "download or export it again"
            )
        # Each opening parses the whole header, so that all tensors share one open file.
        with regular_file.name_for_library(path) as name:
            opened = safe_open(name, "np")
        names = opened.keys()
        _check_count(len(names), path)
        shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in names}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged ({error}): download or export it again") from error
    return {name: LazyTensor(shape, _reader(path, opened, name)) for name, shape in shapes.items()}


def read_metadata(path: Path) -> dict[str, str]:
    """Returns the metadata of a .safetensors file that `open_checkpoint` has opened."""
    from safetensors import safe_open

    with regular_file.name_for_library(path) as name, safe_open(name, "np") as file:
        return file.metadata() or {}


def _reader(path: Path, opened: Any, name: str) -> Callable[[], np.ndarray]:
    def read():
        from safetensors import SafetensorError

        try:
            code = opened.get_slice(name).get_dtype()
            if code not in _READABLE_CODES:
                raise UserError(
                    f"{path}: the tensor {name} has the type {code}, but weights must be one "
                    f"of {', '.join(_READABLE_CODES)}: use a checkpoint that is not quantized"
                )
            return np.asarray(opened.get_tensor(name), dtype=np.float32)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} is damaged ({error}): download or export it again") from error

    return read


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    return json_file.read_object(path) if os.path.isfile(path) else {}


def _reject_pickle(path: Path) -> None:
    if path.suffix in _PICKLE_SUFFIXES:
        raise UserError(f"{path} is a pickle: {_CONVERT}")
