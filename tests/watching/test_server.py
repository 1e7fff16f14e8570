"""Routes, headers and events of the server, without a browser."""

import contextlib
import http.client
import json
import os
import socket
import time

import fake_runs
import pytest
from fake_runs import run_server
from processes import open_ports, process_tree

from invnext_jax.errors import UserError
from invnext_jax.watching import server as server_lib
from invnext_jax.watching import watch


@pytest.fixture
def server(tmp_path):
    fake_runs.write_run(tmp_path / "run")
    with run_server(tmp_path / "run") as server:
        yield server


def request(server, path="/", method="GET", headers=None):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    with contextlib.closing(connection):
        connection.request(method, path, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read().decode()


class Viewer:
    """A client of the events."""

    def __init__(self, server, **headers):
        self._connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
        self._connection.request("GET", "/events", headers=headers)
        self.answer = self._connection.getresponse()

    def read(self):
        """Returns the next event."""
        while not (line := self.answer.readline()).startswith(b"data: "):
            assert line, "the server closed the connection"
        return json.loads(line[6:])

    def read_until(self, name, text):
        while text not in self.read().get(name, ""):
            pass

    def close(self):
        self.answer.close()
        self._connection.close()


@pytest.fixture
def viewer(server):
    with contextlib.closing(Viewer(server)) as viewer:
        yield viewer


def test_the_page_is_complete_and_loads_only_its_script(server):
    status, headers, page = request(server)
    assert status == 200 and headers["Content-Type"] == "text/html; charset=utf-8"
    assert "<svg" in page and 'src="/watch.js"' in page and "onclick" not in page
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "script-src 'self'" in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    status, headers, script = request(server, "/watch.js")
    assert status == 200 and "EventSource" in script
    assert headers["Content-Type"] == "text/javascript; charset=utf-8"


def test_text_that_is_not_utf8_is_escaped(server, monkeypatch):
    monkeypatch.setattr(server, "render_page", lambda: "a\ud800b")
    assert request(server)[2] == r"a\ud800b"


@pytest.mark.parametrize(
    "path",
    ["/x", "/metrics.jsonl", "/../config.json", "/%2e%2e/config.json", "//etc/passwd"],
)
def test_other_addresses_do_not_exist(server, path):
    status, headers, text = request(server, path)
    assert status == 404 and "Content-Security-Policy" in headers and "root" not in text


def test_the_query_of_an_address_is_ignored(server):
    assert request(server, "/?x=1")[0] == 200
    assert request(server, "/watch.js?v=/../x")[0] == 200
    assert request(server, "/x?/")[0] == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD", "OPTIONS"])
def test_only_get_is_answered(server, method):
    assert request(server, method=method)[0] == 501


@pytest.mark.parametrize("path", ["/", "/events", "/watch.js"])
@pytest.mark.parametrize("host", ["attacker.example", "attacker.example:8008", "", "127.0.0.1.x"])
def test_a_request_with_another_host_name_is_refused(server, path, host):
    assert request(server, path, headers={"Host": host})[0] == 403


@pytest.mark.parametrize("host", ["localhost", "localhost:9000", "127.0.0.1:1"])
def test_a_forwarded_port_is_accepted(server, host):
    assert request(server, headers={"Host": host})[0] == 200


def test_clients_that_send_single_bytes_do_not_keep_their_places(server, monkeypatch):
    monkeypatch.setattr(server_lib, "_REQUEST_SECONDS", 1.0)
    with contextlib.ExitStack() as stack:
        for _ in range(server_lib._MAX_CONNECTIONS):
            address = "127.0.0.1", server.server_port
            client = stack.enter_context(socket.create_connection(address))
            client.sendall(b"GET")
            client.settimeout(0.2)
        end = time.monotonic() + 20
        with pytest.raises(OSError, match="reset|Broken pipe"):
            while time.monotonic() < end:
                client.sendall(b"E")
                time.sleep(0.2)
        assert request(server)[0] == 200


def test_events_of_another_site_are_refused(server):
    headers = {"Sec-Fetch-Site": "cross-site"}
    assert request(server, "/events", headers=headers)[0] == 403


def test_the_server_listens_on_the_loopback_interface_only(server):
    own = [a for _, a in open_ports(process_tree(os.getpid()))]
    port = f"{server.server_port:04X}"
    assert [a for a in own if a.endswith(port)] == [f"0100007F:{port}"]


def test_all_sections_are_sent_then_the_changed_ones(tmp_path, server, viewer):
    first = viewer.read()
    assert {"status", "charts", "facts"} <= first.keys() and "after step 2" in first["status"]
    fake_runs.add_records(tmp_path / "run", (3,))
    while "charts" not in (later := viewer.read()):
        pass
    assert "after step 3" in later["status"]
    assert "hosts" not in later  # it did not change


def test_each_viewer_gets_the_changes(tmp_path, server, viewer):
    with contextlib.closing(Viewer(server)) as other:
        fake_runs.add_records(tmp_path / "run", (17,))
        for one in (viewer, other):
            one.read_until("status", "after step 17")


def test_the_number_of_viewers_is_limited(server):
    with contextlib.ExitStack() as stack:
        viewers = [stack.enter_context(contextlib.closing(Viewer(server))) for _ in range(8)]
        assert all(viewer.answer.status == 200 for viewer in viewers)
        assert request(server, "/events")[0] == 503
        assert request(server)[0] == 200


def test_the_place_of_a_viewer_that_left_is_free_again(server):
    for _ in range(8):
        viewer = Viewer(server)
        viewer.read()
        viewer.close()
    end = time.monotonic() + 20
    while (viewer := Viewer(server)).answer.status == 503 and time.monotonic() < end:
        viewer.close()
        time.sleep(0.05)
    assert viewer.read()
    viewer.close()


def test_the_number_of_connections_is_limited(server, monkeypatch):
    sockets = []
    with contextlib.ExitStack() as stack:
        for _ in range(server_lib._MAX_CONNECTIONS):
            one = socket.create_connection(("127.0.0.1", server.server_port), timeout=20)
            sockets.append(stack.enter_context(one))
        with pytest.raises((http.client.HTTPException, ConnectionError)):
            request(server)
    end = time.monotonic() + 20
    while time.monotonic() < end:
        with contextlib.suppress(http.client.HTTPException, ConnectionError):
            assert request(server)[0] == 200
            return
    raise AssertionError("the places of closed connections are not free")


def test_nothing_is_rendered_without_viewers(tmp_path, server):
    time.sleep(0.3)
    fake_runs.add_records(tmp_path / "run", (29,))
    time.sleep(0.3)
    assert "after step 29" not in request(server)[2]
    with contextlib.closing(Viewer(server)) as viewer:
        viewer.read_until("status", "after step 29")


def test_closing_the_page_ends_the_viewers(tmp_path):
    fake_runs.write_run(tmp_path / "run")
    with run_server(tmp_path / "run") as server:
        viewer = Viewer(server)
        viewer.read()
    assert viewer.answer.read().strip() == b""
    viewer.close()


def test_a_folder_that_is_damaged_is_an_error_on_the_page(tmp_path, server, viewer):
    (tmp_path / "run/config.json").write_text("<b>{")
    viewer.read_until("status", "config.json is damaged")


def test_a_port_in_use_is_an_error(tmp_path, server):
    with pytest.raises(UserError, match="Address already in use"):
        watch.open_server(tmp_path / "run", port=server.server_port, clips=0)
    with pytest.raises(UserError, match="from 0 to 65535"):
        watch.open_server(tmp_path / "run", port=70000, clips=0)


def test_the_workdir_of_an_evaluation_is_an_error(tmp_path):
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(UserError, match=r"use launch/report.py"):
        watch.open_server(tmp_path, port=0, clips=0)


def test_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is not a folder"):
        watch.open_server(tmp_path / "file", port=0, clips=0)
