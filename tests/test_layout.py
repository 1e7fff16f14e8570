"""Folders have at most 20 files, and Python files at most 300 lines or a reason for more."""

import ast
import collections
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAX_FILES, MAX_LINES = 20, 300
REASON = re.compile(r"\blong(er)?( than \d+ lines)? because\b")


@pytest.fixture(scope="module")
def tracked():
    """The files of the repository, relative to its root."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("the project is not in a git checkout")
    command = ["git", "-C", str(ROOT), "ls-files", "-z"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip(f"git cannot list the files: {listed.stderr.strip()}")
    return [Path(name) for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def find_full_folders(paths):
    """Returns the folders with more than `MAX_FILES` files, and their numbers of files."""
    files = collections.Counter(str(path.parent) for path in paths)
    return {folder: count for folder, count in files.items() if count > MAX_FILES}


def is_too_long(source):
    """Returns whether a source text is too long and has no reason in its docstring."""
    if source.count("\n") <= MAX_LINES:
        return False
    docstring = ast.get_docstring(ast.parse(source)) or ""
    return REASON.search(" ".join(docstring.split())) is None


def test_folders_have_few_files(tracked):
    assert not find_full_folders(tracked)


def test_python_files_are_short_or_give_a_reason(tracked):
    paths = [path for path in tracked if path.suffix == ".py"]
    too_long = [str(p) for p in paths if is_too_long((ROOT / p).read_text(encoding="utf-8"))]
    assert not too_long, f"split these files, or write the reason in their docstring: {too_long}"


def test_full_folders_are_found():
    paths = [Path(f"a/{number}.py") for number in range(MAX_FILES)]
    assert not find_full_folders([*paths, Path("b.py"), Path("a/b/c.py")])
    assert find_full_folders([*paths, Path("a/x.png")]) == {"a": MAX_FILES + 1}


@pytest.mark.parametrize(
    ("docstring", "lines", "expected"),
    [
        ("Reads.", MAX_LINES, False),
        ("Reads.", MAX_LINES + 1, True),
        ("Reads.\n\nThis file is longer than 300\nlines because it holds all.", 400, False),
        ("Reads.\n\nThe file is long because it holds all.", 400, False),
        ("Reads long videos, because they exist.", 400, True),
    ],
)
def test_long_files_without_a_reason_are_found(docstring, lines, expected):
    source = f'"""{docstring}"""\n'
    assert is_too_long(source + "x = 1\n" * (lines - source.count("\n"))) == expected
