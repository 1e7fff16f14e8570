"""The one allowed direction of imports, read from the source with `ast`."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "invnext_jax"

# Rooms and story files: a -> what a may import. Each may import itself and what all may.
FOR_ALL = {"errors", "replacing"}
ARROWS = {
    "train": {"loop", "stages", "pretrained", "runtime", "data", "weights"},
    "loop": {"stages", "runtime", "data"},
    # Of the models, how attention is chosen.
    "stages": {"stage1", "stage2", "models", "runtime"},
    "stage1": {"accounting", "pretrained", "draws", "models", "objectives"},
    "stage2": {"accounting", "pretrained", "draws", "models", "objectives"},
    "draws": {"models", "objectives"},
    "accounting": {"objectives"},
    "plan": {"stages", "accounting", "runtime"},
    "pretrained": {"models", "weights"},
    "importing": {"stages", "models", "weights"},
    "teacher": {"models", "objectives", "runtime", "data", "weights"},
    "evaluation": {
        *("models", "objectives", "runtime", "data", "weights"),
        # To draw the report's strips of masks and reconstructions.
        *("stages", "stage1", "stage2", "pretrained"),
        "importing",  # to read published encoders
    },
    "models": set(),
    "objectives": set(),
    "data": set(),
    "runtime": set(),
    "weights": set(),
    "errors": set(),
    "replacing": set(),
}

# Inside a room: floors from the top down. A file may import files of lower floors only.
FLOORS = {
    "models": [
        {"siglip"},
        {"encoder", "predictor", "decoder", "heads", "teachers"},
        {"vision"},
        {"layers"},
        {"attention"},
        {"fused"},
        {"blockwise", "positions"},
        {"axes", "pixels", "products", "tokens"},
    ],
    "data": [
        {"preparing", "shard_index"},
        {"shard_tables"},
        {"pipeline", "words", "indexing", "shard_writer"},
        {"stream", "journal"},
        {"drops", "pool", "mixture", "reencode", "probing"},
        {"clips", "seats"},
        {"workers"},
        {"sources", "sampling", "lists", "serve"},
        {"opening"},
        {"transforms", "decode", "world", "shards"},
        {"packets"},
        {"frames"},
        *({"world_files", "world_urls"}, {"world_render"}, {"world_captions"}),
        {"world_scene", "progress"},
    ],
    "weights": [
        {"export", "match", "published", "reference", "image_models", "text_models"},
        {"files", "layout", "config_json"},
        {"assets"},
    ],
    "runtime": [
        {"compilation"},
        {"step", "checkpointer"},
        {"restoring", "outcome"},
        {"checkpoint"},
        {"state", "checks"},
        {"mesh", "optimizer", "reporting", "provenance", "integrity", "retention", "agreement"},
        {"progress", "preemption", "watchdog", "workdir", "together", "metrics"},
        {"distributed"},
        {"devices", "collectives", "profiling"},
        {"rollcall"},
    ],
}

# Packages from outside that a room must do without; None: everywhere.
BANNED = {
    None: {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "torch", "tensorflow"},
    "objectives": {"flax", "ml_collections"},
    "weights": {"ml_collections"},
    "data": {"flax"},
}
CONFIGS_MAY_IMPORT = {"ml_collections", "configs"}


def sources(folder):
    return sorted((ROOT / folder).rglob("*.py"))


def imported_modules(tree, module):
    """Dotted names that `module` imports, at any depth; relative ones made absolute."""
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
    """The (room, file) pairs of this package among `names`; file is "" for a whole room."""
    pairs = set()
    for name in names:
        parts = name.split(".")
        if parts[0] == PACKAGE and len(parts) > 1:
            pairs.add((parts[1], parts[2] if len(parts) > 2 else ""))
    return pairs


def floor_of(room, file):
    return next((i for i, floor in enumerate(FLOORS[room]) if file in floor), None)


def complaints(source, module):
    """What the imports in `source` of the dotted `module` break, as a list of sentences."""
    names = imported_modules(ast.parse(source), module)
    parts = module.split(".")
    outside = {name.split(".")[0] for name in names}
    peers = {"torch"} if parts[0] == "benchmarks" else set()
    found = [f"{module} imports {name}" for name in sorted(outside & BANNED[None] - peers)]
    if parts[0] == "configs":
        return found + [f"{module} imports {n}" for n in sorted(outside - CONFIGS_MAY_IMPORT)]
    if parts[0] != PACKAGE or len(parts) == 1:
        return found
    room, file = parts[1], parts[2] if len(parts) > 2 else ""
    if room not in ARROWS:
        return [*found, f"{module}: no arrow is written for {room!r}"]
    if "configs" in outside:
        found.append(f"{module} imports configs")
    found += [f"{module} imports {n}" for n in sorted(outside & BANNED.get(room, set()))]
    for other, other_file in sorted(own_imports(names)):
        if other not in ARROWS[room] | FOR_ALL | {room}:
            found.append(f"{module} imports {other}")
        if other == room and room in FLOORS and file not in ("", "__init__"):
            mine, theirs = floor_of(room, file), floor_of(room, other_file)
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
    assert rooms <= set(ARROWS)


def test_every_file_of_a_room_with_floors_stands_on_one():
    for room, floors in FLOORS.items():
        files = {path.stem for path in (ROOT / PACKAGE / room).glob("*.py")} - {"__init__"}
        assert files <= set().union(*floors), f"{room}: {sorted(files)}"


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("invnext_jax.stage1", "from invnext_jax import stage2"),
        ("invnext_jax.stage1", "import invnext_jax.runtime.mesh as mesh"),
        ("invnext_jax.models.encoder", "from . import decoder"),
        ("invnext_jax.models.attention", "def f():\n    from .layers import Block"),
        ("invnext_jax.data.world", "from invnext_jax.models.encoder import Encoder"),
        ("invnext_jax.runtime.mesh", "from invnext_jax.runtime import state"),
        ("invnext_jax.weights.export", "from invnext_jax.models import encoder"),
        ("invnext_jax.objectives.losses", "import flax.linen as nn"),
        ("invnext_jax.train", "import configs.common"),
        ("invnext_jax.train", "import pickle"),
        ("launch.main", "import torch"),
        ("configs.stage1", "import jax"),
    ],
)
def test_a_wrong_import_is_found(module, source):
    assert complaints(source, module)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("invnext_jax.stage1", "from invnext_jax.models.encoder import Encoder"),
        ("invnext_jax.models.encoder", "from invnext_jax.models import layers, positions"),
        ("invnext_jax.runtime.state", "from . import mesh"),
        ("invnext_jax.data.decode", "from invnext_jax.errors import UserError"),
        ("launch.main", "from invnext_jax import train"),
        ("configs.stage1", "from configs import common"),
    ],
)
def test_an_allowed_import_passes(module, source):
    assert not complaints(source, module)


# Calls that run what a file or a user's text says.
UNSAFE = {"eval", "exec", "compile", "system", "popen", "Unpickler", "unsafe_load", "full_load"}
UNSAFE_ARGUMENTS = {"allow_pickle", "shell"}


def unsafe_calls(source):
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        if isinstance(function, ast.Name) and function.id in UNSAFE:
            found.append(function.id)
        if isinstance(function, ast.Attribute) and function.attr in UNSAFE - {"compile", "eval"}:
            found.append(function.attr)
        found += [
            word.arg
            for word in node.keywords
            if word.arg in UNSAFE_ARGUMENTS and getattr(word.value, "value", True)
        ]
    return found


@pytest.mark.parametrize("folder", [PACKAGE, "configs", "launch", "benchmarks"])
def test_nothing_runs_what_a_file_or_a_text_says(folder):
    found = {str(path): unsafe_calls(path.read_text()) for path in sources(folder)}
    assert not {path: calls for path, calls in found.items() if calls}


@pytest.mark.parametrize(
    "source",
    ["eval(text)", "os.system(text)", "run(c, shell=True)", "np.load(p, allow_pickle=x)"],
)
def test_an_unsafe_call_is_found(source):
    assert unsafe_calls(source)
