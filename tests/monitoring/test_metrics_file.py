import errno
import json
import math
import os
import resource
import tracemalloc

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from invnext_jax.errors import UserError
from invnext_jax.monitoring import metrics_file


def write(workdir, step, records):
    writer = metrics_file.MetricWriter(workdir, step)
    for record in records:
        writer.write(record)
    writer.close()


def test_nonfinite_numbers_become_null(tmp_path):
    write(
        tmp_path, 0, [{"step": 1, "loss": np.float32(np.nan), "grad_norm": math.inf, "zero": 0.0}]
    )
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text) == {"step": 1, "loss": None, "grad_norm": None, "zero": 0.0}


def test_resuming_removes_records_after_the_step(tmp_path):
    write(tmp_path, 0, [{"step": n, "loss": n / 2} for n in (1, 2, 3)])
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "lo')  # killed while writing
    write(tmp_path, 2, [{"step": 3, "loss": 9.0}])
    assert [(r["step"], r["loss"]) for r in metrics_file.read_metrics(tmp_path)] == [
        (1, 0.5),
        (2, 1.0),
        (3, 9.0),
    ]


def test_incomplete_last_line_is_ignored(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2')
    assert metrics_file.read_metrics(tmp_path) == [{"step": 1}]


@pytest.mark.parametrize("line", ["\0\0\0", "garbage", "7", "{}", '{"step": "a"}', "[" * 9999])
def test_invalid_line_is_a_user_error(line, tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n' + line + '\n{"step": 3}\n')
    with pytest.raises(UserError, match="line 2 of .*metrics.jsonl is not a record"):
        metrics_file.MetricWriter(tmp_path, 3)


def test_full_disk_at_the_start_is_a_user_error(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics_file, "EventsWriter", full)
    with pytest.raises(UserError, match="metrics.jsonl cannot be written: No space left"):
        metrics_file.MetricWriter(tmp_path, 0)


def test_records_are_kept_while_the_event_file_cannot_be_opened(tmp_path, monkeypatch):
    writer = metrics_file.MetricWriter(tmp_path, 0)
    (tmp_path / "metrics.jsonl").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(metrics_file, "EventsWriter", full)
        for step in (1, 2):
            writer.write({"step": step})
    writer.write_pending()
    assert metrics_file.read_metrics(tmp_path) == [{"step": 1}, {"step": 2}]
    writer.close()


def test_a_full_disk_gets_no_event_file_at_each_step(tmp_path):
    """A limit on the size of files has the effect of a full disk."""
    writer = metrics_file.MetricWriter(tmp_path, 0)
    writer.write({"step": 1, "loss": 1.0, "padding" * 2**15: 0.0})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = os.path.getsize(tmp_path / "metrics.jsonl")
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        for step in (2, 3, 4):
            writer.write({"step": step, "loss": float(step)})
        assert os.path.getsize(tmp_path / "metrics.jsonl") == size
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1
    writer.write({"step": 5, "loss": 5.0})
    writer.close()
    assert [record["step"] for record in metrics_file.read_metrics(tmp_path)] == [1, 2, 3, 4, 5]
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("loss")
    assert [(event.step, event.value) for event in events] == [(n, float(n)) for n in range(1, 6)]


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_missing_file_has_no_records(tmp_path):
    assert metrics_file.read_metrics(tmp_path) == []


def test_tensorboard_has_each_scalar_once_after_a_restart(tmp_path):
    write(tmp_path, 0, [{"step": n, "loss": float(n)} for n in (1, 2, 3)])
    write(tmp_path, 1, [{"step": n, "loss": 10.0 * n} for n in (2, 3)])
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 1), (2, 20), (3, 30)]


def test_files_that_are_not_regular_and_long_lines_are_one_sentence(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    os.mkfifo(path)
    with pytest.raises(UserError, match="cannot be read .Not a regular file.: move it away"):
        metrics_file.read_metrics(tmp_path)
    path.unlink()
    write(tmp_path, 0, [{"step": 1, "loss": 0.5}])
    record = path.read_text()
    monkeypatch.setattr(metrics_file, "MAX_LINE", len(record) + 1)
    assert metrics_file.read_metrics(tmp_path) == [{"step": 1, "loss": 0.5}]
    path.write_text(record + " " * 10**6)
    with pytest.raises(UserError, match="line 2 of .* or more: remove that line"):
        metrics_file.read_metrics(tmp_path)


@pytest.mark.parametrize(
    "step", ["1e999", "NaN", "1" + "0" * 400, "-1", "1.5", "true", "null", "[1]"]
)
def test_steps_that_are_not_whole_numbers_are_one_sentence(step, tmp_path):
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": {step}, "loss": 1.0}}\n')
    with pytest.raises(UserError, match="line 1 of .*metrics.jsonl is not a record"):
        metrics_file.read_numbers(tmp_path)


def test_values_that_charts_cannot_show_are_left_out(tmp_path):
    forged = ['"x"', "[1]", "{}", "true", "NaN", "Infinity", "-1e999", "1e200", "1" + "0" * 400]
    values = "".join(f', "v{number}": {value}' for number, value in enumerate(forged))
    line = f'{{"step": 1, "loss": 2.5, "rank": null, "count": 3{values}}}\n'
    (tmp_path / "metrics.jsonl").write_text(line)
    expected = {"step": 1, "loss": 2.5, "rank": None, "count": 3}
    assert metrics_file.read_numbers(tmp_path) == [expected]


def test_values_that_are_left_out_are_not_kept_in_memory(tmp_path, monkeypatch):
    line = json.dumps({"step": 1, "loss": 1.0, "forged": [[]] * 100_000})
    (tmp_path / "metrics.jsonl").write_text(f"{line}\n" * 20)
    tracemalloc.start()
    assert metrics_file.read_numbers(tmp_path) == [{"step": 1, "loss": 1.0}] * 20
    assert tracemalloc.get_traced_memory()[1] < 30e6  # one line needs about 10 MB
    tracemalloc.stop()
    monkeypatch.setattr(metrics_file, "MAX_VALUES", 39)
    with pytest.raises(UserError, match=r"metrics.jsonl has more than 39 values or 65,536 diff"):
        metrics_file.read_numbers(tmp_path)


def test_names_that_a_page_cannot_show_are_left_out(tmp_path):
    names = ["", "a" * 501, "a\nb", "a\x1b", "\ud800"]
    record = {"step": 1, **dict.fromkeys(names, 1.0), "b" * 500: 2.0}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    assert metrics_file.read_numbers(tmp_path) == [{"step": 1, "b" * 500: 2.0}]


def test_names_of_metrics_need_little_memory(tmp_path, monkeypatch):
    """A character above U+FFFF makes Python store all characters of a text with 4 bytes."""
    with open(tmp_path / "metrics.jsonl", "w") as file:
        for step in range(50):
            names = (f"\U0001f600{step}" + "a" * 200_000, "\U0001f600" + "b" * 400)
            file.write(json.dumps({"step": step} | dict.fromkeys(names, 1)) + "\n")
    tracemalloc.start()
    assert [len(record) for record in metrics_file.read_numbers(tmp_path)] == [2] * 50
    assert tracemalloc.get_traced_memory()[1] < 5e6  # the long names need 40 MB, a line 2 MB
    tracemalloc.stop()
    monkeypatch.setattr(metrics_file, "MAX_NAMES", 1)
    with pytest.raises(UserError, match="values or 1 different names: remove lines"):
        metrics_file.read_numbers(tmp_path)
