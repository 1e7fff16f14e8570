"""Who is there before the first collective: JAX itself aborts without a name if a host is missing.

Process 0 listens at the coordinator's address, all others report with number and host name. When
all are there, or the time is up, each is told so, the port is let go, and JAX takes it over.
"""

import contextlib
import json
import select
import socket
import time
from collections.abc import Collection, Mapping

from invnext_jax.errors import UserError

_RETRY_SECONDS = 0.2
_REPORT_SECONDS = 5.0  # whoever says nothing for so long is none of ours


def check_hosts(address: str, processes: int, process_id: int, timeout_seconds: float) -> list[str]:
    """Waits until all processes have reported to process 0.

    Args:
        address: host and port of process 0.
        processes: how many there are.
        process_id: number of this one.
        timeout_seconds: longest time to wait.

    Returns:
        The host name of each process.

    Raises:
        UserError: somebody is missing, or two processes have the same number.
    """
    host, _, port = address.rpartition(":")
    if process_id == 0:
        answer = _listen(int(port), processes, timeout_seconds)
    else:
        answer = _report(host.strip("[]"), int(port), process_id, timeout_seconds)
        if answer is None:
            raise UserError(
                f"process {process_id} (host {socket.gethostname()}) could not reach process 0 at "
                f"{address} within {timeout_seconds:g} s: is it running, and may its port be used?"
            )
    if answer["error"]:
        raise UserError(answer["error"])
    return answer["hosts"]


def describe_missing_hosts(
    absent: Collection[int], hosts: Mapping[int, str], timeout_seconds: float, where: str = ""
) -> str:
    """A sentence that names processes that did not come.

    Args:
        absent: their numbers.
        hosts: host names, as far as they are known.
        timeout_seconds: how long they were waited for.
        where: what they were waited for at, if it has a name.
    """
    names = [f"{i} (host {hosts[i]})" if i in hosts else str(i) for i in sorted(absent)]
    shown = ", ".join(names[:16]) + (f" and {len(names) - 16} more" if len(names) > 16 else "")
    return (
        f"process{'es' if len(names) > 1 else ''} {shown} did not arrive"
        + (f" at {where}" if where else "")
        + f" within {timeout_seconds:g} s"
    )


def _listen(port: int, processes: int, timeout_seconds: float) -> dict:
    deadline = time.monotonic() + timeout_seconds
    hosts, error = {0: socket.gethostname()}, ""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(_serve(port))
        waiting = []
        while len(hosts) < processes and not error and time.monotonic() < deadline:
            if not select.select([server], [], [], _RETRY_SECONDS)[0]:
                continue
            connection = stack.enter_context(server.accept()[0])
            connection.settimeout(_REPORT_SECONDS)
            report = _read(connection)
            if report is None:  # not one of ours
                continue
            number, host = int(report["process"]), str(report["host"])
            if number in hosts or number >= processes:
                other = f", as on host {hosts[number]}" if number in hosts else ""
                error = (
                    f"host {host} calls itself process {number} of {processes}{other}: give each "
                    f"process a number of its own, from 0 to {processes - 1}"
                )
            hosts.setdefault(number, host)
            waiting.append(connection)
        absent = set(range(processes)) - set(hosts)
        if absent and not error:
            error = describe_missing_hosts(absent, hosts, timeout_seconds)
        answer = {"error": error, "hosts": [hosts.get(i, "") for i in range(processes)]}
        for connection in waiting:
            with contextlib.suppress(OSError):
                connection.sendall(json.dumps(answer).encode() + b"\n")
    return answer


def _serve(port: int) -> socket.socket:
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(
                ("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=4096
            )
        return socket.create_server(("", port), backlog=4096)
    except OSError as error:
        raise UserError(f"process 0 cannot listen on port {port}: {error}") from error


def _report(host: str, port: int, process_id: int, timeout_seconds: float) -> dict | None:
    """What process 0 answered, or None if it could not be reached in time."""
    deadline = time.monotonic() + timeout_seconds
    mine = json.dumps({"process": process_id, "host": socket.gethostname()}).encode() + b"\n"
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection((host, port), timeout=left) as connection:
                connection.sendall(mine)
                # Process 0 may have started later and so waits longer; its answer names the absent.
                connection.settimeout(left + timeout_seconds)
                answer = _read(connection)
                if answer is not None:
                    return answer
        except OSError:
            pass  # not there yet
        time.sleep(_RETRY_SECONDS)
    return None


def _read(connection: socket.socket) -> dict | None:
    """One line of JSON, or None."""
    try:
        with connection.makefile("r") as file:
            found = json.loads(file.readline(1 << 20))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
