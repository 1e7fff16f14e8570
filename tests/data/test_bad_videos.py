import pytest

from invnext_jax.data.bad_videos import BadVideoTracker
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
    assert text == 'path,reason\na.mp4,missing\n"b, c.mp4",missing\nd.mp4,missing\n'


def test_a_truncated_row_is_written_again(tmp_path):
    (tmp_path / "quarantine.csv").write_text("path,reason\na.mp4,miss")
    bad_videos = BadVideoTracker()
    bad_videos.write_quarantine(tmp_path)
    bad_videos.count_bad(bad("a.mp4"))
    assert (tmp_path / "quarantine.csv").read_text().endswith("miss\na.mp4,missing\n")


def test_bad_share_is_checked_from_a_hundred_clips_on():
    bad_videos = BadVideoTracker(max_bad_share=0.1)
    bad_videos.count_good()
    for number in range(98):
        bad_videos.count_bad(bad(f"{number}.mp4", "corrupt" if number % 3 else "missing"))
    with pytest.raises(UserError, match="99 of 100 clips are bad") as caught:
        bad_videos.count_bad(bad("last.mp4"))
    assert str(caught.value).endswith("      65  corrupt\n      34  missing")
