"""Writing shards in parallel opens no port, stops at errors, and equals writing with Beam."""

import os
import subprocess
import sys
import threading

import pytest
from processes import watch_ports

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


@pytest.mark.skipif(not os.path.isdir("/proc/net"), reason="reads /proc")
def test_no_port_is_opened_on_this_machine(tmp_path, videos):
    manifest = write_manifest(tmp_path, videos)
    arguments = [sys.executable, "-c", PREPARE, str(manifest), str(tmp_path / "out")]
    with watch_ports() as (ports, pids):
        assert subprocess.run(arguments, check=False).returncode == 0
    assert len(pids) >= 4 and not ports  # this process, the command and two encoders


FULL = """
import resource, sys
from invnext_jax import errors
from invnext_jax.dataset_prep import shard_files
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
with errors.exit_on_user_error(), shard_files.open_writer(sys.argv[1]) as write:
    for _ in range(100):
        write(bytes(10_000))
"""


def test_a_full_disk_is_an_error_in_one_sentence(tmp_path):
    command = [sys.executable, "-c", FULL, str(tmp_path / "shard")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    expected = f"error: {tmp_path / 'shard'} cannot be read or written (File too large): free space"
    assert done.stderr.splitlines()[-1].startswith(expected)


def test_threads_start_after_the_import_of_tfds():
    code = "import sys; from invnext_jax.dataset_prep import shard_runner\n"
    code += "def write(*_): assert hasattr(sys.modules['tensorflow_datasets'], 'features')\n"
    code += "shard_runner.write_shard = write; shard_runner.write_shards(None, range(2), 2)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_first_error_stops_the_other_shards(monkeypatch):
    started, ended = threading.Barrier(2, timeout=30), []

    def write(plan, index, stop):
        if index > 1:  # may begin before the error of the first one is known
            return
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
        reports = [shard_writer.read_report(plan, i, shards.count_records) for i in range(2)]
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
