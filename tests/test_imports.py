"""Checks the direction of imports between folders and files, read from the source with `ast`.

This file is longer than 300 lines because it holds the tables of all allowed imports.
"""

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "invnext_jax"

# Maps each folder and top-level file to what it may import, in addition to itself and `FOR_ALL`. If
# a file has an entry ("folder.file"), this entry replaces the one of its folder.
FOR_ALL = {"errors", "atomic_file", "file_lock", "json_file", "sanitize", "command_output"}
FOR_ALL |= {"regular_file", "csv_text", "field_checks"}
ARROWS = {
    "train": {
        "loop",
        "start_log",
        "config_checks",
        "init_source",
        "online_evaluation",
        "stages",
        "training",
        "checkpointing",
    }
    | {"multihost", "monitoring", "data", "weights"},
    "init_source": {"checkpointing", "multihost", "weights", "stages"},
    "loop": {"stages", "training", "checkpointing", "multihost", "monitoring"},
    "start_log": {"loop", "stages", "objectives", "training", "checkpointing", "multihost"}
    | {"monitoring"},
    "config_checks": {"data", "models", "objectives", "training", "monitoring", "checkpointing"}
    | {"online_evaluation"},
    "online_evaluation": {
        *("data", "models", "objectives", "training", "monitoring", "multihost"),
    },
    "stages": {"models", "objectives", "weights", "training", "planning.flops"},
    "planning": set(),
    "planning.flops": {"objectives", "models"},
    "planning.shapes": {"stages", "training"},
    "planning.memory": {"training"},
    "planning.plan": {"stages", "training", "config_checks"},
    "planning.compiled_step": {"models", "training"},
    "planning.fitting": {"training"},
    "planning.command_line": {"training", "config_checks", "init_source", "data"},
    "synthetic_world": {"monitoring"},
    "synthetic_world.teacher_evaluation": {"models"},
    "synthetic_world.train_teacher": {"loop", "models", "objectives", "training", "monitoring"}
    | {"checkpointing", "weights"},
    "evaluation": {
        *("models", "objectives", "training", "checkpointing", "multihost", "monitoring", "data"),
        *("synthetic_world", "stages", "weights", "config_checks", "loop", "video", "workers"),
    },
    "evaluation.metrics": set(),
    "evaluation.truth": {"data", "synthetic_world", "video", "workers"},
    "sweeps": {"evaluation", "planning", "stages", "training", "checkpointing", "data", "weights"}
    | {"config_checks", "init_source", "monitoring", "workers.cpu_quota"},
    "watching": {"evaluation", "sweeps", "training", "checkpointing", "monitoring"},
    "watching.make_strips": {"evaluation", "training", "checkpointing", "data", "monitoring"},
    "sweeps.arms": set(),
    "sweeps.job": set(),
    "models": set(),
    "objectives": set(),
    "data": {"synthetic_world", "video", "workers"},
    "video": set(),
    "video_lists": {"data"},
    "dataset_prep": {"data", "video", "video_lists", "workers", "synthetic_world", "monitoring"},
    "dataset_prep.source_digests": {"checkpointing.video_digests", "data", "monitoring"},
    "workers": set(),
    "training": set(),
    "multihost": set(),
    "monitoring": {"multihost", "planning.devices", "workers.worker_environment"},
    "checkpointing": {"training", "multihost"},
    "checkpointing.database": {"workers"},
    "checkpointing.video_digests": {"data"},
    "checkpointing.evaluated_videos": {"data"},
    "checkpointing.source_videos": {"data"},
    "weights": set(),
    "weights.import_weights": {"stages", "models"},
    "errors": set(),
    "command_output": set(),
    "atomic_file": set(),
    "file_lock": set(),
    "json_file": set(),
    "field_checks": set(),
    "regular_file": set(),
    "csv_text": set(),
    "sanitize": set(),
}

