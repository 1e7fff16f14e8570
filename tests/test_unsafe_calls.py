"""No code runs the content of files, or tests paths with methods that raise; read with `ast`."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "invnext_jax"


def sources(folder):
    return sorted((ROOT / folder).rglob("*.py"))


# Functions that execute the content of a file or a string.
UNSAFE = {"eval", "exec", "compile", "system", "popen", "Unpickler", "unsafe_load", "full_load"}
UNSAFE_ARGUMENTS = {"allow_pickle", "shell"}


# Methods of `pathlib.Path` that raise an error in Python 3.11 for links to long names, for files in
# folders that cannot be searched, or for links that form a loop. Functions of `os.path` do not.
RAISING_METHODS = {"exists", "is_file", "is_dir", "is_symlink", "resolve"}
MODULES = ("os.path", "storage", "recipe_lib", "evaluation_data")  # functions of these names
# Their paths may be in a bucket, or are those of the run's own workdir, or not those of `pathlib`.
OTHER_PATHS = {
    *("train.py", "loop.py", "checkpointing/storage.py", "checkpointing/workdir.py"),
    *("dataset_prep/sharding.py", "dataset_prep/shard_writer.py", "dataset_prep/shard_metadata.py"),
    *("video_lists/folder_scan.py", "watching/watch.py", "sweeps/sweep_folder.py"),
    "sweeps/flag_checks.py",
}


def raising_calls(source):
    nodes = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute))
    return [
        ast.unparse(node)
        for node in nodes
        if node.attr in RAISING_METHODS and ast.unparse(node.value) not in MODULES
    ]


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
def test_no_code_executes_the_content_of_files_or_strings(folder):
    found = {str(path): unsafe_calls(path.read_text()) for path in sources(folder)}
    assert not {path: calls for path, calls in found.items() if calls}


@pytest.mark.parametrize(
    "source",
    ["eval(text)", "os.system(text)", "run(c, shell=True)", "np.load(p, allow_pickle=x)"],
)
def test_an_unsafe_call_is_found(source):
    assert unsafe_calls(source)


def test_paths_are_tested_with_functions_that_do_not_raise():
    folder = ROOT / PACKAGE
    others = {folder / name for name in OTHER_PATHS}
    found = {str(path): raising_calls(path.read_text()) for path in {*sources(PACKAGE)} - others}
    assert not {path: calls for path, calls in found.items() if calls}


@pytest.mark.parametrize(
    "source", ["Path(p).is_file()", "p.resolve()", "(a / b).exists()", "map(Path.is_dir, p)"]
)
def test_a_method_that_raises_is_found(source):
    assert raising_calls(source)
    assert not raising_calls("os.path.exists(p) and storage.is_dir(p)")
