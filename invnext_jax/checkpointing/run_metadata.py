"""What a checkpoint tells of the run that made it, and what a resumed run may not change."""

import copy
import importlib.metadata
import json
import pathlib
import platform
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections

FORMAT_VERSION = 2  # of the checkpoint's layout; 1 held the state of a grain iterator
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")

# Fields that a resumed run may change: none of them changes what a step computes, but for
# `total_steps`, which stretches the schedule; what starts a run has done so. The manifest may move;
# its content is compared.
MAY_CHANGE = (
    "total_steps",
    "init_from",
    "init_from_unfinished",
    "init_parts",
    "predictor.weights",
    "log",
    "profile_steps",
    "checkpoint",
    "mesh",
    "attention",  # the same numbers up to rounding, as on another mesh
    "remat",
    "scan_unroll",
    "decoder.chunks",
    "data.manifest",
    "data.prefetch",
    "data.workers",
    "data.clip_seconds",
    "data.on_bad",
    "data.max_bad_share",
)

# Where a host finds things and how it reads them: fields in which the hosts of a run may differ.
PER_HOST_FIELDS = (
    *("data.manifest", "data.prefetch", "data.workers", "data.clip_seconds"),
    *("init_from", "predictor.weights", "teacher.weights"),
)

# Fields that are newer than format 2, with what the code did before they were there.
_ADDED: dict[str, Any] = {
    "accumulate": 1,
    "attention": "auto",
    "ema.decay": 0.0,
    "profile_steps": [],
    "quantize_frozen": "",
    "scan_unroll": 1,
    "checkpoint.every_minutes": 0.0,
    "checkpoint.keep_best": 0,
    "checkpoint.best_metric": "loss",
    "checkpoint.best_mode": "min",
    "data.repeats": 1,
    "data.weights": [],
    "decoder.chunks": 1,
    "log.measure_ceiling": True,
    "log.watchdog_minutes": 15.0,
    "mask.predicted": 1.0,
    "teacher.resample": False,
}


def upgrade_config(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A saved config, or the part of one that an export has, with the fields of today.

    What an older version did not know gets the value that does what that version did. Sections that
    the config does not have stay out.

    Args:
        tree: the config as it stands in a JSON file; it is not changed.
    """
    tree = copy.deepcopy(dict(tree))
    if "total_steps" in tree:  # a whole one
        tree.setdefault("ema", {})
    for name, value in _ADDED.items():
        section, _, field = name.rpartition(".")
        holder = tree.get(section) if section else tree if "total_steps" in tree else None
        if isinstance(holder, dict):
            holder.setdefault(field, copy.copy(value))
    data = tree.get("data")
    if isinstance(data, dict) and "no_flip_sources" in data:
        sources = data.pop("no_flip_sources")
        data.setdefault("by_source", {name: {"flip": False} for name in sources})
    return tree


def config_to_json(
    config: ml_collections.ConfigDict | ml_collections.FrozenConfigDict,
) -> dict[str, Any]:
    """The config as it stands in a JSON file: tuples become lists."""
    return json.loads(json.dumps(config.to_dict()))


def config_from_json(tree: dict[str, Any]) -> ml_collections.FrozenConfigDict:
    """The config that `config_to_json` took apart, perhaps of an older version (see `upgrade`)."""

    def restore(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: restore(inner) for name, inner in value.items()}
        return tuple(map(restore, value)) if isinstance(value, list) else value

    return ml_collections.FrozenConfigDict(restore(upgrade_config(tree)))


def describe_run(
    config: ml_collections.ConfigDict, manifest_sha256: str, init_from_step: int | None = None
) -> dict[str, Any]:
    """The JSON-able record that is saved with each checkpoint of a run of this config.

    Args:
        config: the run's config.
        manifest_sha256: of its manifests, see `manifest.hash_manifests`.
        init_from_step: step of the checkpoint that `config.init_from` gave, if it names one.
    """
    return {
        "format_version": FORMAT_VERSION,
        "config": config_to_json(config),
        "init_from_step": init_from_step,
        "manifest_sha256": manifest_sha256,
        "process_count": jax.process_count(),
        "device_count": jax.device_count(),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
        },
        "git": git_hash(),
    }


def git_hash() -> str:
    """Hash of the checkout that this package lies in, "+" behind it if changed; "" if none."""
    root = pathlib.Path(__file__).parents[2]
    if not (root / ".git").exists():
        return ""
    try:
        head, changes = (
            subprocess.run(
                ["git", "-C", str(root), *command], capture_output=True, text=True, timeout=10
            )
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "-uno"])
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    if head.returncode:
        return ""
    return head.stdout.strip() + ("+" if changes.stdout.strip() else "")


def config_differences(
    saved: Mapping[str, Any], current: Mapping[str, Any], may_change: Sequence[str] = MAY_CHANGE
) -> list[str]:
    """Lines `field: checkpoint's value -> this run's value` of what may not change but did.

    Args:
        saved: the record of the checkpoint, see `describe_run`.
        current: the record of this run.
        may_change: fields, or groups of them, that are not compared.
    """
    before, now = _flatten(upgrade_config(saved["config"])), _flatten(current["config"])
    rows = [
        (f"config.{name}", before.get(name, "absent"), now.get(name, "absent"))
        for name in sorted(before.keys() | now.keys())
        if not any(name == free or name.startswith(free + ".") for free in may_change)
    ]
    hashes = saved.get("manifest_sha256", "absent"), current["manifest_sha256"]
    rows.append(("SHA-256 of the manifest", *hashes))
    steps = saved.get("init_from_step"), current["init_from_step"]
    if None not in steps:  # frozen parameters are read from there at each start
        rows.append(("step of config.init_from", *steps))
    return [f"{name}: {old!r} -> {new!r}" for name, old, new in rows if old != new]


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat
