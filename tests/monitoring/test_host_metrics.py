import pathlib

import jax
import numpy as np
import pytest
from clu import metrics
from processes import FAST_TO_COMPILE, run_two_processes
from toy_run import MANIFEST

from invnext_jax.monitoring import metrics_file, progress
from invnext_jax.monitoring.host_metrics import Count, HostCounts, HostTimes

ROOT = pathlib.Path(__file__).parents[2]


def test_gathered_rows_are_those_of_this_host(toy_mesh):
    times = HostTimes(toy_mesh)
    gathered = times.gather(np.float32([1.0, 0.25, 8.0, 2.0, 0.0]))
    assert gathered.shape == (toy_mesh.size, 5) and gathered.sharding.is_fully_replicated
    record = times.summarize(jax.device_get(gathered))
    assert record["hosts/data_wait/mean"] == 0.25 and record["hosts/decode_rate/min"] == 8.0
    assert record["hosts/dropped_videos/worst_host"] == 0


@pytest.fixture
def three_hosts(toy_mesh):
    """The mesh of three hosts with one device each."""
    times = HostTimes(toy_mesh)
    times._row_of = {0: 0, 1: 1, 2: 2}
    return times


def test_worst_host_has_the_longest_wait_or_the_lowest_rate(three_hosts):
    rows = np.float32([[2.0, 0.1, 9.0, 0, 0], [2.0, 0.7, 3.0, 0, 1], [2.5, 0.1, np.nan, 6, 0]])
    record = three_hosts.summarize(rows)
    wanted = {
        "step_seconds": (2.0, 6.5 / 3, 2.5, 2),
        "data_wait": (0.1, 0.3, 0.7, 1),
        "decode_rate": (3.0, 6.0, 9.0, 1),
        "dropped_videos": (0.0, 2.0, 6.0, 2),
        "failed_reads": (0.0, 1 / 3, 1.0, 1),
    }
    for name, numbers in wanted.items():
        found = [record[f"hosts/{name}/{key}"] for key in ("min", "mean", "max", "worst_host")]
        np.testing.assert_allclose(found, numbers, rtol=1e-6)
    text = progress._format_data_wait({"data_wait": 0.1, **record})
    assert text == "30 % (10 to 70 %, most on process 1)"


def test_slow_host_is_logged_once_and_again_when_it_recovers(three_hosts):
    def describe(*shares):
        rows = np.float32([[1.0, share, 10 * (1 - share), 0, 0] for share in shares])
        return three_hosts.describe_slow_host(three_hosts.summarize(rows), "process {}".format)

    assert describe(0.0, 0.05, 0.0) == ""
    assert describe(0.1, 0.1, 0.7) == (
        "slow host: process 2 waits for data 70 % of the time, compared with a mean of 30 % over "
        "all hosts, and delays them; it decodes 3 clips/s, compared with a mean of 7"
    )
    assert describe(0.0, 0.0, 0.8) == ""
    assert "slow host: process 0 waits" in describe(0.9, 0.0, 0.0)
    assert "no host waits longer" in describe(0.9, 0.9, 0.9)
    assert describe(0.9, 0.9, 0.9) == ""


TRAINING = """
import importlib.util, json, os, pathlib, sys, time
from absl import flags
flags.FLAGS.mark_as_parsed()
from invnext_jax import train
from invnext_jax.multihost import distributed
from invnext_jax.stages import registry
spec = importlib.util.spec_from_file_location("toy", sys.argv[2])
toy = importlib.util.module_from_spec(spec)
spec.loader.exec_module(toy)
registry.STAGES["toy"] = toy.make_toy_stage()
data = train.pipeline.make_train_dataset = toy.ToyData()
process = int(os.environ["JAX_PROCESS_ID"])
if process == 1:
    data.before_batch = {number: lambda: time.sleep(0.3) for number in range(2, 9)}
config = toy.make_toy_config(sys.argv[1] + "/manifest.csv")
config.mesh.update(data=1, fsdp=2)
config.total_steps = 8
config.log.update(every_steps=4, diagnostics_every_steps=0)
distributed.initialize(timeout_seconds=60)
train.train(config, sys.argv[1] + "/run")
"""


def test_two_processes_name_the_one_with_slow_data(tmp_path):
    (tmp_path / "manifest.csv").write_text(MANIFEST)
    ended = run_two_processes(TRAINING, tmp_path, ROOT / "tests/support/toy_run.py")
    assert [code for code, _, _ in ended] == [0, 0], ended
    record = {
        name.removeprefix("hosts/"): value
        for name, value in metrics_file.read_metrics(tmp_path / "run")[-1].items()
    }
    assert record["data_wait/worst_host"] == 1 and record["data_wait/max"] > 0.5
    assert record["data_wait/min"] < 0.2
    assert record["step_seconds/min"] > 0.2  # the other host waits for the slow one
    out = ended[0][1]
    assert out.count("slow host: process 1 (host") == 1 and "most on process 1)" in out
    assert "slow host" not in ended[1][1]


SUMMING = """
import jax
from invnext_jax.monitoring.host_metrics import HostCounts
from invnext_jax.multihost import distributed
from invnext_jax.training import mesh as mesh_lib
distributed.initialize(timeout_seconds=60)
mesh = mesh_lib.make_mesh({"data": 2, "fsdp": 2, "tensor": 1, "sequence": 1})
counts = HostCounts(mesh)
for dropped in (3, 5):
    sums = counts.sum({"dropped": dropped + jax.process_index(), "clips": 100})
    print({name: int(jax.device_get(total)) for name, total in sorted(sums.items())})
"""


def test_sum_on_the_mesh_counts_this_host_once(toy_mesh):
    counts = HostCounts(toy_mesh)
    assert int(counts.sum({"dropped": 3})["dropped"]) == 3
    assert int(counts.sum({"dropped": 4})["dropped"]) == 4


def test_count_merges_like_other_clu_metrics():
    counts = metrics.Collection.create_collection(dropped=Count(jax.numpy.int32(2)))
    merged = counts.merge(counts).merge(type(counts).empty())
    assert int(merged.compute()["dropped"]) == 4


def test_counts_of_two_processes_are_added():
    flags = f"{FAST_TO_COMPILE} --xla_force_host_platform_device_count=2"
    ended = run_two_processes(SUMMING, XLA_FLAGS=flags)
    # Gloo prints to standard output too.
    printed = [[line for line in text.splitlines() if line[0] == "{"] for _, text, _ in ended]
    expected = ["{'clips': 200, 'dropped': 7}", "{'clips': 200, 'dropped': 11}"]
    assert printed == [expected, expected]
