"""Reads the metadata of a TFDS data set as plain JSON.

This is safe for untrusted files. TFDS itself would import the modules listed in features.json, and
allocate memory for the lengths in dataset_info.json. This module compares the feature types with
known names, and the lengths with the shards. See `tfds.core.DatasetInfo` for the format.
"""

import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from invnext_jax import json_file, regular_file
from invnext_jax.dataset_prep.shard_files import Counter, open_counter
from invnext_jax.errors import UserError

INFO, FEATURES = "dataset_info.json", "features.json"
MAX_SHARDS = 100_000
MIN_RECORD_BYTES = 64  # all containers of videos are larger; forged shards could have any number
MAX_NAME = 255  # maximum number of characters of a file name
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
_CORE = "tensorflow_datasets.core.features."
_CLASS_LABEL = _CORE + "class_label_feature.ClassLabel"
_TENSORS = (_CORE + "tensor_feature.Tensor", _CORE + "scalar.Scalar")
_INTEGERS = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))


class Feature(NamedTuple):
    """Properties of a feature that the index needs."""

    class_label: bool
    integer: bool  # an integer scalar


class TfdsMetadata(NamedTuple):
    """Metadata of one split.

    Attributes:
      name: Name of the data set.
      split: Name of the split.
      shards: Path and number of records of each shard.
      features: Dict from name to feature.
    """

    name: str
    split: str
    shards: list[tuple[str, int]]
    features: dict[str, Feature]


def read_metadata(folder: str | os.PathLike, split: str = "") -> TfdsMetadata:
    """Reads dataset_info.json and features.json, and counts the records of the shards.

    Args:
      folder: Folder of the data set.
      split: Name of the split. "" selects the only split.

    Raises:
      UserError: A file is missing or damaged, the data set has a different file format or lacks
          the split, or the shards do not match the metadata.
    """
    folder = os.path.abspath(folder)
    info_path = os.path.join(folder, INFO)
    info = json_file.read_object(info_path)
    file_format = _get(info, "fileFormat", str, info_path) or "tfrecord"
    if file_format != "array_record":
        raise UserError(
            f"{folder} contains {file_format} files, which do not support random access: build the "
            "data set with TFDS's file_format='array_record'"
        )
    splits = {}
    for entry in _get(info, "splits", list, info_path):
        if not isinstance(entry, Mapping):
            raise UserError(f"{info_path} has a split that is not an object: download it again")
        splits[_get_name(entry, info_path)] = entry
    split = split or (next(iter(splits)) if len(splits) == 1 else "")
    if split not in splits:
        raise UserError(
            f"{folder} has the splits {', '.join(splits)}: select one of them with --split"
        )
    name = _get_name(info, info_path)
    found = _find_shards(folder, name, split, splits[split])
    return TfdsMetadata(name, split, found, _read_features(os.path.join(folder, FEATURES)))


def read_class_names(folder: str | os.PathLike, feature: str) -> list[str]:
    """Returns the class names of a `ClassLabel`; [] if there is no file with class names.

    Raises:
      UserError: The file cannot be read, or a name occurs twice.
    """
    path = os.path.join(folder, f"{feature}.labels.txt")
    if os.path.basename(feature) != feature or not os.path.isfile(path):
        return []
    try:
        lines = regular_file.read_bytes(path, json_file.MAX_BYTES).decode().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}): download it again") from error
    names = [line.strip() for line in lines if line.strip()]
    if len(set(names)) < len(names):
        raise UserError(f"{path} has a class name twice: download it again")
    return names


