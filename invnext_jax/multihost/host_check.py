"""Checks that all hosts are present before the first collective.

JAX's own check aborts without naming the missing host. Here, process 0 listens on the coordinator's
address, and the other processes report their number and host name. When all are present, or after
the timeout, process 0 sends each of them the result and closes the port, which JAX then uses.
"""

import contextlib
import json
import select
import socket
import time
from collections.abc import Collection, Mapping

from invnext_jax.errors import UserError

_RETRY_SECONDS = 0.2
_REPORT_SECONDS = 5.0  # a connection that sends nothing for this long is ignored
_MAX_NAMES = 16  # largest number of missing processes that a message names
_BACKLOG = 4096


def check_hosts(address: str, processes: int, process_id: int, timeout_seconds: float) -> list[str]:
    """Waits until all processes have reported to process 0.

    Args:
        address: host and port of process 0.
        processes: the number of processes.
        process_id: the number of this process.
        timeout_seconds: the longest time to wait.

    Returns:
        The host names of the processes, in order.

    Raises:
        UserError: a process does not report in time, or two processes have the same number.
    """
    host, _, port = address.rpartition(":")
    if process_id == 0:
        answer = _collect_reports(int(port), processes, timeout_seconds)
    else:
        answer = _report(host.strip("[]"), int(port), process_id, timeout_seconds)
        if answer is None:
            raise UserError(
                f"process {process_id} (host {socket.gethostname()}) could not reach process 0 at "
                f"{address} within {timeout_seconds:g} s: check that "
                "it is running and that its port is open"
            )
    if answer["error"]:
        raise UserError(answer["error"])
    return answer["hosts"]


def describe_missing_hosts(
    missing: Collection[int], hosts: Mapping[int, str], timeout_seconds: float, label: str = ""
) -> str:
    """Returns a sentence that names the missing processes.

    Args:
        missing: the numbers of the missing processes.
        hosts: the known host names, by process number.
        timeout_seconds: how long the other processes waited.
        label: the name of the synchronization point. "" if it has none.
    """
    names = [f"{i} (host {hosts[i]})" if i in hosts else str(i) for i in sorted(missing)]
    rest = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return (
        f"process{'es' if len(names) > 1 else ''} {', '.join(names[:_MAX_NAMES])}{rest} "
        "did not arrive" + (f" at {label}" if label else "") + f" within {timeout_seconds:g} s"
    )


def _collect_reports(port: int, processes: int, timeout_seconds: float) -> dict:
    """Collects the reports of the other processes and sends them the answer (process 0 only)."""
    deadline = time.monotonic() + timeout_seconds
    hosts, error = {0: socket.gethostname()}, ""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(_create_server(port))
        waiting = []
        while len(hosts) < processes and not error and time.monotonic() < deadline:
            if not select.select([server], [], [], _RETRY_SECONDS)[0]:
                continue
            connection = stack.enter_context(server.accept()[0])
            connection.settimeout(_REPORT_SECONDS)
            report = _read_line(connection)
            if report is None:  # not one of the processes
                continue
            number, host = int(report["process"]), str(report["host"])
            if number in hosts or number >= processes:
                other = f", as does host {hosts[number]}" if number in hosts else ""
                error = (
                    f"host {host} has process_id={number} of {processes}{other}: give each process "
                    f"a different number, from 0 to {processes - 1}"
                )
            hosts.setdefault(number, host)
            waiting.append(connection)
        missing = set(range(processes)) - set(hosts)
        if missing and not error:
            error = describe_missing_hosts(missing, hosts, timeout_seconds)
        answer = {"error": error, "hosts": [hosts.get(i, "") for i in range(processes)]}
        for connection in waiting:
            with contextlib.suppress(OSError):
                connection.sendall(json.dumps(answer).encode() + b"\n")
    return answer


def _create_server(port: int) -> socket.socket:
    dual_stack = {"family": socket.AF_INET6, "dualstack_ipv6": True}
    try:
        return socket.create_server(
            ("", port), backlog=_BACKLOG, **dual_stack if socket.has_dualstack_ipv6() else {}
        )
    except OSError as error:
        raise UserError(f"process 0 cannot listen on port {port}: {error}") from error


def _report(host: str, port: int, process_id: int, timeout_seconds: float) -> dict | None:
    """Reports to process 0. Returns its answer, or None if process 0 cannot be reached in time."""
    deadline = time.monotonic() + timeout_seconds
    report = json.dumps({"process": process_id, "host": socket.gethostname()}).encode() + b"\n"
    while (remaining := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection((host, port), timeout=remaining) as connection:
                connection.sendall(report)
                # If process 0 started later, its timeout ends later. Its answer names the missing
                # processes, so wait for it.
                connection.settimeout(remaining + timeout_seconds)
                answer = _read_line(connection)
                if answer is not None:
                    return answer
        except OSError:
            pass  # process 0 is not listening yet
        time.sleep(_RETRY_SECONDS)
    return None


def _read_line(connection: socket.socket) -> dict | None:
    """Reads one line of JSON. Returns None if the line is not a JSON object."""
    try:
        with connection.makefile("r") as file:
            value = json.loads(file.readline(1 << 20))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
