"""Writing shards in parallel opens no port, stops at errors, and equals writing with Beam."""

import contextlib
import os
import subprocess
import sys
import threading
import time

import pytest

from invnext_jax.data import shards, video_io
from invnext_jax.dataset_prep import shard_runner, shard_writer
from invnext_jax.dataset_prep.reencode import Encoding
from invnext_jax.errors import UserError

IN_PROCESS = (
    "--runner=apache_beam.runners.portability.fn_api_runner.FnApiRunner",
    "--direct_running_mode=in_memory",
)
PREPARE = """
import sys
from invnext_jax.dataset_prep import sharding
options = sharding.ShardingOptions(workers=2, shards=2, progress=False)
sharding.prepare_shards(*sys.argv[1:], options=options)
assert "apache_beam" not in sys.modules and "grpc" not in sys.modules
"""


def write_manifest(folder, videos, count=4):
    for i in range(count):
        videos.write(folder / f"{i}.mp4", frames=9)
    manifest = folder / "list.csv"
    manifest.write_text("path,source\n" + "".join(f"{i}.mp4,a\n" for i in range(count)))
    return manifest


def make_plan(manifest, out, count=2):
    for name in (shard_writer.PARTS, shard_writer.REPORTS):
        (out / name).mkdir(parents=True)
    return shard_writer.ShardPlan(
        manifests=(str(manifest),),
        sha256=video_io.hash_files([str(manifest)]),
        out=str(out),
        split="train",
        rows=4,
        count=count,
        labels=(),
        encoding=Encoding(short_side=48),
        timeout=60.0,
    )


def process_tree(root):
    """Returns the ids of a process and its descendants."""
    parents = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as file:
                parents[int(name)] = int(file.read().rpartition(")")[2].split()[1])
        except OSError:
            continue
    tree, size = {root}, 0
    while size < len(tree):
        size = len(tree)
        tree |= {pid for pid, parent in parents.items() if parent in tree}
    return tree


def open_ports(pids):
    """Returns the addresses on which the processes listen (TCP) or receive (UDP)."""
    inodes = set()
    for pid in pids:
        try:
            files = os.listdir(f"/proc/{pid}/fd")
        except OSError:
            continue
        for file in files:
            with contextlib.suppress(OSError):
                name = os.readlink(f"/proc/{pid}/fd/{file}")
                inodes |= {name[8:-1]} if name.startswith("socket:[") else set()
    found = set()
    for family, states in (("tcp", {"0A"}), ("tcp6", {"0A"}), ("udp", {"07"}), ("udp6", {"07"})):
        try:
            with open(f"/proc/net/{family}") as file:
                rows = [line.split() for line in file.readlines()[1:]]
        except OSError:
            continue
        found |= {(family, row[1]) for row in rows if row[3] in states and row[9] in inodes}
    return found


@pytest.mark.skipif(not os.path.isdir("/proc/net"), reason="reads /proc")
def test_no_port_is_opened_on_this_machine(tmp_path, videos):
    import socket

    # Shows that the check detects open ports.
    with socket.create_server(("localhost", 0)) as server:
        (entry,) = open_ports({os.getpid()})
        assert int(entry[1].rpartition(":")[2], 16) == server.getsockname()[1]
    manifest = write_manifest(tmp_path, videos)
    arguments = [sys.executable, "-c", PREPARE, str(manifest), str(tmp_path / "out")]
    process, ports, most = subprocess.Popen(arguments), set(), 0
    while process.poll() is None:
        tree = process_tree(process.pid)
        most = max(most, len(tree))
        ports |= open_ports(tree)
        time.sleep(0.01)
    assert process.returncode == 0 and most == 3  # the command and two encoders
    assert ports == set()


def test_first_error_stops_the_other_shards(monkeypatch):
    started, ended = threading.Barrier(2, timeout=30), []

    def write(plan, index, stop):
        started.wait()
        if index == 0:
            raise UserError("no space left")
        assert stop.wait(30)
        ended.append(index)

    monkeypatch.setattr(shard_runner, "write_shard", write)
    with pytest.raises(UserError, match="no space left"):
        shard_runner.write_shards(None, range(6), workers=2)
    assert ended == [1]


def test_stopped_shard_is_not_written(tmp_path, videos):
    plan = make_plan(write_manifest(tmp_path, videos), tmp_path / "out")
    stop = threading.Event()
    stop.set()
    with pytest.raises(InterruptedError):
        shard_writer.write_shard(plan, 0, stop)
    assert not plan.shard_path(0).exists() and not plan.report_path(0).exists()


def test_beam_writes_the_same_records(tmp_path, videos):
    pytest.importorskip("apache_beam", exc_type=ImportError)
    manifest = write_manifest(tmp_path, videos)
    plans = [make_plan(manifest, tmp_path / name) for name in ("local", "beam")]
    shard_runner.write_shards(plans[0], [0, 1], workers=2)
    shard_runner.write_shards_with_beam(plans[1], [0, 1], IN_PROCESS)
    rows = []
    for plan in plans:
        reports = [shard_writer.read_report(plan, index) for index in range(2)]
        rows.append([report.written for report in reports])
        assert [report.quarantined for report in reports] == [[], []]
        assert shards.count_records(plan.shard_path(0)) == 2
    assert rows[0] == rows[1] and [len(written) for written in rows[0]] == [2, 2]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--streaming",), "has no runner"),
        (("--runner=DirectRunner",), "DirectRunner runs on this machine and serves its files"),
        (("--streaming", "--runner", "PrismRunner"), "PrismRunner runs on this machine"),
        (IN_PROCESS, "FnApiRunner runs on this machine"),
    ],
)
def test_runners_that_open_ports_are_refused(flags, message):
    with pytest.raises(UserError, match=message):
        shard_runner.check_beam(flags)
