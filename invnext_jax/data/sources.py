"""Options of sources: `config.data.by_source` and `config.data.weights`.

A source is the value of the column `source` of a manifest. `config.data.by_source` replaces options
for the videos of a source. The clips of Something-Something must not be mirrored, so the default
config has an entry "ssv2", which applies to all known spellings of this name.
"""

import collections
import difflib
import functools
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from absl import logging

from invnext_jax.data import video_io
from invnext_jax.data.manifest import Manifest, split_names
from invnext_jax.errors import UserError
from invnext_jax.synthetic_world import urls

T = TypeVar("T")
Config = Mapping[str, Any]  # `config.data`

# Entries of the default config, which need not be in the manifest.
DEFAULT_NAMES = ("ssv2", "world")
# Known names of Something-Something, reduced to lower-case letters and digits.
_SSV2 = {
    f"{prefix}{name}{version}"
    for prefix in ("", "20bn")
    for version in ("", "v1", "v2")
    for name in ("something", "somethingsomething", "sthsth", "sth", "smthsmth", "ssth", "ss")
}
_SSV2 -= {"ss"}  # too short to identify this data set
_SSV2 |= {"ssv2", "ssv1", "sthv2", "sthv1"}


@functools.lru_cache(maxsize=10_000)
def normalize(source: str) -> str:
    """Returns "ssv2" for known spellings of Something-Something, and other names unchanged."""
    return "ssv2" if _letters(source) in _SSV2 else source


def find_entry(entries: Mapping[str, T], source: str, default: T) -> T:
    """Returns the entry with the exact name of a source, or else with its normalized name."""
    return entries.get(source) or entries.get(normalize(source), default)


def merge_overrides(by_source: Mapping[str, Config]) -> dict[str, dict[str, Any]]:
    """Merges the entries of `config.data.by_source` whose names denote the same source.

    Returns:
      A dict from the names in `by_source` and their normalized names to options. The options of
      the exact name override those of other spellings.
    """
    merged = {}
    for name, fields in by_source.items():
        merged.setdefault(normalize(name), {}).update(fields)
    return merged | {name: merged[normalize(name)] | {**by_source[name]} for name in by_source}


def options_of(data_config: Config, source: str) -> dict[str, Any]:
    """Returns the options in `config.data` that apply to a source."""
    return {**data_config, **find_entry(merge_overrides(data_config["by_source"]), source, {})}


def describe_options(data_config: Config, source: str) -> str:
    """Describes sampling, crop and flip of a source, such as "dense 4, multi_scale, flip"."""
    options = options_of(data_config, source)
    low, high = options["stride"]
    stride = f" {low}" if low == high else f" {low}-{high}"
    sampling = options["sampling"] + (stride if options["sampling"] == "dense" else "")
    if not options["augment"]:
        return f"{sampling}, center crop, not augmented"
    return f"{sampling}, {options['crop']}, {'flip' if options['flip'] else 'no flip'}"


def describe_worlds(data_config: Config, manifests: str) -> list[str]:
    """Returns a sentence for each world in `manifests` with fewer frames or pixels than a clip."""
    sentences, effects = [], {"frames": "repeated", "size": "enlarged"}
    for name in filter(video_io.is_world, split_names(manifests)):
        spec = urls.parse(name).spec
        small = [field for field in effects if getattr(spec, field) < data_config[field]]
        if small:
            sentences.append(
                f"{name} has {spec.frames} frames of {spec.size} x {spec.size} pixels, which are "
                f"{' and '.join(effects[field] for field in small)}: set "
                f"{'&'.join(f'{field}={data_config[field]}' for field in small)} to render whole "
                "clips"
            )
    return sentences


