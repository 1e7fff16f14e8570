"""The HTTP server of the page. It listens on the loopback interface and only answers GET requests.

The addresses are fixed: no part of a request is used as a path.
"""

import contextlib
import http.server
import json
import select
import socket
import sys
import threading
from http import HTTPStatus
from importlib import resources
from typing import Any

from absl import logging

from invnext_jax.errors import UserError, summarize_error
from invnext_jax.evaluation.pages import report
from invnext_jax.watching.live_page import LivePage

ADDRESS = "127.0.0.1"
_HOSTS = ("127.0.0.1", "localhost")
_MAX_CONNECTIONS = 32
_REQUEST_SECONDS = 10.0  # for a complete request
_POLL_SECONDS = 0.5  # between two checks whether a viewer has left
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; connect-src 'self'; "
    "style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class WatchServer(http.server.ThreadingHTTPServer):
    """Serves a live page.

    Args:
      page: the page.
      port: the port; 0 for a free one.
      content: variables of the template watch.html, except for the sections.

    Raises:
      UserError: the port is in use or not allowed.
    """

    daemon_threads = True

    def __init__(self, page: LivePage, port: int, **content: Any):
        self.page, self._content = page, content
        self._connections = threading.BoundedSemaphore(_MAX_CONNECTIONS)
        try:
            super().__init__((ADDRESS, port), _Handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or "it must be from 0 to 65535"
            raise UserError(
                f"--port={port} cannot be used ({reason}): choose another one, or 0 for a free one"
            ) from error

    @property
    def url(self) -> str:
        """The address of the page."""
        return f"http://{ADDRESS}:{self.server_port}"

    def render_page(self) -> str:
        """Returns the HTML of the page."""
        return report.render("watch.html", sections=self.page.sections, **self._content)

    def process_request(self, request: socket.socket, client_address: Any) -> None:
        """Starts a thread for a connection, or closes it if there are too many."""
        if self._connections.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: socket.socket, client_address: Any) -> None:
        """Answers a request."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._connections.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Logs the error of a request, unless the client closed the connection."""
        del request, client_address
        error = sys.exc_info()[1]
        if not isinstance(error, ConnectionError | TimeoutError):
            logging.error("a request failed: %s", summarize_error(error))


class _Handler(http.server.BaseHTTPRequestHandler):
    server: WatchServer
    timeout = 10.0  # of each read, and of each answer or event
    server_version, sys_version = "watch", ""

    def handle(self) -> None:
        """Answers a request. A client that sends it byte by byte would otherwise keep its place."""
        self._deadline = threading.Timer(_REQUEST_SECONDS, self._shut_down)
        self._deadline.daemon = True
        self._deadline.start()
        try:
            super().handle()
        finally:
            self._deadline.cancel()

    def _shut_down(self) -> None:
        with contextlib.suppress(OSError):  # the client has closed the connection
            self.connection.shutdown(socket.SHUT_RDWR)

    def do_GET(self) -> None:  # noqa: N802
        """Answers a GET request."""
        self._deadline.cancel()
        path = self.path.partition("?")[0]
        # A web page whose name was changed to resolve to this machine (DNS rebinding) is refused.
        if self.headers.get("Host", "").partition(":")[0] not in _HOSTS:
            self.send_error(HTTPStatus.FORBIDDEN)
        elif path == "/":
            self._send(self.server.render_page(), "text/html; charset=utf-8")
        elif path == "/watch.js":
            self._send(_read_script(), "text/javascript; charset=utf-8")
        elif path == "/events":
            self._send_events()
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def _send(self, text: str, kind: str) -> None:
        content = text.encode(errors="backslashreplace")
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _send_events(self) -> None:
        """Sends all sections, then the changed ones, until the client or the page closes."""
        if self.headers.get("Sec-Fetch-Site", "same-origin") != "same-origin":
            self.send_error(HTTPStatus.FORBIDDEN)  # another site would occupy the places
            return
        with self.server.page.add_viewer() as is_admitted:
            if not is_admitted:
                self.send_error(HTTPStatus.SERVICE_UNAVAILABLE)
                return
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", "text/event-stream; charset=utf-8")
            self.end_headers()
            version = 0
            while (found := self.server.page.wait(version, _POLL_SECONDS)) and not self._is_gone():
                version, sections = found
                if sections:
                    self.wfile.write(f"data: {json.dumps(sections)}\n\n".encode())

    def _is_gone(self) -> bool:
        """Returns whether the client has closed the connection. It sends nothing else."""
        ready, _, _ = select.select([self.connection], [], [], 0)
        return bool(ready)

    def end_headers(self) -> None:
        """Adds the headers of all answers."""
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Requests are not logged."""


def _read_script() -> str:
    folder = resources.files("invnext_jax.evaluation.pages")
    return (folder / "templates" / "watch.js").read_text(encoding="utf-8")
