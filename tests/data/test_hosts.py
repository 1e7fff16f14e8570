"""Batches do not depend on the number of workers and processes."""

import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from fakes import FakeLoad

from configs import common
from invnext_jax.data import pipeline

BATCH, BAD = 12, (3, 8, 21)
CASES = {
    "plain": {},
    "mixed": {"weights": (("a", 1.0), ("b", 4.0)), "repeats": 3},
    "blocks": {"shuffle_block_size": 10},
}
SCRIPT = """
import json, sys
import numpy as np
from fakes import FakeLoad
from configs import common
from invnext_jax.data import pipeline

if __name__ == "__main__":
    host = json.loads(sys.argv[1])
    results = {}
    for name, fields in host["cases"].items():
        config = common.data()
        fields["weights"] = tuple(map(tuple, fields.get("weights", ())))
        config.update(workers=host["workers"], **fields)
        dataset = pipeline.make_train_dataset(
            config, seed=2, load=FakeLoad(bad=tuple(host["bad"])), **host["arguments"]
        )
        iterator = iter(dataset)
        iterator.set_state({"clips": host["clips"]})
        batches = [next(iterator) for _ in range(host["count"])]
        results[name + " state"] = np.array(iterator.get_state()["clips"])
        iterator.close()
        for key in batches[0]:
            results[f"{name} {key}"] = np.stack([batch[key] for batch in batches])
    np.savez(host["out"], **results)
"""


@pytest.fixture
def manifest(tmp_path):
    path = tmp_path / "list.csv"
    rows = "".join(f"{i}.mp4,{'ab'[i % 2]}\n" for i in range(40))
    path.write_text("path,source\n" + rows)
    return str(path)


def read_batches(manifest, fields, count, workers, clips=0):
    """Returns `count` batches from a position on, and the position after them."""
    config = common.data()
    config.update(manifest=manifest, workers=workers, **fields)
    dataset = pipeline.make_train_dataset(config, seed=2, batch_size=BATCH, load=FakeLoad(bad=BAD))
    iterator = iter(dataset)
    try:
        iterator.set_state({"clips": clips})
        return [next(iterator) for _ in range(count)], iterator.get_state()["clips"]
    finally:
        iterator.close()


def read_batches_in_two_processes(manifest, count, clips, folder):
    """Returns batches of all cases, made by two processes, one of which has a worker."""
    (folder / "host.py").write_text(textwrap.dedent(SCRIPT))
    paths = os.pathsep.join([os.getcwd(), f"{os.getcwd()}/tests/support"])
    processes = []
    for number in (0, 1):
        host = {
            "cases": {name: {"manifest": manifest, **fields} for name, fields in CASES.items()},
            "arguments": {"batch_size": BATCH, "positions": list(range(BATCH))[6 * number :][:6]},
            **{"workers": number, "clips": clips, "count": count, "bad": BAD},
            "out": str(folder / f"{number}.npz"),
        }
        command = [sys.executable, str(folder / "host.py"), json.dumps(host)]
        processes.append(subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths}))
    assert [process.wait(120) for process in processes] == [0, 0]
    return [np.load(folder / f"{number}.npz") for number in (0, 1)]


def test_clips_do_not_depend_on_workers_and_hosts(manifest, tmp_path):
    full, end = {}, 0
    for name, fields in CASES.items():
        full[name], end = read_batches(manifest, fields, 7, 0)
        first, clips = read_batches(manifest, fields, 1, 0)
        second, clips = read_batches(manifest, fields, 2, 2, clips)
        third, clips = read_batches(manifest, fields, 1, 1, clips)
        assert clips == 4 * BATCH  # within the second epoch
        for one, other in zip(full[name][:4], first + second + third, strict=True):
            for key in one:
                np.testing.assert_array_equal(one[key], other[key])
    hosts = read_batches_in_two_processes(manifest, 3, clips, tmp_path)
    for name, batches in full.items():
        for key in batches[0]:
            expected = np.stack([batch[key] for batch in batches[4:]])
            results = np.concatenate([host[f"{name} {key}"] for host in hosts], axis=1)
            np.testing.assert_array_equal(results, expected)
        assert {int(host[f"{name} state"]) for host in hosts} == {end}
        rows = np.concatenate([batch["index"] for batch in batches])
        assert len(set(rows.tolist())) > 10 and not np.isin(rows, BAD).any()
