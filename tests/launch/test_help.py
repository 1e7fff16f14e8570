"""`--help` and errors in the flags of a command are fast: no heavy package is imported for them."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Prints the help, and then the names of all top-level packages that were imported for it.
SCRIPT = """
import runpy, sys
del sys.argv[0]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""
HEAVY = {"jax", "flax", "optax", "orbax", "grain", "tensorflow_datasets", "array_record"}
HEAVY |= {"matplotlib", "sklearn", "pyarrow", "tensorboardX", "clu", "jinja2"}
# These commands do not use JAX, and import what they need at their start (0.2 to 0.7 s).
WITHOUT_JAX = {"convert_epic_kitchens", "convert_waymo", "make_world", "prepare_data"}


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "launch").glob("*.py")))
def test_help_imports_no_heavy_package(name):
    command = [sys.executable, "-c", SCRIPT, f"launch/{name}.py", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    help_text, packages = done.stdout.rstrip("\n").rsplit("\n", 1)
    assert f"launch/{name}.py:" in help_text, done.stderr
    heavy = HEAVY if name in WITHOUT_JAX else HEAVY | {"numpy", "scipy", "av", "etils"}
    assert not heavy & set(packages.split()), packages
