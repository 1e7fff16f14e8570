"""No code executes the content of files or strings, read from the source with `ast`."""

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
