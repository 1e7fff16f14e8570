import mmap
import socket
import struct
import threading
import time

import hostile_workers
import numpy as np
import pytest

from invnext_jax.data.clips import BadClip
from invnext_jax.dataset_prep.probing import ProbeFailure
from invnext_jax.workers import messages, results
from invnext_jax.workers.results import InvalidResultError


@pytest.fixture
def memory():
    return mmap.mmap(-1, 2**14)


@pytest.fixture
def pair():
    ends = socket.socketpair()
    yield ends
    for end in ends:
        end.close()


def read(pair, memory, sent):
    """Returns what a parent reads if its worker sends these bytes and closes its end."""
    parent, worker = pair
    thread = threading.Thread(target=lambda: (worker.sendall(sent), worker.close()))
    thread.start()
    try:
        reader = messages.AnswerReader(parent)
        assert reader.wait(10)
        return reader.decode(memory)
    finally:
        parent.close()  # ends the thread
        thread.join()


def to_bytes(answer):
    header = struct.pack("!IQ", len(answer.text), sum(map(len, answer.data)))
    return header + answer.text + b"".join(answer.data)


VALUES = [
    None,
    [True, -1, 2**63, 0.1, "a \udcff\x1b ä", [], (), {}],
    ({"array": ("dict", [1.5])}, [(None,)]),
    BadClip("a.mp4", "corrupt", "a.mp4: broken"),
    [ProbeFailure("slow", 3.0, transient=True), ProbeFailure("bad")],
]


@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
def test_values_are_returned_unchanged(value, pair, memory):
    found, error = read(pair, memory, to_bytes(messages.encode_result(value, memory)))
    assert found == value and repr(found) == repr(value) and error is None


def test_arrays_are_returned_unchanged(pair, memory):
    values = [
        *(np.arange(3000, dtype=np.int32), np.arange(4000, dtype=np.int32)),  # the second is large
        *(np.arange(3), np.array(7.5), np.zeros((0, 4), np.float16), np.array([True, False])),
        np.arange(24.0).reshape(4, 6)[::2, ::-1],
        np.arange(5, dtype=">u2"),
    ]
    answer = messages.encode_result(values, memory)
    assert [len(data) for data in answer.data] == [16000, 24, 8, 0, 2, 96, 10]
    for found, value in zip(read(pair, memory, to_bytes(answer))[0], values, strict=True):
        np.testing.assert_array_equal(found, value)
        assert found.shape == value.shape and found.dtype == value.dtype.newbyteorder("=")


def test_numpy_numbers_become_python_numbers(pair, memory):
    answer = messages.encode_result([np.int64(3), np.float32(0.5), np.bool_(True)], memory)
    assert repr(read(pair, memory, to_bytes(answer))[0]) == "[3, 0.5, True]"


@pytest.mark.parametrize("value", [1j, {1: 2}, np.array([None]), object(), {"a": {3}}])
def test_other_types_cannot_be_sent(value, memory):
    with pytest.raises(TypeError, match="a data worker cannot return"):
        messages.encode_result(value, memory)


def test_errors_are_returned(pair, memory):
    assert read(pair, memory, to_bytes(messages.encode_error("a\nb"))) == (None, "a\nb")


@pytest.mark.parametrize("name", hostile_workers.INVALID)
def test_invalid_answers_are_rejected(name, pair, memory):
    with pytest.raises(InvalidResultError):
        read(pair, memory, hostile_workers.INVALID[name])


@pytest.mark.parametrize(
    "fields",
    [
        {"path": "a", "kind": ["list"], "reason": "r"},
        {"path": "a", "kind": "corrupt"},
        {"path": "a", "kind": "corrupt", "reason": "r", "more": 1},
        {"path": "a", "kind": None, "reason": "r"},
    ],
)
def test_fields_of_the_wrong_type_are_rejected(fields, pair, memory):
    fields = {
        name: {"list": value} if isinstance(value, list) else value
        for name, value in fields.items()
    }
    with pytest.raises(InvalidResultError, match="fields of BadClip"):
        read(pair, memory, hostile_workers.result({"BadClip": fields}))


def test_damaged_answers_are_rejected_or_harmless(memory):
    """Changes random bytes of a valid answer."""
    value = [BadClip("a", "b", "c"), np.arange(3000, dtype=np.int16), np.arange(4), {"a": (1.5,)}]
    valid, rng, rejected = (
        to_bytes(messages.encode_result(value, memory)),
        np.random.default_rng(0),
        0,
    )
    for _ in range(2000):
        changed = bytearray(valid)
        for place in rng.integers(12, len(valid), 3):
            changed[place] = rng.integers(256)
        reader = messages.AnswerReader(None)
        reader._received = changed
        try:
            reader.decode(memory)
        except InvalidResultError:
            rejected += 1
    assert rejected > 1000


def test_a_large_header_allocates_nothing(pair, memory, monkeypatch):
    parent, worker = pair
    worker.sendall(struct.pack("!IQ", 100, messages.MAX_DATA_BYTES))
    reader = messages.AnswerReader(parent)
    start = time.monotonic()
    assert not reader.wait(0.05)
    assert time.monotonic() - start < 2 and len(reader._received) == 12


def test_wait_continues_where_it_stopped(pair, memory):
    parent, worker = pair
    sent = to_bytes(messages.encode_result("text", memory))
    reader = messages.AnswerReader(parent)
    for byte in sent[:-1]:
        worker.sendall(bytes([byte]))
        assert not reader.wait(0)
    worker.sendall(sent[-1:])
    assert reader.wait(0) and reader.decode(memory) == ("text", None)
    worker.close()
    with pytest.raises(EOFError):
        reader.wait(1)


def test_tasks_of_any_size_arrive(pair):
    parent, worker = pair
    task = (bytes(10**6), {"a": 1})
    thread = threading.Thread(target=parent.sendall, args=(messages.dump_task(task),))
    thread.start()
    assert messages.receive_task(worker) == task
    thread.join()
    parent.close()
    with pytest.raises(EOFError):
        messages.receive_task(worker)


def test_are_arrays_compares_names_dtypes_and_shapes():
    forms = {"a": (np.uint8, (2, 3))}
    assert results.are_arrays({"a": np.zeros((2, 3), np.uint8)}, forms)
    for value in (
        *(None, {}, {"a": 1}, {"a": np.zeros((2, 3))}, {"a": np.zeros((3, 2), np.uint8)}),
        {"a": np.zeros((2, 3), np.uint8), "b": 1},
    ):
        assert not results.are_arrays(value, forms)


@pytest.mark.parametrize(
    "value", ["\ud800", {"a\ud800": 1}, BadClip("a", "corrupt", "\ud800"), ProbeFailure("\udfff")]
)
def test_texts_that_no_file_can_contain_are_refused(value, memory, pair):
    answer = messages.encode_result(value, memory)
    pair[1].sendall(bytes(struct.pack("!IQ", len(answer.text), 0)) + answer.text)
    reader = messages.AnswerReader(pair[0])
    assert reader.wait(10)
    with pytest.raises(InvalidResultError, match="surrogates not allowed"):
        reader.decode(memory)
    name = BadClip("\udcff.mp4", "corrupt", "a name that is not UTF-8")
    messages.encode_result(name, memory).send(pair[1])
    assert reader.wait(10) and reader.decode(memory) == (name, None)
    messages.encode_error("\ud800").send(pair[1])
    assert reader.wait(10) and reader.decode(memory) == (None, "\\ud800")
