"""Numbers of scripts that cannot be negative are refused in one sentence."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("command", "flag"),
    [
        (["watch.py", "."], "--clips=-1"),
        (["report.py", "."], "--clips=-1"),
        (["make_world.py", "--out=none", "--videos=2"], "--workers=-1"),
        (["prepare_data.py", "index", "none", "--out=none.csv"], "--workers=-1"),
        (["sweep.py", "--workdir=none"], "--max_jobs=-1"),
    ],
)
def test_negative_numbers_are_user_errors(command, flag):
    script, *arguments = command
    full = [sys.executable, f"launch/{script}", *arguments, flag]
    done = subprocess.run(full, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == f"error: flag {flag}: -1 is not a non-negative integer\n"
