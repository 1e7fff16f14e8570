"""Checks that all hosts are present before the first collective.

JAX's own check aborts without reporting which host is missing. Here, process 0 listens on the
coordinator's address, and the other processes report their number and host name. When all are
present, or after the timeout, process 0 sends each of them the result and closes the port, which
JAX then uses.

Any machine that reaches the port can connect. Connections that are silent, slow or send anything
other than a report are closed without delaying others. If `INVNEXT_SECRET` is set, both sides prove
that they know it by signing each message together with a random number chosen by its receiver.
"""

import contextlib
import errno
import ipaddress
import json
import os
import re
import secrets
import selectors
import socket
import time
from collections.abc import Collection, Mapping
from typing import Any

from absl import logging

from invnext_jax.errors import UserError
from invnext_jax.multihost import host_messages

BIND_VARIABLE = "JAX_COORDINATOR_BIND_ADDRESS"  # also read by JAX's service
_RETRY_SECONDS = 0.2
_ANSWER_SECONDS = 10.0  # time for sending the result to all processes
_MAX_STRANGERS = 64  # maximum number of open connections without a report
_MAX_NAMES = 16  # maximum number of missing processes listed in a message
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
    secret = os.environ.get(host_messages.SECRET_VARIABLE, "").encode()
    if process_id == 0:
        with _create_server(address, secret) as server:
            answer = _HostCheck(server, processes, secret).run(timeout_seconds)
    else:
        answer = _report(address, processes, process_id, timeout_seconds, secret)
        if answer is None:
            raise UserError(
                f"process {process_id} (host {host_messages.host_name()}) could not reach process "
                f"0 at {address} within {timeout_seconds:g} s: check that it is running, that its "
                f"port is open, and that {host_messages.SECRET_VARIABLE} has the same value "
                "everywhere"
            )
    if answer["error"]:
        raise UserError(answer["error"])
    return answer["hosts"]


def bind_address(address: str) -> str | None:
    """Returns the address on which process 0 listens, or None for all network interfaces.

    It is the value of JAX_COORDINATOR_BIND_ADDRESS or, if the coordinator is this machine's
    loopback interface, the coordinator's address.

    Raises:
      UserError: the variable is not an address.
    """
    chosen = os.environ.get(BIND_VARIABLE)
    if chosen:
        if not re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]]+):\d{1,5}", chosen):
            raise UserError(f"{BIND_VARIABLE}={chosen!r} must be host:port, such as 10.0.0.1:1234")
        return chosen
    host = address.rpartition(":")[0].strip("[]")
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = host == "localhost"
    return address if loopback else None


