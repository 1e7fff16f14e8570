import io

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


def test_plain_lines_without_a_terminal():
    out = io.StringIO()
    shown = progress.TrainingProgress(800, 0, 32, out)
    shown.advance()
    shown.show(RECORD)
    shown.log("stopped")
    shown.close()
    assert out.getvalue().splitlines() == [progress.format_step(RECORD, 800, 32), "stopped"]


def test_bar_on_a_terminal():
    out = Terminal()
    shown = progress.TrainingProgress(800, 349, 32, out)
    shown.advance()
    shown.show(RECORD)
    shown.log("saved")
    shown.close()
    assert "350/800" in out.getvalue()
    assert "loss 1.234" in out.getvalue()
    assert "saved\n" in out.getvalue()


def test_rates_cover_the_time_since_the_last_measurement(monkeypatch):
    clock = iter([0.0, 10.0, 14.0, 24.0])
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(clock))
    timer = progress.StepTimer(batch_size=8)
    timer.restart(step=5)  # at 10 s
    timer.add_data_wait(1.0)
    rates = timer.measure(step=7)  # at 14 s; reads the clock once more for the next measurement
    assert rates == {"clips_per_second": 2 * 8 / 4.0, "data_wait": 0.25}
