"""The options on which the rows of an evaluator depend, and their differences between results."""

from collections.abc import Mapping, Sequence
from typing import Any

from invnext_jax.evaluation import unused_options
from invnext_jax.evaluation.evaluators import registry
from invnext_jax.evaluation.feature_store import feature_cache
from invnext_jax.evaluation.pages import row_names
from invnext_jax.evaluation.unused_options import is_part
from invnext_jax.json_file import hash_json

# Options that no row depends on, or that other fields of the results describe: the checkpoint, the
# hashes of the manifests, and the clips.
_IDENTITY = ("checkpoint", "ema", "steps", "evaluators", "controls", "tasks", "same_manifest")
_NOT_COMPARED = {*_IDENTITY, "train_manifest", "val_manifest", "batch_size", "features.max_gb"}
_NOT_COMPARED |= {f"data.{name}" for name in feature_cache.NOT_IN_KEY}
_CLIPS = {f"data.{name}" for name in ("frames", "size", "short_side", "sampling", "stride")}
_PLACES = {"root", "train_manifest", "val_manifest", "memory_gb"}  # in the sections of evaluators
# Options that select rows without changing their values.
_SELECTIONS = {
    "linear_probe": {"poolings"},
    "knn": {"poolings", "knn.neighbors"},
    "few_shot": {"poolings", "knn.shots"},
    "anticipation": {"anticipation.recall_at"},
    "temporal_context": {"temporal_context.targets"},
}
# Options of `config.data` that are used only if the clips of training are augmented.
_AUGMENTATION = unused_options.TRAINING | {"repeats", "by_source"}


def find_options(results: Mapping[str, Any], evaluator: str) -> dict[str, Any]:
    """Returns the options of the rows of an evaluator by dotted name, without those of the clips.

    Args:
      results: content of results.json.
      evaluator: name of the evaluator. The rows of one that is not registered, or that does not
        list its options, may depend on all options.
    """
    config = results.get("run", {}).get("config", {})
    known = registry.EVALUATORS
    own = getattr(known.get(evaluator), "options", None)
    others = [name for e in known.values() for name in getattr(e, "options", ())]
    is_augmented = any(
        isinstance(config.get(name), Mapping) and config[name].get("augment") for name in own or ()
    )
    found = {}
    for name, value in unused_options.leaves(config):
        section, *rest = name.split(".")
        if name in _NOT_COMPARED or name in _CLIPS or name in _SELECTIONS.get(evaluator, ()):
            continue
        if section == "data" and not is_augmented and rest and rest[0] in _AUGMENTATION:
            continue
        if section != "data" and rest and rest[-1] in _PLACES:
            continue
        if own is None or is_part(name, own) or not is_part(name, others):
            found[name] = value
    return found


def find_all_options(results: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns the options of the rows of all evaluators of results by their names.

    Evaluators that are not registered share a dict, because their number has no limit.
    """
    shared: dict[str, dict[str, Any]] = {}
    names = dict.fromkeys(row["evaluator"] for row in results["rows"])
    for known in {name if name in registry.EVALUATORS else "" for name in names}:
        shared[known] = find_options(results, known)
    return {name: shared.get(name, shared.get("", {})) for name in names}


def find_changes(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Returns the options that differ, with both values; see `find_options`.

    Options that only one of the results has are not compared, because versions add options.
    """
    return {
        name: (value, second[name])
        for name, value in first.items()
        if name in second and value != second[name]
    }


def describe_changes(
    results: Sequence[Mapping[str, Any]], titles: Sequence[str]
) -> dict[str, list[str]]:
    """Returns texts about options that differ between two results, with the evaluators in words."""
    found: dict[str, list[str]] = {}
    first, second = map(find_all_options, results)
    for evaluator in (name for name in first if name in second):
        for name, values in find_changes(first[evaluator], second[evaluator]).items():
            text = f"config.{name} is {values[0]!r:.80} in {titles[0]} and {values[1]!r:.80} in "
            found.setdefault(text + titles[1], []).append(row_names.in_words(evaluator))
    return found


def find_clips(results: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the frames, the size and the sampling of the clips; {} if they are unknown."""
    clips = results.get("clips", {})
    return {name: value for name, value in clips.items() if not name.startswith("encoder_")}


def make_key(results: Mapping[str, Any], evaluator: str, *, with_encoder: bool = True) -> str:
    """Returns a hash that is equal for results whose reference rows must be equal.

    It contains the data, the clips, and the options of the evaluator; and, if `with_encoder` is
    set, the sizes of the encoder but not its parameters.
    """
    rows = [row for row in results["rows"] if row["evaluator"] == evaluator]
    names = ("videos_key", "videos_digest", "texts_digest")
    own_data = {hash_json([row.get(name) for name in names]) for row in rows}
    return hash_json(
        [
            *(results.get(name) for name in ("manifests", "videos")),
            results.get("encoder") if with_encoder else None,
            sorted(own_data),
            find_clips(results),
            find_options(results, evaluator),
        ]
    )