# Layers of the files in a folder, from top to bottom. A file may import only from lower layers.
LAYERS = {
    "models": [
        {"siglip"},
        {"encoder", "predictor", "decoder", "heads", "teachers", "text_tower", "tubelet_encoder"},
        {"vit"},
        {"layers", "scan"},
        {"attention"},
        {"fused_attention"},
        {"blockwise_attention", "positions"},
        {"patches", "dot_general", "gather"},
        {"sharding"},
    ],
    "data": [
        {"pipeline"},
        {"train_dataset"},
        {"storage_retries", "train_iterator", "train_order"},
        {"bad_videos"},
        {"clips"},
        {"sources", "held_out"},
        {"copies", "class_names"},
        {"manifest"},
        {"access_rules"},
        {"video_io"},
        {"decode", "shards", "index_files"},
        {"files", "columns"},
    ],
    "video": [
        {"frame_converter", "frame_index"},
        {"demux", "jpeg", "packet_headers", "color_jitter"},
    ],
    "workers": [
        {"worker_pool"},
        {"supervisor"},
        {"process_worker"},
        {"worker_main", "cpu_quota", "worker_environment"},
        {"messages", "time_limits"},
        {"results"},
    ],
    "video_lists": [
        {"lists"},
        {"caption_lists"},
        {"published_lists"},
        {"class_ids"},
        {"text_tables", "video_files"},
        {"video_list", "folder_scan"},
    ],
    "dataset_prep": [
        {"sharding", "tfds_index", "waymo"},
        {"shard_metadata", "shard_runner"},
        {"indexing", "shard_writer"},
        {"probe_cache", "duplicates"},
        {"reencode", "probing", "frame_hashes", "earliest_overlap", "source_digests"},
        {"tfds_metadata"},
        {"csv_files", "video_flags", "worker_map", "shard_files"},
    ],
    "synthetic_world": [
        {"train_teacher"},
        {"teacher_evaluation", "tokenizer"},
        *({"files", "urls", "tracks"}, {"render"}, {"captions", "scene"}, {"spec", "digits"}),
    ],
    "stages": [
        {"registry"},
        {"stage1", "stage2"},
        {"masked_stage"},
        {"initialization", "teacher_cache"},
        {"pixel_sampling", "masked_modeling", "image_teacher", "stage"}
        | {"unused_options", "output_folder"},
    ],
    "weights": [
        {"import_weights"},
        {"text_towers"},
        {"export", "match", "published", "reference"}
        | {"image_models", "video_models", "text_models"},
        {"model_family"},
        {"files", "layout", "model_sizes", "pixel_stats"},
    ],
    "training": [
        {"compilation"},
        {"step", "recipe"},
        {"state", "mesh_checks"},
        {"mesh", "optimizer", "host_memory", "jax_options"},
    ],
    "checkpointing": [
        {"manager", "source_videos"},
        {"restore", "save_barrier", "workdir", "run_record", "aborted_runs"},
        {"reader", "evaluated_videos"},
        {"run_metadata", "checksums", "compressors", "database", "retention", "save_errors"}
        | {"video_digests"},
        {"git_hash", "storage", "frozen_hashes"},
    ],
    "multihost": [
        {"stop_and_save", "consensus"},
        {"distributed"},
        {"host_check"},
        {"host_messages"},
    ],
    "monitoring": [
        {"reporter", "watchdog"},
        {"host_metrics"},
        {
            "collapse_alarm",
            "evaluation_metrics",
            "metrics_file",
            "profiling",
            "progress",
            "throughput",
            "parameter_table",
            "strips_process",
            "tracker",
        },
        {"tensorboard_events"},
    ],
    "watching": [
        {"watch"},
        {"server", "run_view", "sweep_view"},
        {"live_page", "newest_strips", "run_status", "make_strips"},
    ],
}

# External packages that a folder must not import. None: any folder.
BANNED = {
    None: {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "torch", "tensorflow"},
    "objectives": {"flax", "ml_collections"},
    "weights": {"ml_collections"},
    "weights.import_weights": set(),
    "data": {"flax"},
}
# The only module that may import a package, because the import needs precautions.
ONLY_IN = {"matplotlib": f"{PACKAGE}.evaluation.pages.charts"}
CONFIGS_MAY_IMPORT = {"ml_collections", "configs"}


def sources(folder):
    return sorted((ROOT / folder).rglob("*.py"))