def describe_missing_hosts(
    missing: Collection[int], hosts: Mapping[int, str], timeout_seconds: float, label: str = ""
) -> str:
    """Returns a sentence that lists the missing processes.

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


class _HostCheck:
    """The server in process 0, which collects one report per process and then sends the result.

    Args:
      server: listening socket.
      processes: the number of processes.
      secret: shared secret; empty if there is none.
    """

    def __init__(self, server: socket.socket, processes: int, secret: bytes):
        self._server, self._processes, self._secret = server, processes, secret
        self._hosts, self._error, self._strangers = {0: host_messages.host_name()}, "", 0
        self._selector = selectors.DefaultSelector()
        # Connections without a report, oldest first, then connections with a report and its random
        # number.
        self._pending: dict[socket.socket, tuple[str, bytearray]] = {}
        self._reported: list[tuple[socket.socket, str]] = []

    def run(self, timeout_seconds: float) -> dict[str, Any]:
        """Runs the check; returns the result after sending it to all processes that reported."""
        deadline = time.monotonic() + timeout_seconds
        self._server.setblocking(False)
        try:
            self._selector.register(self._server, selectors.EVENT_READ)
            while len(self._hosts) < self._processes and not self._error:
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    missing = set(range(self._processes)) - set(self._hosts)
                    self._error = describe_missing_hosts(missing, self._hosts, timeout_seconds)
                    break
                for key, _ in self._selector.select(remaining):
                    if key.fileobj is self._server:
                        self._accept()
                    elif not self._error and key.fileobj in self._pending:
                        self._read(key.fileobj)
            return self._send_answers()
        finally:
            self._selector.close()
            for connection in [*self._pending, *(connection for connection, _ in self._reported)]:
                connection.close()

    def _accept(self) -> None:
        if len(self._pending) >= _MAX_STRANGERS + self._processes:
            self._close(next(iter(self._pending)))  # a process of the run will connect again
        nonce = secrets.token_hex()
        try:
            connection = self._server.accept()[0]
        except OSError as error:  # the other side has closed it, or too many are open
            if error.errno in (errno.EMFILE, errno.ENFILE) and self._pending:
                self._close(next(iter(self._pending)))
            return
        connection.setblocking(False)
        self._pending[connection] = nonce, bytearray()
        self._selector.register(connection, selectors.EVENT_READ)
        try:
            connection.send(json.dumps({"nonce": nonce}).encode() + b"\n")
        except OSError:
            self._close(connection)

    def _read(self, connection: socket.socket) -> None:
        nonce, data = self._pending[connection]
        try:
            received = connection.recv(host_messages.MAX_REPORT_BYTES)
        except BlockingIOError:
            return
        except OSError:
            received = b""
        data += received
        if received and b"\n" not in data and len(data) < host_messages.MAX_REPORT_BYTES:
            return
        report = host_messages.parse_report(bytes(data), nonce, self._secret)
        if report is None:
            if not self._strangers:  # logged only once, so that other machines cannot fill the log
                logging.warning("closed a connection that does not come from a process of this run")
            self._strangers += 1
            self._close(connection)
            return
        number, host, answer_nonce = report
        del self._pending[connection]
        self._selector.unregister(connection)
        self._reported.append((connection, answer_nonce))
        if number in self._hosts or number >= self._processes:
            other = f", as does host {self._hosts[number]}" if number in self._hosts else ""
            self._error = (
                f"host {host} has process_id={number} of {self._processes}{other}: give each "
                f"process a different number, from 0 to {self._processes - 1}"
            )
        self._hosts.setdefault(number, host)

    def _close(self, connection: socket.socket) -> None:
        del self._pending[connection]
        self._selector.unregister(connection)
        connection.close()

    def _send_answers(self) -> dict[str, Any]:
        hosts = [self._hosts.get(i, "") for i in range(self._processes)]
        answer = {"error": self._error, "hosts": hosts}
        deadline = time.monotonic() + _ANSWER_SECONDS
        for connection, nonce in self._reported:
            signature = host_messages.sign(self._secret, "answer", nonce, self._error, *hosts)
            with contextlib.suppress(OSError):
                connection.settimeout(max(0.01, deadline - time.monotonic()))
                connection.sendall(json.dumps({**answer, "signature": signature}).encode() + b"\n")
        return answer


def _create_server(address: str, secret: bytes) -> socket.socket:
    bind = bind_address(address)
    host, _, port = (bind or f":{address.rpartition(':')[2]}").rpartition(":")
    options: dict[str, Any] = {"backlog": _BACKLOG}
    if not host:
        if socket.has_dualstack_ipv6():
            options |= {"family": socket.AF_INET6, "dualstack_ipv6": True}
        logging.warning(
            "process 0 listens on port %s of all network interfaces%s: run on a trusted network, "
            "or set %s",
            port,
            "" if secret else " without a secret",
            BIND_VARIABLE,
        )
    else:
        logging.info("process 0 listens on %s", bind)
        if ":" in host:
            options["family"] = socket.AF_INET6
    try:
        return socket.create_server((host.strip("[]"), int(port)), **options)
    except (OSError, OverflowError) as error:
        where = bind or f"port {port}"
        raise UserError(f"process 0 cannot listen on {where}: {error}") from error


def _report(
    address: str, processes: int, process_id: int, timeout_seconds: float, secret: bytes
) -> dict[str, Any] | None:
    """Reports to process 0; returns its answer, or None if it cannot be reached in time."""
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + timeout_seconds
    while (remaining := deadline - time.monotonic()) > 0:
        with contextlib.suppress(OSError):  # process 0 is not listening yet
            target = host.strip("[]"), int(port)
            with socket.create_connection(target, timeout=remaining) as connection:
                greeting = (
                    host_messages.read_line(connection, deadline, host_messages.MAX_REPORT_BYTES)
                    or {}
                )
                own, nonce, name = (
                    secrets.token_hex(),
                    greeting.get("nonce"),
                    host_messages.host_name(),
                )
                if isinstance(nonce, str):
                    signature = host_messages.sign(
                        secret, "report", nonce, own, str(process_id), name
                    )
                    report = {"process": process_id, "host": name, "nonce": own}
                    connection.sendall(
                        json.dumps({**report, "signature": signature}).encode() + b"\n"
                    )
                    # If process 0 started later, its timeout also ends later. Wait for its answer,
                    # because it lists the missing processes.
                    answer = host_messages.read_line(
                        connection, deadline + timeout_seconds, host_messages.MAX_ANSWER_BYTES
                    )
                    if host_messages.is_answer(answer, processes, own, secret):
                        return answer
        time.sleep(_RETRY_SECONDS)
    return None
