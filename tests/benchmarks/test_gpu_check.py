"""The GPU check at tiny size on a CPU, with only the packages that it may use."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from processes import FAST_TO_COMPILE

from benchmarks import gpu_check

ROOT = Path(__file__).parents[2]
# Everything except jax, flax, optax, einops, numpy, ml_collections and their dependencies.
MISSING = """
import flax, sys
class Missing:
    names = set("grain av safetensors tensorboardX tensorflow_datasets clu PIL scipy sklearn torch "
                "transformers matplotlib jinja2 tqdm threadpoolctl".split())
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.names:
            raise ModuleNotFoundError(f"{name} is not installed")
sys.meta_path.insert(0, Missing())
"""
STEP = {
    **{"stage": "stage1", "size": "tiny", "options": "", "clips": 2, "seconds": 0.5},
    **{"tflops": 2.0, "loss": [2.0, 1.0], "wrong": []},
}
KERNELS = {
    **{"device": "NVIDIA H100 80GB HBM3", "devices": 8, "jax": "0.11", "matmul_tflops": 8.0},
    **{"kernels": [], "wrong": ["kernel 7 is off by 1"]},
}
TINY = "--sizes tiny --stages stage1 --steps 2 --clips 2 --side 64".split()


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("check")
    (folder / "sitecustomize.py").write_text(MISSING)
    command = [sys.executable, "-m", "benchmarks.gpu_check", *TINY]
    command += ["--parts", "kernels", "steps", "--minutes", "20", "--part_minutes", "10"]
    env = {**os.environ, "PYTHONPATH": str(folder), "XLA_FLAGS": FAST_TO_COMPILE}
    command += ["--out", str(folder / "page.md")]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    return done, folder / "page.md"


def test_gpu_check_needs_few_packages_and_writes_its_results(checked):
    done, page = checked
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["wrong"] == [] and result["skipped"] == []
    (row,) = result["steps"]
    assert row["clips_per_second"] > 0 and row["tflops"] > 0 and row["new_batches"] > 0
    assert row["loss"][0] != row["loss"][1]
    assert all(0 < kernel["error"] < 2e-2 for kernel in result["kernels"])
    text = page.read_text()
    assert f"| {row['clips_per_second']} |" in text
    assert "All checks passed." in text


def run(monkeypatch, capsys, tmp_path, rows, *flags):
    """Runs the check with the given results of its processes; returns result, page and parts."""
    parts = []

    def start_part(part, limit, left):
        assert 0 < limit and 0 < left
        parts.append(part)
        row = rows[len(parts) - 1]
        return dict(row, wrong=list(row["wrong"])) if "wrong" in row else row

    monkeypatch.setattr(gpu_check, "start_part", start_part)
    with pytest.raises(SystemExit) as ended:
        gpu_check.main([*TINY, *flags, "--out", str(tmp_path / "page.md")])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert ended.value.code == bool(result["wrong"])
    return result, (tmp_path / "page.md").read_text(), parts


def test_a_part_that_fails_does_not_lose_the_results_of_the_others(monkeypatch, capsys, tmp_path):
    failed = {"failed": "it ended with status 1; its messages are above"}
    rows = [KERNELS, failed, {"skipped": "the time was over"}, STEP, STEP]
    flags = "--parts", "kernels", "steps", "options"
    result, page, parts = run(monkeypatch, capsys, tmp_path, rows, *flags)
    assert [part["kind"] for part in parts] == ["kernels", *["step"] * 4]
    assert len(result["steps"]) == 2
    assert result["steps"][0]["of_ceiling"] == 0.25 and result["peak_tflops"] == 989
    assert "- Failed: kernel 7 is off by 1" in page
    assert "- Failed: step stage1 tiny: it ended with status 1" in page
    assert "- Not run: step stage1 tiny quantize_frozen=float8: the time was over" in page
    assert "All checks passed" not in page


def test_the_pytorch_step_gets_the_batch_of_the_jax_step(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(gpu_check.importlib.util, "find_spec", lambda name: name == "torch")
    pytorch = {"stage": "stage1", "seconds": 0.75, "torch": "2", "ran": "cudnn 12", "wrong": []}
    rows = [KERNELS, STEP, pytorch, pytorch]
    flags = "--parts", "kernels", "steps", "pytorch"
    result, page, parts = run(monkeypatch, capsys, tmp_path, rows, *flags)
    assert [(part["kernel"], part["clips"]) for part in parts[2:]] == [("cudnn", 16), ("flash", 16)]
    assert "peer" not in parts[2]
    assert [row["ratio"] for row in result["pytorch"]] == [1.5, 1.5]
    assert "cudnn 12" in page


def test_parts_without_peer_or_time_are_listed_as_not_run(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(gpu_check.importlib.util, "find_spec", lambda _: None)
    result, page, parts = run(monkeypatch, capsys, tmp_path, [], "--parts", "pytorch")
    assert parts == [] and result["wrong"] == []
    assert "- Not run: pytorch stage1 tiny cudnn: PyTorch is not installed" in page
    result, page, parts = run(monkeypatch, capsys, tmp_path, [], "--parts", "steps", "--minutes=0")
    assert parts == []
    assert "- Not run: step stage1 tiny: no time was left" in page


@pytest.mark.parametrize("left, key", [(60, "failed"), (0.5, "skipped")])
def test_a_part_that_takes_too_long_is_stopped(monkeypatch, tmp_path, left, key):
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    assert list(gpu_check.start_part({}, limit=0.6, left=left)) == [key]
