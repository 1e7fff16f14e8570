import io
from types import SimpleNamespace

from invnext_jax.monitoring import progress_meter


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_lines_show_count_postfix_speed_and_time_left(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(progress_meter, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with progress_meter.ProgressMeter(20, "video", initial=8) as meter:
        for second in (5.0, 20.0, 25.0):
            now[0] = second
            meter.update(8 + int(second / 5), "2 bad")
    assert capsys.readouterr().out.splitlines() == [
        "12 of 20 videos, 2 bad, 0.2/s, 1 min left",  # 4 in 20 seconds, 8 are left
        "13 of 20 videos, 2 bad, 0.2/s, 1 min left",
    ]


def test_quiet_meter_prints_nothing(capsys):
    with progress_meter.ProgressMeter(2, "video", quiet=True) as meter:
        meter.update(2)
        meter.log("text")
    assert capsys.readouterr() == ("", "")


def test_bar_on_a_terminal_keeps_postfix_and_logs_above_itself():
    out = Terminal()
    with progress_meter.ProgressMeter(8, "step", initial=3, out=out) as meter:
        meter.update(4, "loss 1.5")
        meter.log("saved")
        meter.update(5)
    assert meter.has_bar
    assert "5/8" in out.getvalue() and "loss 1.5" in out.getvalue().splitlines()[-1]
    assert "saved\n" in out.getvalue()


def test_without_an_interval_only_logged_lines_are_printed():
    out = io.StringIO()
    with progress_meter.ProgressMeter(8, "step", line_seconds=None, out=out) as meter:
        meter.update(5)
        meter.log("step 5")
    assert out.getvalue() == "step 5\n"
