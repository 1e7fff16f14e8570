"""If a worker attacks its parent, the parent handles this as the death of the worker."""

import logging as python_logging
import warnings

import pytest
from absl import logging
from hostile_workers import INVALID, Attack, read_forever, send_part, shrink_memory

from invnext_jax.workers import time_limits
from invnext_jax.workers.process_worker import ProcessWorker, WorkerDiedError
from invnext_jax.workers.supervisor import SupervisedWorker
from invnext_jax.workers.time_limits import ReadStalledError, TimeLimitError


@pytest.fixture
def start():
    workers = []

    def start(function):
        workers.append(ProcessWorker(function))
        return workers[-1]

    yield start
    for worker in workers:
        worker.close()


@pytest.mark.parametrize("name", ["pickle", *list(INVALID)[:3]])
def test_an_invalid_answer_counts_as_a_dead_worker(name, start, tmp_path):
    worker = start(Attack(name, str(tmp_path / "touched")))
    with pytest.raises(WorkerDiedError, match="it sent"):
        worker.call((), 20)
    assert not list(tmp_path.iterdir())


def test_an_attacking_worker_is_replaced():
    worker = SupervisedWorker(lambda: ProcessWorker(Attack("random bytes")), timeout=20)
    with pytest.raises(WorkerDiedError):
        worker(0)
    worker.close()
    assert worker.restarts == 2


def test_a_part_of_an_answer_is_awaited_until_the_time_limit(start):
    with pytest.raises(TimeLimitError):
        start(send_part).call(("",), 0.5)


@pytest.mark.parametrize("clock", ["inf", "nan", "-1e300", "1e300", "now"])
def test_a_forged_clock_does_not_extend_the_time_limit(clock, start, monkeypatch):
    monkeypatch.setattr(time_limits, "MAX_READ_TIMEOUTS", 3)
    worker = start(read_forever)
    with pytest.raises((TimeLimitError, ReadStalledError)):
        worker.call((clock,), 0.4)
    assert 0 <= worker.clock.total() < 1e9


def test_a_worker_cannot_shrink_the_shared_memory(start):
    assert start(shrink_memory).call((), 20) == "not permitted"


class OnlyEven:
    """Returns a number; odd numbers are not valid."""

    def __call__(self, number):
        return number

    def is_valid(self, result, number):
        return result == number and result % 2 == 0


def test_a_result_that_its_function_calls_invalid_counts_as_a_dead_worker(start):
    worker = start(OnlyEven())
    assert worker.call((2,), 20) == 2
    with pytest.raises(WorkerDiedError, match="does not match its task"):
        worker.call((3,), 20)


def test_types_that_are_not_allowed_are_named(start):
    with pytest.raises(RuntimeError, match=r"cannot return a <class 'complex'>.*register"):
        start(make_complex).call((), 20)


def test_panics_of_extensions_are_errors_and_print_no_traceback(start, capfd):
    """Rust extensions raise exceptions that are not of the type `Exception`."""
    with pytest.raises(RuntimeError, match="Panic: a pattern"):
        start(panic).call((), 20)
    assert "Traceback" not in capfd.readouterr().err


class Panic(BaseException):
    """An exception like that of a Rust extension."""


def panic():
    raise Panic("a pattern")


def make_complex():
    return 1j


def test_names_in_the_log_and_in_warnings_of_a_worker_have_no_escapes(start, capfd):
    start(report).call(("a\x1b]0;title\x07 s3://b/x?token=abc",), 20)
    shown = capfd.readouterr().err
    assert shown.count(r"a\x1b]0;title\x07 s3://b/x?token=REDACTED") == 3
    assert "\x1b" not in shown and "abc" not in shown and "flag" not in shown


def report(name):
    logging.warning("%s is not used", name)
    python_logging.getLogger("library").warning("%s is not used", name)
    warnings.warn(f"{name} is not used", stacklevel=1)
