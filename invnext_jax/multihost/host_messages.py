"""Messages of the host check. Each is a line of JSON, signed if there is a shared secret.

A message is signed together with a random number chosen by its receiver, so that it cannot be
replayed.
"""

import hashlib
import hmac
import json
import re
import socket
import time
from collections.abc import Mapping
from typing import Any

SECRET_VARIABLE = "INVNEXT_SECRET"
MAX_REPORT_BYTES = 4096
MAX_ANSWER_BYTES = 2**22


def sign(secret: bytes, *parts: str) -> str:
    """Returns the HMAC of the given texts, or "" if there is no secret."""
    if not secret:
        return ""
    return hmac.new(secret, json.dumps(parts).encode(), hashlib.sha256).hexdigest()


def _is_signed(message: Mapping[str, Any], signature: str) -> bool:
    given = message.get("signature")
    return isinstance(given, str) and hmac.compare_digest(
        given.encode(errors="replace"), signature.encode()
    )


def host_name() -> str:
    """Returns the name of this machine, restricted to characters that all hosts accept."""
    return re.sub(r"[^A-Za-z0-9_.:-]", "_", socket.gethostname())[:255]


def read_line(connection: socket.socket, deadline: float, limit: int) -> dict[str, Any] | None:
    """Reads one line. Returns None if it is not a JSON object or does not arrive in time."""
    data = bytearray()
    while not data.endswith(b"\n") and len(data) < limit:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            return None
        connection.settimeout(remaining)
        received = connection.recv(65536)
        if not received:
            break
        data += received
    return _parse_line(bytes(data))


def _parse_line(data: bytes) -> dict[str, Any] | None:
    """Returns the JSON object of a line, or None."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def parse_report(data: bytes, nonce: str, secret: bytes) -> tuple[int, str, str] | None:
    """Returns a report's process number, host name and random number; None if it is invalid."""
    report = _parse_line(data)
    if report is None:
        return None
    number, host, answer_nonce = (report.get(name) for name in ("process", "host", "nonce"))
    if type(number) is not int or number < 0:
        return None
    if not all(
        isinstance(v, str) and v.isascii() and v.isprintable() for v in (host, answer_nonce)
    ):
        return None
    signature = sign(secret, "report", nonce, answer_nonce, str(number), host)
    return (number, host, answer_nonce) if _is_signed(report, signature) else None


def is_answer(answer: dict[str, Any] | None, processes: int, nonce: str, secret: bytes) -> bool:
    """Returns whether a message is a result with a valid signature of process 0."""
    if answer is None or not isinstance(answer.get("error"), str):
        return False
    hosts = answer.get("hosts")
    if not isinstance(hosts, list) or not all(isinstance(host, str) for host in hosts):
        return False
    if not answer["error"] and len(hosts) != processes:
        return False
    return _is_signed(answer, sign(secret, "answer", nonce, answer["error"], *hosts))
