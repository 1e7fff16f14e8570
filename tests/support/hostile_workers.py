"""Functions of workers that attack their parent, as a video that exploits a decoder could."""

import dataclasses
import json
import mmap
import os
import pathlib
import struct
import sys
import time
from multiprocessing.reduction import ForkingPickler

from invnext_jax.workers import worker_main
from invnext_jax.workers.time_limits import CLOCK_BYTES


class Touch:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path(self.path),)


def frame(text, data=b""):
    """Returns a message with a correct header."""
    return struct.pack("!IQ", len(text), len(data)) + text + data


def result(value, arrays=(), data=b""):
    """Returns a message with a result."""
    return frame(json.dumps({"value": value, "arrays": arrays}).encode(), data)


INVALID = {
    "random bytes": bytes(range(7, 256, 7)) * 100,
    "a text of 4 GiB": struct.pack("!IQ", 2**32 - 1, 0),
    "data of 2**63 bytes": struct.pack("!IQ", 20, 2**63) + bytes(100),
    "half a JSON text": frame(b'{"value": {"dict": '),
    "deep JSON": frame(b'{"value": ' + b"[" * 10**6),
    "no object": frame(b"[]"),
    "an array of 2**40 bytes": result({"array": 0}, [["uint8", [2**20, 2**20], 0]]),
    "an array outside the memory": result({"array": 0}, [["uint8", [8], -4]]),
    "an array of objects": result({"array": 0}, [["object", [1], None]], bytes(8)),
    "an array that is missing": result({"array": 1}, [["uint8", [1], None]], b"1"),
    "too much data": result(None, [], b"1"),
    "two answers": result(None) + result(None),
    "an unknown type": result({"Popen": {"args": "true"}}),
    "an integer of 4,000 digits": result(10**4000),
    "infinity": frame(b'{"value": 1e999, "arrays": []}'),
}


@dataclasses.dataclass(frozen=True)
class Attack:
    """Sends bytes to the parent in place of a result, then waits."""

    name: str
    file: str = ""

    def __call__(self, *task):
        del task
        if self.name == "pickle":
            pickle = bytes(ForkingPickler.dumps(Touch(self.file)))
            sent = frame(pickle) + struct.pack("!i", len(pickle)) + pickle
        else:
            sent = INVALID[self.name]
        os.write(int(sys.argv[1]), sent)
        time.sleep(30)


def send_part(file):
    """Sends a result without its last byte, then waits."""
    del file
    os.write(int(sys.argv[1]), result("part")[:-1])
    time.sleep(30)


def read_forever(clock):
    """Writes times to the shared clock forever, as if it waited for storage."""
    memory = mmap.mmap(int(sys.argv[2]), CLOCK_BYTES, offset=worker_main.SHARED_BYTES)
    fields = memoryview(memory).cast("d")
    while True:
        fields[0] = time.monotonic() if clock == "now" else float(clock)
        fields[1] = float(clock) if clock != "now" else 0.0
        time.sleep(0.01)


def shrink_memory():
    """Tries to shrink the shared memory, so that the parent would crash when it reads the rest."""
    try:
        os.ftruncate(int(sys.argv[2]), 0)
    except PermissionError:
        return "not permitted"


def list_variables():
    """Returns the names of the environment variables, without the values."""
    return sorted(os.environ)
