"""The benchmark of an evaluation runs with tiny sizes, and prints its ratios as JSON."""

import json
import os
import subprocess
import sys


def test_quick_run_prints_the_ratios():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.evaluation", "--quick"],
        env={**os.environ, "PYTHONPATH": os.getcwd()},
        **{"capture_output": True, "text": True, "check": True},
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["ratio"] > 0 and found["wall_ratio"] > 0 and found["quick"]