def check_clip_options(fields: Mapping[str, Any], prefix: str) -> None:
    """Checks the options of `config.data` that can differ by source.

    Args:
      fields: the options, see `clips.BY_SOURCE_FIELDS`.
      prefix: "", or "by_source.<source>.", for the message.

    Raises:
      UserError: an option has an invalid value.
    """
    choices = {"sampling": ("sparse", "dense"), "crop": ("multi_scale", "random_resized")}
    for name, allowed in choices.items():
        if fields[name] not in allowed:
            raise UserError(f"config.data.{prefix}{name}={fields[name]!r} must be one of {allowed}")
    bounds = {"stride": (1, math.inf), "crop_area": (1e-3, 1), "crop_aspect": (1e-2, 1e2)}
    for name, (least, most) in bounds.items():
        value = fields[name]
        if len(value) != 2 or not least <= value[0] <= value[1] <= most:
            raise UserError(
                f"config.data.{prefix}{name}={value} must be two numbers between {least} and "
                f"{most}, the smaller one first"
            )
    if any(stride != int(stride) for stride in fields["stride"]):
        raise UserError(
            f"config.data.{prefix}stride={fields['stride']} must be whole numbers of frames"
        )
    scales = fields["crop_scales"]
    if not scales or not all(0 < scale <= 1 for scale in scales):
        raise UserError(
            f"config.data.{prefix}crop_scales={scales} must be fractions of the short side, each "
            "above 0 and at most 1"
        )
    jitter = fields["jitter"]
    if len(jitter) != 4 or min(jitter) < 0 or jitter[3] > 0.5:
        raise UserError(
            f"config.data.{prefix}jitter={jitter} must be four non-negative numbers (brightness, "
            "contrast, saturation, hue), with hue at most 0.5"
        )


def check_weights(
    weights: Sequence[tuple[str, float]], counts: collections.Counter, trained: collections.Counter
) -> list[str]:
    """Checks `config.data.weights`, and returns the names of the weighted sources.

    Args:
      weights: pairs of a source and its weight.
      counts: number of rows of each source of the manifest.
      trained: number of those rows that are not held out.

    Raises:
      UserError: a source has no weight, a weight has no source or only rows that are held out, or
        a weight is not a positive number.
    """
    for pair in weights:
        if not _is_pair(pair):
            raise UserError(
                f"config.data.weights: {pair!r} must be a source and a weight above 0, such as "
                "('ssv2', 0.5)"
            )
    names = [name for name, _ in weights]
    repeated = [name for name, count in collections.Counter(names).items() if count > 1]
    if repeated:
        raise UserError(f"config.data.weights contains the source {repeated[0]!r} twice")
    unknown = [name for name in names if name not in counts]
    if unknown:
        raise UserError(
            f"config.data.weights: the manifest has no source {unknown[0]!r}, only "
            f"{', '.join(map(repr, counts))}"
        )
    missing = [name for name in counts if name not in names]
    if missing:
        raise UserError(
            f"config.data.weights has no weight for the source {missing[0]!r}: add one, or remove "
            "its rows from the manifest"
        )
    if held_out := [name for name in names if not trained[name]]:
        raise UserError(
            f"config.data.weights has the source {held_out[0]!r}, but config.data.held_out holds "
            "out all of its rows: lower held_out, or remove the source from manifest and weights"
        )
    return names


def _is_pair(pair: object) -> bool:
    if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not isinstance(pair[0], str):
        return False
    weight = pair[1]
    number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
    return number and math.isfinite(weight) and weight > 0


def check_names(data_config: Config, sources: Iterable[str]) -> None:
    """Checks that `config.data.by_source` names sources of the manifest.

    Warns of sources whose names resemble that of an entry, but do not match it.

    Args:
      data_config: `config.data`.
      sources: the sources of the manifest.

    Raises:
      UserError: an entry that is not in the default config matches no source.
    """
    sources = dict.fromkeys(sources)
    by_source = data_config["by_source"]
    for name in by_source:
        if name not in DEFAULT_NAMES and not _matches(name, sources):
            near = difflib.get_close_matches(name, sources, n=1)
            raise UserError(
                f"config.data.by_source has options for {name!r}, but the manifest has "
                f"{_list_names(sources)}: "
                + (f"the nearest one is {near[0]!r}" if near else "use one of these names")
            )
    for source in sources:
        if near := _find_near_name(source, by_source):
            logging.warning(
                "the source %r resembles %r, but config.data.by_source.%s does not apply to its "
                "videos: rename the source, or add it to config.data.by_source",
                source,
                near,
                near,
            )


