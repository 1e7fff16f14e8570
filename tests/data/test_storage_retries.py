"""Retries while the storage does not respond; a failure of one file is recognized as such."""

import itertools

import pytest

from invnext_jax.data import storage_retries
from invnext_jax.workers.time_limits import ReadStalledError


class FakeWorker:
    """A worker with scripted outcomes: for each file, a sequence of results or exceptions."""

    def __init__(self, **scripts):
        self.scripts = {name: iter(script) for name, script in scripts.items()}
        self.calls, self.pauses = [], []

    def __call__(self, name):
        self.calls.append(name)
        result = next(self.scripts[name])
        if isinstance(result, Exception):
            raise result
        return result

    def pause(self, seconds):
        self.pauses.append(seconds)


def run(worker, others=("b", "c"), name="a", monitor=None):
    monitor = monitor or storage_retries.StorageMonitor()
    try:
        return monitor, storage_retries.call_with_retries(
            worker,
            (name,),
            itertools.cycle((name,) for name in others),
            name_file=lambda name: name,
            find_error=lambda result: "broken disk" if result == "I/O error" else "",
            monitor=monitor,
            source="x",
        )
    except ReadStalledError as error:
        return monitor, error


STALLED = ReadStalledError()


def test_a_file_is_given_up_between_two_files_that_can_be_read():
    worker = FakeWorker(a=[STALLED, STALLED], b=["good"], c=["good"])
    monitor, result = run(worker)
    assert result is STALLED
    assert worker.calls == ["a", "b", "a", "c"] and not worker.pauses
    assert monitor.failed_reads == 2


def test_the_error_of_a_single_file_is_returned():
    worker = FakeWorker(a=["I/O error"] * 2, b=["good"], c=["missing"])
    assert run(worker)[1] == "I/O error"


@pytest.mark.parametrize("failure", [STALLED, "I/O error"])
def test_pauses_grow_while_no_file_can_be_read(failure, monkeypatch):
    monkeypatch.setattr(storage_retries, "MAX_PAUSE", 8.0)
    worker = FakeWorker(a=[failure] * 6 + ["good"], b=[failure] * 3, c=[failure] * 3)
    assert run(worker)[1] == "good"
    assert worker.pauses == [1.0, 2.0, 4.0, 8.0, 8.0, 8.0]


def test_a_file_is_kept_if_the_storage_returns_during_the_test():
    # The storage is available again after the second attempt and fails again after the third.
    worker = FakeWorker(a=[STALLED] * 3 + ["good"], b=[STALLED, STALLED], c=["good"])
    assert run(worker)[1] == "good"


def test_the_only_file_of_a_data_set_is_retried_until_it_can_be_read():
    worker = FakeWorker(a=[STALLED] * 4 + ["good"])
    assert run(worker, others=())[1] == "good"
    assert len(worker.pauses) == 4


def test_a_local_file_whose_reads_fail_is_given_up_after_15_tries():
    worker = FakeWorker(a=["I/O error"] * 16 + ["good", "I/O error"], b=["I/O error"] * 99)
    monitor, result = run(worker, others="b")
    assert result == "I/O error" and worker.calls.count("a") == 15
    assert sum(worker.pauses) == 1 + 2 + 4 + 8 + 16 + 32 + 8 * 60
    # Until a file can be read again, further errors are returned at once.
    assert run(worker, others="b", monitor=monitor)[1] == "I/O error"
    assert worker.calls.count("a") == 16 and len(worker.pauses) == 14
    assert run(worker, others="b", monitor=monitor)[1] == "good"
    worker.scripts["b"] = iter(["good"] * 2)
    worker.scripts["a"] = iter(["I/O error", "good"])
    assert run(worker, others="b", monitor=monitor)[1] == "good"


def test_remote_files_are_given_up_only_if_none_has_been_read():
    name = "gs://bucket/a"
    worker = FakeWorker(**{name: ["good"] + ["I/O error"] * 20 + ["good"]})
    monitor, _ = run(worker, others=(), name=name)
    assert run(worker, others=(), name=name, monitor=monitor)[1] == "good"
    assert len(worker.pauses) == 20
    worker = FakeWorker(**{name: ["I/O error"] * 20})
    assert run(worker, others=(), name=name)[1] == "I/O error"
    assert len(worker.pauses) == 14


def test_each_length_of_a_pause_is_logged_with_the_reason(caplog):
    worker = FakeWorker(a=[STALLED, STALLED, "I/O error", STALLED, "good"])
    run(worker, others=())
    text = "WARNING the storage of a has not responded for 0 s (%s); trying again in %g s (%d"
    found = [f"{r.levelname} {r.getMessage()}" for r in caplog.records if "storage" in r.msg]
    reasons = ["the read does not return"] * 2 + ["broken disk", "the read does not return"]
    for number, reason in enumerate(reasons):
        assert found[number].startswith(text % (reason, 2**number, number + 1))
    assert len(found) == 4


def test_other_rows_have_the_same_source_and_another_file_before_other_sources():
    paths, sources = list("aabcdb"), list("xxxyxx")
    rows = list(itertools.islice(storage_retries.other_rows(1, sources, paths), 20))
    assert rows[:5] == [2, 4, 5, 2, 4] and rows[15:] == [2, 3, 3, 2, 4]
    assert set(rows[:16]) == {2, 4, 5}
    rows = list(itertools.islice(storage_retries.other_rows(3, sources, paths), 18))
    assert rows == [3] * 16 + [4, 4]
    assert list(storage_retries.other_rows(0, ["x"] * 2, ["a"] * 2)) == []


def test_a_source_of_files_that_cannot_be_read_does_not_look_like_a_failed_storage():
    names = ["a", *(f"bad{number}" for number in range(20)), "good"]
    sources = ["bad"] * 21 + ["good"]
    scripts = {name: itertools.repeat(STALLED) for name in names[:-1]}
    worker = FakeWorker(**scripts, good=itertools.repeat("good"))
    others = (names[row] for row in storage_retries.other_rows(0, sources, names))
    assert run(worker, others)[1] is STALLED
    assert len(worker.pauses) == storage_retries.OTHER_FILES
