"""The loader's benchmark runs and ends with its figures."""

import json
import os
import subprocess
import sys

import pytest

KEYS = {"pipeline_vs_bare", "pipeline_vs_bare_processes", "cpu_vs_bare"}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_last_line_holds_the_ratios(tmp_path):
    command = [sys.executable, "benchmarks/loader.py", "--quick", "--seconds=0.1", "--workers=1"]
    done = subprocess.run(
        [*command, "--kinds=raw_256,prepared", f"--folder={tmp_path}"],
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    peers = {"pyav", "decord"} - set(result["absent"])
    wanted = KEYS | {f"pipeline_vs_dataloader_{peer}" for peer in peers}
    both = {"prepared_vs_raw_dense", "prepared_vs_raw_sparse"}
    assert set(result["ratios"]) == wanted | both
    assert all(value > 0 for value in result["ratios"].values())
    kinds = [f"{kind}/{way}" for kind in ("raw_256", "prepared") for way in ("dense", "sparse")]
    assert list(result["cases"]) == kinds
    assert all(set(case) == wanted for case in result["cases"].values())
    for peer in result["absent"]:
        assert f"{peer}: absent" in done.stdout
