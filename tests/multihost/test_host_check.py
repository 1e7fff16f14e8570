"""Starts runs while other machines on the network connect to the port of process 0."""

import json
import socket
import threading
import time

import pytest

from invnext_jax.errors import UserError
from invnext_jax.multihost import host_check, host_messages

HOST = host_messages.host_name()


@pytest.fixture
def port():
    with socket.create_server(("localhost", 0)) as server:
        return server.getsockname()[1]


class Process(threading.Thread):
    """Runs `check_hosts` in a thread and keeps its result or error."""

    def __init__(self, port, number, processes, seconds):
        super().__init__(daemon=True)
        self._arguments = f"localhost:{port}", processes, number, seconds
        self.result, self.error, self.seconds = None, None, None
        self.start()

    def run(self):
        start = time.monotonic()
        try:
            self.result = host_check.check_hosts(*self._arguments)
        except BaseException as error:
            self.error = error
        self.seconds = time.monotonic() - start

    def outcome(self):
        self.join(30)
        assert not self.is_alive()
        return self.result or self.error


def connect(port, data=b""):
    """Connects as soon as process 0 listens, and sends some bytes."""
    for _ in range(100):
        try:
            connection = socket.create_connection(("localhost", port), timeout=20)
        except OSError:
            time.sleep(0.05)
        else:
            connection.sendall(data)
            return connection
    raise AssertionError("process 0 does not listen")


def report(process, host="stranger", **fields):
    message = {"process": process, "host": host, "nonce": "1", "signature": "", **fields}
    return json.dumps(message).encode() + b"\n"


GARBAGE = {
    "no JSON": b"GET / HTTP/1.1\r\n\r\n",
    "no key": b"{}\n",
    "null": report(None),
    "text": report("1"),
    "boolean": report(True),
    "float": report(1.0),
    "infinity": b'{"process":1e999,"host":"x","nonce":"1","signature":""}\n',
    "negative": report(-1),
    "long number": b'{"process":' + b"9" * 5000 + b"}\n",
    "deep": b"[" * 200_000 + b"\n",
    "no host": report(1, None),
    "escapes": report(1, "\x1b]0;owned\x07"),
    "surrogate": report(1, "\ud800"),
    "long host": report(1, "x" * 300_000),
    "bytes": b"\xff\xfe\n",
    "signature": report(1, signature=["\ud800"]),
    "no nonce": report(1, nonce=None),
}


def test_garbage_does_not_stop_the_start(port):
    first = Process(port, 0, 2, 20)
    for data in GARBAGE.values():
        with connect(port) as connection:
            try:
                connection.sendall(data)
                connection.settimeout(10)
                while connection.recv(4096):  # until process 0 closes the connection
                    pass
            except ConnectionError:  # closed before all bytes were sent
                pass
    second = Process(port, 1, 2, 20)
    assert first.outcome() == second.outcome() == [HOST, HOST]


def test_silent_and_slow_connections_delay_nobody(port):
    first = Process(port, 0, 2, 20)
    silent = [connect(port, data) for data in [b"", b"{"] * 40]
    start = time.monotonic()
    second = Process(port, 1, 2, 20)
    assert first.outcome() == second.outcome() == [HOST, HOST]
    assert time.monotonic() - start < 5
    for connection in silent:
        connection.close()


def test_one_deadline_holds_for_all_connections(port):
    first = Process(port, 0, 2, 1)
    connection, start = connect(port, b"{"), time.monotonic()
    while first.is_alive() and time.monotonic() - start < 10:
        time.sleep(0.1)
        try:
            connection.sendall(b" ")
        except OSError:
            break
    assert "process 1 did not arrive within 1 s" in str(first.outcome())
    assert first.seconds < 3
    connection.close()


