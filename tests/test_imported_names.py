"""Names that code reads from the modules of this repository exist there; read with `ast`."""

import ast
import functools
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("invnext_jax", "configs", "launch", "benchmarks", "tests")
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


def module_path(name):
    """Returns the file of a module of this repository, or None."""
    path = ROOT / Path(*name.split("."))
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.is_file():
            return file
    return path if path.is_dir() and name.split(".")[0] in FOLDERS else None


@functools.cache
def top_level_names(name):
    """Returns the names that a module defines outside its functions, or None: it has any name."""
    path = module_path(name)
    names = {"__file__", "__name__", "__doc__", "__path__"}
    if path.name == "__init__.py" or path.is_dir():
        folder = path.parent if path.name == "__init__.py" else path
        names |= {child.stem for child in folder.iterdir()}
    if path.is_dir():
        return names
    pending = list(ast.parse(path.read_text()).body)
    while pending:
        node = pending.pop()
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            names.add(getattr(node, "name", ""))
            continue
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        pending += ast.iter_child_nodes(node)
    return None if "__getattr__" in names else names


def imports_of_repository(tree, module):
    """Maps local names to modules of this repository, and lists imports of missing names."""
    modules, missing = {}, []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.asname and module_path(alias.name):
                    modules[alias.asname] = alias.name
        elif isinstance(node, ast.ImportFrom):
            start = module.split(".")[: -node.level] if node.level else []
            stem = ".".join(start + ([node.module] if node.module else []))
            if stem.split(".")[0] not in FOLDERS or not module_path(stem):
                continue
            for alias in node.names:
                if module_path(f"{stem}.{alias.name}"):
                    modules[alias.asname or alias.name] = f"{stem}.{alias.name}"
                elif (names := top_level_names(stem)) is not None and alias.name not in names:
                    missing.append(f"{stem}.{alias.name}")
    return modules, missing


def bound_names(tree):
    """Returns the names that are assigned or are parameters: they may hide a module."""
    return {
        *(node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)),
        *(n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)),
    }


def missing_names(source, module):
    """Returns the names that `source` reads from modules of this repository without them."""
    tree = ast.parse(source)
    modules, missing = imports_of_repository(tree, module)
    modules = {name: modules[name] for name in modules.keys() - bound_names(tree)}
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)):
            continue
        if not isinstance(node.ctx, ast.Load) or node.value.id not in modules:
            continue
        names = top_level_names(modules[node.value.id])
        if names is not None and node.attr not in names:
            missing.append(f"{modules[node.value.id]}.{node.attr}")
    return missing


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts)


@pytest.mark.parametrize("folder", FOLDERS)
def test_names_of_imported_modules_exist(folder):
    paths = sorted((ROOT / folder).rglob("*.py"))
    assert paths
    found = {str(path): missing_names(path.read_text(), module_name(path)) for path in paths}
    assert not {path: names for path, names in found.items() if names}


@pytest.mark.parametrize(
    "source",
    [
        "from invnext_jax.checkpointing import checksums\nchecksums.INCOMPLETE",
        "from invnext_jax.checkpointing.checksums import INCOMPLETE",
        "import invnext_jax.checkpointing.checksums as c\ndef f():\n    return c.INCOMPLETE",
    ],
)
def test_a_missing_name_is_found(source):
    assert missing_names(source, "benchmarks.x") == [
        "invnext_jax.checkpointing.checksums.INCOMPLETE"
    ]


def test_names_of_modules_and_parameters_pass():
    source = "from invnext_jax.checkpointing import storage\nstorage.INCOMPLETE"
    assert not missing_names(source, "benchmarks.x")
    assert not missing_names(source + "\ndef f(storage):\n    return storage.x", "benchmarks.x")
