"""Class names of manifests, in `<manifest>.classes.json`.

    {"run": 0, "jump": 1}                       the only label column of the manifest
    {"label_action": {"run": 0, "jump": 1}}     label columns by name, if there are several

The names of several manifests are compared, so that a class id has one meaning in all.
"""

import collections
import csv
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from invnext_jax import csv_text, json_file, regular_file, sanitize
from invnext_jax.data import columns as columns_lib
from invnext_jax.data import files as files_lib
from invnext_jax.data import manifest as manifest_lib
from invnext_jax.data import video_io
from invnext_jax.data.access_rules import DEFAULT_RULES, AccessRules
from invnext_jax.data.columns import LABEL_PREFIX
from invnext_jax.errors import UserError, summarize_error
from invnext_jax.synthetic_world import files as world_files
from invnext_jax.synthetic_world import urls
from invnext_jax.synthetic_world.spec import SPLITS, WorldSpec

CLASS_NAMES_SUFFIX = ".classes.json"
MAX_NAME = 1000  # maximum number of characters of a class name
MAX_NAMES_BYTES = 2**26  # maximum size of a file of class names


def compare_manifests(
    names: Sequence[str], tasks: Sequence[str], rules: AccessRules = DEFAULT_RULES
) -> tuple[dict[str, dict[str, int]], list[str]]:
    """Compares the class names of manifests (see `read_manifest_classes`).

    Args:
      names: The manifests, see `manifest.list_manifests`.
      tasks: The tasks whose class ids are used.
      rules: Rules for which files the rows may refer to.

    Returns:
      A dict from each task with class names to its class ids by name; and notes about manifests
      without class names, or whose class names cannot be read.

    Raises:
      UserError: Two manifests have different ids for a class, or different classes for an id.
    """
    known: dict[str, tuple[str, dict[str, int]]] = {}
    nameless = collections.defaultdict(list)
    notes = []
    for name in names:
        columns = _label_columns(name, rules)
        by_column = _read_any_classes(name, columns, notes)
        for task in tasks:
            column = LABEL_PREFIX + task
            ids = by_column.get(column)
            if ids is None:
                nameless[task] += [name] if column in columns else []
                continue
            first, first_ids = known.setdefault(task, (name, ids))
            if conflict := describe_class_conflict(first_ids, ids):
                cure = f"index the second manifest again with --classes={class_names_path(first)}"
                if _read_world(first) or _read_world(name):
                    cure = "use worlds of the same level, or other tasks"
                raise UserError(
                    f"{first} and {name} number the classes of {task} differently ({conflict}): "
                    f"{cure}"
                )
            known[task] = first, {**first_ids, **ids}
    notes += [
        f"{task}: {names[0]} has no class names, so its class ids cannot be compared with those "
        f"of {known[task][0]}."
        for task, names in nameless.items()
        if task in known and names
    ]
    return {task: ids for task, (_, ids) in known.items()}, notes


def _label_columns(name: str, rules: AccessRules) -> list[str]:
    if video_io.is_world(name):  # reading the labels of a large world takes a long time
        return [LABEL_PREFIX + task for task in urls.parse(name).spec.classes]
    return list(manifest_lib.read_manifest([name], rules).labels)


def _read_any_classes(
    name: str, columns: Sequence[str], notes: list[str]
) -> dict[str, dict[str, int]]:
    """Returns the class ids by name of the label columns of a manifest that have class names.

    Adds a note if they cannot be read or used.
    """
    if video_io.is_remote(name):
        return _assign_columns(_read_remote(name, notes), columns, name, notes)
    if spec := _read_world(name):
        return {
            LABEL_PREFIX + task: {label: number for number, label in enumerate(labels)}
            for task, labels in spec.classes.items()
        }
    return read_manifest_classes(name, columns, notes)


def _read_remote(name: str, notes: list[str]) -> dict[str, dict[str, int]]:
    """Reads the class names next to a remote manifest, as in `parse_class_names`."""
    address = class_names_path(name)
    try:
        with files_lib.open_remote(address) as file:
            content = file.read(MAX_NAMES_BYTES + 1)
        if len(content) > MAX_NAMES_BYTES:
            raise ValueError(f"it has more than {MAX_NAMES_BYTES:,} bytes")
        return parse_class_names(content, is_json=True)
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UserError(
            f"{sanitize.redact_urls(address)} cannot be read ({error}): index the list again, or "
            "remove the file"
        ) from error
    except OSError as error:  # some servers refuse access to files that do not exist
        note = f"The class names {address} cannot be read ({summarize_error(error)})"
        notes.append(f"{sanitize.redact_urls(note)}, so the class ids cannot be compared.")
        return {}


def _read_world(name: str) -> WorldSpec | None:
    """Returns the parameters of the world of a manifest; None if it is not of a world."""
    if video_io.is_world(name):
        return urls.parse(name).spec
    folder, split = os.path.split(os.path.splitext(name)[0])
    if split not in SPLITS:
        return None
    try:
        return world_files.read_spec(folder, split)
    except (UserError, OSError):  # no world
        return None


def describe_class_conflict(first: Mapping[str, int], second: Mapping[str, int]) -> str:
    """Describes a name that has two ids, or an id that has two names; "" without a conflict."""
    for name, number in second.items():
        if first.get(name, number) != number:
            return f"class {name!r} has the number {first[name]} in one and {number} in the other"
    names = {number: name for name, number in first.items()}
    for name, number in second.items():
        if names.get(number, name) != name:
            return f"number {number} is {names[number]!r} in one and {name!r} in the other"
    return ""


def class_names_path(manifest: str | os.PathLike) -> str:
    """Returns the path or remote address of the class names that belong to a manifest."""
    return os.fspath(manifest).removesuffix(".csv") + CLASS_NAMES_SUFFIX


