"""Starts runners of sweeps as processes that a test can kill.

Importing the package takes seconds, so one process imports it and forks a process for each command.
Reads "run FOLDER CORES" from standard input and prints the process id; "wait PID" prints the exit
code, or minus the number of the signal.
"""

import os
import sys
import traceback

from invnext_jax.sweeps.executors.local_executor import LocalExecutor
from invnext_jax.sweeps.executors.machine import Machine
from invnext_jax.sweeps.runner import Runner, RunOptions
from invnext_jax.sweeps.sweep_folder import SweepFolder


def run(path, cores):
    folder = SweepFolder(path)
    executor = LocalExecutor(Machine(cores=tuple(range(cores))))
    options = RunOptions(retries=1, poll_seconds=0.02, stop_seconds=20.0)
    with folder.lock():
        folder.clear_stop_request()
        Runner(folder, folder.read_sweep(), executor, options, log=lambda _: None).run()


def main():
    print("ready", flush=True)
    for line in sys.stdin:
        command, *arguments = line.split()
        if command == "wait":
            print(os.waitstatus_to_exitcode(os.waitpid(int(arguments[0]), 0)[1]), flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            try:
                run(arguments[0], int(arguments[1]))
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        print(pid, flush=True)


main()
os._exit(0)  # without the teardown of the imported libraries
