"""A SLURM cluster of two nodes on this machine, without systemd and without root."""

import contextlib
import dataclasses
import getpass
import os
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

NODES = ("n1", "n2")
DAEMONS = ("munged", "slurmctld", "slurmd")
CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmdParameters=config_overrides
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,batch_sched_delay=0
ReturnToService=2
MailProg=/bin/true
KillWait=10
NodeName={nodes} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]},{ports[2]} CPUs=4
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@dataclasses.dataclass(frozen=True)
class Slurm:
    """A running cluster. SLURM_CONF selects it for all commands of SLURM."""

    folder: Path

    def call(self, *command):
        """Runs a command of SLURM and returns its output."""
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def jobs(self, state):
        """The numbers of the jobs in a state."""
        return self.call("squeue", "--noheader", "--format=%i", f"--states={state}").split()

    def start_now(self):
        """Starts requeued jobs, for which SLURM waits two minutes."""
        for line in self.call("squeue", "-h", "--format=%i %r").splitlines():
            number, reason = line.split(maxsplit=1)
            if reason == "BeginTime":
                time.sleep(2)  # times have a resolution of a second, and it must be after the stop
                self.call("scontrol", "update", f"JobId={number}", "StartTime=now")


def find_daemon(name):
    return shutil.which(name, path=os.environ["PATH"] + ":/usr/sbin:/sbin")


def free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextlib.contextmanager
def daemon(folder, name, *flags):
    """Runs a daemon in the foreground, as a child of this process."""
    with open(folder / f"{name}.out", "ab") as log:
        process = subprocess.Popen([find_daemon(name), *flags], stdout=log, stderr=log)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for(condition, folder):
    deadline = time.monotonic() + 30
    while not condition():
        if time.monotonic() > deadline:
            logs = [f"{path}:\n{path.read_text()[-2000:]}" for path in folder.glob("*.out")]
            raise TimeoutError("the cluster did not start:\n" + "\n".join(logs))
        time.sleep(0.1)


def is_idle():
    done = subprocess.run(["sinfo", "-hN", "-o%t"], capture_output=True, text=True)
    return done.stdout.split() == ["idle"] * len(NODES)


@contextlib.contextmanager
def run_cluster(folder):
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    (folder / "state").mkdir()
    values = {"folder": folder, "user": getpass.getuser(), "host": socket.gethostname()}
    config = folder / "slurm.conf"
    config.write_text(CONFIG.format(ports=free_ports(3), nodes=",".join(NODES), **values))
    files = {
        "key-file": key,
        "socket": "munge.socket",
        "pid-file": "munge.pid",
        "seed-file": "seed",
    }
    munge_flags = [f"--{name}={folder / path}" for name, path in files.items()]
    with contextlib.ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("SLURM_CONF", str(config))
        stack.enter_context(daemon(folder, "munged", "--foreground", "--force", *munge_flags))
        wait_for((folder / "munge.socket").exists, folder)
        stack.enter_context(daemon(folder, "slurmctld", "-D", "-c"))
        for node in NODES:
            stack.enter_context(daemon(folder, "slurmd", "-D", "-N", node))
        wait_for(is_idle, folder)
        cluster = Slurm(folder)
        try:
            yield cluster
        finally:
            subprocess.run(["scancel", f"--user={os.getuid()}"], check=False)
            wait_for(lambda: not cluster.jobs("all") or is_idle(), folder)


@pytest.fixture(scope="module")
def slurm():
    missing = [name for name in (*DAEMONS, "sbatch") if find_daemon(name) is None]
    if missing:
        pytest.skip(
            f"SLURM is not tested, because {', '.join(missing)} are not installed: "
            "apt-get install slurm-wlm (Debian, Ubuntu)"
        )
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # paths of sockets have at most 107 characters
    try:
        with run_cluster(folder) as cluster:
            yield cluster
    finally:
        shutil.rmtree(folder, ignore_errors=True)
