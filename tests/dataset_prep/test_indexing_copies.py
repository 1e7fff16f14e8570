"""Copies of videos are listed or removed, and videos of evaluations are excluded."""

import pytest
from list_cases import build, counts, rows

from invnext_jax.errors import UserError


def test_evaluation_videos_are_excluded_by_content(folder):
    (folder / "val.csv").write_text("path,source\n1.mp4,k400\ngone.mp4,k400\n")
    (folder / "part.csv").write_text("path,source,start,end\n0.mp4,k400,0,0.5\n")
    exclude = (str(folder / "val.csv"), str(folder / "part.csv"))
    summary = build(folder, folder / "train.csv", exclude=exclude)
    assert counts(summary) == (8, 2, 6, 0) and summary.removed == 3
    assert [row["path"] for row in rows(folder / "train.csv")] == ["2.mp4", "renamed, really.avi"]
    reasons = {r["path"]: r["reason"] for r in rows(folder / "train.quarantine.csv")}
    same = f"same content as a video of --exclude: {folder}/1.mp4"
    assert reasons[str(folder / "1.mp4")] == reasons[str(folder / "deep/copy.mp4")] == same
    assert "1 of 3 videos of --exclude cannot be read" in str(summary)
    (folder / "elsewhere.csv").write_text("path,source\ngone.mp4,k400\n")
    with pytest.raises(UserError, match="none of the 1 videos of --exclude=.*elsewhere.csv can be"):
        build(folder, folder / "x.csv", exclude=(str(folder / "elsewhere.csv"),))
    text = "path,source,start,end\n0.mp4,a,0.5,1\n0.mp4,a,0.25,1\n2.mp4,a,,\n"
    (folder / "windows.csv").write_text(text)  # only the second window overlaps with 0 to 0.5
    build(folder / "windows.csv", folder / "out.csv", exclude=exclude)
    assert [row["start"] for row in rows(folder / "out.csv")] == ["0.5", ""]


def test_duplicates_over_several_manifests_are_listed_and_removed(folder, tmp_path):
    (tmp_path / "a.csv").write_text(f"path,source\n{folder}/0.mp4,k400\n{folder}/1.mp4,k400\n")
    (tmp_path / "b.csv").write_text(
        f"path,source\n{folder}/deep/copy.mp4,k700\n{folder}/2.mp4,k700\n"
    )
    both = f"{tmp_path}/a.csv,{tmp_path}/b.csv"
    assert counts(build(both, tmp_path / "all.csv")) == (4, 4, 0, 1)
    (copy,) = rows(tmp_path / "all.duplicates.csv")
    assert copy == {"path": f"{folder}/deep/copy.mp4", "same_as": f"{folder}/1.mp4"}
    summary = build(both, tmp_path / "one.csv", remove_duplicates=True)
    assert counts(summary) == (4, 3, 1, 1) and "1 of the quarantined videos are copies" in str(
        summary
    )
    assert [row["source"] for row in rows(tmp_path / "one.csv")] == ["k400", "k400", "k700"]


def test_reencoded_copies_are_excluded_and_listed_by_their_frames(folder, videos):
    for name, crf in (("numbers.mp4", 18), ("again.mp4", 26)):
        options = {"preset": "ultrafast", "crf": str(crf)}
        videos.write(folder / name, frames=50, size=(96, 160), options=options)
    # The copy has other bytes, so that only its frames are the same.
    assert counts(build(folder, folder / "train.csv")) == (10, 7, 3, 1)
    summary = build(folder, folder / "all.csv", perceptual=True)
    (pair,) = rows(folder / "all.similar.csv")
    assert (pair["path"], pair["similar_to"]) == (f"{folder}/numbers.mp4", f"{folder}/again.mp4")
    assert "1 clean videos look like earlier ones" in str(summary)
    (folder / "val.csv").write_text("path,source\nagain.mp4,k400\n")
    options = {"exclude": (str(folder / "val.csv"),), "perceptual": True}
    assert counts(build(folder, folder / "some.csv", **options)) == (10, 5, 5, 1)
    reasons = {r["path"]: r["reason"] for r in rows(folder / "some.quarantine.csv")}
    reason = reasons[f"{folder}/numbers.mp4"]
    assert reason.startswith("looks like a video of --exclude (") and reason.endswith("again.mp4")
