"""Starts a script in two processes of one distributed run."""

import os
import pathlib
import socket
import subprocess
import sys


def run_two_processes(script, *arguments, timeout=200, **variables):
    """Runs a script in two processes of a distributed run.

    Args:
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
        **{"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        **{"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"},
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
        for process in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=timeout) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    return [(process.returncode, *texts) for process, texts in zip(started, outputs, strict=True)]
