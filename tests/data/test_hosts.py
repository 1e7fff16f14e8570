"""Runs with 0, 2 and 1 workers and then in two real processes give, joined, one run's clips."""

import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from stand_ins import Load

from configs import common
from invnext_jax.data import pipeline

BATCH, BAD = 12, (3, 8, 21)
CASES = {
    "plain": {},
    "mixed": {"weights": (("a", 1.0), ("b", 4.0)), "repeats": 3},
}
SCRIPT = """
import json, sys
import numpy as np
from stand_ins import Load
from configs import common
from invnext_jax.data import pipeline

if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    found = {}
    for name, fields in given["cases"].items():
        config = common.data()
        fields["weights"] = tuple(map(tuple, fields.get("weights", ())))
        config.update(workers=given["workers"], **fields)
        dataset = pipeline.make_train_dataset(
            config, seed=2, load=Load(bad=tuple(given["bad"])), **given["arguments"]
        )
        iterator = iter(dataset)
        iterator.set_state({"clips": given["clips"]})
        batches = [next(iterator) for _ in range(given["count"])]
        found[name + " state"] = np.array(iterator.get_state()["clips"])
        iterator.close()
        for key in batches[0]:
            found[f"{name} {key}"] = np.stack([batch[key] for batch in batches])
    np.savez(given["out"], **found)
"""


@pytest.fixture
def manifest(tmp_path):
    path = tmp_path / "list.csv"
    rows = "".join(f"{i}.mp4,{'ab'[i % 2]}\n" for i in range(40))
    path.write_text("path,source\n" + rows)
    return str(path)


def take(manifest, fields, count, workers, clips=0):
    """So many batches in this process, from a position on, and the position after them."""
    config = common.data()
    config.update(manifest=manifest, workers=workers, **fields)
    dataset = pipeline.make_train_dataset(config, seed=2, batch_size=BATCH, load=Load(bad=BAD))
    iterator = iter(dataset)
    try:
        iterator.set_state({"clips": clips})
        return [next(iterator) for _ in range(count)], iterator.get_state()["clips"]
    finally:
        iterator.close()


def take_in_two_processes(manifest, count, clips, folder):
    """The same of all cases at once, by two processes started here; one has a worker."""
    (folder / "host.py").write_text(textwrap.dedent(SCRIPT))
    paths = os.pathsep.join([os.getcwd(), f"{os.getcwd()}/tests"])
    processes = []
    for number in (0, 1):
        given = {
            "cases": {name: {"manifest": manifest, **fields} for name, fields in CASES.items()},
            "arguments": {"batch_size": BATCH // 2, "process_index": number, "process_count": 2},
            **{"workers": number, "clips": clips, "count": count, "bad": BAD},
            "out": str(folder / f"{number}.npz"),
        }
        command = [sys.executable, str(folder / "host.py"), json.dumps(given)]
        processes.append(subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths}))
    assert [process.wait(120) for process in processes] == [0, 0]
    return [np.load(folder / f"{number}.npz") for number in (0, 1)]


def test_workers_0_2_1_and_then_two_hosts_give_the_clips_of_one_run(manifest, tmp_path):
    whole, end = {}, 0
    for name, fields in CASES.items():
        whole[name], end = take(manifest, fields, 7, 0)
        first, clips = take(manifest, fields, 1, 0)
        second, clips = take(manifest, fields, 2, 2, clips)
        third, clips = take(manifest, fields, 1, 1, clips)
        assert clips == 4 * BATCH  # within the second epoch
        for one, other in zip(whole[name][:4], first + second + third, strict=True):
            for key in one:
                np.testing.assert_array_equal(one[key], other[key])
    hosts = take_in_two_processes(manifest, 3, clips, tmp_path)
    for name, batches in whole.items():
        for key in batches[0]:
            wanted = np.stack([batch[key] for batch in batches[4:]])
            found = np.concatenate([host[f"{name} {key}"] for host in hosts], axis=1)
            np.testing.assert_array_equal(found, wanted)
        assert {int(host[f"{name} state"]) for host in hosts} == {end}
        rows = np.concatenate([batch["index"] for batch in batches])
        assert len(set(rows.tolist())) > 10 and not np.isin(rows, BAD).any()
