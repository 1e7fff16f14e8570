"""Damaged video files lead to a clip or to a reason in words, in bounded time and memory.

`python -m benchmarks.fuzz_containers` does the same with many more files.
"""

import json
import os
import re
import socket
import sys
import time

import pytest

from benchmarks import fuzz_containers
from benchmarks.fuzzing import container_mutations, fuzz_readers
from benchmarks.fuzzing.container_atoms import find_atoms

FILES = 500
MAX_BYTES = 2**30
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    return fuzz_containers.write_bases(tmp_path_factory.mktemp("bases"))


def read_all(paths):
    data = []
    for path in paths:
        with open(path, "rb") as file:
            data.append(file.read())
    return data


def test_damaged_files_are_read_or_refused(bases, tmp_path):
    summary = fuzz_containers.check_files(bases, tmp_path, range(FILES), workers=1, quiet=True)
    assert not summary.failures, next(iter(summary.failures.values()))
    for outcomes in summary.outcomes.values():
        assert outcomes.total() + len(summary.crashes) == FILES
        assert outcomes["clip"] > FILES / 10 and outcomes["refused"] > FILES / 10
    assert summary.peak_bytes < MAX_BYTES
    assert not os.listdir(tmp_path)


def test_the_number_determines_the_file(bases, tmp_path):
    data, again = read_all(bases), read_all(fuzz_containers.write_bases(tmp_path))
    assert data == again and len(data) >= 12
    made = [container_mutations.mutate(data, number) for number in range(200)]
    assert made == [container_mutations.mutate(again, number) for number in range(200)]
    assert len(set(made) - set(data)) > 180


def test_atoms_of_undamaged_files_cover_them(bases):
    for path, data in zip(bases, read_all(bases), strict=True):
        atoms = find_atoms(data)
        assert len(atoms) >= 8, path
        covered = bytearray(len(data))
        for atom in atoms:
            assert atom.start < atom.body <= atom.end or path.endswith("mpg")
            assert all(p.start <= atom.start and atom.end <= p.end for p in atom.parents)
            covered[atom.start : atom.end] = b"\1" * (atom.end - atom.start)
        assert sum(covered) > 0.95 * len(data), path


def test_checksums_of_undamaged_pages_do_not_change(bases):
    (data,) = read_all(path for path in bases if path.endswith("ogg"))
    assert container_mutations.write_ogg_checksums(data) == data


def open_another(path):
    with open(__file__, "rb") as file:
        file.read(1)


def open_socket(path):
    socket.socket().close()


def leave_open(path):
    leave_open.file = os.open(path, os.O_RDONLY)


def make_a_mistake(path):
    raise KeyError("stream")


def refuse_without_reason(path):
    raise fuzz_readers.Refused(path)


def think_long(path):
    end = time.process_time() + 0.2
    while time.process_time() < end:
        pass


@pytest.mark.parametrize(
    ("read", "expected"),
    [
        (open_another, "accesses: .*test_containers.py"),
        (open_socket, "accesses: .*socket"),
        (leave_open, "left open"),
        (make_a_mistake, "(?s).*KeyError: 'stream'"),
        (refuse_without_reason, "no reason"),
        (think_long, "took"),
        (lambda path: open(path, "rb").close(), "clip$"),
    ],
)
def test_failures_of_a_reader_are_found(read, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz_readers, "MAX_CPU_SECONDS", 0.1)
    (tmp_path / "a").write_bytes(b"x")
    outcome, seconds = fuzz_readers.check(read, str(tmp_path / "a"))
    if read is leave_open:
        os.close(leave_open.file)
    assert re.match(expected, outcome)
    assert seconds < 10


def test_a_crash_is_counted_and_a_failure_ends_the_command_with_1(monkeypatch, capsys, tmp_path):
    class Pool:
        restarts = 2

        def __init__(self, run_task, *_, **__):
            self.numbers, self.run = iter(range(3)), run_task

        def next_result(self):
            return self.run(next(self.numbers), self.work)

        def work(self, number):
            if number == 5:
                raise fuzz_containers.WorkerDiedError("exit code -11")
            fields = dict.fromkeys(fuzz_readers.READERS, "clip")
            if number == 6 and fails:
                fields["probe"] = "KeyError"
            return {**fields, "seconds": 0.5, "peak_bytes": 2**20}

        def close(self):
            pass

    monkeypatch.setattr(fuzz_containers, "OrderedPool", Pool)
    arguments = ["fuzz", "--files=3", "--first=4", f"--keep={tmp_path}"]
    monkeypatch.setattr(sys, "argv", arguments)
    for fails in (False, True):
        assert fuzz_containers.main() == int(fails)
        summary = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert summary["crashes"] == {"5": "worker died: exit code -11"}
        assert summary["failures"] == [6] * fails and summary["restarts"] == 2
    assert [path[:6] for path in sorted(os.listdir(tmp_path))] == ["000005", "000006"]