def _find_shards(
    folder: str, name: str, split: str, entry: Mapping[str, Any]
) -> list[tuple[str, int]]:
    """Returns the path and the number of records of each shard, after checking them.

    Args:
      folder: Folder of the data set.
      name: Name of the data set.
      split: Name of the split.
      entry: Metadata of the split.
    """
    info_path = os.path.join(folder, INFO)
    lengths = [_parse_count(n, info_path) for n in _get(entry, "shardLengths", list, info_path)]
    if len(lengths) > MAX_SHARDS:
        raise UserError(f"{info_path} lists more than {MAX_SHARDS} shards: split the data set")
    template = _get(entry, "filepathTemplate", str, info_path) or _TEMPLATE
    paths, files = [], set()
    for index in range(len(lengths)):
        values = {"DATASET": name, "SPLIT": split, "FILEFORMAT": "array_record"}
        values |= {"SHARD_INDEX": f"{index:05d}", "NUM_SHARDS": f"{len(lengths):05d}"}
        values["SHARD_X_OF_Y"] = f"{index:05d}-of-{len(lengths):05d}"
        file = template
        if len(template) <= MAX_NAME:
            file = re.sub(r"\{([A-Z_]+)\}", lambda m, v=values: v.get(m[1], m[0]), template)
        if (
            not file
            or len(file) > MAX_NAME
            or not file.isprintable()
            or re.search(r"[/\\{}]", file)
        ):
            raise UserError(
                f"{info_path} lists the shard {file[:MAX_NAME]!a}, which is not the name of a file "
                "in its folder: set filepathTemplate to a TFDS pattern without folders"
            )
        path = os.path.join(folder, file)
        if not os.path.isfile(path):
            raise UserError(f"{folder} lacks the shard {file}: download it again")
        status = os.stat(path)
        if (identity := (status.st_dev, status.st_ino)) in files:
            raise UserError(
                f"{info_path} lists the shard {file} twice, perhaps by a link: set "
                "filepathTemplate to a TFDS pattern with the number of the shard"
            )
        files.add(identity)
        paths.append(path)
    with open_counter() as count_records:
        for path, length in zip(paths, lengths, strict=True):
            _check_shard(path, length, count_records)
    return list(zip(paths, lengths, strict=True))


def _check_shard(path: str, length: int, count_records: Counter) -> None:
    """Raises `UserError` if a shard does not have `length` records that can be videos."""
    try:
        count = count_records(path)
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): download it again") from error
    if count != length:
        raise UserError(f"{path} has {count} records, but {INFO} lists {length}: download it again")
    if count * MIN_RECORD_BYTES > os.path.getsize(path):
        raise UserError(f"{path} is too small for {count} videos: download it again")


def _read_features(path: str) -> dict[str, Feature]:
    """Returns the top-level features. Their types are compared as text and never imported."""
    root = json_file.read_object(path)
    if "type" in root:  # the format of TFDS before version 4.6
        entries = root.get("content")
    else:
        entries = _get(_get(root, "featuresDict", dict, path), "features", dict, path)
    if not isinstance(entries, Mapping) or not entries:
        raise UserError(f"{path} lists no features: download it again")
    for name in entries:
        _check_name(name, path)
    return {name: _describe(entry) for name, entry in entries.items()}


def _describe(entry: Any) -> Feature:
    entry = entry if isinstance(entry, Mapping) else {}
    kind = entry.get("pythonClassName", entry.get("type"))
    tensor = entry.get("tensor", entry.get("content"))
    tensor = tensor if isinstance(tensor, Mapping) else {}
    shape = tensor.get("shape") or ()
    shape = (shape.get("dimensions") or ()) if isinstance(shape, Mapping) else shape
    dtype = str(tensor.get("dtype")).removeprefix("tf.")
    return Feature(kind == _CLASS_LABEL, kind in _TENSORS and not shape and dtype in _INTEGERS)


def _get(values: Mapping[str, Any], name: str, kind: type, path: str) -> Any:
    """Returns a field, or an empty value if it is absent, as in protobuf's JSON format."""
    value = values.get(name, values.get(re.sub("([A-Z])", r"_\1", name).lower(), kind()))
    if not isinstance(value, kind):
        raise UserError(f"{path} has a field {name} that is not a {kind.__name__}")
    return value


def _get_name(values: Mapping[str, Any], path: str) -> str:
    return _check_name(_get(values, "name", str, path), path)


def _check_name(name: str, path: str) -> str:
    """Returns the name of a data set, a split or a feature if it is valid."""
    if not name or len(name) > MAX_NAME or not name.isprintable():
        raise UserError(
            f"{path} has the name {name[:40]!a}: it must have 1 to {MAX_NAME} printable characters"
        )
    return name


def _parse_count(value: Any, path: str) -> int:
    """Parses a 64-bit integer, which protobuf's JSON format writes as a string."""
    if re.fullmatch("[0-9]{1,18}", str(value)):
        return int(value)
    raise UserError(f"{path} has the shard length {str(value)[:40]!r}: it must be a whole number")