@pytest.mark.parametrize("answer", [b'{"status":"ok"}\n', b"", b'{"nonce":"1"}\n{"error":""}\n'])
def test_foreign_answer_is_not_accepted(port, answer):
    def serve():
        with socket.create_server(("localhost", port)) as server:
            connection = server.accept()[0]
            connection.sendall(answer)
            connection.close()

    threading.Thread(target=serve, daemon=True).start()
    assert "could not reach process 0" in str(Process(port, 1, 2, 1).outcome())


def test_number_in_use_is_an_error_that_names_the_hosts(port):
    first, stranger = Process(port, 0, 3, 20), connect(port, report(1))
    while not select_readable(stranger):
        time.sleep(0.01)
    second = Process(port, 1, 3, 20)
    for process in (first, second):
        text = str(process.outcome())
        assert f"host {HOST} has process_id=1 of 3, as does host stranger" in text or (
            f"host stranger has process_id=1 of 3, as does host {HOST}" in text
        )
    stranger.close()


def select_readable(connection):
    connection.settimeout(10)
    return connection.recv(1, socket.MSG_PEEK)


def test_secret_keeps_strangers_out(port, monkeypatch):
    monkeypatch.setenv(host_messages.SECRET_VARIABLE, "correct horse")
    first = Process(port, 0, 3, 20)
    for data in (report(1), report(1, signature="0" * 64), report(7)):
        with connect(port, data) as connection:
            while connection.recv(4096):  # the random number, then the end
                pass
    others = [Process(port, number, 3, 20) for number in (1, 2)]
    assert [p.outcome() for p in (first, *others)] == [[HOST] * 3] * 3


def test_reports_cannot_be_replayed_and_answers_are_signed():
    secret, host = b"secret", "node1"
    signature = host_messages.sign(secret, "report", "a", "b", "1", host)
    data = report(1, host, nonce="b", signature=signature)
    assert host_messages.parse_report(data, "a", secret) == (1, host, "b")
    assert host_messages.parse_report(data, "c", secret) is None
    assert host_messages.parse_report(data, "a", b"other") is None
    answer = {"error": "", "hosts": ["a", "b"]}
    answer["signature"] = host_messages.sign(secret, "answer", "n", "", "a", "b")
    assert host_messages.is_answer(answer, 2, "n", secret)
    assert not host_messages.is_answer({**answer, "hosts": ["a", "c"]}, 2, "n", secret)
    assert not host_messages.is_answer(answer, 2, "m", secret)
    assert not host_messages.is_answer(answer, 3, "n", secret)


def test_different_secrets_are_named_in_the_error(port, monkeypatch):
    monkeypatch.setenv(host_messages.SECRET_VARIABLE, "a")
    first = Process(port, 0, 2, 2)
    connect(port).close()
    monkeypatch.delenv(host_messages.SECRET_VARIABLE)
    second = Process(port, 1, 2, 1)
    assert "INVNEXT_SECRET has the same value everywhere" in str(second.outcome())
    assert "process 1 did not arrive" in str(first.outcome())


def listening_address(address):
    with host_check._create_server(address, b"") as server:
        return server.getsockname()[0]


def test_interface_is_chosen_and_named(port, monkeypatch, caplog):
    with caplog.at_level("WARNING"):
        assert listening_address(f"localhost:{port}") == "127.0.0.1"
        assert listening_address(f"127.0.0.1:{port}") == "127.0.0.1"
        assert not caplog.messages
        assert listening_address(f"node1:{port}") in ("::", "0.0.0.0")
        assert f"listens on port {port} of all network interfaces without a" in caplog.text
    monkeypatch.setenv(host_check.BIND_VARIABLE, f"127.0.0.1:{port}")
    assert listening_address(f"node1:{port}") == "127.0.0.1"
    assert host_check.bind_address("node1:99") == f"127.0.0.1:{port}"
    for name in ("127.0.0.1", "a:b:c", ":1"):
        monkeypatch.setenv(host_check.BIND_VARIABLE, name)
        with pytest.raises(UserError, match="must be host:port"):
            host_check.bind_address("node1:99")