def imported_modules(tree, module):
    """Returns the absolute dotted names of all imports in the tree of `module`, at any depth."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = module.split(".")[: -node.level] if node.level else []
            stem = ".".join(start + ([node.module] if node.module else []))
            names |= {f"{stem}.{alias.name}" for alias in node.names}
    return names


def own_imports(names):
    """Returns the (folder, file) pairs of this package in `names`; file is "" for a folder."""
    pairs = set()
    for name in names:
        parts = name.split(".")
        if parts[0] == PACKAGE and len(parts) > 1:
            pairs.add((parts[1], parts[2] if len(parts) > 2 else ""))
    return pairs


def layer_of(room, file):
    return next((i for i, layer in enumerate(LAYERS[room]) if file in layer), None)


def complaints(source, module):
    """Returns a sentence for each forbidden import in `source`, the source code of `module`."""
    names = imported_modules(ast.parse(source), module)
    parts = module.split(".")
    outside = {name.split(".")[0] for name in names}
    peers = {"torch"} if parts[0] == "benchmarks" else set()
    found = [f"{module} imports {name}" for name in sorted(outside & BANNED[None] - peers)]
    found += [f"{module} imports {n}" for n in sorted(outside) if ONLY_IN.get(n, module) != module]
    if parts[0] == "configs":
        allowed = CONFIGS_MAY_IMPORT
        if parts[1:2] == ["sweeps"]:
            own = {name for name in names if name.startswith(f"{PACKAGE}.sweeps.arms.")}
            outside = {name.split(".")[0] for name in names - own}
            allowed = CONFIGS_MAY_IMPORT | {"collections"}
        return found + [f"{module} imports {n}" for n in sorted(outside - allowed)]
    if parts[0] != PACKAGE or len(parts) == 1:
        return found
    room, file = parts[1], parts[2] if len(parts) > 2 else ""
    if room not in ARROWS:
        return [*found, f"{module}: ARROWS has no entry for {room!r}"]
    allowed = ARROWS.get(f"{room}.{file}", ARROWS[room]) | FOR_ALL | {room}
    banned = BANNED.get(f"{room}.{file}", BANNED.get(room, set()))
    if "configs" in outside:
        found.append(f"{module} imports configs")
    found += [f"{module} imports {n}" for n in sorted(outside & banned)]
    for other, other_file in sorted(own_imports(names)):
        if not {other, f"{other}.{other_file}"} & allowed:
            found.append(f"{module} imports {other}.{other_file}")
        if other == room and room in LAYERS and file not in ("", "__init__"):
            mine, theirs = layer_of(room, file), layer_of(room, other_file)
            if mine is None or theirs is None or mine >= theirs:
                found.append(f"{module} imports {room}.{other_file}")
    return found


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("folder", [PACKAGE, "configs", "launch", "benchmarks"])
def test_imports_follow_the_arrows(folder):
    paths = sources(folder)
    assert paths
    found = [c for path in paths for c in complaints(path.read_text(), module_name(path))]
    assert not found, "\n".join(found)


def test_every_room_has_an_arrow():
    rooms = {path.stem for path in (ROOT / PACKAGE).glob("*.py")} - {"__init__"}
    rooms |= {path.parent.name for path in (ROOT / PACKAGE).glob("*/*.py")}
    assert rooms - {"assets"} <= set(ARROWS)


def test_every_file_of_a_layered_room_has_a_layer():
    for room, layers in LAYERS.items():
        files = {path.stem for path in (ROOT / PACKAGE / room).glob("*.py")} - {"__init__"}
        assert files <= set().union(*layers), f"{room}: {sorted(files)}"


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("invnext_jax.stages.stage1", "from invnext_jax.stages import stage2"),
        ("invnext_jax.objectives.masks", "import invnext_jax.training.mesh as mesh"),
        ("invnext_jax.models.encoder", "from . import decoder"),
        ("invnext_jax.models.attention", "def f():\n    from .layers import Block"),
        ("invnext_jax.synthetic_world.scene", "from invnext_jax.models.encoder import Encoder"),
        ("invnext_jax.training.mesh", "from invnext_jax.training import state"),
        ("invnext_jax.weights.export", "from invnext_jax.models import encoder"),
        ("invnext_jax.objectives.losses", "import flax.linen as nn"),
        ("invnext_jax.train", "import configs.common"),
        ("invnext_jax.train", "import pickle"),
        ("launch.main", "import torch"),
        ("launch.report", "import matplotlib.pyplot as plt"),
        ("invnext_jax.evaluation.pages.report", "from matplotlib.figure import Figure"),
        ("configs.stage1", "import jax"),
        ("configs.stage1", "from invnext_jax.sweeps.arms import grid"),
        ("configs.sweeps.lr", "from invnext_jax import train"),
    ],
)
def test_a_wrong_import_is_found(module, source):
    assert complaints(source, module)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("invnext_jax.stages.stage1", "from invnext_jax.models.encoder import Encoder"),
        ("invnext_jax.models.encoder", "from invnext_jax.models import layers, positions"),
        ("invnext_jax.training.state", "from . import mesh"),
        ("invnext_jax.data.decode", "from invnext_jax.errors import UserError"),
        ("launch.main", "from invnext_jax import train"),
        ("configs.stage1", "from configs import common"),
        ("configs.sweeps.lr", "from invnext_jax.sweeps.arms import grid"),
    ],
)
def test_an_allowed_import_passes(module, source):
    assert not complaints(source, module)


# Maps distributions to the names of their modules, if these differ.
MODULES = {
    "absl-py": "absl",
    "orbax-checkpoint": "orbax",
    "pillow": "PIL",
    "pyyaml": "yaml",
    "scikit-learn": "sklearn",
}


def test_each_runtime_dependency_is_imported():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.match(r"[\w-]+", text)[0] for text in project["dependencies"]}
    found = set()
    for folder in (PACKAGE, "configs", "launch"):
        for path in sources(folder):
            names = imported_modules(ast.parse(path.read_text()), module_name(path))
            found |= {name.split(".")[0] for name in names}
    assert not {MODULES.get(name, name).replace("-", "_") for name in declared} - found
