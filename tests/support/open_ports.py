"""Finds the ports on which a process and its descendants listen, from /proc."""

import contextlib
import os
import threading


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
