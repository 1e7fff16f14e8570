import io
from types import SimpleNamespace

import pytest

from invnext_jax.monitoring import progress

RECORD = {
    "step": 350,
    "loss": 1.2345,
    "loss/align_tokens": 0.52,
    "loss/pixels": 0.0123,
    "learning_rate": 1.9e-3,
    "clips_per_second": 118.2,
    "data_wait": 0.03,
    "skipped": 0,
}


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_line_shows_loss_terms_learning_rate_speed_wait_and_time_left():
    assert progress.format_step(RECORD, total_steps=800, batch_size=32) == (
        "step 350/800  loss 1.234 (align_tokens 0.520 pixels 0.0123)  lr 1.9e-03  118 clips/s  "
        "data 3 %  2:02 left"
    )


def test_line_shows_nonfinite_loss_skipped_steps_and_dropped_clips():
    record = RECORD | {"loss": None, "skipped": 2, "dropped_videos": 3}
    text = progress.format_step(record, 800, 32)
    assert "loss not finite" in text
    assert text.endswith("2 skipped  3 clips dropped")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (130, "2:10"), (3661, "1:01:01")]
)
def test_format_duration(seconds, text):
    assert progress.format_duration(seconds) == text


def test_plain_lines_of_a_run_without_a_terminal():
    out = io.StringIO()
    shown = progress.TrainingProgress(800, 0, 32, out=out)
    shown.advance()
    shown.show(RECORD)
    shown.log("stopped")
    shown.close()
    assert out.getvalue().splitlines() == [progress.format_step(RECORD, 800, 32), "stopped"]


def test_bar_of_a_run_on_a_terminal():
    out = Terminal()
    shown = progress.TrainingProgress(800, 349, 32, out=out)
    shown.advance()
    shown.show(RECORD)
    shown.log("saved")
    shown.close()
    assert "350/800" in out.getvalue()
    assert "loss 1.234" in out.getvalue()
    assert "saved\n" in out.getvalue()


def test_lines_show_count_postfix_speed_and_time_left(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with progress.ProgressMeter(20, "video", initial=8) as meter:
        for second in (5.0, 20.0, 25.0):
            now[0] = second
            meter.update(8 + int(second / 5), "2 bad")
    assert capsys.readouterr().out.splitlines() == [
        "12 of 20 videos, 2 bad, 0.2/s, 1 min left",  # 4 in 20 seconds, 8 are left
        "13 of 20 videos, 2 bad, 0.2/s, 1 min left",
    ]


def test_quiet_meter_prints_nothing(capsys):
    with progress.ProgressMeter(2, "video", quiet=True) as meter:
        meter.update(2)
        meter.log("text")
    assert capsys.readouterr() == ("", "")


def test_bar_on_a_terminal_keeps_postfix_and_logs_above_itself():
    out = Terminal()
    with progress.ProgressMeter(8, "step", initial=3, out=out) as meter:
        meter.update(4, "loss 1.5")
        meter.log("saved")
        meter.update(5)
    assert meter.has_bar
    assert "5/8" in out.getvalue() and "loss 1.5" in out.getvalue().splitlines()[-1]
    assert "saved\n" in out.getvalue()


def test_without_an_interval_only_logged_lines_are_printed():
    out = io.StringIO()
    with progress.ProgressMeter(8, "step", line_seconds=None, out=out) as meter:
        meter.update(5)
        meter.log("step 5")
    assert out.getvalue() == "step 5\n"