def unused_options(data_config: Config, manifest: Manifest) -> dict[str, str]:
    """Returns the options of `config.data` that affect no video, with the reason.

    Args:
      data_config: `config.data`.
      manifest: the manifest of the run.
    """
    sources = tuple(dict.fromkeys(manifest.sources))
    options = {source: options_of(data_config, source) for source in sources}
    unused = {}
    if data_config["on_bad"] == "fail":
        reason = "config.data.on_bad is 'fail': set it to 'drop'"
        unused["data.max_bad_share"] = reason
    if all(map(video_io.is_world, manifest.paths)):
        unused["data.short_side"] = "all videos are rendered at their final size: remove the option"
    elif not data_config["augment"]:
        unused["data.short_side"] = "config.data.augment is not True: set it to True"
    replaced = {name for fields in data_config["by_source"].values() for name in fields}
    for name in replaced:
        if all(fields[name] != data_config[name] for fields in options.values()):
            own = ", ".join(f"config.data.by_source.{source}.{name}" for source in sources)
            unused[f"data.{name}"] = f"config.data.by_source replaces it for all videos: set {own}"
    unused |= _unread(options.values(), "data")
    for name, fields in data_config["by_source"].items():
        prefix, used_by = f"data.by_source.{name}", [s for s in sources if _matches(name, [s])]
        if not used_by:
            reason = f"the manifest has {_list_names(sources)}: remove the option"
            unused |= {f"{prefix}.{field}": reason for field in fields}
        else:
            unused |= _unread([options[source] for source in used_by], prefix)
    return unused


_CROP = ("crop", "crop_scales", "crop_area", "crop_aspect")
# Each option is read only if another option has a value: (name, other name, value).
_CONDITIONS = (
    ("stride", "sampling", "dense"),
    ("crop_scales", "crop", "multi_scale"),
    *((name, "crop", "random_resized") for name in ("crop_area", "crop_aspect")),
    *((name, "augment", True) for name in (*_CROP, "jitter", "flip")),
)


def _unread(options: Collection[Config], prefix: str) -> dict[str, str]:
    """Returns the options that no source reads because of another option."""
    unread = {}
    for name, other, value in _CONDITIONS:
        if all(fields[other] != value for fields in options):
            where = "data" if other == "augment" else prefix  # the same for all sources
            reason = f"config.{where}.{other} is not {value!r}: set it to {value!r}"
            unread[f"{prefix}.{name}"] = reason
    return unread


def _matches(entry: str, sources: Iterable[str]) -> bool:
    return any(entry == source or normalize(entry) == normalize(source) for source in sources)


def _find_near_name(source: str, by_source: Mapping[str, Config]) -> str | None:
    """Returns the entry whose name is similar to that of a source without an entry, or None."""
    if not source or _matches(source, by_source):
        return None
    letters = _letters(source)
    spellings = {_letters(name): name for name in by_source}
    if "ssv2" in by_source:
        spellings |= dict.fromkeys(_SSV2, "ssv2")
    for spelling, name in spellings.items():
        if len(spelling) >= 4 and spelling in letters:
            return name
    near = difflib.get_close_matches(letters, spellings, n=1, cutoff=0.8)
    return spellings[near[0]] if near else None


def _letters(source: str) -> str:
    return re.sub(r"[^a-z0-9]", "", source.lower())


def _list_names(sources: Collection[str]) -> str:
    names = [repr(name) for name in sources]
    shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    return f"only the source{'s' if len(names) > 1 else ''} {shown}"
