"""CPU quotas, with simulated /proc/self/cgroup, /proc/self/mountinfo and cgroup files."""

import math

import pytest

from invnext_jax.workers.cpu_quota import read_cpu_quota


@pytest.fixture
def read(tmp_path):
    """Writes the files of a process and its cgroups, and returns the quota read from them."""

    def call(cgroup, mounts, files):
        lines = [
            f"3{i} 24 0:2{i} {root} {tmp_path / folder} rw,relatime - {kind}"
            for i, (root, folder, kind) in enumerate(mounts)
        ]
        (tmp_path / "mountinfo").write_text("\n".join(lines) + "\n")
        (tmp_path / "cgroup").write_text(cgroup)
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text + "\n")
        return read_cpu_quota(tmp_path)

    return call


V1 = ("/", "cpu", "cgroup cgroup rw,cpu,cpuacct")
V2 = ("/", "fs", "cgroup2 cgroup2 rw,nsdelegate")


@pytest.mark.parametrize(
    ("text", "cores"),
    [("50000 100000", 0.5), ("250000 100000", 2.5), ("max 100000", math.inf), ("", math.inf)],
)
def test_version_2(read, text, cores):
    assert read("0::/pod/a\n", [V2], {"fs/pod/a/cpu.max": text}) == cores


@pytest.mark.parametrize(
    ("quota", "cores"), [("50000", 0.5), ("400000", 4.0), ("-1", math.inf), ("", math.inf)]
)
def test_version_1(read, quota, cores):
    group = "cpu/docker/b"
    files = {f"{group}/cpu.cfs_quota_us": quota, f"{group}/cpu.cfs_period_us": "100000"}
    cgroup = "9:name=systemd:/\n4:cpuset:/other\n3:cpu,cpuacct:/docker/b\n0::/\n"
    assert read(cgroup, [("/", "cpuset", "cgroup cgroup rw,cpuset"), V1, V2], files) == cores


def test_the_smallest_quota_of_all_parents_counts(read):
    files = {"fs/pod/cpu.max": "150000 100000", "fs/pod/a/cpu.max": "300000 100000"}
    assert read("0::/pod/a\n", [V2], files) == 1.5


@pytest.mark.parametrize("path", ["/docker/b", "/../../docker/b", "/"])
def test_a_container_that_sees_only_its_cgroup(read, path):
    mounts = [("/docker/b", "cpu", "cgroup cgroup rw,cpu,cpuacct")]
    files = {"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}
    assert read(f"3:cpu,cpuacct:{path}\n", mounts, files) == 2.0


def test_no_cgroups_no_quota(read, tmp_path):
    assert read("", [], {}) == math.inf
    assert read("damaged\n", [V2], {}) == math.inf
    assert read_cpu_quota(tmp_path / "absent") == math.inf
