"""Messages between a process and its workers.

The answer of a worker is a header with two lengths, a JSON text, and the bytes of the arrays that
are not in shared memory. The parent does not trust the answer: any violation of this format raises
`InvalidResultError`. In the other direction, functions and tasks are pickled, because a worker
trusts its parent.
"""

import json
import mmap
import socket
import struct
import time
from multiprocessing.reduction import ForkingPickler
from typing import Any, NamedTuple

from invnext_jax.workers.results import InvalidResultError, ResultEncoder, decode_result

MAX_TEXT_BYTES = 2**25  # maximum size of the JSON text
MAX_DATA_BYTES = 2**31  # maximum total size of the arrays that are not in shared memory
_HEADER = struct.Struct("!IQ")  # lengths of the text and of the data in bytes
_TASK_HEADER = struct.Struct("!Q")  # length of the pickle in bytes
_CHUNK_BYTES = 2**16


class Answer(NamedTuple):
    """The answer of a worker to a task.

    Attributes:
      text: JSON text.
      data: Bytes of the arrays that are not in shared memory.
    """

    text: bytes
    data: list[memoryview]

    def send(self, connection: socket.socket) -> None:
        """Sends the answer through a blocking socket."""
        header = _HEADER.pack(len(self.text), sum(map(len, self.data)))
        connection.sendall(header + self.text)
        for data in self.data:
            connection.sendall(data)


def encode_error(text: str) -> Answer:
    """Encodes the traceback of an exception."""
    return Answer(json.dumps({"error": text[-MAX_TEXT_BYTES // 16 :]}).encode(), [])


def encode_result(value: Any, memory: mmap.mmap) -> Answer:
    """Encodes a result of the types in `workers.results`.

    Raises:
      TypeError: The result contains an object of another type.
    """
    encoder = ResultEncoder(memory)
    content = {"value": encoder.encode(value), "arrays": encoder.arrays}
    return Answer(json.dumps(content).encode(), encoder.data)


class AnswerReader:
    """Receives the answers of a worker.

    Args:
      connection: Socket. Its timeout is changed.
    """

    def __init__(self, connection: socket.socket):
        self._connection, self._received = connection, bytearray()

    def wait(self, seconds: float) -> bool:
        """Waits until a complete answer has arrived, and returns whether it has.

        Args:
          seconds: Maximum time to wait.

        Raises:
          InvalidResultError: The lengths in the header exceed the limits, or the answer is longer
              than these lengths.
          EOFError: The worker closed the connection.
          OSError: The connection failed.
        """
        end = time.monotonic() + seconds
        while self._missing_bytes():
            # A timeout of 0 would make the socket non-blocking.
            self._connection.settimeout(max(1e-3, end - time.monotonic()))
            try:
                chunk = self._connection.recv(_CHUNK_BYTES)
            except TimeoutError:
                return False
            if not chunk:
                raise EOFError
            self._received += chunk
            if time.monotonic() > end:
                return not self._missing_bytes()
        return True

    def _missing_bytes(self) -> int:
        """Returns the number of bytes to receive until the header or the answer is complete."""
        if len(self._received) < _HEADER.size:
            return _HEADER.size - len(self._received)
        text, data = _HEADER.unpack_from(self._received)
        if text > MAX_TEXT_BYTES or data > MAX_DATA_BYTES:
            raise InvalidResultError(f"an answer of {text} and {data} bytes")
        missing = _HEADER.size + text + data - len(self._received)
        if missing < 0:
            raise InvalidResultError(f"{-missing} bytes after an answer")
        return missing

    def decode(self, memory: mmap.mmap) -> tuple[Any, str | None]:
        """Decodes the received answer.

        Args:
          memory: Memory shared with the worker. The arrays in it are not copied.

        Returns:
          The result and None, or None and the traceback of an exception.

        Raises:
          InvalidResultError: The answer is invalid.
        """
        received, self._received = self._received, bytearray()
        start = _HEADER.size + _HEADER.unpack_from(received)[0]
        try:
            content = json.loads(received[_HEADER.size : start])
        except (ValueError, RecursionError) as error:
            raise InvalidResultError("an answer that is not JSON") from error
        if not isinstance(content, dict):
            raise InvalidResultError("an answer that is not an object")
        if isinstance(error := content.get("error"), str):
            return None, error.encode(errors="backslashreplace").decode()
        if content.keys() != {"value", "arrays"}:
            raise InvalidResultError("an answer without a result")
        data = memoryview(received)[start:]
        return decode_result(content["value"], content["arrays"], data, memory), None


def dump_task(value: Any) -> bytes:
    """Pickles a function or a task for a worker, with a header that contains its length."""
    content = ForkingPickler.dumps(value)
    return _TASK_HEADER.pack(len(content)) + bytes(content)


def receive_task(connection: socket.socket) -> Any:
    """Receives a function or a task from the parent. Called in the worker.

    Raises:
      EOFError: The parent closed the connection.
    """
    (length,) = _TASK_HEADER.unpack(_receive_exactly(connection, _TASK_HEADER.size))
    return ForkingPickler.loads(_receive_exactly(connection, length))


def _receive_exactly(connection: socket.socket, length: int) -> bytearray:
    received = bytearray(length)
    view, done = memoryview(received), 0
    while done < length:
        count = connection.recv_into(view[done:])
        if not count:
            raise EOFError
        done += count
    return received
