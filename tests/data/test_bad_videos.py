import csv

import pytest

from invnext_jax.data.bad_videos import STALLED, BadVideoTracker
from invnext_jax.data.clips import BadClip
from invnext_jax.errors import UserError


def bad(name, kind="missing"):
    return BadClip(name, kind, f"{name}: the reason")


def test_a_bad_file_is_listed_once_over_all_starts_of_a_run(tmp_path):
    for names in (("a.mp4", "b, c.mp4", "a.mp4"), ("b, c.mp4", "d.mp4")):
        bad_videos = BadVideoTracker()
        bad_videos.write_quarantine(tmp_path)
        for name in names:
            bad_videos.count_bad(bad(name))
    text = (tmp_path / "quarantine.csv").read_text()
    assert text == (
        "path,reason\na.mp4,missing: the reason\n"
        '"b, c.mp4",missing: the reason\nd.mp4,missing: the reason\n'
    )


def test_a_truncated_row_is_written_again(tmp_path):
    (tmp_path / "quarantine.csv").write_text("path,reason\na.mp4,miss")
    bad_videos = BadVideoTracker()
    bad_videos.write_quarantine(tmp_path)
    bad_videos.count_bad(bad("a.mp4"))
    assert (tmp_path / "quarantine.csv").read_text().endswith("miss\na.mp4,missing: the reason\n")


def test_bad_share_is_checked_from_a_hundred_clips_on():
    bad_videos = BadVideoTracker(max_bad_share=0.1)
    bad_videos.count_good()
    for number in range(98):
        bad_videos.count_bad(bad(f"{number}.mp4", "corrupt" if number % 3 else "missing"))
    with pytest.raises(UserError, match="99 of 100 clips are bad") as caught:
        bad_videos.count_bad(bad("last.mp4"))
    assert str(caught.value).endswith("      65  corrupt\n        34  missing")


def test_processes_of_a_run_share_one_list(tmp_path):
    trackers = [BadVideoTracker() for _ in range(3)]
    for tracker in trackers:
        tracker.write_quarantine(tmp_path)
    for tracker, names in zip(trackers, (["a", "b"], ["b", "c"], ["a", "c", "d"]), strict=True):
        for name in names:
            tracker.count_bad(bad(f"{name}.mp4", "corrupt"))
    rows = (tmp_path / "quarantine.csv").read_text().splitlines()
    assert rows == ["path,reason", *(f"{name}.mp4,corrupt: the reason" for name in "abcd")]


def test_stalled_reads_are_counted_but_neither_listed_nor_bad(tmp_path):
    tracker = BadVideoTracker(max_bad_share=0.1)
    tracker.write_quarantine(tmp_path)
    for number in range(300):
        tracker.count_bad(bad(f"{number}.mp4", STALLED))
    assert tracker.dropped == 300 and tracker.kinds == {STALLED: 300}
    assert tracker.transient == {STALLED: 300}
    assert not (tmp_path / "quarantine.csv").exists()
    with pytest.raises(UserError, match="stalled read"):
        BadVideoTracker(on_bad="fail").count_bad(bad("a.mp4", STALLED))


def test_names_and_reasons_with_carriage_returns_are_quoted(tmp_path):
    for _ in range(2):
        bad_videos = BadVideoTracker()
        bad_videos.write_quarantine(tmp_path)
        bad_videos.count_bad(BadClip("a\rb.mp4", "missing", "a\rb.mp4: no\rfile"))
    with (tmp_path / "quarantine.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["path", "reason"], ["a\rb.mp4", "missing: no\rfile"]]


@pytest.mark.parametrize("rows", [b"a\rb,c\n", b'"a,c\n', b"a\0b,c\n", b"\xff\xfe\n", b"\r\r\n"])
def test_a_damaged_list_of_bad_files_is_continued(rows, tmp_path):
    (tmp_path / "quarantine.csv").write_bytes(b"path,reason\n" + rows)
    bad_videos = BadVideoTracker()
    bad_videos.write_quarantine(tmp_path)
    bad_videos.count_bad(bad("d.mp4"))
    text = (tmp_path / "quarantine.csv").read_text(errors="replace")
    assert text.endswith("d.mp4,missing: the reason\n")
