from types import SimpleNamespace

from invnext_jax.monitoring import progress_meter


def test_lines_tell_what_is_done_how_fast_and_what_is_noted(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(progress_meter, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with progress_meter.ProgressMeter(20, "video", True, begun=8) as meter:
        for second in (5.0, 20.0, 25.0):
            now[0] = second
            meter.show(8 + int(second / 5), "2 bad")
    assert capsys.readouterr().out.splitlines() == [
        "12 of 20 videos, 2 bad, 0.2/s, 1 min left",  # 4 in 20 seconds, 8 are left
        "13 of 20 videos, 2 bad, 0.2/s, 1 min left",
    ]


def test_nothing_is_told_of_what_is_hidden(capsys):
    with progress_meter.ProgressMeter(2, "video", False) as meter:
        meter.show(2)
    assert capsys.readouterr() == ("", "")
