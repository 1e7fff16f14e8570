"""The loader benchmark runs and prints its results in the last line."""

import importlib
import json
import os
import subprocess
import sys

import pytest

KEYS = {"pipeline_vs_bare", "pipeline_vs_bare_processes", "pipeline_vs_grain", "cpu_vs_bare"}


def run_benchmark(*arguments):
    """Returns the output of a short run and the JSON object in its last line."""
    command = [sys.executable, "benchmarks/loader.py", "--quick", "--seconds=0.1", "--workers=1"]
    done = subprocess.run(
        [*command, *arguments],
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done, json.loads(done.stdout.splitlines()[-1])


def test_the_cost_of_a_clip_in_the_parent_is_measured():
    _, result = run_benchmark("--mode=parent", "--batch=2")
    assert result["clip_bytes"] == 16 * 224 * 224 * 3
    for reader in ("pipeline", "grain"):
        cpu = result[reader]["parent_cpu_ms_per_clip"]
        assert result[reader]["clips_per_cpu_second"] == pytest.approx(1000 / cpu)
        copies = cpu / 1000 * result["copy_gb_per_cpu_second"] * 1e9 / result["clip_bytes"]
        assert result[reader]["copies"] == pytest.approx(copies)
        assert result[reader]["clips_per_second"] > 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_last_line_holds_the_ratios(tmp_path):
    done, result = run_benchmark("--kinds=raw_256,prepared", f"--folder={tmp_path}")
    peers = {"pyav", "decord"} - set(result["absent"])
    wanted = KEYS | {f"pipeline_vs_dataloader_{peer}" for peer in peers}
    both = {"prepared_vs_raw_dense", "prepared_vs_raw_sparse"}
    assert set(result["ratios"]) == wanted | both
    assert all(value > 0 for value in result["ratios"].values())
    kinds = [f"{kind}/{way}" for kind in ("raw_256", "prepared") for way in ("dense", "sparse")]
    assert list(result["cases"]) == kinds
    assert all(set(case) == wanted for case in result["cases"].values())
    for peer in result["absent"]:
        assert f"{peer} is skipped" in done.stdout


def test_a_delay_among_prefetched_batches_does_not_start_the_measurement(monkeypatch):
    monkeypatch.syspath_prepend("benchmarks")
    measures = importlib.import_module("loader_measures")
    clock = [0.0]

    def give():
        # Two batches at the start, and four prefetched ones, one of which is late. Then two batches
        # arrive together every four seconds, as from two processes.
        for seconds in [9.0, 9.0, 0.001, 0.3, 0.001, 0.001, *[4.0, 0.001] * 9]:
            clock[0] += seconds
            yield

    monkeypatch.setattr(measures.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(measures, "_wait_for_rest", lambda: None)
    reader = measures.Batches(give(), batch=8, close=lambda: None)
    for _ in range(2):
        assert reader.measure(32, pace=4.0).clips == pytest.approx(4.0, rel=1e-3)
