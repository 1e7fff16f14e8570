"""The GPU check at tiny size on a CPU, with only the packages that it may use."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Everything except jax, flax, optax, einops, numpy, ml_collections and their dependencies.
BARE = """
import flax, sys
class Missing:
    names = set("grain av safetensors tensorboardX tensorflow_datasets clu PIL scipy sklearn torch "
                "transformers matplotlib jinja2 tqdm threadpoolctl".split())
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.names:
            raise ModuleNotFoundError(f"{name} is not installed")
sys.meta_path.insert(0, Missing())
from benchmarks import gpu_check
gpu_check.SHAPES = ((40, 40, 12, None), (20, 40, 12, None), (140, 140, 8, 8))
gpu_check.main(sys.argv[1:])
"""


def run(*flags):
    command = [sys.executable, "-c", BARE, *flags]
    env = {**os.environ, "XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    page = tmp_path_factory.mktemp("check") / "page.md"
    flags = "--sizes tiny --stages stage1 --steps 2 --batch 2 --side 64 --out".split()
    return run(*flags, str(page)), page


def test_gpu_check_needs_few_packages_and_writes_its_results(checked):
    done, page = checked
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["wrong"] == []
    (row,) = result["steps"]
    assert row["clips_per_second"] > 0 and row["tflops"] > 0
    assert row["loss"][0] != row["loss"][1]
    assert all(0 < kernel["error"] < 2e-2 for kernel in result["kernels"])
    text = page.read_text()
    assert f"| {row['clips_per_second']} |" in text
    assert "All checks passed." in text
