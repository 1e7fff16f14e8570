"""Starts the processes of a distributed run, and finds the ports on which processes listen."""

import contextlib
import os
import pathlib
import socket
import subprocess
import sys
import threading

# XLA's older code generator compiles a training step in a third of the time of the newer one.
FAST_TO_COMPILE = "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters=true"


def run_two_processes(script, *arguments, timeout=200, **variables):
    """Runs a script in two processes of a distributed run; see `run_processes`."""
    return run_processes(2, script, *arguments, timeout=timeout, **variables)


def run_processes(count, script, *arguments, timeout=200, **variables):
    """Runs a script in the processes of a distributed run.

    Args:
      count: number of processes.
      script: Python source, which starts `jax.distributed` with `distributed.initialize`.
      *arguments: arguments of the script.
      timeout: time limit in seconds.
      **variables: environment variables.

    Returns:
      Exit code, standard output and standard error of each process.
    """
    with socket.create_server(("localhost", 0)) as server:
        address = f"localhost:{server.getsockname()[1]}"
    environ = {
        **os.environ,
        **{"JAX_PLATFORMS": "cpu", "XLA_FLAGS": FAST_TO_COMPILE},
        **{"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count)},
        **{"PYTHONPATH": str(pathlib.Path(__file__).parents[2])},
        **variables,
    }
    started = [
        subprocess.Popen(
            [sys.executable, "-c", script, *map(str, arguments)],
            env={**environ, "JAX_PROCESS_ID": str(process)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(count)
    ]
    try:
        outputs = [process.communicate(timeout=timeout) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    return [(process.returncode, *texts) for process, texts in zip(started, outputs, strict=True)]


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


@contextlib.contextmanager
def watch_ports(seconds=0.02):
    """Yields a set to which the ports that this process and its descendants open are added.

    A second set has the ids of the processes.
    """
    ports, pids, ended = set(), set(), threading.Event()
    before = open_ports(process_tree(os.getpid()))

    def watch():
        while not ended.wait(seconds):
            tree = process_tree(os.getpid())
            pids.update(tree)
            ports.update(open_ports(tree) - before)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield ports, pids
    finally:
        ended.set()
        thread.join()