def format_class_names(ids: Mapping[str, Mapping[str, int]], columns: Iterable[str]) -> str:
    """Returns the content of a file of class names.

    Args:
      ids: Class ids by name, for each label column that has names.
      columns: All label columns of the manifest.
    """
    content = next(iter(ids.values())) if [*ids] == [*columns] and len(ids) == 1 else ids
    return json.dumps(content, indent=0, ensure_ascii=False) + "\n"


def read_class_names(path: str | os.PathLike, column: str = "") -> dict[str, int]:
    """Reads the class ids by name of a label column from a file of class names.

    Names without a column, or of only one column, belong to any `column`.

    Raises:
      OSError: The file cannot be read.
      ValueError: As in `parse_class_names`, or the file has names of several other columns.
    """
    found = _read_file(path)
    if column not in found and len(found) > 1:
        raise ValueError(f"it has names of {' and '.join(found)}, but not of {column}")
    return found[column] if column in found else next(iter(found.values()))


def _read_file(path: str | os.PathLike) -> dict[str, dict[str, int]]:
    content = regular_file.read_bytes(path, MAX_NAMES_BYTES)
    return parse_class_names(content, is_json=os.fspath(path).endswith(".json"))


def parse_class_names(content: bytes, *, is_json: bool) -> dict[str, dict[str, int]]:
    """Parses class names: a JSON object of ids by name, a JSON list, or one name per line.

    Returns:
      Class ids by name for each label column. The column is "" if the content has no columns.

    Raises:
      ValueError: The format is not one of these, two names have the same id, an id is not a class,
        a listed name is blank or repeated, or a name has more than `MAX_NAME` characters.
    """
    text = content.decode("utf-8-sig")
    try:
        found = json_file.load_unique(text) if is_json else text.split("\n")
    except RecursionError as error:
        raise ValueError("it must map names to integers, or list names") from error
    has_columns = isinstance(found, dict) and any(isinstance(v, dict) for v in found.values())
    parts = found if has_columns else {"": found}
    if has_columns and not all(name.startswith(LABEL_PREFIX) for name in parts):
        raise ValueError("it has objects that are not named label_<task>")
    return {column: _parse_names(part) for column, part in parts.items()}


def _parse_names(content: Any) -> dict[str, int]:
    if isinstance(content, list) and all(isinstance(name, str) for name in content):
        content = _number_names(content)
    if not isinstance(content, dict):
        raise ValueError("it must map names to integers, or list names")
    try:
        names = {name: columns_lib.parse_integer(str(value)) for name, value in content.items()}
        "".join(names).encode()
    except UnicodeEncodeError as error:
        raise ValueError("a name contains a surrogate, which is not a character") from error
    except ValueError as error:
        raise ValueError(f"it must map names to integers, or list names: {error}") from error
    if (longest := max(map(len, names), default=0)) > MAX_NAME:
        raise ValueError(f"a name has {longest:,} characters, more than {MAX_NAME:,}")
    if len(set(names.values())) < len(names):
        raise ValueError("two names have the same number")
    if names and not 0 <= min(names.values()) <= max(names.values()) <= columns_lib.MAX_CLASS:
        raise ValueError(f"a number is not between 0 and {columns_lib.MAX_CLASS}")
    return names


def _number_names(names: list[str]) -> dict[str, int]:
    """Numbers names from 0; blank ones at the end are left out."""
    names = [name.strip() for name in names]
    while names and not names[-1]:
        names.pop()
    if "" in names or len(set(names)) < len(names):
        raise ValueError("a name is blank or occurs twice, so the numbers of classes are unclear")
    return {name: number for number, name in enumerate(names)}


def read_manifest_classes(
    manifest: str | os.PathLike, columns: Sequence[str], notes: list[str]
) -> dict[str, dict[str, int]]:
    """Reads the class names that belong to a local manifest.

    Args:
      manifest: The manifest.
      columns: Its label columns.
      notes: A sentence is added if the column of the names is unknown, so that they are not used.

    Returns:
      The class ids by name of each label column that has names.

    Raises:
      UserError: The file of class names is damaged.
    """
    return _assign_columns(read_optional_file(class_names_path(manifest)), columns, manifest, notes)


def read_optional_file(path: str) -> dict[str, dict[str, int]]:
    """Reads a file of class names next to a manifest, as in `parse_class_names`; {} if missing.

    Raises:
      UserError: The file is damaged.
    """
    if not os.path.isfile(path):
        return {}
    try:
        return _read_file(path)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{path} cannot be read ({error}): index the list again, or remove the file"
        ) from error


def read_label_columns(manifest: str | os.PathLike) -> list[str]:
    """Returns the label columns of a local manifest; raises `UserError` if it cannot be read."""
    try:
        with video_io.open_text(os.fspath(manifest)) as file:
            columns = next(csv.reader(csv_text.read_lines(file)), [])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"manifest {manifest} cannot be read: {error}") from error
    return [name for name in columns if name.startswith(LABEL_PREFIX)]


def _assign_columns(
    found: dict[str, dict[str, int]], columns: Sequence[str], manifest: Any, notes: list[str]
) -> dict[str, dict[str, int]]:
    """Returns the names of each column. Names without a column are those of the only one."""
    if "" not in found:
        return found
    if len(columns) == 1:
        return {columns[0]: found[""]}
    if columns:
        name = sanitize.redact_urls(class_names_path(manifest))
        notes.append(
            f"The names in {name} are not used, because they may be those of {columns[0]} or of "
            f'{columns[1]}: write {{"{columns[0]}": {{names}}}}, or index the list again.'
        )
    return {}
