"""Single-host commands open no port. For `shards`, see dataset_prep/test_shard_runner.py."""

import os
import socket
import time

import pytest
from processes import watch_ports

from invnext_jax import train
from invnext_jax.dataset_prep import indexing
from invnext_jax.multihost import distributed

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/net"), reason="reads /proc")


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_an_open_port_is_found(host):
    with watch_ports() as (ports, pids), socket.create_server((host, 0)) as server:
        end, number = time.monotonic() + 20, server.getsockname()[1]
        while not ports and time.monotonic() < end:
            time.sleep(0.01)
    ((_, address),) = ports
    assert int(address.rpartition(":")[2], 16) == number and os.getpid() in pids


def test_a_run_opens_no_port(toy_config, toy_stage, toy_data, one_device, tmp_path):
    with watch_ports() as (ports, pids):
        distributed.initialize(None, None, None)
        train.train(toy_config, tmp_path / "run")
    assert os.getpid() in pids and not ports


def test_an_index_opens_no_port(tmp_path, videos):
    (tmp_path / "videos").mkdir()
    for name in ("a.mp4", "b.mkv"):
        videos.write(tmp_path / "videos" / name, frames=9)
    options = indexing.IndexOptions(workers=2, timeout=20.0, progress=False)
    with watch_ports() as (ports, pids):
        indexing.build_manifest(tmp_path / "videos", tmp_path / "a.csv", None, options)
    assert len(pids) >= 3 and not ports
